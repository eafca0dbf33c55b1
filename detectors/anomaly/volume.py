"""Traffic of a model by window: a surge or a slump."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from detectors import conformal, stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Streams, Window
from detectors.conformal import LAMBDAS, MIN_HISTORY, History, Live
from detectors.season import Calendar
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 1
NAMES: Final = tuple(f"events/{sign}/{lam}" for lam in LAMBDAS for sign in "+-")


@dataclass(frozen=True)
class Volume:
    """Events per window against this model's own traffic.

    Idea: log(1 + events) of a window is ranked against all earlier windows, season and the correlation of successive
    windows removed first. History is learnt from live windows: a reference is often a sample, so its rate
    says nothing about the log's.

    Math: z_t = Phi^-1(1 - p_t) of the conformal rank; bets exp(lambda (|z| side - kappa) - lambda^2 / 2) on both signs;
    budget() adds them up (detectors.decide).

    Assumptions: windows are exchangeable up to season and AR(1) when nothing changed. Seasons show as variance until
    the history is long enough (detectors.season): a week for hours, two for kinds of day, eight for hours of the week.

    False alarms: a tenth of the model's budget (so one in 300 days by default) when windows are exchangeable; see
    docs/detectors.md for the measured rate. Below 50 windows of history it learns and cannot alarm.

    Parameters: kappa: tolerated shift of z in standard deviations; keep: windows remembered; timezone, weekend,
    holidays: the calendar of the season (lists with commas; models get theirs from `calendars`).

    Reference: Vovk 2021; Shin, Ramdas and Rinaldo 2023.

    >>> Volume().keep
    1344
    """

    name: ClassVar[str] = "volume"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "windows"

    kappa: float = 0.4
    keep: int = 1344
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
        own = state if state is not None and (state.calibration_hash, state.version) == (cal.hash, VERSION) else None
        live = Live(History.load(own.arrays), int(own.meta["pending"])) if own is not None else Live(History.none(1))
        last = History.load(own.arrays, "last_") if own is not None else History.none(1)
        past = live.settled
        newest = History.of(np.array([np.log1p(window.n)]), 0.0, window.end_us)
        evidence: dict[str, Any] = {"events": window.n, "history": len(past)}
        if state is not None and own is None:
            evidence["rebuilt"] = True
        known: dict[str, Any] = {"statistic": None, "verdict": Verdict.INSUFFICIENT}
        if len(past) >= MIN_HISTORY:
            length_us = window.end_us - window.start_us
            scored = conformal.score(
                past,
                last.plus(newest),
                length_us,
                stats.seeded(window.model, self.name, cal.hash, window.end_us),
                Calendar.parse(self.timezone, self.weekend, self.holidays),
            )
            z = np.array([scored.z[0], -scored.z[0]])
            streams = Streams(
                NAMES, ("volume",) * len(NAMES), np.full(len(NAMES), 1 / len(NAMES)),
                conformal.bets(z, self.kappa).ravel(), np.tile(z, len(LAMBDAS)),
            )  # fmt: skip
            typical = float(np.expm1(np.median(past.values)))
            evidence["typical"] = round(typical, 1)
            p = float(min(scored.p[0], 1 - scored.p[0]) * 2)
            known = {
                "statistic": float(abs(np.log1p(window.n) - np.median(past.values))), "verdict": Verdict.OK,
                "p_value": p, "log_e": stats.log_sum_exp(streams.log_e, streams.weight), "streams": streams,
            }  # fmt: skip
        else:
            evidence["reason"] = f"learning: {len(past)} of {MIN_HISTORY} windows"
        detection = Detection(
            detector=self.name, family=self.family, event=Event.TRAFFIC_ANOMALY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), n=window.n, evidence=evidence, **known,
        )  # fmt: skip
        live = live.learn(newest, suspicious=feedback.frozen, others=0, keep=self.keep)
        arrays = {**live.windows.save(), **newest.save("last_")}
        return Measured(State(self.name, VERSION, cal.hash, {"pending": live.pending}, arrays), [detection])
