"""Running sums of evidence for many callers at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cusum(
    x: NDArray[np.int64], first: NDArray[np.int64], segment: NDArray[np.int64], start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """S_t = max(S_{t-1}, 0) + x_t within each segment, and the row from which S has been building (-1: from before).

    >>> s, since = cusum(np.array([[3], [-5], [2]]), np.array([0]), np.array([0, 0, 0]), np.array([[1]]))
    >>> s.ravel().tolist(), since.ravel().tolist()
    ([4, -1, 2], [-1, -1, 2])
    """
    total = np.cumsum(x, axis=0)
    base = (total - x)[first][segment]  # the sum before each segment
    held = np.maximum(start, 0)[segment]
    path = total - base + held  # as if never reset
    before = path - x
    # The lowest point at or before t, segment by segment: segments are pushed apart so that one pass does for all.
    apart = np.int64(4) * (np.abs(path).max(initial=0) + np.abs(before).max(initial=0) + 1)
    drop = segment[:, None] * apart
    low = np.minimum.accumulate(before - drop, axis=0) + drop
    sums = path - np.minimum(low, 0)
    index = np.arange(len(x))[:, None]
    resets = (before <= 0) & (before == low)  # the sum stood at or below zero just before this row
    since = np.maximum.accumulate(np.where(resets, index, -1), axis=0)
    since = np.where(since >= first[segment][:, None], since, -1)
    return sums, since
