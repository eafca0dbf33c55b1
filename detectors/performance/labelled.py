"""How often the model is wrong, once the truth is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors import conformal, stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Streams, Window
from detectors.binned import class_names, scores
from detectors.conformal import LAMBDAS, MIN_HISTORY, History, Live
from detectors.season import Calendar
from detectors.stats import Floats
from monitor.model import SECOND_US, Event, Family, Subject, Verdict

VERSION: Final = 1
LOSSES: Final = ("error", "brier", "absolute error")
NAMES: Final = tuple(f"{loss}/up/{lam}" for lam in LAMBDAS for loss in LOSSES)
BLAME: Final = tuple(LOSSES for _ in LAMBDAS)
GAP: Final = 0.02  # difference of estimated and measured accuracy beyond its own error that scores may have
COLUMNS: Final = ("request_id", "row_index", "prediction_label", "prediction_value", "scores", "class_names")


@dataclass(frozen=True)
class Performance:
    """Losses of a window's labelled events against those of earlier windows: PerformanceDecay when they rise.

    Idea: the window judged is the one that ended `delay_s` before, with every label known now, by the events' own time
    (so one batch of late labels is no decay). Per window: share of wrong classes, Brier score where scores are logged,
    mean absolute error of numbers. Each is ranked against all earlier windows; only rising counts.

    Math: u = (loss - mean) / sqrt(v / n + b) with v the variance of one event's loss and b that between windows, then
    the conformal rank and the bets of detectors.conformal; budget() adds up.

    Without labels: the accuracy that calibrated scores promise (mean highest score) is told as `estimated_accuracy`,
    and only as long as it has agreed with the measured one within 0.02 plus two standard errors; it never alarms.

    Assumptions: labels are as complete, and events labelled for the same reasons, as before; `coverage` is told.

    False alarms: 3 % of the model's drift budget (one in 1000 days by default) when windows are exchangeable. Below 50
    windows with enough labels it learns and cannot alarm.

    Parameters: delay_s: seconds after a window's end at which its labels are looked at; min_labels: labels a window
    needs; label: name of the feedback that is the truth; kappa: tolerated shift of z; keep: windows remembered;
    timezone, weekend, holidays: the calendar of the season.

    Reference: Vovk 2021; Shin, Ramdas and Rinaldo 2023; Wilson 1927 (band of a share).

    >>> Performance(delay_s=86400.0).delay_us
    86400000000
    """

    name: ClassVar[str] = "performance"
    family: ClassVar[Family] = Family.PERFORMANCE
    reads: ClassVar[str] = "windows"

    delay_s: float = 0.0
    min_labels: int = 30
    label: str = "label"
    kappa: float = 0.3
    keep: int = 1344
    timezone: str = "UTC"
    weekend: str = "sat,sun"
    holidays: str = ""

    @property
    def delay_us(self) -> int:
        """How long after its end a window is measured."""
        return round(self.delay_s * SECOND_US)

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Nothing is taken from the reference, which has no labels; never refused."""
        meta = {"kappa": self.kappa, "keep": self.keep, "min_labels": self.min_labels, "delay_s": self.delay_s}
        return Calibration(self.name, VERSION, reference_hash, meta)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the share of wrong answers (else the mean absolute error) as statistic, with its band."""
        own = state if state is not None and (state.calibration_hash, state.version) == (cal.hash, VERSION) else None
        nothing = History.none(2 * len(LOSSES) + 1)
        live = Live(History.load(own.arrays), int(own.meta["pending"])) if own is not None else Live(nothing)
        last = History.load(own.arrays, "last_") if own is not None else nothing
        found = _losses(window, window.end_us + self.delay_us, self.label)
        past = live.settled
        evidence: dict[str, Any] = {**found.told, "history": len(past), "labels_known_after_s": self.delay_s}
        if state is not None and own is None:
            evidence["rebuilt"] = True
        if (estimate := _trusted(found.promised, past)) is not None:
            evidence["estimated_accuracy"] = round(estimate, 4)
        if found.n < self.min_labels:
            evidence["reason"] = f"{found.n} labels of {self.min_labels} that a window needs are known"
            return Measured(_state(cal, live, last), [self._detection(window, found, evidence)])
        newest = History.of(found.values, 1 / found.n, window.end_us)
        known: dict[str, Any] = {}
        if len(past) >= MIN_HISTORY:
            calendar = Calendar.parse(self.timezone, self.weekend, self.holidays)
            rng = stats.seeded(window.model, self.name, cal.hash, window.end_us)
            both = last.plus(newest)
            scored = conformal.score(
                _even(past, past), _even(both, past), window.end_us - window.start_us, rng, calendar
            )
            weight = np.full(len(NAMES), 1 / len(NAMES))
            log_e = conformal.bets(scored.z, self.kappa).ravel()
            blame = tuple(b for row in BLAME for b in row)
            streams = Streams(NAMES, blame, weight, log_e, np.tile(scored.z, len(LAMBDAS)))
            p = scored.p[np.isfinite(scored.p)]
            known = {
                "streams": streams, "verdict": Verdict.OK, "log_e": stats.log_sum_exp(log_e, weight),
                "p_value": min(1.0, float(p.min()) * len(p)) if len(p) else None,
            }  # fmt: skip
        else:
            evidence["reason"] = f"learning: {len(past)} of {MIN_HISTORY} windows with labels"
        live = live.learn(newest, suspicious=feedback.frozen, others=0, keep=self.keep)
        return Measured(_state(cal, live, newest), [self._detection(window, found, evidence, **known)])

    def _detection(self, window: Window, found: _Losses, evidence: dict[str, Any], **known: Any) -> Detection:
        statistic = next((float(v) for v in found.values[[0, 2]] if np.isfinite(v)), None)
        fields = {"verdict": Verdict.INSUFFICIENT, **known}
        return Detection(
            detector=self.name, family=self.family, event=Event.PERFORMANCE_DECAY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), statistic=statistic, n=found.n, evidence=evidence, **fields,
        )  # fmt: skip


@dataclass(frozen=True)
class _Losses:
    """n: labelled events. values: mean of each loss, variance of each, estimated less measured accuracy (NaN: none).
    promised: the accuracy that all rows' scores promise. told: for people.
    """

    n: int
    values: Floats
    promised: float
    told: dict[str, Any]


def _losses(window: Window, as_of_us: int, name: str) -> _Losses:
    rows, labels = window.rows(COLUMNS), window.labels(as_of_us)
    values = np.full(2 * len(LOSSES) + 1, np.nan)
    classes = class_names(rows)
    by_class = scores(rows, classes)
    best = np.array([by_class[c] for c in classes]) if classes else np.empty((0, rows.num_rows))
    top = best.max(axis=0) if len(best) else np.full(rows.num_rows, np.nan)
    promised = float(np.nanmean(top)) if np.isfinite(top).any() else np.nan
    place, truth, number = _joined(rows, labels, name)
    told: dict[str, Any] = {"events": window.n, "labelled": len(place), "by": "event time"}
    if window.n:
        told["coverage"] = round(len(place) / window.n, 4)
    if not len(place):
        return _Losses(0, values, promised, told)
    taken = rows.take(pa.array(place))
    losses: list[NDArray[Any]] = [np.full(len(place), np.nan)] * len(LOSSES)
    if "prediction_label" in rows.column_names and taken["prediction_label"].null_count < len(place):
        said = np.array([None if v is None else str(v) for v in taken["prediction_label"].to_pylist()], dtype=object)
        losses[0] = np.where(said == None, np.nan, said != truth)  # noqa: E711 - elementwise
        told |= _by_class(truth, losses[0].astype(np.float64))
    if len(best) > 1:
        hit = truth[None, :] == np.array(classes, dtype=object)[:, None]
        losses[1] = ((best[:, place] - hit) ** 2).sum(axis=0)
    if "prediction_value" in rows.column_names:
        losses[2] = np.abs(np.array(taken["prediction_value"].to_pylist(), dtype=np.float64) - number)
    for i, loss in enumerate(losses):
        x = loss.astype(np.float64)
        x = x[np.isfinite(x)]
        if len(x):
            values[i], values[len(LOSSES) + i] = x.mean(), x.var()
    if np.isfinite(values[0]) and np.isfinite(top[place]).any():
        values[-1] = float(np.nanmean(top[place])) - (1 - values[0])
    return _Losses(len(place), values, promised, told)


def _joined(rows: pa.Table, labels: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[Any], Floats]:
    """Rows that have a label, the label as word and as number (NaN where it is none)."""
    if "request_id" not in rows.column_names or not labels.num_rows:
        return np.empty(0, np.int64), np.empty(0, object), np.empty(0)
    index = rows["row_index"].to_pylist() if "row_index" in rows.column_names else [None] * rows.num_rows
    at = {key: i for i, key in enumerate(zip(rows["request_id"].to_pylist(), index, strict=True))}
    found = []
    for label in labels.to_pylist():
        key = (label["request_id"], label.get("row_index") if "row_index" in rows.column_names else None)
        if label["name"] == name and label["request_id"] is not None and key in at:
            found.append((at[key], label["value"], label.get("value_number")))
    found.sort(key=lambda f: f[0])
    numbers = np.array([np.nan if f[2] is None else f[2] for f in found], dtype=np.float64)
    words = np.array([None if f[1] is None else str(f[1]) for f in found], dtype=object)
    return np.array([f[0] for f in found], np.int64), words, numbers


def _by_class(truth: NDArray[Any], wrong: Floats) -> dict[str, Any]:
    """Accuracy with its 95 % band, and recall of the ten most frequent true classes."""
    known = np.isfinite(wrong)
    n, right = int(known.sum()), int((wrong[known] == 0).sum())
    words, counts = np.unique(truth[known].astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:10]
    recall = {
        str(words[i]): round(1 - float(wrong[known][truth[known].astype(str) == words[i]].mean()), 4) for i in order
    }
    low, high = stats.wilson(right, n)
    return {"accuracy": round(right / max(1, n), 4), "band": [round(low, 4), round(high, 4)], "recall": recall}


def _even(some: History, past: History) -> History:
    """Losses of windows of any size on one scale."""
    k = len(LOSSES)
    old, now = past.values.astype(np.float64), some.values.astype(np.float64)
    known = np.isfinite(old[:, :k])
    size = np.maximum(known.sum(axis=0), 1)
    center = np.where(known, old[:, :k], 0).sum(axis=0) / size
    row = np.where(known, old[:, k : 2 * k], 0).sum(axis=0) / size
    between = conformal.spread(old[:, :k], past.inverse_n, row)
    scale = np.sqrt(np.maximum(row * some.inverse_n[:, None] + between, 1e-12))
    return History(((now[:, :k] - center) / scale).astype(np.float32), some.inverse_n, some.end_us)


def _trusted(promised: float, past: History) -> float | None:
    """The promised accuracy, as long as promises have been kept in at least ten windows."""
    gap = past.values[:, -1].astype(np.float64)
    gap = gap[np.isfinite(gap)]
    if len(gap) < 10 or not np.isfinite(promised):
        return None
    error = 2 * float(gap.std()) / np.sqrt(len(gap))
    return promised if abs(float(gap.mean())) <= GAP + error else None


def _state(cal: Calibration, live: Live, last: History) -> State:
    arrays = {**live.windows.save(), **last.save("last_")}
    return State(Performance.name, VERSION, cal.hash, {"pending": live.pending}, arrays)
