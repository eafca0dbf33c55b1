"""Which share of the input space a caller has covered, beside honest callers with as many rows.

Two fields at a time, each cut into a few steps of equal width between its usual extremes: every pair of steps is a cell.
Rows that are drawn field by field, or chosen to lie far from each other, reach combinations that real rows do not have,
and reach them early; small changes of one row reach few. Combinations of four fields tell the latter from honest rows
earlier, when all pairs have long been reached: how many different ones rows bring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.base import Arrays
from detectors.fine import CODES
from detectors.signals import LEVELS, Codes
from detectors.stats import Floats

STEPS: Final = 8  # of a field; of a category the most frequent, and the rest together
PAIRS: Final = 32  # of fields, drawn once
SIZES: Final = (64, 128, 256, 512)  # rows for which the usual share is known
FOUR: Final = 4  # fields of a combination
FAR: Final = 4.0  # standard deviations of the number of combinations that are odd
STRETCHES: Final = 100  # of the reference in order, per size
RANGE: Final = (5.0, 50.0, 95.0)  # percentiles
PARTS: Final = ("step", "pair", "usual_share", "four", "usual_fours")


@dataclass(frozen=True)
class Cells:
    """Plain arrays. step (fields, CODES): the step of each code; pair (PAIRS, 2): fields; usual_share (SIZES, 3):
    percentiles of the share of cells that so many reference rows in a row reach, nan where it has too few rows. four
    (PAIRS, FOUR): fields of combinations; usual_fours (SIZES, 2): how many different ones as many reference rows have, by
    rows: mean and standard deviation.
    """

    step: NDArray[np.uint8]
    pair: NDArray[np.int64]
    usual_share: Floats
    four: NDArray[np.int64]
    usual_fours: Floats

    @classmethod
    def learn(cls, codes: Codes, points: Floats, rng: np.random.Generator) -> Cells:
        """From distinct reference rows in the order in which they came; points: of the first fields, the numbers."""
        step = np.tile(np.minimum(np.arange(CODES), STEPS - 1), (codes.shape[1], 1)).astype(np.uint8)
        for j, own in enumerate(points):
            step[j] = _widths(own[np.isfinite(own)], codes[:, j])
        several = [j for j in range(codes.shape[1]) if len(np.unique(step[j][codes[:, j]])) > 1]
        pairs = [(a, b) for i, a in enumerate(several) for b in several[i + 1 :]]
        drawn = np.array([pairs[i] for i in rng.permutation(len(pairs))[:PAIRS]], np.int64).reshape(-1, 2)
        fours = np.array([rng.permutation(several)[np.arange(FOUR) % max(1, len(several))] for _ in drawn], np.int64)
        found = cls(step, drawn, np.zeros((0, len(RANGE))), fours.reshape(-1, FOUR), np.zeros((0, 2)))
        usual = [found._usual(codes, n, rng) for n in SIZES]
        return replace(
            found, usual_share=np.array([u[:-2] for u in usual]), usual_fours=np.array([u[-2:] for u in usual])
        )

    @classmethod
    def unpack(cls, arrays: Arrays) -> Cells:
        """From the arrays of a calibration."""
        return cls(**{name: np.asarray(arrays[name]) for name in PARTS})

    def pack(self) -> Mapping[str, NDArray[Any]]:
        """As arrays of a calibration."""
        return {name: getattr(self, name) for name in PARTS}

    def reached(self, codes: Codes) -> float | None:
        """Share of the cells that these rows reach; None where no two fields vary."""
        return float(_reached(codes, self.step, self.pair)) if len(self.pair) else None

    def odd(self, reached: float | None, codes: Codes) -> bool:
        """Whether rows cover more or less than honest ones do: half the width of the usual range beyond it, or unknown.

        Or whether they have more or fewer combinations of four fields, by FAR standard deviations.
        """
        n = len(codes)
        usual = self.usual(n)
        if reached is None or usual is None:
            return True
        margin = (usual[2] - usual[0]) / 2
        if not usual[0] - margin <= reached <= usual[2] + margin:
            return True
        mean, spread = self._between(n)[len(RANGE) :]
        return abs(_fours(codes, self.step, self.four) - mean) > FAR * max(spread, 1 / n)

    def usual(self, n: int) -> list[float] | None:
        """5 %, 50 % and 95 % of what n honest rows reach, n from SIZES[0] to SIZES[-1]; None where nobody knows."""
        found = self._between(n)[: len(RANGE)]
        return None if any(np.isnan(found)) else found

    def _between(self, n: int) -> list[float]:
        """What is usual, between the SIZES."""
        if n not in self._kept:
            both = np.concatenate([self.usual_share, self.usual_fours], axis=1)
            self._kept[n] = [float(np.interp(np.log(n), np.log(SIZES), column)) for column in both.T]
        return self._kept[n]

    @cached_property
    def _kept(self) -> dict[int, list[float]]:
        return {}

    def _usual(self, codes: Codes, n: int, rng: np.random.Generator) -> list[float]:
        """Percentiles of the share of cells, mean and standard deviation of combinations."""
        if len(codes) < 2 * n or not len(self.pair):
            return [np.nan] * (len(RANGE) + 2)
        starts = rng.integers(0, len(codes) - n + 1, size=STRETCHES).tolist()
        share = np.percentile([_reached(codes[s : s + n], self.step, self.pair) for s in starts], RANGE)
        fours = [_fours(codes[s : s + n], self.step, self.four) for s in starts]
        return [*share.tolist(), float(np.mean(fours)), float(np.std(fours))]


def _widths(points: Floats, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The step of each code of a number: codes of few values each their own, those of many by width."""
    if len(points) <= STEPS:
        step = np.arange(max(1, len(points)))
    else:
        low, high = points[1], points[-1]
        if len(points) > LEVELS:
            low, high = np.quantile(points[codes], [1 / LEVELS, 1 - 1 / LEVELS])
        width = max(float(high - low), 1e-300)
        step = np.clip((points - low) / width * STEPS, 0, STEPS - 1).astype(int)
    return np.pad(step, (0, CODES - len(step)), mode="edge").astype(np.uint8)


@numba.njit(cache=True)
def _reached(codes: Any, step: Any, pair: Any) -> float:
    """Cells with a row, by all cells there are."""
    found, cells = 0, 0
    for k in range(len(pair)):
        a, b = pair[k]
        seen = np.zeros((STEPS, STEPS), np.bool_)
        for i in range(len(codes)):
            seen[step[a, codes[i, a]], step[b, codes[i, b]]] = True
        found += seen.sum()
        cells += (step[a].max() + 1) * (step[b].max() + 1)
    return float(found / cells)


@numba.njit(cache=True)
def _fours(codes: Any, step: Any, four: Any) -> float:
    """Different combinations of steps, by rows, on average."""
    n, found = len(codes), 0
    own = np.empty((len(step), n), np.int64)
    for j in range(len(step)):
        for i in range(n):
            own[j, i] = step[j, codes[i, j]]
    seen = np.full(STEPS**FOUR, -1, np.int64)
    for k in range(len(four)):
        a, b, c, d = own[four[k, 0]], own[four[k, 1]], own[four[k, 2]], own[four[k, 3]]
        for i in range(n):
            at = ((a[i] * STEPS + b[i]) * STEPS + c[i]) * STEPS + d[i]
            found += seen[at] != k
            seen[at] = k
    return found / (len(four) * n)
