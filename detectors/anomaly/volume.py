"""Traffic of a model by window: a surge or a slump."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from detectors import stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window
from detectors.concentration import COLUMNS, concentration
from detectors.conformal import History
from detectors.past import KEEP, Past, wagers
from detectors.season import Calendar
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 1
BETS: Final = ("events/+", "events/-")


@dataclass(frozen=True)
class Volume:
    """Events per window against this model's own traffic.

    Idea: log(1 + events) of a window is ranked against all earlier windows, season and the correlation of successive
    windows removed first. History is learnt from live windows: a reference is often a sample, so its rate
    says nothing about the log's. Beside it stands who sent the window's events (`sources`): a reading that never alarms.

    Math: z_t = Phi^-1(1 - p_t) of the conformal rank; bets exp(lambda (|z| side - kappa) - lambda^2 / 2) on both signs;
    budget() adds them up (detectors.decide).

    Assumptions: windows are exchangeable up to season and AR(1) when nothing changed. Seasons show as variance until
    the history is long enough (detectors.season): a week for hours, two for kinds of day, eight for hours of the week.

    False alarms: 4 % of the model's budget (one in 750 days by default) when windows are exchangeable; see
    docs/detectors.md for the measured rate. Below 50 windows of history it learns and cannot alarm.

    Parameters: kappa: tolerated shift of z in standard deviations; keep: windows remembered; timezone, weekend,
    holidays: the calendar of the season (lists with commas; models get theirs from `calendars`).

    Reference: Vovk 2021; Shin, Ramdas and Rinaldo 2023.

    >>> Volume().keep
    1368
    """

    name: ClassVar[str] = "volume"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

    kappa: float = 0.4
    keep: int = KEEP
    timezone: str = "UTC"
    weekend: str = "sat,sun"
    holidays: str = ""

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Nothing is taken from the reference; never refused."""
        return Calibration(self.name, VERSION, reference_hash, {"kappa": self.kappa, "keep": self.keep})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: |z| against the same hours before. Windows under suspicion are not learnt."""
        past = Past.load(state, cal, VERSION, 1)
        newest = History.of(np.array([np.log1p(window.n)]), 0.0, window.end_us)
        evidence: dict[str, Any] = {"events": window.n, **past.told()}
        if window.n and (sources := concentration(window.rows(COLUMNS))):
            evidence["sources"] = sources
        known: dict[str, Any] = {"statistic": None, "verdict": Verdict.INSUFFICIENT}
        if past.learning:
            evidence["reason"] = past.learning
        else:
            calendar = Calendar.parse(self.timezone, self.weekend, self.holidays)
            scored = past.score(newest, window, cal, calendar, means=False)
            z = np.array([scored.z[0], -scored.z[0]])
            streams = wagers(BETS, ("volume",) * len(BETS), np.full(len(BETS), 1 / len(BETS)), z, self.kappa)
            usual = float(np.median(past.live.settled.values))
            evidence["typical"] = round(float(np.expm1(usual)), 1)
            known = {
                "statistic": float(abs(np.log1p(window.n) - usual)), "verdict": Verdict.OK, "streams": streams,
                "p_value": float(min(scored.p[0], 1 - scored.p[0]) * 2),
                "log_e": stats.log_sum_exp(streams.log_e, streams.weight),
            }  # fmt: skip
        detection = Detection(
            detector=self.name, family=self.family, event=Event.TRAFFIC_ANOMALY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), n=window.n, evidence=evidence, **known,
        )  # fmt: skip
        past = past.learn(newest, suspicious=feedback.frozen, keep=self.keep)
        return Measured(past.state(self.name, VERSION, cal), [detection])
