"""The inner loop of query-pattern detection: each row against its principal's earlier rows, in log order, compiled.

Everything is decided by one row and the remembered rows before it, so results do not depend on how the log was cut.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

FEW: Final = 2  # fields that a what-if changes at a time, whatever row it starts from
MOST: Final = 5  # and from an honest row, where there are many: one field in SHARE
SHARE: Final = 6
CHANCE_BITS: Final = 10.0  # what the fields that stay must say: one in a thousand rows agrees by chance
ODD_FIELDS: Final = 3  # of a case that breaks rules, and so do its what-ifs: no more fields than that
CHAIN: Final = 5  # fields in which what-ifs may move away, one after the other, from the row they started from
CROWD: Final = 3  # earlier rows that must be near when a row joins a crowd
WANDERED: Final = 3  # fields more than that in which a chain has moved when small steps no longer count as what-if
FOLLOWED: Final = 5  # near rows that far away that it takes
SPREAD: Final = 3.0  # standard deviations by which moved fields must be nearer than redrawn ones
NEAR_TOP: Final = 0.02  # of a score: as good as the highest so far
FAR: Final = 0.25  # squared reference deviations: half a deviation apart
MOSAIC_BITS: Final = (
    10.0  # what fields that equal an honest row's must say before the rest counts as redrawn on purpose
)
CLOUD: Final = (0.25, 5.0)  # mean square of explainers' noise in reference variances: at least, and deviations above 1
CLOUD_NUMBERS: Final = 3  # numbers that such noise must be seen in
SAME: Final = 1e-6  # squared deviations: what rounding on the way does to a number
OUTLIER: Final = 9.0  # at most so much of one number: spreads of heavy tails are hard to know
CLOUD_LEAST: Final = 0.35  # and, of so many numbers, some hardly moves: steps of one fixed size are no noise
CLOUD_MANY: Final = 10
CENTRED: Final = (
    2.5  # standard deviations by which the signs of noise around a row may sum to other than zero, per number
)
SKEW: Final = 3  # one number in so many may be skewed all the same
SAMPLES: Final = 20  # rows it takes to see that they lie around another row than before
SPLIT: Final = 3.0  # standard deviations by which the squared sums of signs may pass those of fair coins when they do
LATELY: Final = 64  # copies that are remembered as a sum; then what came before counts half
LOOK: Final = 8  # events between two looks for such a row: it is a long look
LEAN: Final = 2.0  # standard deviations by which moved fields of a crowd must be nearer than redrawn ones
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
    chain: NDArray[np.uint64]  # fields in which it and the what-ifs before it have moved away from where they started
    label: NDArray[np.int32]
    score: NDArray[np.float32]


class Places(NamedTuple):
    """Per principal of the stretch: first row in Memory, room there, rows in use, events seen so far; the row (its hash)
    whose noisy copies it sends, how many of them came, and per number how many more were above it than below.
    """

    start: NDArray[np.int64]
    room: NDArray[np.int64]
    length: NDArray[np.int64]
    seen: NDArray[np.int64]
    centre: NDArray[np.uint64]
    samples: NDArray[np.int64]
    signs: NDArray[np.int16]


class Scale(NamedTuple):
    """What a resemblance means: bits per pair of codes, mean and variance of the bits of two different reference values,
    one over each number's squared deviation (0: constant), the bits that make a row near, those that it takes when
    the row looks like part of an explainer's sample, and those of the CROWDth nearest row (crowd) and of the nearest row
    with another answer (cross); low, high: where the tails of each number begin.
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


class Met(NamedTuple):
    """Per row: fresh (not a repeat of a remembered row), schema, near, odd, edge, crowd, cross (the signals), excused (part
    of a what-if or an explainer's sample around an honest row), bits and differs of the nearest small step, third and other
    (bits of the CROWDth nearest row and of the nearest one with another answer, 0 for a what-if). Of the row that it
    resembles most: step (bits), moved (fields that differ), flip (its label is another one) and gain (score of the label
    over that row's; NaN when it flipped or there is none). top: no strange row of its label scored higher.
    """

    fresh: NDArray[np.bool_]
    schema: NDArray[np.bool_]
    near: NDArray[np.bool_]
    odd: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    cross: NDArray[np.bool_]
    excused: NDArray[np.uint8]
    bits: NDArray[np.float32]
    differs: NDArray[np.int16]
    third: NDArray[np.float32]
    other: NDArray[np.float32]
    step: NDArray[np.float32]
    moved: NDArray[np.int16]
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
    """Two rows: (fields that differ, bits of the whole, bits of the fields that differ, what they would say if redrawn:
    mean and standard deviation).

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
    return differ, bits, moved, mean, np.sqrt(variance)


@numba.njit(cache=True)
def _in_cloud(x: Any, anchor: Any, weight: Any) -> bool:
    """Whether every number looks like the anchor's plus noise of the size of the reference's spread."""
    total, seen, least = 0.0, 0, np.inf
    for j in range(len(x)):
        if weight[j] > 0 and np.isfinite(x[j]) and np.isfinite(anchor[j]) and x[j] != anchor[j]:
            z = (x[j] - anchor[j]) ** 2 * weight[j]
            if z > SAME:
                total += min(z, OUTLIER)
                seen += 1
                least = min(least, z)
    if seen < CLOUD_NUMBERS or (seen >= CLOUD_MANY and least > CLOUD_LEAST**2):
        return False
    return bool(CLOUD[0] <= total / seen <= 1 + CLOUD[1] * np.sqrt(2 / seen))


@numba.njit(cache=True)
def _centred(rows: Any, i: int, memory: Any, j: int, places: Any, p: int, scale: Any) -> bool:
    """Count row i among the noisy copies of row j; whether all of them lie around it and not only to one side.

    Any row looks like some other row plus noise, but rows of its own do not keep to both sides of one and the same row.
    A number in its tails cannot tell: tools cut noise off there.
    """
    if places.samples[p] >= LATELY:
        places.samples[p] //= 2
        for f in range(rows.numbers.shape[1]):
            places.signs[p, f] = int(places.signs[p, f] / 2)
    places.samples[p] += 1
    limit = CENTRED * np.sqrt(places.samples[p])
    skewed, counted = 0, 0
    for f in range(rows.numbers.shape[1]):
        x, a = rows.numbers[i, f], memory.numbers[j, f]
        if scale.weight[f] > 0 and scale.low[f] < a < scale.high[f]:
            counted += 1
            if x > a:
                places.signs[p, f] += 1
            elif x < a:
                places.signs[p, f] -= 1
            skewed += abs(places.signs[p, f]) > limit
    return bool(skewed <= counted // SKEW)


@numba.njit(cache=True)
def _one_sided(memory: Any, j: int, low: int, high: int, scale: Any) -> float:
    """How far the rows remembered since row j lie to one side of it: 0 for fair coins, in standard deviations; inf: too few."""
    total, numbers, later = 0.0, 0, 0
    for k in range(low, high):
        later += memory.used[k] > memory.used[j]
    if later < SAMPLES:
        return np.inf
    for f in range(memory.numbers.shape[1]):
        a = memory.numbers[j, f]
        if scale.weight[f] > 0 and scale.low[f] < a < scale.high[f]:
            sides = 0
            for k in range(low, high):
                if memory.used[k] > memory.used[j]:
                    sides += (memory.numbers[k, f] > a) - (memory.numbers[k, f] < a)
            total += sides * sides
            numbers += 1
    return (total / later - numbers) / np.sqrt(2.0 * max(1, numbers))


@numba.njit(cache=True)
def _noise_around(rows: Any, i: int, memory: Any, places: Any, p: int, scale: Any) -> int:
    """The honest row that row i is a noisy copy of as an explainer makes them, or -1.

    It is the one whose copies came before, as long as they lie around it; then the one that the rows since lie around
    best. Who has had none yet may start from the oldest, who leaves one after a fair number of copies from what came since.
    """
    low, high = places.start[p], places.start[p] + places.length[p]
    left, last = places.samples[p] >= SAMPLES, 0
    for j in range(low, high):
        known = memory.hashes[j] == places.centre[p]
        if known:
            last = memory.used[j]
        if known and _in_cloud(rows.numbers[i], memory.numbers[j], scale.weight):
            if _centred(rows, i, memory, j, places, p, scale):
                return j
            left = False
    if places.samples[p] > 0 and not left and places.seen[p] % LOOK:
        return -1
    found, least = -1, SPLIT
    for j in range(low, high):
        if memory.worth[j] < VALID or memory.hashes[j] == places.centre[p]:
            continue
        if not _in_cloud(rows.numbers[i], memory.numbers[j], scale.weight):
            continue
        if places.samples[p] == 0 or (left and memory.used[j] > last):
            if found < 0 or memory.used[j] < memory.used[found]:
                found = j
        elif not left:
            aside = _one_sided(memory, j, low, high, scale)
            if aside <= least:
                found, least = j, aside
    if found >= 0:
        places.centre[p], places.samples[p] = memory.hashes[found], 0
        places.signs[p, :] = 0
        _centred(rows, i, memory, found, places, p, scale)
    return found


@numba.njit(cache=True)
def _mosaic_of(rows: Any, i: int, memory: Any, low: int, high: int, scale: Any) -> int:
    """The honest row some of whose values an explainer swapped for other rows' to make row i, or -1."""
    for j in range(low, high):
        if memory.worth[j] < CLEAN:
            continue
        _, bits, moved, mean, spread = pair(
            rows.codes[i], rows.marks[i], rows.numbers[i], memory.codes[j], memory.marks[j], memory.numbers[j], scale
        )
        if moved < mean + SPREAD * spread and bits - moved >= MOSAIC_BITS:
            return j
    return -1


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
def _changed(rows: Any, i: int, memory: Any, j: int) -> Any:
    """The fields in which row i differs from the remembered row j, as bits."""
    fields = np.uint64(0)
    for f in range(rows.codes.shape[1]):
        if rows.marks[i, f] != memory.marks[j, f]:
            fields |= np.uint64(1) << np.uint64(f % 64)
    return fields


@numba.njit(cache=True)
def _remember(rows: Any, i: int, memory: Any, places: Any, p: int, worth: int, chain: Any) -> None:
    """Keep row i in the place of the one that was of no use for longest."""
    at = places.start[p] + places.length[p]
    if places.length[p] < places.room[p]:
        places.length[p] += 1
    else:
        at = places.start[p]
        for j in range(at, at + places.length[p]):
            if memory.used[j] < memory.used[at]:
                at = j
    memory.codes[at], memory.marks[at], memory.numbers[at] = rows.codes[i], rows.marks[i], rows.numbers[i]
    memory.hashes[at], memory.used[at], memory.worth[at] = rows.hashes[i], places.seen[p], worth
    memory.fields[at] = rows.fields[i]
    memory.invalid[at], memory.star[at], memory.stars[at] = 0, 0, 0
    memory.label[at], memory.score[at], memory.chain[at] = rows.label[i], rows.score[i], chain


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
    for i in range(len(rows.who)):
        p = rows.who[i]
        low, high = places.start[p], places.start[p] + places.length[p]
        places.seen[p] += 1
        known = _repeats(rows, i, memory, low, high)
        if known >= 0:
            memory.used[known] = places.seen[p]
            met.fresh[i] = False
            continue
        best, differs, steps, wandered, highest = 0.0, 0, False, 0, -np.inf
        anchor, redrawn, closest, varied, noise = -1, -1, few + 1, False, False
        step, nearest, moves, other = 0.0, -1, 0, 0.0
        crowd = np.zeros(CROWD)
        chain, length = np.uint64(0), 65
        for j in range(low, high):
            differ, bits, moved, mean, spread = pair(
                rows.codes[i],
                rows.marks[i],
                rows.numbers[i],
                memory.codes[j],
                memory.marks[j],
                memory.numbers[j],
                scale,
            )
            if bits > step:
                step, nearest, moves = bits, j, differ
            if differ <= few and bits - moved >= CHANCE_BITS:
                gone = memory.chain[j] | _changed(rows, i, memory, j)
                far = _popcount(gone)
                if far < length:
                    chain, length = gone, far
                if far <= longest:
                    steps = steps or differ <= FEW or memory.worth[j] >= VALID
                    varied = varied or (rows.broken[i] <= ODD_FIELDS and rows.fields[i] & ~memory.fields[j] == 0)
                    if memory.worth[j] >= VALID and differ < closest:
                        anchor, closest = j, differ
            if memory.worth[j] == 0 and memory.label[j] == rows.label[i]:
                highest = max(highest, memory.score[j])
            if differ <= FEW or moved < mean + LEAN * spread:
                continue
            if bits > crowd[0]:  # the CROWD largest, the least of them first
                k = 0
                while k + 1 < CROWD and bits > crowd[k + 1]:
                    crowd[k] = crowd[k + 1]
                    k += 1
                crowd[k] = bits
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
        if anchor < 0 and best < scale.sampled_bits and strange:
            redrawn = _noise_around(rows, i, memory, places, p, scale)
            noise = redrawn >= 0
            if not noise:
                redrawn = _mosaic_of(rows, i, memory, low, high, scale)
            near = near and redrawn < 0
            if redrawn >= 0 and not noise:  # samples with noise are far from each other
                met.crowd[i], met.cross[i] = False, False
        axis = anchor >= 0 and _on_axis(rows, i, memory, anchor, scale)
        met.bits[i], met.differs[i] = best, differs
        met.near[i] = axis or (near and not honest)
        if (anchor >= 0 or varied) and not axis:
            met.excused[i] = WHAT_IF
        elif redrawn >= 0:
            met.excused[i] = SAMPLE if noise else MOSAIC
        met.schema[i] = rows.broken[i] >= 2 and met.excused[i] in (NOT, MOSAIC)  # whoever swaps values keeps them valid
        met.odd[i] = rows.odd[i] and met.excused[i] == NOT and not steps and not near
        met.edge[i] = rows.edge[i] and met.excused[i] in (NOT, MOSAIC)
        met.step[i], met.moved[i] = step, moves
        if nearest >= 0:
            met.flip[i] = rows.label[i] != memory.label[nearest]
            met.gain[i] = np.nan if met.flip[i] else rows.score[i] - memory.score[nearest]
        met.top[i] = rows.score[i] >= highest - NEAR_TOP
        for j in (anchor, redrawn):
            if j >= 0:
                memory.used[j] = places.seen[p]
        flagged = met.near[i] or met.crowd[i] or met.cross[i]
        worth = 0 if rows.broken[i] > 0 or flagged else VALID if rows.odd[i] or near else CLEAN
        _remember(rows, i, memory, places, p, worth, chain)
