"""A small random forest on rows of codes, compiled: trained and asked in one go, in about a millisecond.

It is the forest that a thief would train (bootstrap, Gini, the square root of the columns tried at each node, leaves of two
rows or more, leaf probabilities averaged): numbers as columns of their own, one column per category. Rows asked sink
through a tree while it grows, so that no tree is ever stored.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from detectors.fine import CODES
from detectors.hashing import mix

LEAST: Final = 2  # rows of a leaf, at least
FEW: Final = 24  # rows up to which they are sorted by insertion
STEP: Final = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True)
def votes(
    rows: Any, label: Any, field: Any, value: Any, asked: Any, classes: int, trees: int, seed: int
) -> Any:  # fmt: skip
    """Class probabilities, times `trees`, that the forest gives to the rows asked, (asked, classes).

    rows, asked: (fields, rows) codes. field, value: per column its field, and the category that it is about or -1 for a
    number. The same rows in the same order with the same seed give the same forest.
    """
    n, most = rows.shape[1], asked.shape[1]
    out = np.zeros((most, classes), np.float32)
    state, columns = np.full(1, seed, np.uint64), np.arange(len(field))
    weight, row, ask = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(most, np.int64)
    spare, total, left = np.empty(max(n, most) + 1, np.int64), np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    stack, start = np.empty((2 * n + 2, 4), np.int64), np.empty(CODES + 1, np.int64)
    for _ in range(trees):
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, _drawn(state, weight, row), 0, most
        ask[:], top = np.arange(most), 1
        while top:
            top -= 1
            a, b, c, d = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
            total[:] = 0
            for i in range(a, b):
                total[label[row[i]]] += weight[row[i]]
            at, cut = -1, 0
            if b - a >= 2 * LEAST and total.max() < total.sum():
                at, cut = _split(rows, label, weight, row[a:b], field, value, columns, total, left, spare, start, state)
            if at < 0:
                whole = total.sum()
                for k in range(classes):
                    if total[k]:
                        share = np.float32(total[k] / whole)
                        for i in range(c, d):
                            out[ask[i], k] += share
                continue
            j, only = field[at], value[at]
            i = a + _parted(row[a:b], rows[j], cut, only, spare)
            e = c + _parted(ask[c:d], asked[j], cut, only, spare)
            if e > c:
                stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3] = a, i, c, e
                top += 1
            if d > e:
                stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3] = i, b, e, d
                top += 1
    return out


@numba.njit(cache=True)
def _below(state: Any, n: int) -> int:
    """A number from 0 to n - 1 out of SplitMix64."""
    state[0] += STEP
    return int(((mix(state[0]) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(cache=True)
def _drawn(state: Any, weight: Any, row: Any) -> int:
    """A bootstrap: how often each row is drawn, and which are at all. Returns how many those are."""
    weight[:] = 0
    for _ in range(len(weight)):
        weight[_below(state, len(weight))] += 1
    found = 0
    for i in range(len(weight)):
        if weight[i]:
            row[found] = i
            found += 1
    return found


@numba.njit(cache=True)
def _split(
    rows: Any, label: Any, weight: Any, here: Any, field: Any, value: Any, columns: Any, total: Any, left: Any,
    spare: Any, start: Any, state: Any,
) -> tuple[int, int]:  # fmt: skip
    """The best cut among as many columns as a forest tries (more while all are constant); -1: none.

    Best: the largest sum over both sides of squared class weights by weight, which is the least Gini impurity.
    """
    tries, alive, best, at, cut = int(np.sqrt(len(field))), 0, -1.0, -1, 0
    for k in range(len(columns)):
        if k >= max(tries, 1) and alive:
            break
        other = k + _below(state, len(columns) - k)
        columns[k], columns[other] = columns[other], columns[k]
        c = columns[k]
        found = (
            _number(rows[field[c]], label, weight, here, total, left, spare, start)
            if value[c] < 0
            else _category(rows[field[c]], value[c], label, weight, here, total, left)
        )
        alive += found[0] > -2
        if found[0] > best:
            best, at, cut = found[0], c, found[1]
    return at, cut


@numba.njit(cache=True)
def _category(codes: Any, only: int, label: Any, weight: Any, here: Any, total: Any, left: Any) -> tuple[float, int]:
    """What it gains to tell one category from the others: -2 where the rows do not differ, -1 where a side is too small."""
    count = 0
    for i in range(len(here)):
        count += codes[here[i]] != only
    if not 0 < count < len(here):
        return -2.0, 0
    if count < LEAST or len(here) - count < LEAST:
        return -1.0, 0
    left[:] = 0
    for i in range(len(here)):
        if codes[here[i]] != only:
            left[label[here[i]]] += weight[here[i]]
    one, other, below, above = 0, 0, 0, 0
    for k in range(len(total)):
        right = total[k] - left[k]
        one, other, below, above = one + left[k] * left[k], other + right * right, below + left[k], above + right
    return one / below + other / above, 0


@numba.njit(cache=True)
def _number(
    codes: Any, label: Any, weight: Any, here: Any, total: Any, left: Any, spare: Any, start: Any
) -> tuple[float, int]:
    """The best cut of a number and what it gains, as in `_category`."""
    n, best, cut = len(here), -1.0, 0
    if not _sorted(codes, here, spare, start):
        return -2.0, 0
    whole, below, one, other = 0, 0, 0, 0
    for k in range(len(total)):
        left[k] = 0
        whole += total[k]
        other += total[k] * total[k]
    for i in range(n - 1):
        r = spare[i]
        k, w = label[r], weight[r]
        one += w * (2 * left[k] + w)
        other -= w * (2 * (total[k] - left[k]) - w)
        left[k] += w
        below += w
        if i + 1 < LEAST or n - i - 1 < LEAST or codes[r] == codes[spare[i + 1]]:
            continue
        gain = one / below + other / (whole - below)
        if gain > best:
            best, cut = gain, (int(codes[r]) + int(codes[spare[i + 1]])) // 2
    return best, cut


@numba.njit(cache=True)
def _sorted(codes: Any, here: Any, spare: Any, start: Any) -> bool:
    """Rows by code into `spare`; False where all codes are the same. start: room for a count per code, and one."""
    low = high = int(codes[here[0]])
    for r in here:
        code = int(codes[r])
        low, high = min(low, code), max(high, code)
    if low == high:
        return False
    if len(here) <= FEW:
        for i in range(len(here)):
            r, j = here[i], i
            while j and codes[spare[j - 1]] > codes[r]:
                spare[j] = spare[j - 1]
                j -= 1
            spare[j] = r
        return True
    start[low : high + 2] = 0
    for r in here:
        start[int(codes[r]) + 1] += 1
    for code in range(low + 1, high + 1):
        start[code] += start[code - 1]
    for r in here:
        spare[start[codes[r]]] = r
        start[codes[r]] += 1
    return True


@numba.njit(cache=True)
def _parted(here: Any, codes: Any, cut: int, only: int, spare: Any) -> int:
    """Put the rows of the left side first, and return how many they are. Without branches, which nothing could foresee."""
    i = j = 0
    for k in range(len(here)):
        r = here[k]
        go = int(codes[r] != only) if only >= 0 else int(codes[r] <= cut)
        here[i] = r
        spare[j] = r
        i += go
        j += 1 - go
    for k in range(j):
        here[i + k] = spare[k]
    return i
