"""What explanation tools send: copies of an honest row with noise (LIME), or with values of other rows (SHAP), compiled.

Any row looks like some other row plus noise. What tells a tool is that it sends hardly anything else, and that its copies
lie on both sides of one and the same row. And where whole columns are drawn anew, each by itself, the rows lie around no
case: their columns are those of the reference one by one, which copies of a case never are.

Reference: Ribeiro et al. 2016 (LIME); Lundberg and Lee 2017 (KernelSHAP).
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from detectors.beside import SPREAD, pair
from detectors.signals import LEVELS

MOSAIC_BITS: Final = 10.0  # what fields that equal an honest row's must say before the rest counts as redrawn
CLOUD: Final = (0.25, 5.0)  # mean square of explainers' noise in reference variances: at least, and deviations above 1
CLOUD_NUMBERS: Final = 3  # numbers that such noise must be seen in
SAME: Final = 1e-6  # squared deviations: what rounding on the way does to a number
OUTLIER: Final = 9.0  # at most so much of one number: spreads of heavy tails are hard to know
CLOUD_LEAST: Final = 0.35  # and, of so many numbers, some hardly moves: steps of one fixed size are no noise
CLOUD_MANY: Final = 10
CENTRED: Final = 2.5  # deviations by which the signs of noise around a row may sum to other than zero, per number
SKEW: Final = 3  # one number in so many may be skewed all the same
SAMPLES: Final = (
    20  # rows it takes to see that they lie around another row than before, or are of another size than noise
)
NOISE_MOST: Final = 2.5  # of one number's mean square, of which noise has 1: heavy tails must not decide
NOISE_ASIDE: Final = (
    0.15  # by which the mean over numbers may be larger, since nobody knows the reference's spreads exactly
)
NOISE_SURE: Final = 3.0  # and so many deviations
EVENLY: Final = 2.0  # deviations by which signs may differ from those of fair coins while rows count as around one row
SPLIT: Final = 3.0  # standard deviations by which the squared sums of signs may pass those of fair coins when they do
DOUBT: Final = 25  # rows that may turn out to lie around another row before they count; good copies earn it back
BUSY: Final = 0.3  # share of strange rows of late from which on a client may be an explainer
RECENT: Final = 16  # rows that "of late" means
FIRST: Final = 6  # rows that are given the benefit of the doubt before that
LATELY: Final = 64  # copies that are remembered as a sum; then what came before counts half
LOOK: Final = 8  # events between two looks for such a row: it is a long look
COLUMNS_LEAST: Final = 12  # rows it takes to see that they are drawn column by column
COLUMNS_LATELY: Final = 128  # of so many of late; then what came before counts half
COLUMNS_FEW: Final = 3  # numbers that must tell
COLUMNS_SURE: Final = 3.0  # deviations by which their levels may pass what chance makes of drawn columns,
COLUMNS_ASIDE: Final = 0.02  # beside so many variances of the mean, since nobody knows the reference's columns exactly,
COLUMNS_APART: Final = 0.1  # and of the square: whoever leaves out rows with gaps knows them worse
VALID, CLEAN = 1, 2  # Memory.worth: breaks nothing and is no small step; and is plausible
NONE, DOUBTFUL = -1, -2  # instead of a row


@numba.njit(cache=True)
def note_columns(rows: Any, i: int, places: Any, p: int) -> None:
    """Add row i to the sums of quantile levels (code of 64 bins, -1/2 to 1/2) and of their squares, per number."""
    sums, numbers = places.levels[p], rows.numbers.shape[1]
    if sums[0] >= COLUMNS_LATELY:
        sums[:] /= 2
    sums[0] += 1
    for f in range(numbers):
        if rows.codes[i, f] < LEVELS:
            u = (rows.codes[i, f] + 0.5) / LEVELS - 0.5
            sums[1 + 3 * f] += 1
            sums[2 + 3 * f] += u
            sums[3 + 3 * f] += u * u


@numba.njit(cache=True)
def by_columns(places: Any, p: int, usual: Any) -> bool:
    """Whether a caller's rows of late have, number by number, the levels of the reference.

    usual (numbers, 4): mean and variance of the level and of its square in the reference. Of rows whose columns are drawn
    from the reference, each by itself, n times the squared deviation over the variance is 1 on average; copies around one
    case, or around a few, lie aside in most numbers and further apart. Honest rows have the reference's columns as
    well: this only decides whether strange ones are excused.
    """
    sums = places.levels[p]
    if sums[0] < COLUMNS_LEAST:
        return False
    aside, apart, numbers, least = 0.0, 0.0, 0, np.inf
    for f in range(usual.shape[0]):
        n = sums[1 + 3 * f]
        if n >= COLUMNS_LEAST / 2 and usual[f, 1] > 0:
            aside += (sums[2 + 3 * f] / n - usual[f, 0]) ** 2 / usual[f, 1]
            apart += (sums[3 + 3 * f] / n - usual[f, 2]) ** 2 / usual[f, 3] if usual[f, 3] > 0 else 1 / n
            numbers += 1
            least = min(least, n)
    if numbers < COLUMNS_FEW:
        return False
    chance = (1 + COLUMNS_SURE * np.sqrt(2.0 / numbers)) / least
    return bool(aside / numbers <= COLUMNS_ASIDE + chance and apart / numbers <= COLUMNS_APART + chance)


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
    skewed, counted, total = 0, 0, 0
    for f in range(rows.numbers.shape[1]):
        x, a = rows.numbers[i, f], memory.numbers[j, f]
        if scale.weight[f] > 0 and scale.low[f] < a < scale.high[f]:
            counted += 1
            if x > a:
                places.signs[p, f] += 1
            elif x < a:
                places.signs[p, f] -= 1
            skewed += abs(places.signs[p, f]) > limit
            total += places.signs[p, f] ** 2
    if total <= places.samples[p] * (counted + EVENLY * np.sqrt(2.0 * counted)):  # no longer once the case has changed
        _note_noise(rows.numbers[i], memory.numbers[j], places.noise[p], scale)
    return bool(skewed <= counted // SKEW)


@numba.njit(cache=True)
def _note_noise(x: Any, anchor: Any, sums: Any, scale: Any) -> None:
    """Add the squared deviations of a copy from its row, in reference variances. sums: copies, then per number how many
    could be compared and their squares.
    """
    numbers = len(x)
    if sums[0] >= LATELY:
        sums[:] /= 2
    sums[0] += 1
    for f in range(numbers):
        if scale.weight[f] > 0 and np.isfinite(x[f]) and scale.low[f] < anchor[f] < scale.high[f]:
            sums[1 + f] += 1
            sums[1 + numbers + f] += min((x[f] - anchor[f]) ** 2 * scale.weight[f], OUTLIER)


@numba.njit(cache=True)
def of_noise(places: Any, p: int) -> bool:
    """Whether a caller's copies of late deviate from their rows as an explainer's do, by one reference variance on average;
    True while they are few. Rows drawn over whole ranges, or stepped away from many rows, deviate further.
    """
    sums, numbers = places.noise[p], (places.noise.shape[1] - 1) // 2
    if sums[0] < SAMPLES:
        return True
    total, counted, compared = 0.0, 0, 0.0
    for f in range(numbers):
        if sums[1 + f] >= SAMPLES / 2:
            total += min(sums[1 + numbers + f] / sums[1 + f], NOISE_MOST)
            counted += 1
            compared += sums[1 + f]
    return bool(counted == 0 or total / counted <= 1 + NOISE_ASIDE + NOISE_SURE * np.sqrt(2 / compared))


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
    return float((total / later - numbers) / np.sqrt(2.0 * max(1, numbers)))


@numba.njit(cache=True)
def noise_around(rows: Any, i: int, memory: Any, places: Any, p: int, scale: Any) -> int:
    """The honest row that row i is a noisy copy of as an explainer makes them, or NONE; DOUBTFUL when it could be.

    It is the one whose copies came before, as long as they lie around it; then the one that the rows since lie around
    best. Who has had none yet may start from the oldest, who leaves one after a fair number of copies from what came since,
    however odd it is: who explains its answers explains unusual ones too.
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
    none = NONE
    for j in range(low, high):
        if memory.worth[j] >= CLEAN and _in_cloud(rows.numbers[i], memory.numbers[j], scale.weight):
            none = DOUBTFUL
            break
    if not left and (none == NONE or (places.samples[p] > 0 and places.seen[p] % LOOK)):
        return none
    found, least = none, SPLIT
    for j in range(low, high):
        if (memory.worth[j] < CLEAN and not (left and memory.used[j] > last)) or memory.hashes[j] == places.centre[p]:
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
def mosaic_of(rows: Any, i: int, memory: Any, low: int, high: int, scale: Any) -> int:
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
