"""Far more of something in one hour than any hour before brought: a fixed rule over a model's log."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Final

import numpy as np

from detectors.base import Detection
from detectors.habits import NEVER, Ints
from monitor.model import HOUR_US, Event, Family, Subject, Verdict

SURGE: Final = 10  # times the largest hour
LOWER: Final = 0.8  # an hour under this share of the limit ends a flood
DAY: Final = 24


@dataclass(frozen=True)
class Rule:
    """What is counted, and by which detector. floor: smaller hours count as so many."""

    detector: str
    what: str
    floor: int


@dataclass
class Known:
    """What a model's log knows of it. top: the largest hour up to the day before yesterday."""

    born: int = NEVER
    hour: int = NEVER
    now: int = 0
    today: int = 0
    before: int = 0
    top: int = 0
    firing: int = 0


@dataclass
class Flood:
    """The rule over a log, hour by hour."""

    rule: Rule
    known: Known

    @classmethod
    def load(cls, rule: Rule, stored: Ints | None) -> Flood:
        return cls(rule, Known(*stored.tolist()) if stored is not None else Known())

    def save(self) -> Ints:
        return np.array(astuple(self.known), np.int64)

    @property
    def limit(self) -> int:
        return SURGE * max(self.known.top, self.rule.floor)

    def meet(self, model: str, hour: int, times_us: Ints, min_days: int) -> list[Detection]:
        """What is counted in (a part of) an hour, by its times: at most the end of one flood and the beginning of another.
        The log must be `min_days` old: in a young one everything is new.
        """
        known, said = self.known, list[Detection]()
        if hour != known.hour:
            said += self._close(model, hour)
        known.now += len(times_us)
        if not known.firing and known.now > self.limit and hour - known.born >= DAY * min_days:
            known.firing = 1
            at = int(times_us[len(times_us) - (known.now - self.limit)])
            said.append(self._says(model, Verdict.ALARM, self.limit + 1, hour * HOUR_US, at))
        return said

    def _close(self, model: str, hour: int) -> list[Detection]:
        known, said = self.known, list[Detection]()
        if known.firing and known.now <= LOWER * self.limit:
            known.firing = 0
            end_us = (known.hour + 1) * HOUR_US
            said = [self._says(model, Verdict.OK, known.now, end_us - HOUR_US, end_us)]
        known.today = max(known.today, known.now)
        if known.hour // DAY != hour // DAY:
            known.top = max(known.top, min(known.before, self.limit))
            known.before, known.today = known.today, 0
        known.born = hour if known.born == NEVER else known.born
        known.hour, known.now = hour, 0
        return said

    def _says(self, model: str, verdict: Verdict, n: int, start_us: int, end_us: int) -> Detection:
        return Detection(
            detector=self.rule.detector, family=Family.ANOMALY, event=Event.TRAFFIC_ANOMALY, verdict=verdict,
            subject=Subject("segment", self.rule.what), window_us=(start_us, max(start_us, end_us)), n=n,
            statistic=float(n), threshold=float(self.limit),
            evidence={self.rule.what.replace(" ", "_"): n, "largest_hour": self.known.top, "limit": self.limit},
        )  # fmt: skip
