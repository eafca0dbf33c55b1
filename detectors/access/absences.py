"""Callers of which the log has holes: silent for far longer than they ever were while others go on. Told, never alarmed.

A cut log, calls that go round the gateway, and a client that left or is on holiday look the same here, so nobody is paged.
Time is counted in hours of the log in which anybody was heard: where the whole log stands still, nobody is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import Detection
from detectors.habits import NEVER, Bools, Habits, Ints
from monitor.model import HOUR_US, Event, Family, Subject, Verdict, rfc3339

TIMES: Final = 4  # longest silence of a caller so far, which an absence exceeds so many times
LEAST: Final = 6  # hours of others that it lasts at least
TOLD: Final = 20  # callers told of in one hour; of more it is said how many there are


def arrays() -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Kind and shape per principal of what is remembered.

    heard: hours of the log up to its latest event; quiet: most of them between two of its events; absent: it was told of.
    """
    return {"heard": (np.int64, ()), "quiet": (np.int64, ()), "absent": (np.bool_, ())}


@dataclass
class Absences:
    """hours: of the log so far in which anybody was heard; hour: the newest of them."""

    hours: int = 0
    hour: int = NEVER

    def save(self) -> Ints:
        return np.array([self.hours, self.hour], np.int64)

    def follow(self, habits: Habits, hour: int) -> list[Detection]:
        """A new hour begins: who has become absent by its beginning. Whoever is too new to have habits never is."""
        if hour == self.hour:
            return []
        self.hours, self.hour = self.hours + 1, hour
        more = habits.more
        gap = self.hours - 1 - more["heard"]
        rows = np.flatnonzero((habits.seen != NEVER) & (gap > self._most(more["quiet"])))
        rows = rows[habits.settled_at(rows, hour)[:, 0]]
        new = rows[~more["absent"][rows]]
        more["absent"][rows] = True
        shown = new[np.argsort(more["quiet"][new], kind="stable")[:TOLD]]
        return [self._says(habits, i, int(gap[i]), hour, len(new) - 1, back=False) for i in shown.tolist()]

    def back(self, habits: Habits, rows: Ints, hour: int, trusted: Bools) -> tuple[Ints, list[Detection]]:
        """Principals (distinct rows) are heard: which of them are back from an absence. trusted: who is learnt from."""
        more = habits.more
        gap = self.hours - 1 - more["heard"][rows]
        known = habits.seen[rows] != NEVER
        which = np.flatnonzero(known & more["absent"][rows])
        said = [
            self._says(habits, int(rows[i]), int(gap[i]), hour, len(which) - 1, back=True)
            for i in which.tolist()[:TOLD]
        ]
        more["quiet"][rows] = np.where(known & trusted, np.maximum(more["quiet"][rows], gap), more["quiet"][rows])
        more["heard"][rows], more["absent"][rows] = self.hours, False
        return which[:TOLD], said

    def _most(self, quiet: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(np.maximum(LEAST, TIMES * quiet))

    def _says(self, habits: Habits, row: int, gap: int, hour: int, others: int, *, back: bool) -> Detection:
        since = (int(habits.seen[row]) + 1) * HOUR_US
        longest = int(habits.more["quiet"][row])
        active = float(habits.trials[row, 0] / max(1, habits.seen[row] - habits.born[row]))
        return Detection(
            detector="access", family=Family.ACCESS, event=Event.ACCESS_ANOMALY, verdict=Verdict.OK,
            subject=Subject("principal", habits.ids[row]), window_us=(since, hour * HOUR_US), n=0, statistic=float(gap),
            threshold=float(self._most(np.array(longest))),
            evidence={
                "silent_since": rfc3339(since), "hours_of_others": gap, "longest_before": longest,
                "usually_active_share": round(min(1.0, active), 3), "others_with_it": others, "back": back,
            },
        )  # fmt: skip
