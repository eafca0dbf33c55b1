"""Traffic through the real detectors and fuse(), straight from arrays to Arrow: no JSON, no disk, no service."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.traffic.victim import Matrix, Victim
from detectors import decide
from detectors.base import Calibration, Caller, Detector, Evidence, Feedback, State
from detectors.profile import Bins
from detectors.registry import DEFAULTS, REGISTRY
from monitor.errors import CalibrationRefused
from monitor.model import Alert, Decision, Severity
from monitor.service.known import Index, Known
from monitor.service.windows import Stretch, reference_windows

STRETCH: Final = 4_096  # rows judged at once, as in live operation
LEVEL: Final = decide.FuseSettings.derive(1 / (30 * 86400))


@dataclass(frozen=True)
class Log:
    """Events of one model in log order. who: index into `principals`; scores as the victim answered."""

    victim: Victim
    rows: Matrix
    scores: Matrix
    time_us: NDArray[np.int64]
    who: NDArray[np.int64]
    principals: tuple[str, ...]
    declared: Mapping[str, Caller] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.rows)


def table(log: Log, training: Index | None = None) -> pa.Table:
    """The columns of docs/event-log.md that detectors may read; features typed as the reference has them.

    Every principal has one key and one network of its own; sybils too, so nothing but their queries links them.
    """
    v, n = log.victim, log.n
    label = np.argmax(log.scores, axis=1)
    names = pa.array(list(v.classes), pa.string())
    who = pa.array(log.who)
    flat = pa.array(np.ascontiguousarray(log.scores).ravel())
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * len(v.classes))
    repeated = pa.ListArray.from_arrays(offsets, names.take(pa.array(np.tile(np.arange(len(names)), n))))
    columns: dict[str, Any] = {
        "event_time": log.time_us,
        "principal": pa.array(list(log.principals), pa.string()).take(who),
        "credential_id": pa.array([f"key-{i}" for i in range(len(log.principals))], pa.string()).take(who),
        "source_ip": pa.array([f"10.{i // 250}.{i % 250}.7" for i in range(len(log.principals))], pa.string()).take(
            who
        ),
        "model_version": pa.array(np.full(n, "1", dtype=object), pa.string()),
        "prediction_label": names.take(pa.array(label)),
        "prediction_value": pa.nulls(n, pa.float64()),
        "scores": pa.ListArray.from_arrays(offsets, flat),
        "class_names": repeated,
        "returned": pa.array(np.full(n, "scores", dtype=object), pa.string()),
        "status": pa.array(np.full(n, "ok", dtype=object), pa.string()),
        "http_status": pa.array(np.full(n, 200, dtype=np.int32)),
        "quality": pa.nulls(n, pa.list_(pa.string())),
        "extra": pa.nulls(n, pa.string()),
        "mismatched": pa.array(np.zeros(n, dtype=bool)),
        "latency_ms": pa.array(np.full(n, 8.0)),
    }
    for j, c in enumerate(v.columns):
        x = log.rows[:, j]
        if c.categories:
            codes = pa.array(np.nan_to_num(x, nan=-1).astype(np.int64), mask=np.isnan(x))
            columns[f"feature:{c.name}"] = pa.array(list(c.categories), pa.string()).take(codes)
        else:
            columns[f"feature:{c.name}"] = pa.array(x, mask=np.isnan(x))
    return Known(training).mark(pa.table(columns))


def trained(victim: Victim) -> Index:
    """The victim's training rows as `models.NAME.training` would know them."""
    n = len(victim.training)
    answers = np.zeros((n, len(victim.classes)))
    rows = table(Log(victim, victim.training, answers, np.zeros(n, np.int64), np.zeros(n, np.int64), ("",)))
    numeric = [c.name for c in victim.columns if not c.categories]
    return Index.of([rows], numeric, [c.name for c in victim.columns if c.categories], bytes(32))


@dataclass(frozen=True)
class Watch:
    """The calibrated detectors of one victim. refused: why one could not be had. training: its training rows, if told."""

    victim: Victim
    detectors: Mapping[str, tuple[Detector, Calibration]]
    refused: Mapping[str, str]
    seconds: float
    training: Index | None = None


def watch(reference: Log, detectors: Mapping[str, Detector] | None = None, *, training: bool = False) -> Watch:
    """Every registered per-principal detector, calibrated on the reference; with the victim's training file if asked."""
    index = trained(reference.victim) if training else None
    v, made = reference.victim, dict(detectors or {})
    for name in () if detectors else DEFAULTS:
        if REGISTRY[name].reads == "log":
            made[name] = REGISTRY[name]()
    numeric = [c.name for c in v.columns if not c.categories]
    whole = table(reference, index)
    began = time.perf_counter()
    bins = Bins.fit(whole, numeric, [c.name for c in v.columns if c.categories])
    windows = reference_windows(v.name, whole, bins)
    found: dict[str, tuple[Detector, Calibration]] = {}
    refused: dict[str, str] = {}
    for name, detector in made.items():
        try:
            found[name] = (detector, detector.calibrate(windows, "reference"))
            refused |= {f"{name}/{k}": str(why) for k, why in (found[name][1].meta.get("refused") or {}).items()}
        except CalibrationRefused as e:
            refused[name] = str(e)
    return Watch(v, found, refused, time.perf_counter() - began, index)


@dataclass
class Court:
    """What live operation carries from one stretch to the next. seconds: of CPU, per detector and in fuse()."""

    watching: Watch
    settings: decide.FuseSettings = LEVEL
    states: dict[str, State] = field(default_factory=dict)
    feedback: Feedback = field(default_factory=Feedback)
    open: dict[Any, Alert] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)

    def hear(self, window: Stretch) -> list[Evidence]:
        """Judge one stretch; its evidence."""
        found = []
        for name, (detector, cal) in self.watching.detectors.items():
            began = time.process_time()
            measured = detector.measure(cal, self.states.get(name), window, self.feedback)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
            self.states[name] = measured.state
            if measured.evidence is not None:
                found.append(measured.evidence)
        began = time.process_time()
        made = decide.fuse(self.states.get("fuse"), found, tuple(self.open.values()), self.settings, window.model)
        self.seconds["fuse"] = self.seconds.get("fuse", 0.0) + time.process_time() - began
        self.states["fuse"], self.feedback = made.state, made.feedback
        self.decisions += made.decisions
        for d in made.decisions:
            self._follow(d)
        return found

    def _follow(self, d: Decision) -> None:
        """What the alert lifecycle keeps open."""
        key = (d.event, d.subject)
        if not d.firing:
            self.open.pop(key, None)
        elif key not in self.open:
            self.open[key] = _alert(d)


@dataclass(frozen=True)
class Judged:
    """decisions in time order; evidence per detector with rows counted from the start of the log; seconds by part."""

    decisions: tuple[Decision, ...]
    evidence: Mapping[str, Evidence]
    seconds: Mapping[str, float]
    states: Mapping[str, State]


def judge(watching: Watch, log: Log, settings: decide.FuseSettings = LEVEL, stretch: int = STRETCH) -> Judged:
    """What live operation would have decided over this log."""
    whole, court = table(log, watching.training), Court(watching, settings)
    parts: dict[str, list[Evidence]] = {}
    for first in range(0, log.n, stretch):
        times = log.time_us[first : first + stretch]
        piece = whole.slice(first, stretch)
        window = Stretch(log.victim.name, int(times.min()), int(times.max()), piece, None, log.declared)
        for e in court.hear(window):
            parts.setdefault(e.detector, []).append(_moved(e, first))
    evidence = {name: _joined(es) for name, es in parts.items()}
    return Judged(tuple(court.decisions), evidence, court.seconds, court.states)


def _alert(d: Decision) -> Alert:
    return Alert(
        alert_id=f"{d.event}/{d.subject.id}", environment="bench", customer=None, model=d.model, event=d.event,
        subject=d.subject, family=d.family, severity=d.severity or Severity.MINOR, open=True, seq=1, opened_us=d.time_us,
        updated_us=d.time_us, cleared_us=None, detector=d.detector, statistic=d.statistic, threshold=d.threshold,
        p_value=d.p_value, log_e=d.log_e, n=d.n, window_us=d.window_us, techniques=(), text="", evidence=d.evidence,
    )  # fmt: skip


def _moved(e: Evidence, by: int) -> Evidence:
    return Evidence(e.detector, e.family, e.principals, e.code, e.row + by, e.time_us, e.log_e, e.flag, {}, e.columns)


def _joined(parts: Sequence[Evidence]) -> Evidence:
    """One detector's evidence over all stretches, with one table of principals."""
    names: dict[str, int] = {}
    codes = []
    for e in parts:
        lookup = np.array([names.setdefault(p, len(names)) for p in e.principals], dtype=np.int32)
        codes.append(lookup[e.code] if len(e.code) else e.code)
    return Evidence(
        parts[0].detector, parts[0].family, tuple(names), np.concatenate(codes),
        np.concatenate([e.row for e in parts]), np.concatenate([e.time_us for e in parts]),
        np.concatenate([e.log_e for e in parts]).astype(np.float32), np.concatenate([e.flag for e in parts]), {}, parts[0].columns,
    )  # fmt: skip
