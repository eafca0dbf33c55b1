"""Running sums of evidence for many callers at once, compiled."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True)
def _run(x: Any, first: Any, start: Any, sums: Any, since: Any) -> None:
    for g in range(len(first)):
        end = first[g + 1] if g + 1 < len(first) else len(x)
        for i in range(first[g], end):
            for c in range(x.shape[1]):
                before = start[g, c] if i == first[g] else sums[i - 1, c]
                sums[i, c] = max(before, 0) + x[i, c]
                since[i, c] = i if before <= 0 else -1 if i == first[g] else since[i - 1, c]


def cusum(
    x: NDArray[np.int64], first: NDArray[np.int64], start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """S_t = max(S_{t-1}, 0) + x_t within each segment, and the row from which S has been building (-1: from before).

    x: (rows, bets); first: the row that each segment begins with; start: (segments, bets), the sums before them.

    >>> s, since = cusum(np.array([[3], [-5], [2]]), np.array([0]), np.array([[1]]))
    >>> s.ravel().tolist(), since.ravel().tolist()
    ([4, -1, 2], [-1, -1, 2])
    """
    sums, since = np.empty_like(x), np.empty_like(x)
    _run(np.ascontiguousarray(x), first, np.ascontiguousarray(start), sums, since)
    return sums, since
