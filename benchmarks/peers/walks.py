"""river's ADWIN and PageHinkley as compiled loops, so that thousands of windows can be walked at many settings.

Both start anew after an alarm, as river's do. With a `limit` they alarm where river's detector alarms at that setting
(`setting` translates), which __main__ asserts against river itself; with none they never start anew and tell, window by
window, the strictest setting at which they would have alarmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

ROWS: Final = 1000
CLOCK, GRACE, SHORTEST, BUCKETS, LEVELS = 32, 10, 5, 5, 40  # river's defaults of ADWIN; 2 ** 40 values fit
DRIFT, KEEP, YOUNG = 0.005, 1 - 0.0001, 30  # river's defaults of PageHinkley: delta, alpha, min_instances
Walk: TypeAlias = Callable[[NDArray[np.float64], int, float], NDArray[np.float64]]
Setting: TypeAlias = Callable[[float], float]


@numba.njit(cache=True)
def adwin(values: Any, first: int, limit: float) -> Any:
    """Per window of ROWS from values[first] on the largest score: -log of the delta at which a cut would just be made."""
    score = np.zeros((len(values) - first) // ROWS)
    totals, filled = np.zeros((LEVELS, BUCKETS + 1)), np.zeros(LEVELS, np.int64)
    total = spread = width = 0.0
    for i, x in enumerate(values):
        if math.isnan(x):
            continue
        if width > 0.0:
            away = x - total / width
            spread += width * away * away / (width + 1.0)
        width += 1.0
        total += x
        totals[0, filled[0]] = x
        filled[0] += 1
        level = 0
        while filled[level] > BUCKETS:  # the two oldest of a level become one of the next
            totals[level + 1, filled[level + 1]] = totals[level, 0] + totals[level, 1]
            filled[level + 1] += 1
            totals[level, : BUCKETS - 1] = totals[level, 2 : BUCKETS + 1].copy()
            filled[level] -= 2
            level += 1
        if width % CLOCK or width <= GRACE:
            continue
        strictest, n0, u0 = 0.0, 0.0, 0.0
        usual = math.log(2.0 * math.log(width))
        for level in range(LEVELS - 1, -1, -1):
            for k in range(filled[level]):
                n0 += 2.0**level
                u0 += totals[level, k]
                n1 = width - n0
                if n0 < SHORTEST or n1 < SHORTEST:
                    continue
                away = abs(u0 / n0 - (total - u0) / n1)
                m = 1.0 / (n0 - SHORTEST + 1.0) + 1.0 / (n1 - SHORTEST + 1.0)
                a, b = 2.0 / 3.0 * m, math.sqrt(2.0 * m * spread / width)
                root = (math.sqrt(b * b + 4.0 * a * away) - b) / (2.0 * a)
                strictest = max(strictest, root * root - usual)
        if i >= first and strictest > score[(i - first) // ROWS]:
            score[(i - first) // ROWS] = strictest
        if strictest > limit:
            filled[:] = 0
            total = spread = width = 0.0
    return score


@numba.njit(cache=True)
def page_hinkley(values: Any, first: int, limit: float) -> Any:
    """Per window of ROWS from values[first] on the largest of what PageHinkley compares with its threshold."""
    score = np.zeros((len(values) - first) // ROWS)
    n = mean = up = down = 0.0
    lowest, highest = np.inf, -1.0
    for i, x in enumerate(values):
        if math.isnan(x):
            continue
        n += 1.0
        mean += (1.0 / n) * (x - mean)
        up = KEEP * up + (x - mean) - DRIFT
        down = KEEP * down + (x - mean) + DRIFT
        lowest, highest = min(lowest, up), max(highest, down)
        if n < YOUNG:
            continue
        found = max(up - lowest, highest - down)
        if i >= first and found > score[(i - first) // ROWS]:
            score[(i - first) // ROWS] = found
        if found > limit:
            n = mean = up = down = 0.0
            lowest, highest = np.inf, -1.0
    return score


WALKS: Final[
    dict[str, tuple[Walk, Setting, float]]
] = {  # with river's parameter for a limit, and the limit of its default
    "adwin": (adwin, lambda limit: math.exp(-limit), -math.log(0.002)),
    "page_hinkley": (page_hinkley, float, 50.0),
}


def reachable(name: str, limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Limits as river can have them: a delta below the smallest number is 0, at which nothing ever alarms.

    >>> reachable("adwin", np.array([6.2, 800.0]))
    array([6.2, inf])
    """
    setting = WALKS[name][1]
    return np.array([limit if setting(limit) > 0 else np.inf for limit in limits.tolist()])
