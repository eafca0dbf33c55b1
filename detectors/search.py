"""The inner loop of query-pattern detection: each row against its principal's earlier rows, in log order, compiled.

Everything is decided by one row and the remembered rows before it, so results do not depend on how the log was cut.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors import beside
from detectors.beside import FAR, SPREAD

FEW: Final = 2  # fields that a what-if changes at a time, whatever row it starts from
MOST: Final = 5  # and from an honest row, where there are many: one field in SHARE
SHARE: Final = 6
CHANCE_BITS: Final = 10.0  # what the fields that stay must say: one in a thousand rows agrees by chance
ODD_FIELDS: Final = 3  # of a case that breaks rules, and so do its what-ifs: no more fields than that
WANDERED: Final = 3  # fields more than that in which a chain has moved when small steps no longer count as what-if
FOLLOWED: Final = 5  # near rows that far away that it takes
NEAR_TOP: Final = 0.02  # of a score: as good as the highest so far
MOSAIC_BITS: Final = (
    10.0  # what fields that equal an honest row's must say before the rest counts as redrawn on purpose
)
CLOUD: Final = (0.25, 5.0)  # mean square of explainers' noise in reference variances: at least, and deviations above 1
CLOUD_NUMBERS: Final = 3  # numbers that such noise must be seen in
SAME: Final = 1e-6  # squared deviations: what rounding on the way does to a number
CLOUD_LEAST: Final = 0.35  # and, of so many numbers, some hardly moves: steps of one fixed size are no noise
CLOUD_MANY: Final = 10
AXIS_BITS: Final = 3.0  # a single field moved by a small step: nearer than one in eight redrawn values
AXES: Final = 6  # fields around one row that were each moved by small steps when it is a search along axes
AXIS_INVALID: Final = 3  # or moved to values that nobody sends
PER_AXIS: Final = 3  # values per field: a what-if looks at many values of few fields


class Rows(NamedTuple):
    """Rows to follow, in log order. who: place of the principal; fields: broken fields as bits; odd: implausible;
    edge: the model was as unsure as it seldom is.
    """

    who: NDArray[np.int64]
    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    broken: NDArray[np.int64]
    fields: NDArray[np.uint64]
    odd: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    label: NDArray[np.int32]
    score: NDArray[np.float32]


class Memory(NamedTuple):
    """Remembered rows of the principals of a stretch, those of one principal side by side."""

    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    used: NDArray[np.int64]  # the principal's event count when the row was last sent or served as an anchor
    worth: NDArray[np.uint8]  # what may start from it: VALID what-ifs and noise, CLEAN swapped values too
    fields: NDArray[np.uint64]  # fields that break rules
    invalid: NDArray[np.uint64]  # fields that rows around it moved to values that nobody sends
    star: NDArray[np.uint64]  # fields that rows around it moved by small steps
    stars: NDArray[np.int32]  # how many rows did
    label: NDArray[np.int32]
    score: NDArray[np.float32]


class Places(NamedTuple):
    """Per principal of the stretch: first row in Memory, room there, rows in use, events seen so far."""

    start: NDArray[np.int64]
    room: NDArray[np.int64]
    length: NDArray[np.int64]
    seen: NDArray[np.int64]


class Scale(NamedTuple):
    """What a resemblance means: bits per pair of codes, mean and variance of the bits of two different reference values,
    one over each number's squared deviation (0: constant), the bits that make a row near, and those that it takes when
    the row looks like part of an explainer's sample.
    """

    table: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    weight: NDArray[np.float32]
    bits: float
    sampled_bits: float


class Met(NamedTuple):
    """Per row: fresh (not a repeat of a remembered row), schema, near, odd, edge (the signals), excused (part of a what-if or
    an explainer's sample around an honest row), bits and differs of the nearest small step, flip (its label differs
    from that row's) and gain (score of the label over that row's; NaN when it flipped or nothing was near), top (no strange row of its label scored higher).
    """

    fresh: NDArray[np.bool_]
    schema: NDArray[np.bool_]
    near: NDArray[np.bool_]
    odd: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    excused: NDArray[np.uint8]
    bits: NDArray[np.float32]
    differs: NDArray[np.int16]
    flip: NDArray[np.bool_]
    gain: NDArray[np.float32]
    top: NDArray[np.bool_]


NOT, WHAT_IF, SAMPLE, MOSAIC = 0, 1, 2, 3  # Met.excused
VALID, CLEAN = 1, 2  # Memory.worth: breaks nothing and is no small step; and is plausible


@numba.njit(cache=True)
def what_if_fields(features: int) -> int:
    """How many fields of an honest row a what-if may change at a time."""
    return max(FEW, min(MOST, features // SHARE))


@numba.njit(cache=True)
def pair(codes: Any, marks: Any, numbers: Any, other: Any, other_marks: Any, other_numbers: Any, scale: Any) -> Any:
    """Two rows: (fields that differ, bits of the whole, bits of the fields that differ, what they would say if redrawn).

    Numbers that are far apart in reference deviations say nothing, however few reference rows lie between them.
    """
    differ, bits, moved, mean, variance = 0, 0.0, 0.0, 0.0, 0.0
    for f in range(len(codes)):
        b = scale.table[f, codes[f], other[f]]
        if f < len(numbers) and (numbers[f] - other_numbers[f]) ** 2 * scale.weight[f] > FAR:
            b = np.float32(0.0)
        bits += b
        if marks[f] != other_marks[f]:
            differ += 1
            moved += b
            mean += scale.mean[f]
            variance += scale.variance[f]
    return differ, bits, moved, mean + SPREAD * np.sqrt(variance)


@numba.njit(cache=True)
def _in_cloud(x: Any, anchor: Any, weight: Any) -> bool:
    """Whether every number looks like the anchor's plus noise of the size of the reference's spread."""
    total, seen, least = 0.0, 0, np.inf
    for j in range(len(x)):
        if weight[j] > 0 and np.isfinite(x[j]) and np.isfinite(anchor[j]) and x[j] != anchor[j]:
            z = (x[j] - anchor[j]) ** 2 * weight[j]
            if z > SAME:
                total += z
                seen += 1
                least = min(least, z)
    if seen < CLOUD_NUMBERS or (seen >= CLOUD_MANY and least > CLOUD_LEAST**2):
        return False
    return bool(CLOUD[0] <= total / seen <= 1 + CLOUD[1] * np.sqrt(2 / seen))


@numba.njit(cache=True)
def _redrawn_from(rows: Any, i: int, memory: Any, low: int, high: int, scale: Any) -> Any:
    """The honest row that row i is an explainer's sample of, or -1; and whether by noise or by swapping in other values."""
    found = -1
    for j in range(low, high):
        if memory.worth[j] < VALID:
            continue
        if _in_cloud(rows.numbers[i], memory.numbers[j], scale.weight):
            return j, True
        _, bits, moved, needed = pair(
            rows.codes[i], rows.marks[i], rows.numbers[i], memory.codes[j], memory.marks[j], memory.numbers[j], scale
        )
        if found < 0 and memory.worth[j] >= CLEAN and moved < needed and bits - moved >= MOSAIC_BITS:
            found = j
    return found, False


@numba.njit(cache=True)
def _popcount(x: Any) -> int:
    n = 0
    while x:
        x &= x - np.uint64(1)
        n += 1
    return n


@numba.njit(cache=True)
def _on_axis(rows: Any, i: int, memory: Any, j: int, scale: Any) -> bool:
    """Note that row i moves one or two fields of the honest row j; whether the moves so far search along its axes."""
    features = rows.codes.shape[1]
    for f in range(features):
        if rows.marks[i, f] != memory.marks[j, f] and scale.table[f, rows.codes[i, f], memory.codes[j, f]] >= AXIS_BITS:
            memory.star[j] |= np.uint64(1) << np.uint64(f % 64)
    memory.invalid[j] |= rows.fields[i]
    memory.stars[j] += 1
    axes = _popcount(memory.star[j])
    return bool(
        _popcount(memory.invalid[j]) >= AXIS_INVALID
        or (axes >= max(AXES, features // 5) and memory.stars[j] <= PER_AXIS * axes)
    )


@numba.njit(cache=True)
def _remember(rows: Any, i: int, memory: Any, lanes: Any, places: Any, p: int, worth: int) -> None:
    """Keep row i in the place of the one that was of no use for longest."""
    at = places.start[p] + places.length[p]
    if places.length[p] < places.room[p]:
        places.length[p] += 1
    else:
        at = places.start[p]
        for j in range(at, at + places.length[p]):
            if memory.used[j] < memory.used[at]:
                at = j
    beside.put(rows, i, lanes, at)
    memory.codes[at], memory.marks[at], memory.numbers[at] = rows.codes[i], rows.marks[i], rows.numbers[i]
    memory.hashes[at], memory.used[at], memory.worth[at] = rows.hashes[i], places.seen[p], worth
    memory.fields[at] = rows.fields[i]
    memory.invalid[at], memory.star[at], memory.stars[at] = 0, 0, 0
    memory.label[at], memory.score[at] = rows.label[i], rows.score[i]


@numba.njit(cache=True)
def _repeats(rows: Any, i: int, memory: Any, low: int, high: int) -> int:
    for j in range(low, high):
        if memory.hashes[j] == rows.hashes[i]:
            return j
    return -1


@numba.njit(cache=True)
def follow(rows: Any, memory: Any, places: Any, scale: Any, met: Any) -> None:
    """Fill `met` and move `memory` and `places` on by all rows."""
    few = what_if_fields(rows.codes.shape[1])
    lanes, found = beside.lanes(memory), beside.room(places.room.max() if len(places.room) else 0)
    for i in range(len(rows.who)):
        p = rows.who[i]
        low, high = places.start[p], places.start[p] + places.length[p]
        places.seen[p] += 1
        known = _repeats(rows, i, memory, low, high)
        if known >= 0:
            memory.used[known] = places.seen[p]
            met.fresh[i] = False
            continue
        best, nearest, differs, steps, wandered, highest = 0.0, -1, 0, False, 0, -np.inf
        anchor, redrawn, closest, varied, noise = -1, -1, few + 1, False, False
        beside.compare(rows, i, lanes, low, high, scale, found)
        for j in range(low, high):
            k = j - low
            differ, bits, moved, needed = found.differ[k], found.bits[k], found.moved[k], found.needed[k]
            if differ <= few and bits - moved >= CHANCE_BITS:
                steps = steps or differ <= FEW or memory.worth[j] >= VALID
                varied = varied or (rows.broken[i] <= ODD_FIELDS and rows.fields[i] & ~memory.fields[j] == 0)
                if memory.worth[j] >= VALID and differ < closest:
                    anchor, closest = j, differ
            if memory.worth[j] == 0 and memory.label[j] == rows.label[i]:
                highest = max(highest, memory.score[j])
            if differ > FEW and moved >= needed:
                if bits > best:
                    best, nearest, differs = bits, j, differ
                if bits >= scale.bits and differ >= few + WANDERED:
                    wandered += 1
        near = best >= scale.bits
        strange = near or rows.broken[i] >= 2 or rows.odd[i] or rows.edge[i]
        if anchor < 0 and best < scale.sampled_bits and strange:
            redrawn, noise = _redrawn_from(rows, i, memory, low, high, scale)
            near = near and redrawn < 0
        axis = anchor >= 0 and _on_axis(rows, i, memory, anchor, scale)
        met.bits[i], met.differs[i] = best, differs
        met.near[i] = axis or (near and (not steps or wandered >= FOLLOWED))
        if (anchor >= 0 or varied) and not axis:
            met.excused[i] = WHAT_IF
        elif redrawn >= 0:
            met.excused[i] = SAMPLE if noise else MOSAIC
        met.schema[i] = rows.broken[i] >= 2 and met.excused[i] in (NOT, MOSAIC)  # whoever swaps values keeps them valid
        met.odd[i] = rows.odd[i] and met.excused[i] == NOT and not steps and not near
        met.edge[i] = rows.edge[i] and met.excused[i] in (NOT, MOSAIC)
        if nearest >= 0:
            met.flip[i] = rows.label[i] != memory.label[nearest]
            met.gain[i] = np.nan if met.flip[i] else rows.score[i] - memory.score[nearest]
        met.top[i] = rows.score[i] >= highest - NEAR_TOP
        for j in (anchor, redrawn):
            if j >= 0:
                memory.used[j] = places.seen[p]
        worth = 0 if rows.broken[i] > 0 or met.near[i] else VALID if rows.odd[i] or near else CLEAN
        _remember(rows, i, memory, lanes, places, p, worth)
