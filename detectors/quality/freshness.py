"""How late events arrive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from detectors import stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window
from detectors.conformal import History
from detectors.past import KEEP, Past, best_p, wagers
from detectors.season import Calendar
from monitor.model import SECOND_US, Event, Family, Subject, Verdict

VERSION: Final = 1
NUMBERS: Final = ("typical delay", "longest delays")
BETS: Final = tuple(f"freshness/{n}/+" for n in NUMBERS)


@dataclass(frozen=True)
class Freshness:
    """The time from an event to its recording, against the same hours before: DataQuality when data become stale.

    Idea: per window log(1 + seconds from event to recording), its median and its 95th percentile, each ranked against all
    earlier windows; only rising counts.

    Math: conformal rank and bets as in detectors.conformal; budget() adds up.

    Assumptions: what a reference tells about recording is not known, so the history is live windows only; clocks of
    senders are as right or wrong as before. A replay records events when they happened: nothing is late there.

    False alarms: 0.6 % of the model's drift budget (one in 5000 days by default) when windows are exchangeable. Below 50
    live windows it learns and cannot alarm.

    Parameters: min_rows: rows a window needs; kappa: tolerated shift of z; keep: windows remembered; timezone, weekend,
    holidays: the calendar of the season.

    Reference: Vovk 2021; Shin, Ramdas and Rinaldo 2023.

    >>> Freshness().min_rows
    20
    """

    name: ClassVar[str] = "freshness"
    family: ClassVar[Family] = Family.QUALITY
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

    min_rows: int = 20
    kappa: float = 0.3
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
        """One detection: log of the median delay over the usual one as statistic."""
        past = Past.load(state, cal, VERSION, len(NUMBERS))
        evidence = past.told()
        known: dict[str, Any] = {"statistic": None, "verdict": Verdict.INSUFFICIENT}
        rows = window.rows(["event_time", "ingest_time"])
        if "ingest_time" not in rows.column_names or rows.num_rows < self.min_rows:
            evidence["reason"] = f"fewer than {self.min_rows} rows that say when they were recorded"
            return Measured(past.state(self.name, VERSION, cal), [self._detection(window, evidence, known)])
        late = np.asarray(rows["ingest_time"], np.float64) - np.asarray(rows["event_time"], np.float64)
        delay_s = np.maximum(np.nan_to_num(late), 0.0) / SECOND_US
        middle, most = (float(np.quantile(delay_s, q)) for q in (0.5, 0.95))
        evidence |= {"median_delay_s": round(middle, 3), "p95_delay_s": round(most, 3)}
        newest = History.of(np.log1p([middle, most]), 0.0, window.end_us)
        if past.learning:
            evidence["reason"] = past.learning
        else:
            calendar = Calendar.parse(self.timezone, self.weekend, self.holidays)
            scored = past.score(newest, window, cal, calendar, means=False)
            streams = wagers(BETS, ("freshness",) * len(BETS), np.full(len(BETS), 1 / len(BETS)), scored.z, self.kappa)
            usual = float(np.median(past.live.settled.values[:, 0]))
            evidence["usual_median_delay_s"] = round(float(np.expm1(usual)), 3)
            known = {
                "statistic": float(np.log1p(middle)) - usual, "verdict": Verdict.OK, "streams": streams,
                "p_value": best_p(scored.p), "log_e": stats.log_sum_exp(streams.log_e, streams.weight),
            }  # fmt: skip
        past = past.learn(newest, suspicious=feedback.frozen, keep=self.keep)
        return Measured(past.state(self.name, VERSION, cal), [self._detection(window, evidence, known)])

    def _detection(self, window: Window, evidence: dict[str, Any], known: dict[str, Any]) -> Detection:
        return Detection(
            detector=self.name, family=self.family, event=Event.DATA_QUALITY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), n=window.n, evidence=evidence, **known,
        )  # fmt: skip
