"""Ranges that parameters of clients are drawn from, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

Ranges = Mapping[str, tuple[float, float]]

RANGES: Final[Ranges] = {
    "sweep_fields": (1, 2),
    "sweep_values": (5, 40),
    "grid_fields": (2, 3),
    "neighbours": (200, 200),
    "resent": (0.2, 0.2),
    "jitter": (0.02, 0.02),
    "missing": (0.3, 0.3),
    "drift": (0.3, 0.3),
    "cents": (1.0, 1.0),
    "load_rows": (3, 12),
}


def whole(ranges: Ranges, name: str, rng: np.random.Generator) -> int:
    """A whole number of the range, ends included."""
    low, high = ranges[name]
    return int(rng.integers(int(low), int(high) + 1))


def share(ranges: Ranges, name: str, rng: np.random.Generator) -> float:
    """A number of the range."""
    low, high = ranges[name]
    return float(low + (high - low) * rng.random())
