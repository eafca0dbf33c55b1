"""Whether somebody climbs a score: small steps, each kept where it raised the model's answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEAST: Final = 20  # steps that a judgement needs
HIGH: Final = 5.0  # standard deviations of records from which on scores climb
STEPS: Final = frozenset({"near", "crowd", "cross", "shared"})  # signals of the query detector that mean a small step


@dataclass(frozen=True, slots=True)
class Climb:
    """Of so many small steps, those that set a new highest score of class number `of`, counted from 0 (None: there is one
    score; falls: the new lowest), and how many would if their order meant nothing.
    """

    of: int | None
    falls: bool
    steps: int
    records: int
    expected: float
    z: float

    @property
    def climbs(self) -> bool:
        """Whether the order of the steps means something."""
        return self.z >= HIGH


def climb(scores: Sequence[Sequence[float | None] | None], steps: NDArray[np.bool_]) -> Climb | None:
    """The class whose score climbs most among the rows that are small steps; None with fewer than LEAST of them.

    If the order of n different scores means nothing, the k-th sets a record with probability 1/k, independent of the others
    (Renyi 1962). So records have mean H = sum 1/k and variance H - sum 1/k^2. Whoever sweeps a field through rising values
    climbs as well, more than an inversion does: by itself it accuses nobody, and no alarm comes of it (docs/attacks.md).

    >>> up = [[1 - k / 50, k / 50] for k in range(40)]
    >>> found = climb(up, np.ones(40, bool)); found.of, found.records, round(found.expected, 1), found.climbs
    (1, 40, 4.3, True)
    >>> climb([[0.3, 0.7]] * 40, np.ones(40, bool)).climbs, climb(up[:10], np.ones(10, bool))
    (False, None)
    >>> climb([[1 - k / 50] for k in range(40)], np.ones(40, bool)).falls, climb([*up, [0, 0, 1]], np.ones(41, bool)).steps
    (True, 40)
    """
    some = [s for s, step in zip(scores, steps.tolist(), strict=True) if step and s]
    width = Counter(map(len, some)).most_common(1)[0][0] if some else 0  # lists of the best few are no scores of all
    whole = [s for s in some if len(s) == width and None not in s]
    known = np.array(whole, dtype=np.float64).reshape(len(whole), width)
    known = known[np.isfinite(known).all(axis=1)]
    if width == 1:
        known = np.column_stack([known, -known])
    n = len(known)
    if n < LEAST:
        return None
    records = 1 + (known[1:] > np.maximum.accumulate(known, axis=0)[:-1]).sum(axis=0)
    k = np.arange(1, n + 1)
    expected, variance = float((1 / k).sum()), float((1 / k - 1 / k**2).sum())
    best = int(np.argmax(records))
    one = width == 1
    return Climb(
        None if one else best,
        one and best == 1,
        n,
        int(records[best]),
        expected,
        float((records[best] - expected) / np.sqrt(variance)),
    )
