"""What the page, the reports and the API read: models, their windows, their counts. Nothing here writes.

Every function takes the engine and returns frozen rows. Times are microseconds UTC, `now_us` comes in as an argument.
Incidents and sources stand in `monitor.store.lookups`, who is held back in `monitor.store.held`. Reads are bounded: each
function says by what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from monitor.model import UNREGISTERED, Severity
from monitor.store.schema import alerts, calibrations, detections, ledger, marks, models, profiles

Engine: TypeAlias = sa.Engine  # the page and the reports hand the engine through and need its name
SPARK_WINDOWS: Final = 48  # windows shown beside a model's name
MAX_WINDOWS: Final = 2_000  # windows read for one chart
LATE_US: Final = 900 * 1_000_000  # a watermark older than this beyond one window and its lateness is called late


class Status(StrEnum):
    """How a model stands, worst first. Shown as a shape and a word, never as colour alone."""

    ATTACK = "attack"  # an open incident of an attack family
    INCIDENT = "incident"  # any other open incident
    FAILED = "failed"  # its last windows could not be judged
    LATE = "late"  # events or judgements are behind
    LEARNING = "learning"  # not enough history for alarms yet
    WAITING = "waiting"  # no window yet
    HEALTHY = "healthy"


ATTACK_FAMILIES: Final = frozenset(
    {
        "anomaly",
        "extraction",
        "evasion",
        "membership",
        "inversion",
        "poisoning",
        "injection",
        "leakage",
        "abuse",
        "access",
    }
)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """One judged window of one monitor. `detail` says why when the outcome is not `judged`."""

    monitor: str
    start_us: int
    end_us: int
    outcome: str
    n: int
    judged_us: int
    detail: str | None


@dataclass(frozen=True, slots=True)
class DetectionRow:
    """One stored detection; `evidence` is as the detector wrote it and holds text from logs."""

    monitor: str
    detector: str
    family: str
    event: str
    subject_kind: str
    subject_id: str
    start_us: int
    end_us: int
    statistic: float | None
    threshold: float | None
    p_value: float | None
    log_e: float | None
    n: int
    verdict: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


DETECTION: Final = tuple(detections.c[f.name] for f in fields(DetectionRow))  # the columns of one, in its order


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model on the overview: how it stands, how far it is judged, what is open."""

    model_id: str
    name: str
    status: Status
    reference_hash: str | None
    watermark_us: int | None
    last_event_us: int | None
    last_tick_us: int | None
    judged_us: int | None  # end of the newest window in the ledger
    outcome: str | None  # what became of it
    lag_us: int | None  # how far judging is behind the clock of this deployment
    open: Mapping[str, int]  # severity -> open incidents
    volume: Sequence[tuple[int, int]]  # (window end, events), oldest first
    evidence: Sequence[tuple[int, float]]  # (window end, strongest log_e of the window's drift detections)
    ended: Sequence[int] = ()  # when its latest drift incidents ended: the deciders started afresh

    @property
    def incidents(self) -> int:
        return sum(self.open.values())


@dataclass(frozen=True, slots=True)
class MarkRow:
    """A deploy, maintenance or batch job that explains a change."""

    kind: str
    start_us: int
    end_us: int | None
    text: str
    actor: str


@dataclass(frozen=True, slots=True)
class CountRow:
    """Stored counts of one bucket: the bytes of a detectors.profile.Profile, and those of its groups."""

    start_us: int
    end_us: int
    n: int
    body: bytes
    groups: bytes | None = None


def all_models(engine: Engine, now_us: int, *, clock: str, grace_us: int) -> list[ModelRow]:
    """Every configured model, worst status first, then by name. Reads at most SPARK_WINDOWS windows a model."""
    with engine.connect() as conn:
        rows = conn.execute(sa.select(models).where(models.c.name != UNREGISTERED)).all()
        return sorted(
            (_model_row(conn, row, now_us, clock, grace_us) for row in rows),
            key=lambda m: (list(Status).index(m.status), m.name),
        )


def one_model(engine: Engine, ref: str, now_us: int, *, clock: str, grace_us: int) -> ModelRow | None:
    """The model of this name, else of this id."""
    with engine.connect() as conn:
        found = sa.or_(models.c.name == ref, models.c.model_id == ref)
        row = conn.execute(
            sa.select(models).where(found).order_by((models.c.name == ref).desc()).limit(1)
        ).one_or_none()
        return None if row is None else _model_row(conn, row, now_us, clock, grace_us)


def _model_row(conn: sa.Connection, row: sa.Row[Any], now_us: int, clock: str, grace_us: int) -> ModelRow:
    of_model = ledger.c.model_id == row.model_id
    newest = conn.execute(
        sa.select(ledger).where(of_model).order_by(ledger.c.end_us.desc()).limit(8 * SPARK_WINDOWS)
    ).all()
    volume: dict[int, int] = {}
    for w in newest:  # several monitors count the same window
        if w.outcome != "gap":
            volume[w.end_us] = max(volume.get(w.end_us, 0), w.n)
    drift = conn.execute(
        sa.select(detections.c.end_us, sa.func.max(detections.c.log_e), sa.func.min(detections.c.verdict))
        .where(_whole(row.model_id))
        .group_by(detections.c.end_us)
        .order_by(detections.c.end_us.desc())
        .limit(SPARK_WINDOWS)
    ).all()
    opened = conn.execute(
        sa.select(alerts.c.severity, alerts.c.family).where(alerts.c.model == row.name, alerts.c.open.is_(sa.true()))
    ).all()
    judged = max((int(w.end_us) for w in newest), default=None)
    clock_us = now_us if clock == "wall" else row.last_event_us
    lag = None if judged is None or clock_us is None else max(0, int(clock_us) - judged)
    span = newest[0].end_us - newest[0].start_us if newest else 0
    ended = conn.scalars(
        sa.select(alerts.c.cleared_us)
        .where(
            alerts.c.model == row.name,
            alerts.c.family == "drift",
            alerts.c.subject_kind == "model",
            alerts.c.cleared_us.is_not(None),
        )
        .order_by(alerts.c.cleared_us.desc())
        .limit(20)
    ).all()
    learning = bool(drift) and drift[0][2] == "insufficient" and _learns(conn, row.model_id)
    return ModelRow(
        model_id=row.model_id,
        name=row.name,
        status=_status(
            [f for _, f in opened], [w.outcome for w in newest[:3]], lag, span + grace_us, learning=learning
        ),
        reference_hash=row.reference_hash,
        watermark_us=row.watermark_us,
        last_event_us=row.last_event_us,
        last_tick_us=row.last_tick_us,
        judged_us=judged,
        outcome=next((w.outcome for w in newest), None),
        lag_us=lag,
        open=dict(Counter(s for s, _ in opened)),
        volume=sorted(volume.items())[-SPARK_WINDOWS:],
        evidence=[(int(e), float(v)) for e, v, _ in reversed(drift) if v is not None],
        ended=[int(t) for t in ended],
    )


def _whole(model_id: str) -> sa.ColumnElement[bool]:
    """Drift detections of the whole model, not of its segments."""
    d = detections.c
    return sa.and_(d.model_id == model_id, d.family == "drift", d.subject_kind == "model")


def _learns(conn: sa.Connection, model_id: str) -> bool:
    """Whether the newest drift detection asked no question for want of history (and not for want of events)."""
    d = detections.c
    query = sa.select(d.evidence).where(_whole(model_id)).order_by(d.end_us.desc()).limit(1)
    return str((conn.execute(query).scalar() or {}).get("reason", "")).startswith("learning")


def _status(
    families: Sequence[str], outcomes: Sequence[str], lag_us: int | None, allowed_us: int, *, learning: bool
) -> Status:
    """The worst thing that is true of a model.

    >>> _status([], ["judged"], 0, 0, learning=False).value, _status(["drift"], [], None, 0, learning=False).value
    ('healthy', 'incident')
    """
    if ATTACK_FAMILIES & set(families):
        return Status.ATTACK
    if families:
        return Status.INCIDENT
    if not outcomes:
        return Status.WAITING
    if set(outcomes) == {"failed"}:
        return Status.FAILED
    if lag_us is not None and lag_us > allowed_us + LATE_US:
        return Status.LATE
    return Status.LEARNING if learning or set(outcomes) == {"insufficient"} else Status.HEALTHY


def rank(severity: str) -> int:
    """How high a severity stands; what is no severity stands lowest.

    >>> rank("major") > rank("minor") > rank("?")
    True
    """
    return Severity(severity).rank if severity in [*Severity] else -1


def windows(
    engine: Engine, model_id: str, start_us: int, end_us: int, *, monitor: str | None = None
) -> list[WindowRow]:
    """Ledger rows of windows that end in (start_us, end_us], oldest first; the newest MAX_WINDOWS of them."""
    wanted = [ledger.c.model_id == model_id, ledger.c.end_us > start_us, ledger.c.end_us <= end_us]
    if monitor is not None:
        wanted.append(ledger.c.monitor == monitor)
    query = sa.select(ledger).where(*wanted).order_by(ledger.c.end_us.desc(), ledger.c.monitor).limit(MAX_WINDOWS)
    with engine.connect() as conn:
        rows = conn.execute(query).all()
    return [WindowRow(r.monitor, r.start_us, r.end_us, r.outcome, r.n, r.judged_us, r.detail) for r in reversed(rows)]


def drift_detections(
    engine: Engine, model_id: str, start_us: int, end_us: int, *, segment: str | None = None
) -> list[DetectionRow]:
    """Detections with per-feature evidence, of the whole model or of one segment, whose windows end in
    (start_us, end_us], oldest first; newest MAX_WINDOWS.
    """
    d = detections.c
    about = (
        d.subject_kind == "model" if segment is None else sa.and_(d.subject_kind == "segment", d.subject_id == segment)
    )
    return _detections(engine, model_id, start_us, end_us, sa.and_(d.detector == "marginals", about), MAX_WINDOWS)


def segment_detections(engine: Engine, model_id: str, start_us: int, end_us: int) -> list[DetectionRow]:
    """The same of all segments together."""
    wanted = sa.and_(detections.c.detector == "marginals", detections.c.subject_kind == "segment")
    return _detections(engine, model_id, start_us, end_us, wanted, MAX_WINDOWS)


def other_detections(engine: Engine, model_id: str, start_us: int, end_us: int) -> list[DetectionRow]:
    """Detections of every other detector (volume, missing, queries ...), oldest first; the newest MAX_WINDOWS."""
    return _detections(engine, model_id, start_us, end_us, detections.c.detector != "marginals", MAX_WINDOWS)


def newest_reading(engine: Engine, model_id: str, detector: str, principal: str) -> DetectionRow | None:
    """What a gauge said last about a caller; None where it never did."""
    d = detections.c
    wanted = sa.and_(d.detector == detector, d.subject_kind == "principal", d.subject_id == principal)
    return next(iter(_detections(engine, model_id, 0, 1 << 62, wanted, 1)), None)


def _detections(
    engine: Engine, model_id: str, start_us: int, end_us: int, wanted: sa.ColumnElement[bool], limit: int
) -> list[DetectionRow]:
    d = detections.c
    query = (
        sa.select(*DETECTION)
        .where(d.model_id == model_id, d.end_us > start_us, d.end_us <= end_us, wanted)
        .order_by(d.end_us.desc(), d.monitor, d.subject_kind, d.subject_id)
        .limit(limit)
    )
    with engine.connect() as conn:
        return [DetectionRow(*r) for r in reversed(conn.execute(query).all())]


def model_marks(engine: Engine, model: str, start_us: int, end_us: int) -> list[MarkRow]:
    """Marks of this model or of all models that touch [start_us, end_us], oldest first, the newest 200."""
    m = marks.c
    wanted = (
        sa.or_(m.model == model, m.model.is_(None)),
        m.start_us <= end_us,
        sa.func.coalesce(m.end_us, m.start_us) >= start_us,
    )
    with engine.connect() as conn:
        rows = conn.execute(sa.select(marks).where(*wanted).order_by(m.start_us.desc()).limit(200)).all()
    return [MarkRow(r.kind, r.start_us, r.end_us, r.text, r.actor) for r in reversed(rows)]


def calibration(engine: Engine, model_id: str, detector: str, reference_hash: str | None) -> bytes | None:
    """The newest stored calibration of a detector on a reference; `profile` names the bins of the counts."""
    c = calibrations.c
    query = (
        sa.select(c.body)
        .where(c.model_id == model_id, c.detector == detector, c.reference_hash == (reference_hash or ""))
        .order_by(c.created_us.desc())
        .limit(1)
    )
    with engine.connect() as conn:
        body = conn.execute(query).scalar()
    return None if body is None else bytes(body)


def counts(engine: Engine, model_id: str, reference_hash: str | None, start_us: int, end_us: int) -> list[CountRow]:
    """Stored counts of the buckets that lie in [start_us, end_us), oldest first; the newest MAX_WINDOWS."""
    p = profiles.c
    query = (
        sa.select(p.start_us, p.end_us, p.n, p.body, p.groups)
        .where(
            p.model_id == model_id,
            p.reference_hash == (reference_hash or ""),
            p.start_us >= start_us,
            p.end_us <= end_us,
        )
        .order_by(p.start_us.desc())
        .limit(MAX_WINDOWS)
    )
    with engine.connect() as conn:
        return [
            CountRow(r.start_us, r.end_us, r.n, bytes(r.body), r.groups) for r in reversed(conn.execute(query).all())
        ]
