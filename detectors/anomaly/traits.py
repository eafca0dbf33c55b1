"""What a strange query is like among its sender's others: how it comes from an earlier one, and what is wrong with it.

The traits of detectors.base.TRAITS, read off what detectors.search and detectors.kin met. They ask how queries hang together,
not what the model answered, so that they mean the same for other data and other models.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import TRAITS, UNTOLD
from detectors.search import FEW, Met

STEPS: Final = (0.2, 0.5, 0.8, 0.93)  # of the bits of a repeat: from no step at all to a tiny one
PARTS: Final = (0.35, 0.7)  # of the fields differ
SIBLINGS: Final = (1, 3, 8)
CLEAN: Final = (1, 2, 12)
BROKEN: Final = (1, 2, 4)
IDLE: Final = (2, 10, 30)


def traits(
    met: Met,
    broken: NDArray[np.int64],
    edge: NDArray[np.bool_],
    flag: NDArray[np.bool_],
    repeat_bits: float,
    features: int,
) -> NDArray[np.uint8]:
    """(rows, TRAITS): the level of each trait; UNTOLD for rows that are not flagged or that detectors.kin did not look at.

    broken: rules that each row breaks; edge: the model was unsure; repeat_bits: what a repeat of an honest row says.
    """
    out = np.full((len(flag), len(TRAITS)), UNTOLD, np.uint8)
    at = np.flatnonzero(flag & met.strange)
    changed = met.changed[at]
    levels = {
        "kept": _level(met.kept[at], np.array(STEPS) * repeat_bits),
        "fields": np.where(changed <= FEW, 0, 1 + _level(changed, np.array(PARTS) * features)),
        "line": met.line[at],
        "siblings": _level(met.siblings[at], SIBLINGS),
        "parent": met.parent[at],
        "clean": _level(met.clean[at], CLEAN),
        "broken": _level(broken[at], BROKEN),
        "idle": _level(met.idle[at], IDLE),
        "edge": edge[at],
    }
    out[at] = np.stack([levels[name] for name in TRAITS], axis=1)
    return out


def _level(x: NDArray[np.generic], bounds: NDArray[np.float64] | tuple[int, ...]) -> NDArray[np.int64]:
    """How many of the bounds each value reaches."""
    return np.searchsorted(np.asarray(bounds), x, side="right")
