"""Changes of the data itself, applied to rows (n, d); each returns a changed copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator


def _place(victim: Victim, feature: str) -> int:
    return [c.name for c in victim.columns].index(feature)


def mean_shift(victim: Victim, rows: Matrix, feature: str, size: float, rng: Rng) -> Matrix:
    """A number moves by `size` standard deviations of the pool; whole numbers stay whole."""
    j = _place(victim, feature)
    out = rows.copy()
    out[:, j] += size * np.nanstd(victim.pool[:, j])
    if victim.columns[j].integer:
        out[:, j] = np.round(out[:, j])
    return out


def mix_change(victim: Victim, rows: Matrix, feature: str, size: float, rng: Rng) -> Matrix:
    """The second most frequent category gains `size` (0.1 = ten points): other rows are replaced by real rows of it.

    Whole rows are exchanged, so everything that goes with the category moves too, as it would.
    """
    j = _place(victim, feature)
    codes, counts = np.unique(victim.pool[~np.isnan(victim.pool[:, j]), j], return_counts=True)
    code = codes[np.argsort(counts)[-2 if len(codes) > 1 else -1]]
    chosen = np.flatnonzero(victim.pool[:, j] == code)
    out = rows.copy()
    rest = np.flatnonzero(rows[:, j] != code)
    take = rest[rng.random(len(rest)) < size * len(rows) / max(1, len(rest))]
    out[take] = victim.pool[rng.choice(chosen, len(take))]
    return out


def missing(victim: Victim, rows: Matrix, feature: str, size: float, rng: Rng) -> Matrix:
    """A share `size` of the feature's values gets lost."""
    out = rows.copy()
    out[rng.random(len(rows)) < size, _place(victim, feature)] = np.nan
    return out


def unit_change(victim: Victim, rows: Matrix, feature: str, size: float, rng: Rng) -> Matrix:
    """The feature comes in another unit: times `size` (2.54: inches as centimetres); size 0 means Fahrenheit as Celsius."""
    j = _place(victim, feature)
    out = rows.copy()
    out[:, j] = np.round((out[:, j] - 32) / 1.8, 2) if size == 0 else out[:, j] * size
    return out


DRIFTS: Final[dict[str, Callable[[Victim, Matrix, str, float, Rng], Matrix]]] = {
    "mean_shift": mean_shift,
    "mix_change": mix_change,
    "missing": missing,
    "unit_change": unit_change,
}
