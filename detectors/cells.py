"""Which share of the input space a caller has covered, beside honest callers with as many rows.

Two fields at a time, each cut into a few steps of equal width between its usual extremes: every pair of steps is a cell.
Rows that are drawn field by field, or chosen to lie far from each other, reach combinations that real rows do not have,
and reach them early; small changes of one row reach few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.base import Arrays
from detectors.signals import CODES, Codes
from detectors.stats import Floats

STEPS: Final = 8  # of a field; of a category the most frequent, and the rest together
PAIRS: Final = 32  # of fields, drawn once
SIZES: Final = (64, 128, 256, 512)  # rows for which the usual share is known
STRETCHES: Final = 100  # of the reference in order, per size
RANGE: Final = (5.0, 50.0, 95.0)  # percentiles
PARTS: Final = ("step", "pair", "usual_share")


@dataclass(frozen=True)
class Cells:
    """Plain arrays. step (fields, CODES): the step of each code; pair (PAIRS, 2): fields; usual_share (SIZES, 3):
    percentiles of the share of cells that so many reference rows in a row reach, nan where it has too few rows.
    """

    step: NDArray[np.uint8]
    pair: NDArray[np.int64]
    usual_share: Floats

    @classmethod
    def learn(cls, codes: Codes, edges: Floats, rng: np.random.Generator) -> Cells:
        """From distinct reference rows in the order in which they came; edges: of the first fields, the numbers."""
        step = np.tile(np.minimum(np.arange(CODES), STEPS - 1), (codes.shape[1], 1)).astype(np.uint8)
        for j, own in enumerate(edges):
            step[j] = _widths(own[np.isfinite(own)])
        several = [j for j in range(codes.shape[1]) if len(np.unique(step[j][codes[:, j]])) > 1]
        pairs = [(a, b) for i, a in enumerate(several) for b in several[i + 1 :]]
        drawn = np.array([pairs[i] for i in rng.permutation(len(pairs))[:PAIRS]], np.int64).reshape(-1, 2)
        found = cls(step, drawn, np.zeros((0, len(RANGE))))
        return cls(step, drawn, np.array([found._usual(codes, n, rng) for n in SIZES]))

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

    def odd(self, reached: float | None, n: int) -> bool:
        """Whether n rows cover more or less than honest ones do: half the width of the usual range beyond it, or unknown."""
        usual = self.usual(n)
        if reached is None or usual is None:
            return True
        margin = (usual[2] - usual[0]) / 2
        return not usual[0] - margin <= reached <= usual[2] + margin

    def usual(self, n: int) -> list[float] | None:
        """5 %, 50 % and 95 % of what n honest rows reach, n from SIZES[0] to SIZES[-1]; None where nobody knows."""
        found = [float(np.interp(np.log(n), np.log(SIZES), column)) for column in self.usual_share.T]
        return None if np.isnan(found).any() else found

    def _usual(self, codes: Codes, n: int, rng: np.random.Generator) -> Floats:
        if len(codes) < 2 * n or not len(self.pair):
            return np.full(len(RANGE), np.nan)
        starts = rng.integers(0, len(codes) - n + 1, size=STRETCHES).tolist()
        return np.asarray(np.percentile([_reached(codes[s : s + n], self.step, self.pair) for s in starts], RANGE))


def _widths(edges: Floats) -> NDArray[np.uint8]:
    """The step of each code of a number: codes of few values each their own, those of many by width."""
    if len(edges) < STEPS:
        step = np.arange(len(edges) + 1)
    else:
        width = max(float(edges[-1] - edges[0]), 1e-300)
        step = np.minimum((np.concatenate([edges[:1], edges]) - edges[0]) / width * STEPS, STEPS - 1).astype(int)
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
