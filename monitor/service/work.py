"""What a tick has in its hands: hot state of one model, and what the tick will commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from alerts.base import Step
from alerts.quiet import Told
from detectors.base import Detection, Feedback, State
from detectors.profile import Profile
from monitor.model import Alert, Event, Family, Mark, Transition
from monitor.service.watch import MAX_VERSIONS, Monitor
from monitor.store import ledger
from monitor.store.alertlog import column_text

LANNER: Final = "lanner"  # who tells of what the log shows by itself
CHANGES: Final = frozenset({"deploy", "version"})  # kinds of marks after which a model may answer otherwise
NEVER: Final = -(1 << 62)  # an event time before all others


@dataclass
class Work:
    """What a tick has in its hands. The service keeps it between ticks and drops it when a commit fails."""

    position: int
    states: dict[str, State]  # detector:MONITOR, budget, fuse
    feedback: Feedback
    counters: Mapping[str, Any]
    open: dict[tuple[str, ...], Alert]
    last_end: dict[str, int]
    first_us: int | None  # the first event ever seen; windows begin with it
    high_us: int  # running maximum of event times, NEVER before the first
    versions: dict[str, int] = field(
        default_factory=dict
    )  # model version -> when it answered first, 0: in the reference
    marks: list[Mark] = field(default_factory=list)  # what this tick has to tell people, beside incidents
    rows_since_snapshot: int = 0
    stored: dict[str, State] = field(
        default_factory=dict
    )  # states as the store has them: only changed ones are written
    before: dict[int, dict[str, State]] = field(
        default_factory=dict
    )  # window end -> state of window detectors before it
    profiles: dict[int, Profile] = field(default_factory=dict)  # bucket start -> counts, those touched lately
    touched: set[int] = field(default_factory=set)  # buckets to store
    late_us: int | None = None  # start of the oldest judged bucket that late rows have amended
    ledger: list[ledger.LedgerRow] = field(default_factory=list)
    detections: list[dict[str, Any]] = field(default_factory=list)
    alerts: dict[str, Alert] = field(default_factory=dict)
    transitions: list[Transition] = field(default_factory=list)
    silent: bool = False
    ran: set[str] = field(default_factory=set)  # monitors that have completed a run since they were last reported
    failing: set[str] = field(default_factory=set)  # monitors whose last run failed
    told: Told = field(default_factory=Told)  # what people told Lanner, as of this tick
    applied: Sequence[int] = ()  # acts of people that this tick has applied
    excepted: dict[str, int] = field(default_factory=dict)  # exception -> decisions that it covered

    @classmethod
    def fresh(cls, open: Iterable[Alert] = (), counters: Mapping[str, Any] | None = None) -> Work:
        """State as it was before any event, with these incidents open."""
        return cls(
            position=0, states={}, feedback=Feedback(), counters=counters or {}, open={a.key: a for a in open}, last_end={},
            first_us=None, high_us=NEVER,
        )  # fmt: skip

    @property
    def standing(self) -> tuple[Alert, ...]:
        """What is open now."""
        return tuple(self.open.values())

    def hear(self, model: str, table: pa.Table, high: NDArray[np.int64]) -> None:
        """A version that answers for the first time is a mark, dated to the log's clock then; the very first is none."""
        if "model_version" not in table.column_names:
            return
        column = table["model_version"]
        for version in pc.unique(column).to_pylist():
            if version is None or version in self.versions or len(self.versions) >= MAX_VERSIONS:
                continue
            at_us = int(high[pc.index(column, version).as_py()])
            if self.versions:
                text = column_text(f"version {version[:100]} answers for the first time")
                made = Mark(model, "version", at_us, None, text, LANNER)
                self.marks.append(made)
                self.told = replace(self.told, marks=[*self.told.marks, made])
            self.versions[version] = at_us

    def version_by(self, time_us: int) -> str | None:
        """The newest version of the model that had answered by then; None where nothing tells versions."""
        known = [v for v, at_us in self.versions.items() if at_us <= time_us]
        return max(reversed(known), key=lambda v: self.versions[v], default=None)

    def told_to(self, m: Monitor) -> Feedback:
        """What the deciders tell this detector; where poisoning is judged: whom to suspect are labelers, and told changes.

        A version that the log shows by itself is none: its events carry it.
        """
        if m.detector.family is not Family.POISONING:
            traffic = (a.subject for a in self.open.values() if a.event is Event.TRAFFIC_ANOMALY)
            return replace(self.feedback, told=frozenset(s.id for s in traffic if s.kind == "principal"))
        accused = (a.subject for a in self.open.values() if a.event is Event.POISONING_SUSPECTED)
        changes = {x.start_us for x in self.told.marks if x.kind in CHANGES and x.actor != LANNER}
        labelers = frozenset(s.id for s in accused if s.kind == "labeler")
        return replace(self.feedback, suspects=labelers, changes_us=tuple(sorted(changes)))

    def take(self, step: Step) -> None:
        """What a step of the alert pipeline changed."""
        self.counters = step.counters
        for alert in step.alerts:
            self.alerts[alert.alert_id] = alert
            if alert.open:
                self.open[alert.key] = alert
            else:
                self.open.pop(alert.key, None)
        self.transitions += step.transitions
        for exemption, n in step.excepted.items():
            self.excepted[exemption] = self.excepted.get(exemption, 0) + n

    def settle(self) -> None:
        """Forget what has been committed."""
        self.touched.clear()
        for out in (self.ledger, self.detections, self.transitions, self.marks):
            out.clear()
        self.alerts.clear()
        self.excepted.clear()
        self.applied = ()


def detection_row(model_id: str, m: Monitor, d: Detection) -> dict[str, Any]:
    """A detection as its row of the detections table."""
    subject = f"{d.subject.kind}:{d.subject.id}"
    return {
        "detection_id": ledger.detection_id(
            model_id, m.name, subject, d.window_us[1] if d.known_us is None else d.known_us
        ),
        "monitor": m.name,
        "detector": d.detector,
        "family": d.family.value,
        "event": d.event.value,
        "subject_kind": d.subject.kind,
        "subject_id": d.subject.id,
        "start_us": d.window_us[0],
        "end_us": d.window_us[1],
        "statistic": d.statistic,
        "threshold": d.threshold,
        "p_value": d.p_value,
        "log_e": d.log_e,
        "n": d.n,
        "verdict": d.verdict.value,
        "evidence": dict(d.evidence),
        "calibration_hash": m.calibration.hash,
    }
