"""How often the model is wrong, once the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from detectors import stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Streams, Window, own_state
from detectors.binned import class_names
from detectors.conformal import History
from detectors.labels import values, wait
from detectors.past import KEEP, Past, best_p, wagers
from detectors.performance.losses import LOSSES, RATES, TRUST, by_label_time, found
from detectors.performance.promises import REMEMBERED, SUMS, estimate
from detectors.season import Calendar
from detectors.stats import Floats
from monitor.model import SECOND_US, Event, Family, Subject, Verdict

VERSION: Final = 3
PARTS: Final = {"loss": 0.6, "trust": 0.2, "rate": 0.2}  # shares of the bets


@dataclass(frozen=True)
class Performance:
    """Losses, calibration and class rates of a window's labelled events against those of earlier windows: PerformanceDecay.

    Idea: labels come late, so the window judged is one that ended a while ago, with every label known now, by the events'
    own time (so one batch of late labels is no decay). How long a while is learnt from how the labels of earlier windows
    grew (detectors.labels.Delay) unless `delay_s` says it. Per window: share of wrong classes, Brier score, mean absolute
    error of numbers (rising counts); whether scores are too high, or too steep, against outcomes (calibration, both ways);
    the share of the rarest classes among labels (both ways). Each is ranked against all earlier windows.

    Math: u = (mean - center) / sqrt(v / n + b) with v the variance of one event's number and b that between windows, then
    the conformal rank and the bets of detectors.conformal; budget() adds up.

    Without labels: the accuracy that calibrated scores promise for the newest window, and for two classes precision,
    recall, F1 and AUC of the rarer one, are told with their assumption, each as long as its promises have agreed with
    labels within 0.02 plus two standard errors over ten windows or more and over the newest twelve by themselves; else why
    not (detectors.performance.promises). Of predicted numbers nothing is estimated. It never alarms.

    Rows of a sampled log count as the events that they stand for; how sure a window is goes by its effective rows.

    Assumptions: labels are as complete, and events labelled for the same reasons, as before; `coverage` is told.

    False alarms: 2 % of the model's drift budget (one in 1700 days by default) when windows are exchangeable. Silent until
    labels come; below 50 windows with enough labels it learns and cannot alarm. A new delay starts the history afresh.

    Parameters: delay_s: seconds after a window's end at which its labels are looked at, negative: learnt; min_labels:
    labels a window needs; label: name of the feedback that is the truth; kappa: tolerated shift of z; keep: windows
    remembered; timezone, weekend, holidays: the calendar of the season.

    Reference: Vovk 2021; Shin, Ramdas and Rinaldo 2023; Wilson 1927 (band of a share); Naeini, Cooper and Hauskrecht 2015
    (calibration error); Guerin et al. 2022 (performance without labels); Mack 1993 (growth of what is reported late).

    >>> Performance().delay_s
    -1.0
    """

    name: ClassVar[str] = "performance"
    family: ClassVar[Family] = Family.PERFORMANCE
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

    delay_s: float = -1.0
    min_labels: int = 30
    label: str = "label"
    kappa: float = 0.3
    keep: int = KEEP
    timezone: str = "UTC"
    weekend: str = "sat,sun"
    holidays: str = ""

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Only the rarest classes are taken from the reference, which has no labels; never refused."""
        said: Counter[str] = Counter()
        for window in reference:
            rows = window.rows(("prediction_label", "scores", "class_names"))
            said.update(dict.fromkeys(class_names(rows), 0))
            if "prediction_label" in rows.column_names:
                said.update(c for c in values(rows["prediction_label"]).tolist() if c is not None)
        rarest = sorted(said, key=lambda c: (said[c], c))[: 1 if len(said) == 2 else RATES] if len(said) > 1 else []
        meta = {
            "kappa": self.kappa, "keep": self.keep, "min_labels": self.min_labels, "delay_s": self.delay_s, "rates": rarest,
        }  # fmt: skip
        return Calibration(self.name, VERSION, reference_hash, meta)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the share of wrong answers (else the mean absolute error) as statistic, with its band."""
        rates = tuple(str(c) for c in cal.meta["rates"])
        own = own_state(state, cal, VERSION)
        past = Past.load(state, cal, VERSION, 3 * (len(LOSSES) + len(TRUST) + len(rates)))
        none = np.empty((0, 2, SUMS))
        promises = np.asarray(own.arrays["promises"]).reshape(-1, 2, SUMS) if own is not None else none
        positive = rates[0] if rates else ""
        waiting = wait(
            {} if own is None else own.arrays, window, self.label, self.delay_s, self.min_labels, keep=feedback.frozen
        )
        if waiting.moved:  # windows of another age know more labels or fewer: nothing to compare with
            past = past.afresh()
        evidence = past.told()
        if (judged := waiting.judged) is None:
            evidence |= {"history": 0, "reason": "no labels yet: how long they take is learnt when they come"}
            kept = past.state(self.name, VERSION, cal, {**waiting.state, "promises": promises})
            return Measured(kept, [self._detection(window, window, 0, evidence)])
        what = found(judged, judged.labels(window.end_us), self.label, rates)
        if np.isfinite(what.promises).all() and what.effective >= self.min_labels:
            promises = np.concatenate([promises, what.promises[None]])[-REMEMBERED:]
        evidence |= {
            **what.told, "labels_known_after_s": (window.end_us - judged.end_us) / SECOND_US,
            "delay": "learnt" if self.delay_s < 0 else "configured", "by_label_time": by_label_time(window, self.label),
            "estimate": estimate(window, promises, positive),
        }  # fmt: skip
        known: dict[str, Any] = {}
        if what.effective < self.min_labels:
            evidence["reason"] = f"{what.effective:.0f} labels of {self.min_labels} that a window needs are known"
        else:
            newest = History.of(np.concatenate([what.mean, what.variance, what.inverse]), 0.0, judged.end_us)
            if past.learning:
                evidence["reason"] = f"{past.learning} with labels"
            else:
                known = self._judged(cal, past, newest, judged, rates)
            past = past.learn(newest, suspicious=feedback.frozen, keep=self.keep)
        statistic = next((float(v) for v in what.mean[[0, 2]] if np.isfinite(v)), None)
        detection = self._detection(window, judged, what.n, evidence, statistic=statistic, **known)
        return Measured(past.state(self.name, VERSION, cal, {**waiting.state, "promises": promises}), [detection])

    def _judged(
        self, cal: Calibration, past: Past, newest: History, judged: Window, rates: tuple[str, ...]
    ) -> dict[str, Any]:
        """Bets on one window."""
        calendar = Calendar.parse(self.timezone, self.weekend, self.holidays)
        scored = past.score(newest, judged, cal, calendar, means=True)
        streams = _streams(scored.z, self.kappa, rates)
        return {
            "streams": streams, "verdict": Verdict.OK, "log_e": stats.log_sum_exp(streams.log_e, streams.weight),
            "p_value": best_p(scored.p),
        }  # fmt: skip

    def _detection(self, window: Window, judged: Window, n: int, evidence: dict[str, Any], **known: Any) -> Detection:
        fields = {"statistic": None, "verdict": Verdict.INSUFFICIENT, **known}
        return Detection(
            detector=self.name, family=self.family, event=Event.PERFORMANCE_DECAY, subject=Subject("model", window.model),
            window_us=(judged.start_us, judged.end_us), known_us=window.end_us, n=n, evidence=evidence, **fields,
        )  # fmt: skip


def _streams(z: Floats, kappa: float, rates: tuple[str, ...]) -> Streams:
    """Losses bet on rising, calibration and rates on both ways."""
    numbers = [*LOSSES, *TRUST, *(f"rate of {c[:40]}" for c in rates)]
    part = [PARTS["loss"] / len(LOSSES)] * len(LOSSES) + [PARTS["trust"] / len(TRUST)] * len(TRUST)
    part += [PARTS["rate"] / max(1, len(rates))] * len(rates)
    both = np.arange(len(LOSSES), len(numbers))
    z = np.concatenate([z, -z[both]])
    bets = [f"{n}/+" for n in numbers] + [f"{numbers[i]}/-" for i in both]
    weight = np.array([*(p if i < len(LOSSES) else p / 2 for i, p in enumerate(part)), *(part[i] / 2 for i in both)])
    return wagers(bets, [*numbers, *(numbers[i] for i in both)], weight, z, kappa)
