"""Rows as fine codes, a byte per field: a number is the nearest of up to 256 points, a category one of the frequent ones.

Points are quantiles of the reference, closer to each other in the tails: a rare answer often hangs on extreme values, which
coarse quantiles put together. A cut halfway between two codes lies about halfway between two values, where a tree that
sees the values would cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.signals import Codes, Encoder, Frame, bin_of, place
from detectors.stats import Floats

CODES: Final = 256
EVEN: Final = 190  # quantiles at equal distances,
TAIL: Final = 24  # and on either side, at growing ones, from a single row
CROSSING: Final = 1 / 64  # to this share


@dataclass(frozen=True)
class Fine:
    """points (numeric, CODES), in order, padded with inf; middle: the code of a missing number; words: kept categories."""

    points: Floats
    middle: NDArray[np.uint8]
    words: tuple[tuple[str, ...], ...]

    @classmethod
    def fit(cls, frame: Frame) -> Fine:
        """Points of each number, its median for missing ones, the most frequent categories."""
        points = np.full((len(frame.numeric), CODES), np.inf)
        middle = np.zeros(len(frame.numeric), np.uint8)
        for j, x in enumerate(frame.numbers.T):
            known = x[np.isfinite(x)]
            if len(known):
                own = _points(known)
                points[j, : len(own)] = own
                middle[j] = np.abs(own - np.median(known)).argmin()
        return cls(points, middle, Encoder.fit(frame).words)

    def codes(self, frame: Frame) -> Codes:
        """(n, features); numbers that are missing or infinite get the code of the middle."""
        out = np.empty((frame.n, len(frame.numeric) + len(frame.categorical)), dtype=np.uint8)
        _nearest(frame.numbers, self._edges, self.middle, out)
        for j, vocabulary in enumerate(frame.vocabulary):
            out[:, len(frame.numeric) + j] = place(self.words[j], vocabulary)[frame.words[:, j]]
        return out

    @cached_property
    def _edges(self) -> Floats:
        """Halfway between points; inf from the last point on."""
        with np.errstate(invalid="ignore"):
            edges = self.points[:, :-1] + (self.points[:, 1:] - self.points[:, :-1]) / 2
        return np.where(np.isnan(edges), np.inf, edges)


def _points(known: Floats) -> Floats:
    values = np.unique(known)
    if len(values) <= CODES:
        return values
    tail = np.geomspace(min(1 / len(known), CROSSING), CROSSING, TAIL)
    return np.unique(np.quantile(known, [0, *tail, *np.linspace(CROSSING, 1 - CROSSING, EVEN), *(1 - tail), 1]))


@numba.njit(cache=True)
def _nearest(numbers: Any, edges: Any, middle: Any, out: Any) -> None:
    """The nearest point of each number; of one that is missing, the middle."""
    for j in range(numbers.shape[1]):
        for i in range(numbers.shape[0]):
            out[i, j] = bin_of(numbers[i, j], edges[j]) if np.isfinite(numbers[i, j]) else middle[j]
