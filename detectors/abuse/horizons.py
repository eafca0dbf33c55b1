"""What principals do in a day, against their largest day and against their usual one.

Days are those of UTC. A day's sum is known while it grows; it enters the past when the principal shows up on a later day.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.habits import DAY, NEVER, SILENT, Bools, Habits, Ints

TIMES: Final = 1.5  # a day fires beyond so many times the largest, or the usual
FLOORS: Final = (60, 20_000, 60_000_000, 20, 20)  # smaller amounts count as this much, by surges.AMOUNTS
LARGEST_DAYS: Final = 28  # past that a principal needs before its days are compared with its largest one
USUAL_DAYS: Final = 56  # and before they are compared with its usual one
HELD: Final = 70  # days remembered,
LATE: Final = 14  # the newest of which do not count as yet
USUAL: Final = 0.75  # share of the others that held as much as the usual one, or less
WEEK: Final = 7 * DAY


def arrays(amounts: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Kind and shape per principal of what is remembered.

    day: sums of the present day; peak: the largest day; this_week, last_week: largest days that have yet to enter it;
    past: the last days, in steps of a quarter of a doubling; days: so many were there; usual: the usual one of them.
    """
    wide = (np.int64, (amounts,))
    return {
        "day": wide, "peak": wide, "this_week": wide, "last_week": wide, "usual": wide,
        "past": (np.uint8, (amounts, HELD)), "days": (np.int64, ()),
    }  # fmt: skip


def close(habits: Habits, hour: int, rows: Ints, suspect: Bools) -> None:
    """The latest day of principals enters their past, if it is over. Nothing of it does under suspicion, then or now, nor
    what their weeks before have yet to say.
    """
    more = habits.more
    doubtful = rows[suspect]
    more["this_week"][doubtful] = more["last_week"][doubtful] = 0
    last = habits.seen[rows]
    over = (last != NEVER) & (last // DAY != hour // DAY)
    trusted = ~suspect & (habits.suspected[rows] // DAY != last // DAY)
    rows, last, trusted = rows[over], last[over], trusted[over]
    young = (last - habits.born[rows]) // DAY < LARGEST_DAYS
    _usual(habits, hour, rows[trusted])
    new = rows[trusted & young]
    more["peak"][new] = np.maximum(more["peak"][new], more["day"][new])
    old = rows[trusted & ~young]
    more["this_week"][old] = np.maximum(more["this_week"][old], more["day"][old])
    more["day"][rows] = 0
    # A week's largest day is learnt when the next week is over: no slow attack becomes usual within a week.
    done = rows[last // WEEK != hour // WEEK]
    cap = np.rint(limits(more["peak"][done])).astype(np.int64)
    more["peak"][done] = np.maximum(more["peak"][done], np.minimum(more["last_week"][done], cap))
    more["last_week"][done] = more["this_week"][done]
    more["this_week"][done] = 0


def _usual(habits: Habits, hour: int, rows: Ints) -> None:
    """Their latest day, and those since then without an event, are remembered; of older ones three in four hold no more than usual."""
    more, n = habits.more, habits.more["days"][rows]
    more["past"][rows, :, n % HELD] = level(more["day"][rows])
    silent = np.clip(hour // DAY - habits.seen[rows] // DAY - 1, 0, SILENT)
    for k in range(int(silent.max(initial=0))):
        quiet = silent > k
        more["past"][rows[quiet], :, (n[quiet] + 1 + k) % HELD] = 0
    n = n + 1 + silent
    more["days"][rows] = n
    ago = (n[:, None] - 1 - np.arange(HELD)) % HELD  # of each slot, in days
    counts = np.logical_and(ago >= LATE, ago < n[:, None])
    past = np.sort(np.where(counts[:, None], more["past"][rows], 255), axis=2)
    place = np.maximum(np.ceil(USUAL * counts.sum(axis=1)).astype(np.int64) - 1, 0)
    found = amount(past[np.arange(len(rows)), :, place])
    more["usual"][rows] = np.where((n > LATE)[:, None], found, 0)


def level(x: Ints) -> NDArray[np.uint8]:
    """Quarter powers of two, rounded up, in one byte; 0 for nothing."""
    return np.where(x > 0, 1 + np.ceil(4 * np.log2(np.maximum(x, 1))), 0).astype(np.uint8)


def amount(level: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The other way round."""
    return np.asarray(np.where(level > 0, np.exp2((level.astype(np.float64) - 1) / 4), 0.0))


def limits(known: Ints) -> NDArray[np.float64]:
    """What a day may hold of each amount, by the largest or the usual one."""
    return np.asarray(TIMES * np.maximum(known, FLOORS).astype(np.float64))
