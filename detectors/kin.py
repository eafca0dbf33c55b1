"""Where a strange row comes from, among the rows that its sender is remembered by, compiled.

The row that it shares most bits with is its parent, of several the one of use last. What an attack does shows in how rows come
from each other, whatever the data and the model: a bisection halves the line between two rows, a search for the boundary
throws noise around one row of its own and begins at a case that stands, a test for membership throws it around a record,
a climb changes a few fields of its best row again and again, and rows drawn at random come from none.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from detectors.explained import CLEAN

OFF: Final = 0.05  # of its largest move that a number may be off a line
MIDDLE: Final = 0.03  # off the middle of it
MANY: Final = 255  # children that are counted
NO_LINE, HALVED, BETWEEN = 0, 1, 2  # Met.line


@numba.njit(cache=True)
def note(
    rows: Any, i: int, memory: Any, low: int, high: int, bits: Any, differ: Any, weight: Any, seen: int, met: Any
) -> None:
    """Fill what `met` says of row i's parent among rows low to high of `memory`, and count row i among its children.

    bits, differ: of row i beside each of them, the first at 0; weight: detectors.search.Scale.weight; seen: events so far.
    """
    parent, most, clean = -1, np.float32(-1.0), 0
    for j in range(low, high):
        clean += memory.worth[j] == CLEAN
    for k in range(high - low):
        b = bits[k]
        if b > most or (b == most and memory.used[low + k] > memory.used[parent]):
            parent, most = low + k, b
    met.strange[i], met.clean[i] = True, clean
    if parent < 0:
        return
    met.kept[i], met.changed[i] = most, differ[parent - low]
    met.parent[i], met.idle[i] = memory.worth[parent], seen - memory.used[parent]
    met.siblings[i] = memory.kids[parent]
    memory.kids[parent] = min(MANY, memory.kids[parent] + 1)
    met.line[i] = line(rows.numbers[i], memory.numbers, low, high, parent, weight)


@numba.njit(cache=True)
def line(x: Any, numbers: Any, low: int, high: int, parent: int, weight: Any) -> int:
    """Whether x lies between its parent u and another remembered row v: x = u + t (v - u) in every number, 0 < t < 1.

    t is read off the number that moved most, in reference deviations; most rows are refuted by the next one.
    """
    u, pivot, most, moved = numbers[parent], -1, 0.0, 0
    for f in range(len(x)):
        step = (x[f] - u[f]) ** 2 * weight[f]  # missing on either side: nan, which is larger than nothing
        moved += step > 0
        if step > most:
            pivot, most = f, step
    if moved < 2:
        return NO_LINE
    found, went, least = NO_LINE, x[pivot] - u[pivot], OFF * OFF * most
    for j in range(low, high):
        whole = numbers[j, pivot] - u[pivot]
        if not (went * whole > 0 and abs(went) < abs(whole)):
            continue
        t = went / whole
        on = True
        for f in range(len(x)):
            if (x[f] - u[f] - t * (numbers[j, f] - u[f])) ** 2 * weight[f] > least:
                on = False
                break
        if on:
            found = HALVED if abs(t - 0.5) <= MIDDLE else BETWEEN
            if found == HALVED:
                break
    return found
