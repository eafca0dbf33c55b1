"""The frozen habit of callers beside the adaptive one: whose use has crept up too slowly for any other signal.

What an hour, a day or a month is compared with follows the caller, so whoever takes a little more every week drags it along.
What a caller's first eight weeks held is therefore kept as it was, and once a week each of the newest five is compared with
it. A client that has simply grown looks the same: it is told as a warning, and what a person has judged is what counts from
then on. Growth that the caller's peers share is not its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.abuse.horizons import FLOORS, HELD, USUAL_DAYS, WEEK, amount
from detectors.base import Detection, Feedback
from detectors.habits import DAY, Bools, Habits, Ints
from detectors.peers import ENOUGH, EVERYBODY, MANY
from monitor.model import HOUR_US, Event, Family, Severity, Subject, Verdict, rfc3339

FOLD: Final = 1.5  # times the frozen week that each of the newest weeks holds
WEEKS: Final = 5  # how many those are
MIDDLE: Final = WEEKS // 2
LOWER: Final = 0.8  # the middle one under this share of that: it is over
SILENT: Final = 28 * DAY  # hours without a call after which nothing is left of it
SAID, OPEN = 1, 2  # told: the rule spoke; and its incident has been seen open
LEAST: Final = 7 * np.array(FLOORS, np.float64)  # smaller weeks count as this much
LEVELS: Final = amount(np.arange(256, dtype=np.uint8)).astype(np.float32)

Floats = NDArray[np.float64]


def arrays(amounts: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Kind and shape per principal of what is remembered.

    frozen: its usual week, as learnt first or as judged last; froze: the hour of that, 0 for none yet; told: 0, SAID or
    OPEN; spared: amounts that a declared profile explains. In bytes:

    >>> sum(np.dtype(kind).itemsize * int(np.prod(shape)) for kind, shape in arrays(5).values())
    34
    """
    return {
        "frozen": (np.float32, (amounts,)), "froze": (np.int64, ()), "told": (np.uint8, ()),
        "spared": (np.bool_, (amounts,)),
    }  # fmt: skip


def heed(habits: Habits, feedback: Feedback) -> None:
    """Which incidents are open. One that a suspicion takes in is judged by nobody: after it, it is said again."""
    told, mine = habits.more["told"], habits.known(feedback.told)
    told[mine] = np.where(told[mine] > 0, OPEN, 0)
    suspects = habits.known(feedback.suspects)
    told[suspects] = np.minimum(told[suspects], SAID)


def follow(habits: Habits, hour: int, feedback: Feedback, names: Sequence[str]) -> list[Detection]:
    """A new week of the log begins: whose use has crept up by then, and whose is back. names: of the amounts.

    It is said every week while it lasts: what keeps its incident from opening may pass.
    """
    more = habits.more
    rows = np.flatnonzero(habits.settled_at(np.arange(len(habits.ids)), hour)[:, 0] & (more["days"] >= USUAL_DAYS))
    weeks = np.sort(_weeks(habits, rows), axis=2) * (hour - habits.seen[rows] < SILENT)[:, None, None]
    _freeze(habits, hour, rows, weeks[:, :, MIDDLE], feedback)
    old = hour - more["froze"][rows] >= WEEK * WEEKS
    rows, weeks = rows[old], weeks[old]
    held = more["frozen"][rows].astype(np.float64)
    fold = weeks / np.maximum(held, LEAST)[:, :, None]
    shared = _shared(fold[:, :, MIDDLE], held >= LEAST, more["group"][rows])
    own = np.where(more["spared"][rows][:, :, None], 0.0, fold / shared[:, :, None])
    creeps = own[:, :, 0].max(axis=1, initial=0) >= FOLD
    back = (more["told"][rows] > 0) & (own[:, :, MIDDLE].max(axis=1, initial=0) <= LOWER * FOLD)
    more["told"][rows[creeps]] = np.maximum(more["told"][rows[creeps]], SAID)
    more["told"][rows[back]] = 0
    said = list[Detection]()
    for i in np.flatnonzero(creeps | back).tolist():
        k, row = 0 if creeps[i] else MIDDLE, int(rows[i])
        a = int(np.argmax(own[i, :, k]))
        said.append(
            Detection(
                detector="abuse", family=Family.ABUSE, event=Event.TRAFFIC_ANOMALY, n=WEEKS,
                verdict=Verdict.ALARM if creeps[i] else Verdict.OK, subject=Subject("principal", habits.ids[row]),
                window_us=((hour - 1) * HOUR_US, hour * HOUR_US), statistic=float(own[i, a, k]), threshold=FOLD,
                severity=Severity.WARNING,
                evidence=_evidence(names[a], held[i, a], weeks[i, a, k], shared[i, a], int(more["froze"][row]), hour),
            )
        )  # fmt: skip
    return said


def _freeze(habits: Habits, hour: int, rows: Ints, newest: Floats, feedback: Feedback) -> None:
    """What is kept: of those that are old enough for it now, their first weeks; of those whose incident was open and is
    gone, the newest ones, since a person has judged these.
    """
    more = habits.more
    new = rows[more["froze"][rows] == 0]
    more["frozen"][new], more["froze"][new] = np.median(_weeks(habits, new, first=True), axis=2), hour
    judged = (more["told"][rows] == OPEN) & ~np.isin(rows, habits.known(feedback.told))
    some = rows[judged]
    more["frozen"][some], more["froze"][some], more["told"][some] = newest[judged], hour, 0


def _evidence(name: str, then: float, now: float, shared: float, froze: int, hour: int) -> dict[str, Any]:
    """Both habits, how many fold, since when, and how much of it peers share. Days are known to about a tenth."""
    fold, since = now / max(then, 1.0), rfc3339((hour - WEEK * WEEKS) * HOUR_US)
    words = f"{name} crept up {fold:.1f}-fold: {now:,.0f} a week since {since[:10]}, {then:,.0f} at first"
    return {
        "signal": "creep", "amount": name, "then": round(then), "now": round(now), "fold": round(fold, 2),
        "peers_fold": round(shared, 2), "frozen": rfc3339(froze * HOUR_US), "since": since, "detail": words,
    }  # fmt: skip


def _weeks(habits: Habits, rows: Ints, *, first: bool = False) -> Floats:
    """(principals, amounts, weeks): sums of seven days each, of the newest WEEKS or of the first USUAL_DAYS remembered."""
    n = habits.more["days"][rows][:, None]
    day = np.maximum(n - HELD, 0) + np.arange(USUAL_DAYS) if first else n - 1 - np.arange(7 * WEEKS)
    past = LEVELS[habits.more["past"][rows[:, None], :, day % HELD]]  # (principals, days, amounts)
    return np.asarray(past.reshape(len(rows), day.shape[1] // 7, 7, past.shape[2]).sum(axis=2).swapaxes(1, 2))


def _shared(fold: Floats, has: Bools, group: NDArray[np.uint32]) -> Floats:
    """How many fold each one's peers have grown, itself among them: those of its group, or else all; 1 where they are few."""
    out = np.broadcast_to(_middle(fold, has, 1 + MANY), fold.shape).copy()
    for g in np.unique(group[group != EVERYBODY]).tolist():
        mine = group == g
        peers = _middle(fold[mine], has[mine], 1 + ENOUGH)
        out[mine] = np.where(np.isnan(peers), out[mine], peers)
    return np.fmax(out, 1.0)


def _middle(fold: Floats, has: Bools, least: int) -> Floats:
    """Median by amount of those that have it; where these are fewer than `least`, that of calls, which bring the rest."""
    known = zip(fold.T, has.T, strict=True)
    found = np.array([np.median(x[h]) if h.sum() >= least else np.nan for x, h in known])
    return np.where(np.isnan(found), found[0], found)
