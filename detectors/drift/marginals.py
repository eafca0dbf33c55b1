"""Drift of each feature and of the model's answers, window by window, from counts alone."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from detectors import stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window, few_rows, own_state
from detectors.conformal import MIN_HISTORY, History, Live
from detectors.dependence import between, relate
from detectors.directions import Compared, Layout, lay_out
from detectors.divergence import divergence
from detectors.profile import Bins, Profile, compare, merged
from detectors.season import Calendar
from detectors.subjects import Judged, mix, subjects
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 4
SHOWN: Final = 8  # features in a segment's evidence
BREAKS_EXPECTED: Final = {  # breaks in so many windows without any change, as measured: benchmarks/drift_null.json
    "windows": 720,
    "at_times": 3.0,
    "shuffled_rows": 0.0,
    "shuffled_days": 3.6,
}
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
    stranger than any window of the history, 0: never; how often that happens without any change (BREAKS_EXPECTED) goes with it; keep: live windows remembered beside those of the reference; timezone, weekend,
    holidays: the calendar of the season (lists with commas; models get theirs from `calendars`).

    Reference: Vovk 2021 (testing randomness online); Volkhonskiy et al. 2017 (conformal martingales for change points);
    Shin, Ramdas and Rinaldo 2023 (e-detectors).

    >>> Marginals().kappa
    0.2
    """

    name: ClassVar[str] = "marginals"
    family: ClassVar[Family] = Family.DRIFT
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

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
        timed = [(w, p) for w, p in windows if p is not None and w.end_us > w.start_us]
        (own, arrays), *others = (self._learn(j, total, timed) for j in subjects(total.bins))
        meta = {
            "kappa": self.kappa, "kappa_shape": self.kappa_shape, "min_rows": self.min_rows, "keep": self.keep,
            "bins": total.bins.to_bytes(), "rows": total.n, **own,
        }  # fmt: skip
        if total.parts.size:
            arrays |= {"parts": total.parts, "part_cross": total.part_cross}
            meta["segments"] = [known for known, _ in others]
            for i, (_, found) in enumerate(others):
                arrays |= {f"{_part(i + 1)}{k}": v for k, v in found.items()}
        return Calibration(self.name, VERSION, reference_hash, meta, arrays)

    def _learn(
        self, judged: Judged, total: Profile, windows: Sequence[tuple[Window, Profile]]
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What is kept of the reference for one thing that is judged: numbers about it, and arrays."""
        enough = [(w, p) for w, p in windows if judged.plain(p).effective >= self.min_rows][-self.keep :]
        used = [(w, judged.counts(p, total)) for w, p in enough]
        least = [judged.least(p, total, c) for (_, p), (_, c) in zip(enough, used, strict=True)]
        whole = judged.plain(total)
        typical = int(np.median([p.effective for _, p in used])) if len(used) >= MIN_HISTORY else TYPICAL_ROWS
        steady = np.zeros(len(whole.cross))
        assert total.bins is not None
        varied = between(relate(total.bins, whole.counts, whole.cross, steady), [p for _, p in used])
        layout = _layout(total.bins.to_bytes(), whole.counts, whole.cross, varied, typical)
        values = [
            layout.values(p, whole.effective, inside=True, min_rows=self.min_rows, least=x)
            for (_, p), x in zip(used, least, strict=True)
        ]
        arrays: dict[str, NDArray[Any]] = {
            "counts": whole.counts,
            "cross": whole.cross,
            "between": varied,
            "values": np.array(values, dtype=np.float32).reshape(len(used), len(layout.names)),
            "inverse_n": np.array([1 / p.effective for _, p in used], dtype=np.float64),
            "end_us": np.array([w.end_us for w, _ in used], dtype=np.int64),
        }
        return {"windows": len(used), "typical_rows": typical, "learning": len(used) < MIN_HISTORY}, arrays

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection of the model and one of each segment: the largest change of shape as statistic, distances and
        evidence per feature, streams to bet on.
        """
        own = own_state(state, cal, VERSION)
        reference = _reference(cal)
        detections: list[Detection] = []
        arrays: dict[str, NDArray[Any]] = {}
        pending: list[int] = []
        for i, judged in enumerate(_subjects(cal.meta["bins"])):
            memory = _Memory.load(cal, own, i)
            memory, found = self._watch(cal, reference, judged, memory, window, feedback)
            if state is not None and own is None:
                found = [replace(d, evidence={**d.evidence, "rebuilt": True}) for d in found]
            detections += found
            arrays |= memory.save(i)
            pending.append(memory.live.pending)
        return Measured(State(self.name, VERSION, cal.hash, {"pending": pending}, arrays), detections)

    def _watch(
        self, cal: Calibration, reference: Profile, judged: Judged, memory: _Memory, window: Window, feedback: Feedback
    ) -> tuple[_Memory, list[Detection]]:
        """One window of one thing that is judged."""
        past = memory.reference.plus(memory.live.settled)
        evidence: dict[str, Any] = {"history": len(past)}
        raw = window.profile()
        plain = None if raw is None else judged.plain(raw)
        if raw is None or plain is None or plain.effective < self.min_rows:
            evidence["reason"] = few_rows(window, self.min_rows)
            n = window.n if plain is None else plain.n
            return memory, [self._detection(window, judged, evidence=evidence, n=n)]
        profile, layout = judged.counts(raw, reference), memory.layout
        least = judged.least(raw, reference, profile)
        values = layout.values(profile, layout.rows, inside=False, min_rows=self.min_rows, least=least)
        if plain.squares:
            evidence["sampled"] = {"events": plain.n, "as_sure_as": round(plain.effective)}
        newest = History.of(values, 1 / profile.effective, window.end_us)
        parts = (window.model, self.name, cal.hash, window.end_us)
        rng = stats.seeded(*parts, judged.name) if judged.name else stats.seeded(*parts)
        found = layout.score(past, memory.last.plus(newest), window.end_us - window.start_us, rng, self._calendar)
        learning = len(past) < MIN_HISTORY
        if not judged.name and (moved := mix(layout.bins, reference, raw)):
            evidence["mix"] = moved
        usual = replace(judged.plain(reference), bins=layout.bins)
        detections = [
            self._judged(layout, judged, window, usual, (plain.n, profile), found, evidence, learning=learning)
        ]
        if not judged.name and not learning:
            left = divergence(layout, usual, memory.live.settled)
            for row in evidence["features"]:
                if row["name"] in left:
                    size, spreads = left[row["name"]]
                    row["since_reference"] = {"size": _round(size), "spreads": _round(spreads)}
        if self.breaks > 0 and not learning and not judged.name:
            detections.append(self._break(layout, window, found))
        keep = self.keep // 3 if judged.name else self.keep  # segments are many
        live = memory.live.learn(newest, suspicious=feedback.frozen, others=len(memory.reference), keep=keep)
        return _Memory(layout, memory.reference, live, newest), detections

    def _judged(
        self,
        layout: Layout,
        judged: Judged,
        window: Window,
        reference: Profile,
        counted: tuple[int, Profile],
        found: Compared,
        evidence: dict[str, Any],
        *,
        learning: bool,
    ) -> Detection:
        n, profile = counted
        streams = judged.share(layout.streams(found, self.kappa, self.kappa_shape))
        distances = compare(layout.bins, reference, profile)
        per_feature = layout.per_feature(found.scored, streams)
        smallest = {} if learning else layout.smallest(found, self.kappa, TYPICAL_LEVEL / judged.weight, WITHIN)
        names = [b.name for b in layout.bins.features if not judged.name or b.name not in judged.muted]
        if judged.name:  # of segments the strangest features will do
            names = sorted(names, key=lambda f: -(per_feature[f]["log_e"] or 0.0))[:SHOWN]
        evidence["features"] = [
            {
                "name": f,
                **{k: _round(v) for k, v in distances[f].items()},
                **({} if learning else {k: _round(v) for k, v in per_feature[f].items()}),
                **({"smallest": _round(smallest[f])} if f in smallest else {}),  # none: no shift shows
            }
            for f in names
        ]
        if learning:
            evidence["reason"] = f"learning: {evidence['history']} of {MIN_HISTORY} windows"
        staked = max(float(streams.weight.sum()), 1e-300)
        p_values = [
            row["p_value"] for f, row in per_feature.items() if row["p_value"] is not None and f not in judged.muted
        ]
        return self._detection(
            window,
            judged,
            statistic=float(np.max(found.ratio, initial=0.0)),
            verdict=Verdict.INSUFFICIENT if learning else Verdict.OK,
            n=n,
            p_value=None if learning else min(1.0, min(p_values, default=1.0) * max(1, len(p_values))),
            log_e=None if learning else stats.log_sum_exp(streams.log_e, streams.weight / staked),
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
            evidence={"features": worst, "expected": dict(BREAKS_EXPECTED)},
        )  # fmt: skip

    def _detection(
        self, window: Window, judged: Judged, *, evidence: dict[str, Any], n: int, **known: Any
    ) -> Detection:
        fields = {"statistic": None, "verdict": Verdict.INSUFFICIENT, **known}
        subject = Subject("segment", judged.name) if judged.name else Subject("model", window.model)
        return Detection(
            detector=self.name, family=self.family, event=Event.FEATURE_DRIFT, subject=subject,
            window_us=(window.start_us, window.end_us), n=n, evidence=evidence, **fields,
        )  # fmt: skip


@dataclass(frozen=True)
class _Memory:
    """What is known of one thing that is judged: its layout, the reference's windows, live ones, and the one just before
    (learnt from or not; the next residual is taken against it).
    """

    layout: Layout
    reference: History
    live: Live
    last: History

    @classmethod
    def load(cls, cal: Calibration, state: State | None, i: int) -> _Memory:
        """From a calibration and, if it has one, the state; `i`: place among the subjects."""
        at = _part(i)
        known = cal.meta["segments"][i - 1] if i else cal.meta
        a = {k: cal.arrays[at + k] for k in ("counts", "cross", "between")}
        layout = _layout(cal.meta["bins"], a["counts"], a["cross"], a["between"], int(known["typical_rows"]))
        nothing = History.none(len(layout.names))
        if state is None:
            return cls(layout, History.load(cal.arrays, at), Live(nothing), nothing)
        live = Live(History.load(state.arrays, at), int(state.meta["pending"][i]))
        return cls(layout, History.load(cal.arrays, at), live, History.load(state.arrays, f"{at}last_"))

    def save(self, i: int) -> dict[str, NDArray[Any]]:
        at = _part(i)
        return {**self.live.windows.save(at), **self.last.save(f"{at}last_")}


def _part(i: int) -> str:
    """Prefix of a subject's arrays; the model itself has none."""
    return f"{i}/" if i else ""


def _layout(raw_bins: bytes, counts: Any, cross: Any, varied: Any, typical_rows: int) -> Layout:
    """The layout, made once per calibration in a process."""
    return lay_out(raw_bins, counts.tobytes(), cross.tobytes(), varied.tobytes(), typical_rows)


@functools.lru_cache(maxsize=64)
def _subjects(raw_bins: bytes) -> tuple[Judged, ...]:
    return tuple(subjects(_bins(raw_bins)))


def _reference(cal: Calibration) -> Profile:
    """The reference's counts, parts included."""
    a, raw = cal.arrays, cal.meta["bins"]
    bins = _bins(raw)
    blank = np.full(len(bins.features), np.nan)
    known = Profile(cal.meta["rows"], np.asarray(a["counts"]), blank, blank, np.asarray(a["cross"]), bins.key, bins)
    return replace(known, parts=a["parts"], part_cross=a["part_cross"]) if "parts" in a else known


@functools.lru_cache(maxsize=64)
def _bins(raw: bytes) -> Bins:
    return Bins.from_bytes(raw)


def _round(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")
