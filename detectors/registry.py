"""Every detector there is, by name. Adding one: its file, its line here, its row in tests/contract/test_detectors.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from detectors.abuse.surges import Abuse
from detectors.access.novelty import Access
from detectors.anomaly.canaries import Canaries
from detectors.anomaly.mmd import WindowMMD
from detectors.anomaly.queries import Queries
from detectors.anomaly.volume import Volume
from detectors.drift.marginals import Marginals
from detectors.extraction.exposure import Exposure
from detectors.membership.variations import Membership
from detectors.performance.fairness import Fairness
from detectors.performance.labelled import Performance
from detectors.poisoning.feedback import LabelFlips
from detectors.poisoning.scores import CanaryScores
from detectors.quality.freshness import Freshness
from detectors.quality.missing import Missing
from detectors.quality.rules import Rules

REGISTRY: Final[Mapping[str, type[Any]]] = {
    Abuse.name: Abuse,
    Access.name: Access,
    Canaries.name: Canaries,
    CanaryScores.name: CanaryScores,
    Exposure.name: Exposure,
    Fairness.name: Fairness,
    Freshness.name: Freshness,
    LabelFlips.name: LabelFlips,
    Marginals.name: Marginals,
    Membership.name: Membership,
    Missing.name: Missing,
    Performance.name: Performance,
    Queries.name: Queries,
    Rules.name: Rules,
    Volume.name: Volume,
    WindowMMD.name: WindowMMD,
}

DEFAULTS: Final[tuple[str, ...]] = tuple(REGISTRY)
"""Detectors that a model gets without naming any; one that a reference or configuration gives nothing to work on refuses."""
