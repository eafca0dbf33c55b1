"""How numbers move together, from the sums of products that profiles hold: changes that no single feature shows.

Per pair of numbers a window gives one correlation of normal scores. Its gap to the reference's correlation, squared and
over the variance that such a gap has when nothing changed, is averaged over all pairs of a number: one value per number
that grows when its relations to the others change, about 1 otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors.profile import Bins, Profile
from detectors.stats import Floats

MIN_INNER: Final = 0.01  # variance of a row's contribution where a pair is all but one number
MIN_ROWS: Final = 20  # rows that a correlation needs


@dataclass(frozen=True)
class Relations:
    """The reference's correlations. usual, inner, between (P,) per pair of `Bins.pairs`: correlation, variance of a
    window's correlation times its rows, and variance between windows beyond that.
    """

    bins: Bins
    usual: Floats
    inner: Floats
    between: Floats

    @property
    def names(self) -> tuple[str, ...]:
        """Numbers that have a value (G); none where there is nothing to pair, as in segments."""
        return tuple(self.bins.features[i].name for i in self.bins.crossed) if len(self.usual) else ()

    def gaps(self, profile: Profile, rows: float, *, inside: bool = False) -> Floats:
        """Squared standardised departure of each pair (P,), NaN where a number stood still or rows are too few."""
        rest = max(1, rows - profile.effective) if inside else rows
        gap = correlations(self.bins, profile.n, profile.counts, profile.cross) - self.usual
        scale = rows / rest if inside else 1.0
        n = max(profile.effective, 1)
        return np.asarray((gap * scale) ** 2 / (self.inner * (1 / n + 1 / rest) + self.between), dtype=np.float64)

    def values(self, profile: Profile, rows: float, *, inside: bool) -> Floats:
        """Mean departure over each number's pairs (G,), NaN where it has none. `inside`: see Layout.values."""
        if not self.names:
            return np.empty(0)
        gap = self.gaps(profile, rows, inside=inside)
        known, g = np.isfinite(gap), len(self.names)
        total, size = np.zeros(g), np.zeros(g)
        for side in self.bins.pairs:
            total += np.bincount(side, weights=np.where(known, gap, 0.0), minlength=g)
            size += np.bincount(side, weights=known, minlength=g)
        return np.where(size > 0, total / np.maximum(size, 1), np.nan)

    def even(self, values: Floats, inverse_n: Floats, old: Floats, old_inverse_n: Floats) -> Floats:
        """Values of windows of any size on one scale: over 1 + what windows vary beyond their rows, cube root.

        That part, which grows with a window's rows, is read off the history `old` (0 where windows vary as rows do).
        """
        known = np.isfinite(old)
        rows = np.where(known, 1 / np.maximum(old_inverse_n, 1e-12)[:, None], 0.0).sum(axis=0)
        extra = np.maximum(np.where(known, old - 1, 0.0).sum(axis=0), 0.0) / np.maximum(rows, 1.0)
        return np.asarray(np.cbrt(values / (1 + extra / inverse_n[:, None])), dtype=np.float64)


def relate(bins: Bins, counts: NDArray[np.int64], cross: NDArray[np.int64], between: Floats) -> Relations:
    """The relations in a reference's counts and products; a pair that it cannot show counts as unrelated."""
    n = int(counts[: bins.offsets[1]].sum()) if len(bins.features) else 0
    usual = np.nan_to_num(correlations(bins, n, counts, cross))
    return Relations(bins, usual, np.maximum((1 - usual**2) ** 2, MIN_INNER), between)


def between(relations: Relations, profiles: list[Profile]) -> Floats:
    """Variance of each pair's correlation between windows beyond what their rows explain (P,), at least 0."""
    if not profiles or not relations.names:
        return np.zeros(len(relations.usual))
    found = np.array([correlations(relations.bins, p.n, p.counts, p.cross) for p in profiles]) - relations.usual
    excess = found**2 - relations.inner / np.array([p.effective for p in profiles])[:, None]
    known = np.isfinite(excess)
    return np.asarray(np.maximum(np.where(known, excess, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), 0.0))


def correlations(bins: Bins, n: int, counts: NDArray[np.int64], cross: NDArray[np.int64]) -> Floats:
    """Correlation of normal scores of every pair (P,); a missing value stands in the middle. NaN where there is none.

    >>> import pyarrow as pa
    >>> x = np.random.default_rng(1).normal(size=500)
    >>> t = pa.table({"feature:a": x, "feature:b": -x}); b = Bins.fit(t, ["a", "b"], []); p = b.count(t)
    >>> correlations(b, p.n, p.counts, p.cross).round(2).tolist()
    [-1.0]
    """
    if n < MIN_ROWS or not len(cross):
        return np.full(len(cross), np.nan)
    starts = bins.offsets[:-1]
    mean = np.add.reduceat(counts * bins.levels, starts)[list(bins.crossed)] / n
    variance = np.add.reduceat(counts * bins.levels**2, starts)[list(bins.crossed)] / n - mean**2
    left, right = bins.pairs
    below = np.sqrt(variance[left] * variance[right])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below > 1e-9, (cross / n - mean[left] * mean[right]) / below, np.nan))
