"""A flood of new principals: far more in one hour than any hour before brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from detectors.base import Detection
from detectors.habits import NEVER, Ints
from monitor.model import HOUR_US, Event, Family, Subject, Verdict

SURGE: Final = 10  # times the largest hour
FLOOR: Final = 50  # smaller hours count as so many
LOWER: Final = 0.8  # an hour under this share of the limit ends a flood
DAY: Final = 24


@dataclass
class Newcomers:
    """What a model's log knows of new principals. top: the largest hour up to the day before yesterday."""

    born: int = NEVER
    hour: int = NEVER
    now: int = 0
    today: int = 0
    before: int = 0
    top: int = 0
    firing: int = 0

    def save(self) -> Ints:
        return np.array([*vars(self).values()], np.int64)

    @property
    def limit(self) -> int:
        return SURGE * max(self.top, FLOOR)

    def meet(self, model: str, hour: int, times_us: Ints, min_days: int) -> list[Detection]:
        """New principals of (a part of) an hour, by the times of their first events: at most the end of one flood and
        the beginning of another. The log must be `min_days` old: in a young one everybody is new.
        """
        said: list[Detection] = []
        if hour != self.hour:
            said += self._close(model, hour)
        self.now += len(times_us)
        if not self.firing and self.now > self.limit and hour - self.born >= DAY * min_days:
            self.firing = 1
            at = int(times_us[len(times_us) - (self.now - self.limit)])
            said.append(self._says(model, Verdict.ALARM, self.limit + 1, hour * HOUR_US, at))
        return said

    def _close(self, model: str, hour: int) -> list[Detection]:
        said = []
        if self.firing and self.now <= LOWER * self.limit:
            self.firing = 0
            end_us = (self.hour + 1) * HOUR_US
            said = [self._says(model, Verdict.OK, self.now, end_us - HOUR_US, end_us)]
        self.today = max(self.today, self.now)
        if self.hour // DAY != hour // DAY:
            self.top = max(self.top, min(self.before, self.limit))
            self.before, self.today = self.today, 0
        self.born = hour if self.born == NEVER else self.born
        self.hour, self.now = hour, 0
        return said

    def _says(self, model: str, verdict: Verdict, n: int, start_us: int, end_us: int) -> Detection:
        return Detection(
            detector="access", family=Family.ANOMALY, event=Event.TRAFFIC_ANOMALY, verdict=verdict,
            subject=Subject("segment", "new principals"), window_us=(start_us, max(start_us, end_us)), n=n,
            statistic=float(n), threshold=float(self.limit),
            evidence={"new_principals": n, "largest_hour": self.top, "limit": self.limit},
        )  # fmt: skip
