"""Drift of each feature and of the model's answers, window by window, from counts alone."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from detectors import conformal, stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Streams, Window
from detectors.conformal import LAMBDAS, MIN_HISTORY, History, Live, Scored
from detectors.profile import NUMBER, Bins, Profile, compare, merged
from detectors.stats import Floats
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 1
DIRECTIONS_WEIGHT: Final = 0.65  # share of the bets on moved levels and shares; the rest is on any change of shape
MIN_SHARE: Final = 0.02  # categories rarer than this are watched by shape only
MIN_BIN: Final = 1e-3  # smallest share a bin counts with in the shape, so that one odd row does not drown the rest


@dataclass(frozen=True)
class Marginals:
    """Drift of every feature, the prediction and the scores against the reference, from one window's counts.

    Idea: a window is turned into a few numbers per feature, each a linear function of its counts: mean normal score
    (location), mean squared normal score (spread), share of missing, share of each category above 2 %, share of new and
    rare categories; and one chi-square over all bins (shape). Each number is ranked against the same number of all
    earlier windows, so what counts as unusual is how much windows of this model vary when nothing is wrong.

    Math: z_t = Phi^-1(1 - p_t) of the conformal rank p_t (ties at random, hours of the day and AR(1) removed first);
    bets e_t = exp(lambda (z_t - kappa) - lambda^2 / 2), lambda in {.5, 1, 1.5, 2}, both signs for directions. The
    running sums M_t = (M_{t-1} + 1) e_t and the alarm are budget()'s (detectors.decide).

    Assumptions: windows are exchangeable up to season and AR(1) when nothing changed; the features' rows need no
    distribution. Windows with fewer than `min_rows` rows are not judged.

    False alarms: at most the budget (one in 30 days by default) over all features together when windows are
    exchangeable; measured on shuffled rows and shuffled days by benchmarks/drift_null.py, numbers in docs/detectors.md.
    With fewer than 50 windows of history the verdict is "insufficient" (learning) and nothing can alarm.

    Parameters: kappa (location), kappa_shape: shifts of z that are tolerated, in standard deviations between windows;
    min_rows: rows a window needs; keep: live windows remembered beside those of the reference.

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
        layout = _layout(total.bins.to_bytes(), total.counts.tobytes())
        used = [(w, p) for w, p in windows if p is not None and p.n >= self.min_rows and w.end_us > w.start_us][
            -self.keep :
        ]
        values = [layout.values(p, total.n, inside=True, min_rows=self.min_rows) for _, p in used]
        meta = {
            "kappa": self.kappa, "kappa_shape": self.kappa_shape, "min_rows": self.min_rows, "keep": self.keep,
            "bins": total.bins.to_bytes(), "rows": total.n, "windows": len(used), "learning": len(used) < MIN_HISTORY,
        }  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {
            "counts": total.counts,
            "values": np.array(values, dtype=np.float32).reshape(len(used), len(layout.names)),
            "inverse_n": np.array([1 / p.n for _, p in used], dtype=np.float64),
            "end_us": np.array([w.end_us for w, _ in used], dtype=np.int64),
        }
        return Calibration(self.name, VERSION, reference_hash, meta, arrays)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the largest change of shape as statistic, distances and evidence per feature, streams to bet on."""
        layout = _layout(cal.meta["bins"], np.asarray(cal.arrays["counts"]).tobytes())
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
        scored, ratio = layout.score(past, last.plus(newest), window.end_us - window.start_us, rng)
        learning = len(past) < MIN_HISTORY
        detection = self._judged(layout, cal, window, profile, scored, ratio, evidence, learning=learning)
        live = live.learn(newest, suspicious=feedback.frozen, others=len(reference), keep=self.keep)
        return Measured(_state(cal, live, newest), [detection])

    def _judged(
        self,
        layout: _Layout,
        cal: Calibration,
        window: Window,
        profile: Profile,
        scored: Scored,
        ratio: Floats,
        evidence: dict[str, Any],
        *,
        learning: bool,
    ) -> Detection:
        streams = layout.streams(scored, self.kappa, self.kappa_shape)
        reference = Profile(
            cal.meta["rows"], np.asarray(cal.arrays["counts"]), profile.low, profile.high, profile.key, layout.bins
        )
        distances = compare(layout.bins, reference, profile)
        per_feature = layout.per_feature(scored, streams)
        evidence["features"] = [
            {"name": f, **{k: _round(v) for k, v in distances[f].items()}, **({} if learning else per_feature[f])}
            for f in (b.name for b in layout.bins.features)
        ]
        if learning:
            evidence["reason"] = f"learning: {evidence['history']} of {MIN_HISTORY} windows"
        p_values = [row["p_value"] for row in per_feature.values() if row["p_value"] is not None]
        return self._detection(
            window,
            statistic=float(np.max(ratio, initial=0.0)),
            verdict=Verdict.INSUFFICIENT if learning else Verdict.OK,
            n=profile.n,
            p_value=None if learning else min(1.0, min(p_values, default=1.0) * max(1, len(p_values))),
            log_e=None if learning else stats.log_sum_exp(streams.log_e, streams.weight),
            evidence=evidence,
            streams=None if learning else streams,
        )

    def _detection(self, window: Window, *, evidence: dict[str, Any], n: int, **known: Any) -> Detection:
        fields = {"statistic": None, "verdict": Verdict.INSUFFICIENT, **known}
        return Detection(
            detector=self.name, family=self.family, event=Event.FEATURE_DRIFT, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), n=n, evidence=evidence, **fields,
        )  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """Which numbers a profile is turned into. Columns: all directions, then one shape per feature.

    linear (slots, D): a direction is counts @ linear / counts @ below; row_variance (D,): its variance per row.
    """

    bins: Bins
    names: tuple[str, ...]
    blame: tuple[str, ...]
    linear: Floats
    below: Floats
    row_variance: Floats
    share: Floats  # smoothed reference share per slot
    freedom: Floats  # bins - 1 per feature

    @property
    def directions(self) -> int:
        return int(self.linear.shape[1])

    def values(self, profile: Profile, rows: int, *, inside: bool, min_rows: int) -> Floats:
        """The numbers of one window (D + F,). `inside`: its rows are among the reference's `rows` (leave them out)."""
        c = profile.counts.astype(np.float64)
        below = c @ self.below
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(below >= min_rows, (c @ self.linear) / below, np.nan)
        gap = (c / profile.n - self.share) ** 2 / self.share
        chi = np.add.reduceat(gap, self.bins.offsets[:-1])
        rest = max(1, rows - profile.n) if inside else rows
        chi = chi * ((rows / rest) ** 2 if inside else 1.0) / (1 + profile.n / rest)  # on the scale of 1 / n
        return np.concatenate([x, chi])

    def score(self, past: History, window: History, length_us: int, rng: np.random.Generator) -> tuple[Scored, Floats]:
        """Scores of the last row of `window`, and each feature's chi-square over its expectation (1 = as usual)."""
        d = self.directions
        old = past.values.astype(np.float64)
        between = conformal.spread(old[:, :d], past.inverse_n, self.row_variance)
        extra = (
            np.maximum((old[:, d:] - self.freedom * past.inverse_n[:, None]).mean(axis=0), 0.0)
            if len(past)
            else self.freedom * 0
        )

        def scaled(h: History) -> History:
            v = h.values.astype(np.float64)
            sd = np.sqrt(self.row_variance * h.inverse_n[:, None] + between)
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.where(sd > 0, v[:, :d] / sd, v[:, :d])
                chi = np.log(
                    np.maximum(v[:, d:], 1e-12) / np.maximum(self.freedom * h.inverse_n[:, None] + extra, 1e-12)
                )
            return History(np.concatenate([x, chi], axis=1).astype(np.float32), h.inverse_n, h.end_us)

        ratio = window.values[-1, d:] / np.maximum(self.freedom * window.inverse_n[-1] + extra, 1e-12)
        return conformal.score(scaled(past), scaled(window), length_us, rng), np.asarray(ratio, dtype=np.float64)

    @functools.cached_property
    def stream_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        d = self.directions
        plan = [*((i, s) for s in "+-" for i in range(d)), *((i, "+") for i in range(d, len(self.names)))]
        names = tuple(f"{self.names[i]}/{s}/{lam}" for lam in LAMBDAS for i, s in plan)
        return names, tuple(self.blame[i] for _ in LAMBDAS for i, _ in plan)

    @functools.cached_property
    def places(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Per feature: where its numbers and where its streams stand."""
        blame, streams = np.array(self.blame), np.array(self.stream_names[1])
        return {
            f.name: (np.flatnonzero(blame == f.name), np.flatnonzero(streams == f.name)) for f in self.bins.features
        }

    @functools.cached_property
    def weight(self) -> Floats:
        """Equal per feature; within a feature equal over its directions, signs and lambdas."""
        d, features = self.directions, len(self.bins.features)
        per = {b: self.blame[:d].count(b) for b in set(self.blame[:d])}
        direction = np.array([DIRECTIONS_WEIGHT / features / per[b] / 2 for b in self.blame[:d]])
        shape = np.full(features, (1 - DIRECTIONS_WEIGHT) / features)
        return np.tile(np.concatenate([direction, direction, shape]) / len(LAMBDAS), len(LAMBDAS))

    def streams(self, scored: Scored, kappa: float, kappa_shape: float) -> Streams:
        d = self.directions
        z = np.concatenate([scored.z[:d], -scored.z[:d], scored.z[d:]])
        log_e = np.concatenate([conformal.bets(z[: 2 * d], kappa), conformal.bets(z[2 * d :], kappa_shape)], axis=1)
        names, blame = self.stream_names
        return Streams(names, blame, self.weight, log_e.ravel(), np.tile(z, len(LAMBDAS)))

    def per_feature(self, scored: Scored, streams: Streams) -> dict[str, dict[str, float | None]]:
        """p-value (Bonferroni over the feature's numbers, two-sided for directions) and log e-value of each feature."""
        two_sided = np.minimum(scored.p[: self.directions], 1 - scored.p[: self.directions]) * 2
        p = np.concatenate([two_sided, scored.p[self.directions :]])
        out: dict[str, dict[str, float | None]] = {}
        for f, (numbers, own) in self.places.items():
            mine = p[numbers]
            mine = mine[np.isfinite(mine)]
            weight = streams.weight[own] / streams.weight[own].sum()
            out[f] = {
                "p_value": _round(min(1.0, float(mine.min()) * len(mine))) if len(mine) else None,
                "log_e": _round(stats.log_sum_exp(streams.log_e[own], weight)),
            }
        return out


@functools.lru_cache(maxsize=64)
def _layout(raw_bins: bytes, raw_counts: bytes) -> _Layout:
    bins = Bins.from_bytes(raw_bins)
    counts = np.frombuffer(raw_counts, dtype=np.int64)
    names: list[str] = []
    blame: list[str] = []
    columns: list[tuple[NDArray[np.int64], Floats, NDArray[np.int64]]] = []  # slots, weights, slots of the denominator
    share = np.empty(len(counts))
    for i, f in enumerate(bins.features):
        a, b = int(bins.offsets[i]), int(bins.offsets[i + 1])
        share[a:b] = np.maximum(stats.smoothed(counts[a:b]), MIN_BIN)
        everything, present = np.arange(a, b), np.arange(a, b - 1)
        kinds: list[tuple[str, NDArray[np.int64], Floats, NDArray[np.int64]]] = []
        if f.kind == NUMBER and counts[present].sum():
            score = stats.normal_scores(counts[present])
            kinds = [("location", present, score, present), ("spread", present, score**2, present)]
        elif f.kind != NUMBER:
            total = max(1, int(counts[a:b].sum()))
            kinds = [
                (f"share of {c[:40]}", np.array([a + j]), np.ones(1), everything)
                for j, c in enumerate(f.categories)
                if counts[a + j] / total >= MIN_SHARE
            ]
            kinds.append(("share of other", np.array([b - 2]), np.ones(1), everything))
        kinds.append(("missing", np.array([b - 1]), np.ones(1), everything))
        names += [f"{f.name}/{k[0]}" for k in kinds]
        blame += [f.name] * len(kinds)
        columns += [k[1:] for k in kinds]
    linear, below = np.zeros((len(counts), len(columns))), np.zeros((len(counts), len(columns)))
    for j, (slots, weights, denominator) in enumerate(columns):
        linear[slots, j] = weights
        below[denominator, j] = 1.0
    c = counts.astype(np.float64)
    size = np.maximum(c @ below, 1.0)
    variance = np.maximum((c @ linear**2) / size - ((c @ linear) / size) ** 2, 0.0)
    row_variance = variance * max(1.0, c[: bins.offsets[1]].sum()) / size  # per row of the window, missing included
    names += [f"{f.name}/shape" for f in bins.features]
    blame += [f.name for f in bins.features]
    freedom = np.maximum(np.diff(bins.offsets) - 1, 1).astype(np.float64)
    return _Layout(bins, tuple(names), tuple(blame), linear, below, row_variance, share, freedom)


def _state(cal: Calibration, live: Live, last: History) -> State:
    """`last`: the window measured just before, learnt from or not; the next residual is taken against it."""
    arrays = {**live.windows.save(), **last.save("last_")}
    return State(Marginals.name, VERSION, cal.hash, {"pending": live.pending}, arrays)


def _round(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def describe(streams: Sequence[str]) -> list[str]:
    """Stream names as people read them, without the bet: `amount/location/+`."""
    return list(dict.fromkeys(s.rsplit("/", 1)[0] for s in streams))
