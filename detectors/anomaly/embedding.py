"""Rows as points in which means tell distributions apart: random Fourier features, and their means per caller.

A row becomes DIMENSIONS cosines and sines of random projections of its coded values. The squared distance between two
means of such points estimates the squared maximum mean discrepancy (MMD) of the rows behind them under a Gaussian
kernel, in time and memory that do not grow with the rows.

Reference: Rahimi and Recht 2007 (random features); Gretton et al. 2012 (MMD).
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detectors.signals import CODES, LEVELS, Codes

FREQUENCIES: Final = 24  # projections; each gives a cosine and a sine
DIMENSIONS: Final = 2 * FREQUENCIES
WIDTHS: Final = (0.5, 1.0, 2.0)  # of the kernel, in median distances of the reference
SEEN_BITS: Final = 2_048  # of a filter that drops most repeats within a window
SEEN_WORDS: Final = SEEN_BITS // 64


def projections(codes: Codes, numeric: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """What each code of each feature adds to each projection: (features, CODES, FREQUENCIES).

    Numbers count by the normal score of their quantile bin, categories as points of their own as far apart as two random
    numbers are, unknown and missing values as further categories.
    """
    features = codes.shape[1]
    score = ndtri((np.arange(LEVELS) + 0.5) / LEVELS)
    table = np.zeros((features, CODES, FREQUENCIES))
    for f in range(features):
        table[f] = rng.normal(size=(CODES, FREQUENCIES))
        if f < numeric:
            table[f, :LEVELS] = score[:, None] * rng.normal(size=FREQUENCIES)
    a, b = codes[rng.integers(len(codes), size=500)], codes[rng.integers(len(codes), size=500)]
    apart = np.zeros(500)
    for f in range(features):
        if f < numeric:
            known = (a[:, f] < LEVELS) & (b[:, f] < LEVELS)
            gap = score[np.minimum(a[:, f], LEVELS - 1)] - score[np.minimum(b[:, f], LEVELS - 1)]
            apart += np.where(known, gap**2, 2.0 * (a[:, f] != b[:, f]))
        else:
            apart += 2.0 * (a[:, f] != b[:, f])
    median = max(float(np.sqrt(np.median(apart))), 1.0)
    width = np.array(WIDTHS)[np.arange(FREQUENCIES) % len(WIDTHS)]
    return np.asarray(table / (median * width), np.float32)


@numba.njit(cache=True)
def add(
    codes: Any, hashes: Any, place: Any, table: Any, seen: Any, sums: Any, levels: Any, count: Any, crowd: Any
) -> None:
    """Add rows to the open windows of their callers, repeats left out as far as the filter knows them, and to the crowd's.

    place: the caller of each row; seen (callers, SEEN_WORDS), sums (callers, DIMENSIONS), levels (callers, numbers), count
    (callers), crowd (DIMENSIONS + 1, the last one their number): changed in place.
    """
    frequencies = table.shape[2]
    projected = np.zeros(frequencies, np.float32)
    norm = np.float32(1 / np.sqrt(frequencies))
    for i in range(len(codes)):
        p = place[i]
        bit = hashes[i] % np.uint64(SEEN_BITS)
        word, mask = int(bit // np.uint64(64)), np.uint64(1) << (bit % np.uint64(64))
        if seen[p, word] & mask:
            continue
        seen[p, word] |= mask
        count[p] += 1
        projected[:] = 0
        for f in range(codes.shape[1]):
            for d in range(frequencies):
                projected[d] += table[f, codes[i, f], d]
        for d in range(frequencies):
            x, y = norm * np.cos(projected[d]), norm * np.sin(projected[d])
            sums[p, d] += x
            sums[p, frequencies + d] += y
            crowd[d] += x
            crowd[frequencies + d] += y
        crowd[2 * frequencies] += 1
        for f in range(levels.shape[1]):
            if codes[i, f] < LEVELS:
                levels[p, f] += (codes[i, f] + 0.5) / LEVELS - 0.5


def by_chance(mean: NDArray[Any], n: NDArray[Any]) -> NDArray[np.float64]:
    """Mean squared distance of the mean of n points to what it estimates, (windows,).

    >>> by_chance(np.zeros((1, DIMENSIONS)), np.array([11.0])).tolist()
    [0.1]
    """
    return np.asarray((1 - (np.asarray(mean, np.float64) ** 2).sum(axis=1)) / np.maximum(n - 1, 1))
