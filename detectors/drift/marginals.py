"""Drift of each feature and of the model's answers, window by window, from counts alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from detectors import stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window
from detectors.conformal import MIN_HISTORY, History, Live
from detectors.dependence import between, relate
from detectors.directions import Compared, Layout, lay_out
from detectors.profile import Profile, compare, merged
from detectors.season import Calendar
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 3
BREAKS_EXPECTED: Final = "outside the budget: none in 681 windows of shuffled days, up to 5.5 in 720 of stormy data"
WITHIN: Final = 24  # windows in which the smallest visible shift is found
TYPICAL_LEVEL: Final = 800.0  # of the default budget at hourly windows; its logarithm is what counts
TYPICAL_ROWS: Final = 100  # rows a window is taken to have where the reference does not tell


@dataclass(frozen=True)
class Marginals:
    """Drift of every feature, the prediction and the scores against the reference, from one window's counts.

    Idea: a window is turned into a few numbers per feature, each a linear function of its counts: mean normal score
    (location), mean squared normal score (spread), share of missing, share of each category above 2 %, share of new and
    rare categories; one chi-square over all bins (shape); and how far its correlations with the other numbers are from
    the reference's (dependence), which finds changes that no feature shows by itself. Each number is ranked against the same number of all
    earlier windows, so what counts as unusual is how much windows of this model vary when nothing is wrong.

    Math: z_t = Phi^-1(1 - p_t) of the conformal rank p_t (ties at random, season and AR(1) removed first);
    bets e_t = exp(lambda (z_t - kappa) - lambda^2 / 2), lambda in {.5, 1, 1.5, 2}, both signs for directions. The
    running sums M_t = (M_{t-1} + 1) e_t and the alarm are budget()'s (detectors.decide).

    Assumptions: windows are exchangeable up to season and AR(1) when nothing changed; the features' rows need no
    distribution. Windows with fewer than `min_rows` rows are not judged.

    False alarms: at most the budget (one in 30 days by default) over all features together when windows are
    exchangeable; measured on shuffled rows and shuffled days by benchmarks/drift_null.py, numbers in docs/detectors.md.
    With fewer than 50 windows of history the verdict is "insufficient" (learning) and nothing can alarm.

    Parameters: kappa (directions), kappa_shape: shifts of z that are tolerated, in standard deviations between windows,
    never less than two standard errors of the history itself;
    min_rows: rows a window needs; breaks: report a single window (DistributionBreak) whose shape is so many times
    stranger than any window of the history, 0: never; keep: live windows remembered beside those of the reference; timezone, weekend,
    holidays: the calendar of the season (lists with commas; models get theirs from `calendars`).

    Reference: Vovk 2021 (testing randomness online); Volkhonskiy et al. 2017 (conformal martingales for change points);
    Shin, Ramdas and Rinaldo 2023 (e-detectors).

    >>> Marginals().kappa
    0.2
    """

    name: ClassVar[str] = "marginals"
    family: ClassVar[Family] = Family.DRIFT
    reads: ClassVar[str] = "windows"

    kappa: float = 0.2
    kappa_shape: float = 0.4
    min_rows: int = 20
    keep: int = 720
    breaks: float = 0.0
    timezone: str = "UTC"
    weekend: str = "sat,sun"
    holidays: str = ""

    @property
    def _calendar(self) -> Calendar:
        return Calendar.parse(self.timezone, self.weekend, self.holidays)

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Counts of the whole reference, and the values of each of its windows that has times and rows enough.

        Raises CalibrationRefused when the reference has no rows or no features.
        """
        windows = [(w, w.profile()) for w in reference]
        total = merged(p for _, p in windows if p is not None and p.n)
        if total is None or total.bins is None:
            raise CalibrationRefused("the reference has no rows: name a file of events under `reference`")
        if not total.bins.features:
            raise CalibrationRefused("the reference has neither features nor predictions to watch")
        used = [(w, p) for w, p in windows if p is not None and p.n >= self.min_rows and w.end_us > w.start_us][
            -self.keep :
        ]
        typical = int(np.median([p.n for _, p in used])) if len(used) >= MIN_HISTORY else TYPICAL_ROWS
        steady = np.zeros(len(total.cross))
        varied = between(relate(total.bins, total.counts, total.cross, steady), [p for _, p in used])
        layout = _layout(total.bins.to_bytes(), total.counts, total.cross, varied, typical)
        values = [layout.values(p, total.n, inside=True, min_rows=self.min_rows) for _, p in used]
        meta = {
            "kappa": self.kappa, "kappa_shape": self.kappa_shape, "min_rows": self.min_rows, "keep": self.keep,
            "bins": total.bins.to_bytes(), "rows": total.n, "windows": len(used), "typical_rows": typical, "learning": len(used) < MIN_HISTORY,
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {
            "counts": total.counts,
            "cross": total.cross,
            "between": varied,
            "values": np.array(values, dtype=np.float32).reshape(len(used), len(layout.names)),
            "inverse_n": np.array([1 / p.n for _, p in used], dtype=np.float64),
            "end_us": np.array([w.end_us for w, _ in used], dtype=np.int64),
        }
        return Calibration(self.name, VERSION, reference_hash, meta, arrays)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the largest change of shape as statistic, distances and evidence per feature, streams to bet on."""
        a = cal.arrays
        layout = _layout(cal.meta["bins"], a["counts"], a["cross"], a["between"], int(cal.meta["typical_rows"]))
        own = state if state is not None and (state.calibration_hash, state.version) == (cal.hash, VERSION) else None
        nothing = History.none(len(layout.names))
        live = Live(History.load(own.arrays), int(own.meta["pending"])) if own is not None else Live(nothing)
        last = History.load(own.arrays, "last_") if own is not None else nothing
        reference = History.load(cal.arrays)
        past = reference.plus(live.settled)
        evidence: dict[str, Any] = {"history": len(past)}
        if state is not None and own is None:
            evidence["rebuilt"] = True
        profile = window.profile()
        if profile is None or profile.n < self.min_rows:
            evidence["reason"] = f"fewer than {self.min_rows} rows in the window"
            return Measured(own or _state(cal, live, last), [self._detection(window, evidence=evidence, n=window.n)])
        values = layout.values(profile, int(cal.meta["rows"]), inside=False, min_rows=self.min_rows)
        newest = History.of(values, 1 / profile.n, window.end_us)
        rng = stats.seeded(window.model, self.name, cal.hash, window.end_us)
        found = layout.score(past, last.plus(newest), window.end_us - window.start_us, rng, self._calendar)
        learning = len(past) < MIN_HISTORY
        detections = [self._judged(layout, cal, window, profile, found, evidence, learning=learning)]
        if self.breaks > 0 and not learning:
            detections.append(self._break(layout, window, found))
        live = live.learn(newest, suspicious=feedback.frozen, others=len(reference), keep=self.keep)
        return Measured(_state(cal, live, newest), detections)

    def _judged(
        self,
        layout: Layout,
        cal: Calibration,
        window: Window,
        profile: Profile,
        found: Compared,
        evidence: dict[str, Any],
        *,
        learning: bool,
    ) -> Detection:
        streams = layout.streams(found, self.kappa, self.kappa_shape)
        counts, cross = np.asarray(cal.arrays["counts"]), np.asarray(cal.arrays["cross"])
        reference = Profile(cal.meta["rows"], counts, profile.low, profile.high, cross, profile.key, layout.bins)
        distances = compare(layout.bins, reference, profile)
        per_feature = layout.per_feature(found.scored, streams)
        smallest = {} if learning else layout.smallest(found, self.kappa, TYPICAL_LEVEL, WITHIN)
        evidence["features"] = [
            {
                "name": f,
                **{k: _round(v) for k, v in distances[f].items()},
                **({} if learning else {k: _round(v) for k, v in per_feature[f].items()}),
                **({"smallest": _round(smallest[f])} if f in smallest else {}),
            }
            for f in (b.name for b in layout.bins.features)
        ]
        if learning:
            evidence["reason"] = f"learning: {evidence['history']} of {MIN_HISTORY} windows"
        p_values = [row["p_value"] for row in per_feature.values() if row["p_value"] is not None]
        return self._detection(
            window,
            statistic=float(np.max(found.ratio, initial=0.0)),
            verdict=Verdict.INSUFFICIENT if learning else Verdict.OK,
            n=profile.n,
            p_value=None if learning else min(1.0, min(p_values, default=1.0) * max(1, len(p_values))),
            log_e=None if learning else stats.log_sum_exp(streams.log_e, streams.weight),
            evidence=evidence,
            streams=None if learning else streams,
        )

    def _break(self, layout: Layout, window: Window, found: Compared) -> Detection:
        """One window that is stranger than any before it: a fixed rule, outside the budget."""
        names = [f.name for f in layout.bins.features]
        order = np.argsort(-found.broke, kind="stable")[:10]
        total = float(found.broke[order].sum()) or 1.0
        worst = [
            {"name": names[i], "share": _round(float(found.broke[i]) / total), "times": _round(float(found.broke[i]))}
            for i in order
            if found.broke[i] > self.breaks
        ]
        return Detection(
            detector=self.name, family=self.family, event=Event.DISTRIBUTION_BREAK, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), statistic=float(np.max(found.broke, initial=0.0)), n=window.n,
            threshold=self.breaks, verdict=Verdict.ALARM if worst else Verdict.OK,
            evidence={"features": worst, "expected": BREAKS_EXPECTED},
        )  # fmt: skip

    def _detection(self, window: Window, *, evidence: dict[str, Any], n: int, **known: Any) -> Detection:
        fields = {"statistic": None, "verdict": Verdict.INSUFFICIENT, **known}
        return Detection(
            detector=self.name, family=self.family, event=Event.FEATURE_DRIFT, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), n=n, evidence=evidence, **fields,
        )  # fmt: skip


def _layout(raw_bins: bytes, counts: Any, cross: Any, varied: Any, typical_rows: int) -> Layout:
    """The layout, made once per calibration in a process."""
    return lay_out(raw_bins, counts.tobytes(), cross.tobytes(), varied.tobytes(), typical_rows)


def _state(cal: Calibration, live: Live, last: History) -> State:
    """`last`: the window measured just before, learnt from or not; the next residual is taken against it."""
    arrays = {**live.windows.save(), **last.save("last_")}
    return State(Marginals.name, VERSION, cal.hash, {"pending": live.pending}, arrays)


def _round(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")
