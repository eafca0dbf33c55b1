"""The inner loop of query-pattern detection: each row against its principal's earlier rows, in log order, compiled.

Everything is decided by one row and the remembered rows before it, so results do not depend on how the log was cut.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors import beside, kin
from detectors.beside import SPREAD
from detectors.explained import (
    BUSY,
    CLEAN,
    DOUBT,
    FIRST,
    NONE,
    RECENT,
    VALID,
    by_columns,
    mosaic_of,
    noise_around,
    note_columns,
    of_noise,
)

FEW: Final = 2  # fields that a what-if changes at a time, whatever row it starts from
MOST: Final = 5  # and from an honest row, where there are many: one field in SHARE
SHARE: Final = 6
NOISY: Final = 5  # noisy copies of one row, from which on it matters no more that rows are torn
SWEEP: Final = 4  # or these, where they are the same few of many fields in all what-ifs of one honest row
CHANCE_BITS: Final = 10.0  # what the fields that stay must say: one in a thousand rows agrees by chance
ODD_FIELDS: Final = 3  # of a case that breaks rules, and so do its what-ifs: no more fields than that
CHAIN: Final = 5  # fields in which what-ifs may move away, one after the other, from the row they started from
CROWD: Final = 3  # earlier rows that must be near when a row joins a crowd
WANDERED: Final = 3  # fields more than that in which a chain has moved when small steps no longer count as what-if
FOLLOWED: Final = 5  # near rows that far away that it takes
LEAN: Final = 2.0  # standard deviations by which moved fields of a crowd must be nearer than redrawn ones
AXIS_BITS: Final = 3.0  # a single field moved by a small step: nearer than one in eight redrawn values
AXES: Final = 6  # fields around one row that were each moved by small steps when it is a search along axes
AXIS_INVALID: Final = 3  # or moved to values that nobody sends
EVEN: Final = 0.02  # of the way between two steps that their middle may lie off the row
SLOPED: Final = (
    2  # numbers around one row in which steps went up and down by the same amount, from which on it measures slopes
)
PER_AXIS: Final = 3  # values per field: a what-if looks at many values of few fields


class Rows(NamedTuple):
    """Rows to follow, in log order. who: place of the principal; fields: broken fields as bits; torn: breaks rules
    across fields that no honest row breaks (detectors.constraints); odd: implausible; edge: the model was as unsure as it seldom is.
    """

    who: NDArray[np.int64]
    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    broken: NDArray[np.int64]
    fields: NDArray[np.uint64]
    torn: NDArray[np.bool_]
    odd: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    label: NDArray[np.int32]


class Memory(NamedTuple):
    """Remembered rows of the principals of a stretch, those of one principal side by side."""

    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]
    hashes: NDArray[np.uint64]
    used: NDArray[np.int64]  # the principal's event count when the row was last sent or served as an anchor
    worth: NDArray[np.uint8]  # what may start from it: VALID what-ifs, CLEAN explainers' samples too
    fields: NDArray[np.uint64]  # fields that break rules
    invalid: NDArray[np.uint64]  # fields that rows around it moved to values that nobody sends
    star: NDArray[np.uint64]  # fields that rows around it moved by small steps
    stars: NDArray[np.int32]  # how many rows did
    sloped: NDArray[np.uint64]  # numbers in which rows around it stepped up and down by the same amount
    swept: NDArray[np.uint64]  # fields that what-ifs around it have changed
    chain: NDArray[np.uint64]  # fields in which it and the what-ifs before it have moved away from where they started
    root: NDArray[np.uint64]  # the row (its hash) that it and the what-ifs before it started from
    kids: NDArray[np.uint8]  # strange rows that came from it (detectors.kin)
    label: NDArray[np.int32]


class Places(NamedTuple):
    """Per principal of the stretch: first row in Memory, room there, rows in use, events seen so far; the row (its hash)
    whose noisy copies it sends, how many of them came, per number how many more were above it than below, how many rows
    were given the benefit of the doubt, the share of strange rows of late, sums of the levels of numbers
    (explained.note_columns) and of the squares of noise (explained.of_noise), what-ifs less rows with swapped values, and the
    case (its hash) that the row before belonged to.
    """

    start: NDArray[np.int64]
    room: NDArray[np.int64]
    length: NDArray[np.int64]
    seen: NDArray[np.int64]
    centre: NDArray[np.uint64]
    samples: NDArray[np.int64]
    signs: NDArray[np.int16]
    doubt: NDArray[np.int64]
    busy: NDArray[np.float64]
    levels: NDArray[np.float32]
    noise: NDArray[np.float32]
    whims: NDArray[np.int64]
    case: NDArray[np.uint64]


class Scale(NamedTuple):
    """What a resemblance means: bits per pair of codes, mean and variance of the bits of two different reference values,
    one over each number's squared deviation (0: constant), the bits that make a row near, those that it takes when
    the row looks like part of an explainer's sample, and those of the CROWDth nearest row (crowd) and of the nearest row
    with another answer (cross); low, high: where the tails of each number begin; usual: mean and variance of each
    number's level and of its square (explained.by_columns).
    """

    table: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    weight: NDArray[np.float32]
    bits: float
    sampled_bits: float
    crowd: float
    cross: float
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    usual: NDArray[np.float32]


class Met(NamedTuple):
    """Per row: fresh (not a repeat of a remembered row), schema, near, odd, edge, crowd, cross (the signals), excused (part
    of a what-if or an explainer's sample around an honest row), again (varies the case that the row before belonged to), bits and differs of the nearest small step, third and other
    (bits of the CROWDth nearest row and of the nearest one with another answer, 0 for a what-if). Of the row that it
    resembles most: step (bits) and moved (fields that differ). drawn: one of many strange rows whose columns were drawn
    each by itself. slope: with an earlier one, a step up and down from one row. strange: looked at by detectors.kin, and only then is said: kept (bits that it shares with its parent), changed
    (fields that differ), parent (its worth), idle (events since that was of use), siblings (strange rows that came from it before), line (whether it lies
    between it and another row), clean (remembered rows that are).
    """

    fresh: NDArray[np.bool_]
    schema: NDArray[np.bool_]
    near: NDArray[np.bool_]
    odd: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    cross: NDArray[np.bool_]
    excused: NDArray[np.uint8]
    again: NDArray[np.bool_]
    bits: NDArray[np.float32]
    differs: NDArray[np.int16]
    third: NDArray[np.float32]
    other: NDArray[np.float32]
    step: NDArray[np.float32]
    moved: NDArray[np.int16]
    drawn: NDArray[np.bool_]
    slope: NDArray[np.bool_]
    strange: NDArray[np.bool_]
    kept: NDArray[np.float32]
    changed: NDArray[np.int16]
    parent: NDArray[np.uint8]
    idle: NDArray[np.int64]
    siblings: NDArray[np.uint8]
    line: NDArray[np.uint8]
    clean: NDArray[np.int16]


NOT, WHAT_IF, SAMPLE, MOSAIC = 0, 1, 2, 3  # Met.excused


@numba.njit(cache=True)
def what_if_fields(features: int) -> int:
    """How many fields of an honest row a what-if may change at a time."""
    return max(FEW, min(MOST, features // SHARE))


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
def _slope(rows: Any, i: int, memory: Any, j: int, low: int, high: int, found: Any) -> bool:
    """Whether row i and an earlier one step up and down from the honest row j by the same amount in one number, and others
    did in another number: such central differences measure the slope of a score.
    """
    for m in range(low, high):
        if found.differ[m - low] == 1 and m != j:
            for f in range(rows.numbers.shape[1]):
                x, y, a = rows.numbers[i, f], memory.numbers[m, f], memory.numbers[j, f]
                if x != y and abs(x + y - 2 * a) <= EVEN * abs(x - y):
                    memory.sloped[j] |= np.uint64(1) << np.uint64(f % 64)
                    return _popcount(memory.sloped[j]) >= SLOPED
    return False


@numba.njit(cache=True)
def _changed(rows: Any, i: int, memory: Any, j: int) -> Any:
    """The fields in which row i differs from the remembered row j, as bits."""
    fields = np.uint64(0)
    for f in range(rows.codes.shape[1]):
        if rows.marks[i, f] != memory.marks[j, f]:
            fields |= np.uint64(1) << np.uint64(f % 64)
    return fields


@numba.njit(cache=True)
def _remember(
    rows: Any, i: int, memory: Any, lanes: Any, places: Any, p: int, worth: int, chain: Any, root: Any
) -> None:
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
    memory.invalid[at], memory.star[at], memory.stars[at], memory.kids[at] = 0, 0, 0, 0
    memory.sloped[at], memory.root[at] = 0, root
    memory.label[at], memory.chain[at], memory.swept[at] = rows.label[i], chain, 0


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
    longest = max(few + 1, min(CHAIN, rows.codes.shape[1] // 2 + 1))
    wide = max(few, min(SWEEP, rows.codes.shape[1] // 2))
    lanes, found = beside.lanes(memory), beside.room(places.room.max() if len(places.room) else 0)
    for i in np.argsort(rows.who, kind="mergesort"):  # one principal after the other: what is compared stays in cache
        p = rows.who[i]
        low, high = places.start[p], places.start[p] + places.length[p]
        places.seen[p] += 1
        known = _repeats(rows, i, memory, low, high)
        if known >= 0:
            memory.used[known] = places.seen[p]
            met.fresh[i] = False
            continue
        best, differs, steps, wandered, fewest = 0.0, 0, False, 0, 1 << 15
        anchor, redrawn, closest, varied, noise = -1, -1, wide + 1, False, False
        step, moves, other = 0.0, 0, 0.0
        crowd = np.zeros(CROWD)
        chain, length = np.uint64(0), 65
        beside.compare(rows, i, lanes, low, high, scale, found)
        for j in range(low, high):
            k = j - low
            differ, bits, moved = found.differ[k], found.bits[k], found.moved[k]
            mean, spread = found.mean[k], found.spread[k]
            if bits > step:
                step, moves = bits, differ
            if memory.worth[j] >= VALID:
                fewest = min(fewest, differ)
            leans = moved >= mean + LEAN * spread
            if differ > wide and not leans:
                continue  # nearly all
            if differ <= wide and bits - moved >= CHANCE_BITS:
                fields = _changed(rows, i, memory, j)
                if differ > few and (memory.worth[j] < VALID or _popcount(memory.swept[j] | fields) > wide):
                    fields = ~np.uint64(0)  # no what-if
                gone = memory.chain[j] | fields
                far = _popcount(gone)
                if far < length:
                    chain, length = gone, far
                if far <= longest:
                    steps = steps or differ <= FEW or memory.worth[j] >= VALID
                    varied = varied or (rows.broken[i] <= ODD_FIELDS and rows.fields[i] & ~memory.fields[j] == 0)
                    if memory.worth[j] >= VALID and differ < closest:
                        anchor, closest = j, differ
            if differ <= FEW or not leans:
                continue
            if bits > crowd[0]:  # the CROWD largest, the least of them first
                c = 0
                while c + 1 < CROWD and bits > crowd[c + 1]:
                    crowd[c] = crowd[c + 1]
                    c += 1
                crowd[c] = bits
            if bits > other and memory.label[j] != rows.label[i]:
                other = bits
            if moved >= mean + SPREAD * spread:
                if bits > best:
                    best, differs = bits, differ
                if bits >= scale.bits and differ >= few + WANDERED:
                    wandered += 1
        honest = steps and wandered < FOLLOWED
        if not honest:
            met.third[i], met.other[i] = crowd[0], other
        near = best >= scale.bits
        met.crowd[i], met.cross[i] = met.third[i] >= scale.crowd, met.other[i] >= scale.cross
        strange = near or met.crowd[i] or met.cross[i] or rows.broken[i] >= 2 or rows.odd[i] or rows.edge[i]
        places.busy[p] += (strange - places.busy[p]) / min(places.seen[p], RECENT)
        drawn = strange and places.busy[p] >= BUSY and by_columns(places, p, scale.usual)
        met.drawn[i] = drawn
        if anchor < 0 and best < scale.sampled_bits and strange and not drawn:
            redrawn = noise_around(rows, i, memory, places, p, scale)
            busy = places.busy[p] >= BUSY
            noise = (redrawn >= 0 and busy) or (redrawn != NONE and places.doubt[p] < (DOUBT if busy else FIRST))
            noise = noise and of_noise(places, p)
            if noise:
                places.doubt[p] = max(0, places.doubt[p] + (-1 if redrawn >= 0 and busy else 1))
            else:
                redrawn = mosaic_of(rows, i, memory, low, high, scale) if places.whims[p] > -FIRST else -1
                places.whims[p] -= redrawn >= 0
            near = near and redrawn < 0
            if redrawn >= 0 and not noise:  # samples with noise are far from each other
                met.crowd[i], met.cross[i] = False, False
        if anchor < 0:
            note_columns(rows, i, places, p)
        else:
            memory.swept[anchor] |= _changed(rows, i, memory, anchor)
        axis = anchor >= 0 and _on_axis(rows, i, memory, anchor, scale) and scale.bits < np.inf
        met.slope[i] = anchor >= 0 and _slope(rows, i, memory, anchor, low, high, found)
        axis = axis or met.slope[i]
        met.bits[i], met.differs[i] = best, differs
        met.near[i] = axis or (near and not honest)
        if (anchor >= 0 or varied) and not axis:
            met.excused[i] = WHAT_IF
            places.whims[p] = min(
                places.whims[p] + 1, DOUBT
            )  # whoever swaps values swaps one, or all but one, as often
        elif redrawn >= 0 or noise:
            met.excused[i] = SAMPLE if noise else MOSAIC
        invalid = rows.broken[i] >= 2 and met.excused[i] in (
            NOT,
            MOSAIC,
        )  # whoever swaps values keeps each of them valid
        tool = places.samples[p] >= (
            1 if places.busy[p] >= BUSY else NOISY
        )  # its noise tears rows that nothing else marks
        torn = rows.torn[i] and met.excused[i] == NOT and fewest > SWEEP and not tool
        met.schema[i] = invalid or torn
        met.odd[i] = rows.odd[i] and met.excused[i] == NOT and not steps and not near
        met.edge[i] = rows.edge[i] and met.excused[i] in (NOT, MOSAIC)
        met.step[i], met.moved[i] = step, moves
        if strange or axis or torn:
            kin.note(rows, i, memory, low, high, found.bits, found.differ, scale.weight, places.seen[p], met)
        root = memory.root[anchor] if anchor >= 0 else rows.hashes[i]
        met.again[i], places.case[p] = anchor >= 0 and root == places.case[p], root
        for j in (anchor, redrawn):
            if j >= 0:
                memory.used[j] = places.seen[p]
        flagged = met.near[i] or met.crowd[i] or met.cross[i]
        worth = 0 if rows.broken[i] > 0 or flagged else VALID if rows.odd[i] or near else CLEAN
        _remember(rows, i, memory, lanes, places, p, worth, chain, root)
