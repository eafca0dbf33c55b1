"""One row beside many remembered rows at once: what resembles it, and how much that says, compiled.

The same sums as `pair` makes of two rows, but field by field over all rows, so that the compiler turns
each loop into vector instructions: some five times as fast. Every row's sums are added up in the same order.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

FAR: Final = 0.25  # squared reference deviations: half a deviation apart
SPREAD: Final = 3.0  # standard deviations by which moved fields must be nearer than redrawn ones


class Lanes(NamedTuple):
    """Remembered rows with a line per field: codes and marks (features, rows), numbers (numeric, rows)."""

    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]


class Near(NamedTuple):
    """Per remembered row: fields that differ, bits of the whole, of the fields that differ, and what those would say if
    they were redrawn: mean and standard deviation. said: room to work in.
    """

    differ: NDArray[np.int32]
    bits: NDArray[np.float32]
    moved: NDArray[np.float32]
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    said: NDArray[np.float32]


@numba.njit(cache=True)
def pair(codes: Any, marks: Any, numbers: Any, other: Any, other_marks: Any, other_numbers: Any, scale: Any) -> Any:
    """Two rows: (fields that differ, bits of the whole, bits of the fields that differ, what they would say if redrawn:
    mean and standard deviation).

    Numbers that are far apart in reference deviations say nothing, however few reference rows lie between them.
    """
    nothing = np.float32(0.0)
    differ, bits, moved, mean, variance = 0, nothing, nothing, nothing, nothing
    for f in range(len(codes)):  # selections instead of branches, which nobody could foresee
        b = scale.table[f, codes[f], other[f]]
        if f < len(numbers):
            b = nothing if (numbers[f] - other_numbers[f]) ** 2 * scale.weight[f] > FAR else b
        same = marks[f] == other_marks[f]
        bits += b
        differ += not same
        moved += nothing if same else b
        mean += nothing if same else scale.mean[f]
        variance += nothing if same else scale.variance[f]
    return differ, bits, moved, mean, np.sqrt(variance)


@numba.njit(cache=True)
def lanes(memory: Any) -> Any:
    """The lines of a detectors.search.Memory."""
    return Lanes(
        np.ascontiguousarray(memory.codes.T), np.ascontiguousarray(memory.marks.T), np.ascontiguousarray(memory.numbers.T)
    )  # fmt: skip


@numba.njit(cache=True)
def room(most: int) -> Any:
    """Room for as many remembered rows."""
    return Near(
        np.zeros(most, np.int32), np.zeros(most, np.float32), np.zeros(most, np.float32), np.zeros(most, np.float32),
        np.zeros(most, np.float32), np.zeros(most, np.float32),
    )  # fmt: skip


@numba.njit(cache=True)
def compare(rows: Any, i: int, memory: Any, low: int, high: int, scale: Any, near: Any) -> None:
    """Fill the first places of `near` with row i beside rows low to high of the Lanes `memory`.

    One line to write per loop: with more the compiler cannot tell that they do not overlap.
    """
    n, numeric = high - low, rows.numbers.shape[1]
    differ, bits, moved = near.differ[:n], near.bits[:n], near.moved[:n]
    mean, spread, said = near.mean[:n], near.spread[:n], near.said[:n]
    differ[:], bits[:], moved[:], mean[:], spread[:] = 0, 0.0, 0.0, 0.0, 0.0
    nothing = np.float32(0.0)
    for f in range(rows.codes.shape[1]):
        table, codes = scale.table[f, rows.codes[i, f]], memory.codes[f, low:high]
        for k in range(n):
            said[k] = table[codes[k]]
        if f < numeric:
            x, weight, numbers = rows.numbers[i, f], scale.weight[f], memory.numbers[f, low:high]
            for k in range(n):
                said[k] = nothing if (x - numbers[k]) ** 2 * weight > FAR else said[k]
        for k in range(n):
            bits[k] += said[k]
        mark, marks, says, varies = rows.marks[i, f], memory.marks[f, low:high], scale.mean[f], scale.variance[f]
        for k in range(n):
            moved[k] += said[k] if marks[k] != mark else nothing
        for k in range(n):
            mean[k] += says if marks[k] != mark else nothing
        for k in range(n):
            spread[k] += varies if marks[k] != mark else nothing
        for k in range(n):
            differ[k] += marks[k] != mark
    for k in range(n):
        spread[k] = np.sqrt(spread[k])


@numba.njit(cache=True)
def put(rows: Any, i: int, memory: Any, at: int) -> None:
    """Row i takes the place `at` of the Lanes `memory`."""
    memory.codes[:, at], memory.marks[:, at], memory.numbers[:, at] = rows.codes[i], rows.marks[i], rows.numbers[i]
