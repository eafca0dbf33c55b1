"""The two deciders: budget() for the windows of a model, fuse() for its principals. Pure; see docs/detectors.md."""

from detectors.decide.budget import LANES, BudgetSettings, budget, kept
from detectors.decide.fuse import FuseSettings, fuse
from detectors.decide.made import Decided, fixed

__all__ = ["LANES", "BudgetSettings", "Decided", "FuseSettings", "budget", "fixed", "fuse", "kept"]
