"""What the page and the API read about incidents, their delivery, and where the events come from. Nothing here writes.

Companion of `monitor.store.queries` (models and windows); the same rules hold.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from monitor.model import UNREGISTERED, Severity
from monitor.store.alertlog import column_text
from monitor.store.schema import (
    alerts,
    dead_letters,
    halves,
    heartbeats,
    outbox,
    partitions,
    segments,
    transitions,
    unregistered,
)

PAGE_ROWS: Final = 50
MAX_TRANSITIONS: Final = 200


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """One alert: the current state of one problem. `text` and `evidence` hold names from logs."""

    alert_id: str
    model: str
    event: str
    subject_kind: str
    subject_id: str
    family: str
    severity: str
    open: bool
    quiet: bool
    seq: int
    opened_us: int
    updated_us: int
    cleared_us: int | None
    detector: str | None
    statistic: float | None
    threshold: float | None
    p_value: float | None
    log_e: float | None
    n: int | None
    window_us: tuple[int, int] | None
    techniques: Sequence[str]
    text: str
    evidence: Mapping[str, Any]
    owner: str | None = None
    runbook: str = ""

    @property
    def whole_model(self) -> bool:
        return self.subject_kind == "model" and self.subject_id == self.model

    @property
    def of_a_model(self) -> bool:
        return self.model != UNREGISTERED


@dataclass(frozen=True, slots=True)
class TransitionRow:
    """One step in an incident's life, as it was told to the sinks."""

    seq: int
    action: str
    time_us: int
    recorded_us: int
    severity: str
    text: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One state of an incident on its way to one sink."""

    sink: str
    seq: int
    state: str
    attempts: int
    next_try_us: int
    last_error: str | None
    created_us: int
    settled_us: int | None


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """How far one partition of a source has been read, and by whom."""

    source: str
    topic: str
    partition: int
    owner: str
    epoch: int
    next_offset: int | None
    max_event_us: int | None
    caught_up_since_us: int | None
    updated_us: int


@dataclass(frozen=True, slots=True)
class DeadLetterCount:
    """Messages of one source that could not become events, by reason and what was done with them."""

    source: str
    reason: str
    state: str
    messages: int
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """One message that could not become an event; `value` is capped and hostile."""

    id: int
    source: str
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    state: str
    received_us: int
    value: bytes | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class UnregisteredRow:
    """A model name that logs use and the configuration does not know."""

    source: str
    name: str
    events: int
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class SinkRow:
    """What waits for one sink, and what it took."""

    sink: str
    waiting: int
    oldest_us: int | None
    dead: int
    sent: int


@dataclass(frozen=True, slots=True)
class BeatRow:
    """Last completed run of one component."""

    name: str
    beat_us: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What has been received and cannot be judged yet."""

    unpublished_rows: int
    unpublished_since_us: int | None
    halves: int
    oldest_half_us: int | None


def incidents(
    engine: sa.Engine,
    *,
    open: bool | None = None,
    model: str | None = None,
    event: str | None = None,
    min_severity: str | None = None,
    text: str | None = None,
    cursor: str | None = None,
    limit: int = PAGE_ROWS,
) -> tuple[list[IncidentRow], str | None]:
    """Incidents that fit, newest change first, and the cursor of the next page (None at the end).

    `text` is looked for in model, event and subject, as it stands. A cursor that is no cursor counts as none.
    """
    a = alerts.c
    wanted: list[sa.ColumnElement[bool]] = []
    if open is not None:
        wanted.append(a.open.is_(sa.true() if open else sa.false()))
    if model:
        wanted.append(a.model == column_text(model))
    if event:
        wanted.append(a.event == event)
    if min_severity is not None and min_severity in [*Severity]:
        wanted.append(a.severity.in_([s.value for s in Severity if s.rank >= Severity(min_severity).rank]))
    if text:
        wanted.append(
            sa.or_(*(c.icontains(text, autoescape=True) for c in (a.model, a.event, a.subject_id, a.alert_id)))
        )
    at = _uncursor(cursor)
    if at is not None:
        wanted.append(sa.or_(a.updated_us < at[0], sa.and_(a.updated_us == at[0], a.alert_id > at[1])))
    query = sa.select(alerts).where(*wanted).order_by(a.updated_us.desc(), a.alert_id).limit(limit + 1)
    with engine.connect() as conn:
        rows = [_incident(r) for r in conn.execute(query).all()]
    more = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], None if more is None else _cursor(more.updated_us, more.alert_id)


def incident(engine: sa.Engine, alert_id: str) -> IncidentRow | None:
    """One incident by its id."""
    with engine.connect() as conn:
        row = conn.execute(sa.select(alerts).where(alerts.c.alert_id == alert_id)).one_or_none()
    return None if row is None else _incident(row)


def incidents_between(engine: sa.Engine, model: str, start_us: int, end_us: int) -> list[IncidentRow]:
    """Incidents of a model that were open at some time in [start_us, end_us], oldest first, the newest 200."""
    a = alerts.c
    wanted = (a.model == model, a.opened_us <= end_us, sa.or_(a.cleared_us.is_(None), a.cleared_us >= start_us))
    with engine.connect() as conn:
        rows = conn.execute(sa.select(alerts).where(*wanted).order_by(a.opened_us.desc()).limit(200)).all()
    return [_incident(r) for r in reversed(rows)]


def open_counts(engine: sa.Engine) -> dict[str, int]:
    """Open incidents by severity."""
    a = alerts.c
    query = sa.select(a.severity, sa.func.count()).where(a.open.is_(sa.true())).group_by(a.severity)
    with engine.connect() as conn:
        return {s: int(n) for s, n in conn.execute(query).all()}


def history(engine: sa.Engine, alert_id: str) -> list[TransitionRow]:
    """The transitions of an incident, oldest first, the newest MAX_TRANSITIONS."""
    t = transitions.c
    query = sa.select(transitions).where(t.alert_id == alert_id).order_by(t.seq.desc()).limit(MAX_TRANSITIONS)
    with engine.connect() as conn:
        rows = conn.execute(query).all()
    return [_transition(r) for r in reversed(rows)]


def deliveries(engine: sa.Engine, alert_id: str) -> list[DeliveryRow]:
    """How every state of an incident fared at every sink, newest state first; at most MAX_TRANSITIONS rows."""
    o = outbox.c
    query = sa.select(outbox).where(o.alert_id == alert_id).order_by(o.sink, o.seq.desc()).limit(MAX_TRANSITIONS)
    with engine.connect() as conn:
        return [
            DeliveryRow(r.sink, r.seq, r.state, r.attempts, r.next_try_us, r.last_error, r.created_us, r.settled_us)
            for r in conn.execute(query).all()
        ]


def all_partitions(engine: sa.Engine) -> list[PartitionRow]:
    """Every partition that was ever claimed, by source, topic and number; at most 2,000."""
    p = partitions.c
    with engine.connect() as conn:
        rows = conn.execute(sa.select(partitions).order_by(p.source, p.topic, p.partition).limit(2_000)).all()
    return [
        PartitionRow(r.source, r.topic, r.partition, r.owner, r.epoch, r.next_offset, r.max_event_us,
                     r.caught_up_since_us, r.updated_us)
        for r in rows
    ]  # fmt: skip


def dead_letter_counts(engine: sa.Engine) -> list[DeadLetterCount]:
    """Dead letters by source, reason and state, most first."""
    d = dead_letters.c
    n = sa.func.count()
    query = (
        sa.select(d.source, d.reason, d.state, n, sa.func.min(d.received_us), sa.func.max(d.received_us))
        .group_by(d.source, d.reason, d.state)
        .order_by(n.desc(), d.source, d.reason)
    )
    with engine.connect() as conn:
        return [DeadLetterCount(*row) for row in conn.execute(query).all()]


def dead_letters_of(
    engine: sa.Engine, *, source: str | None = None, reason: str | None = None, limit: int = 20
) -> list[DeadLetterRow]:
    """The newest dead letters of a source and a reason."""
    d = dead_letters.c
    wanted = [c == v for c, v in ((d.source, source), (d.reason, reason)) if v]
    with engine.connect() as conn:
        rows = conn.execute(sa.select(dead_letters).where(*wanted).order_by(d.id.desc()).limit(limit)).all()
    return [
        DeadLetterRow(
            r.id,
            r.source,
            r.topic,
            r.partition,
            r.offset,
            r.reason,
            r.detail,
            r.state,
            r.received_us,
            None if r.value is None else bytes(r.value),
            bool(r.truncated),
        )
        for r in rows
    ]


def unregistered_names(engine: sa.Engine) -> list[UnregisteredRow]:
    """Model names without configuration, most events first; at most 500."""
    u = unregistered.c
    with engine.connect() as conn:
        rows = conn.execute(sa.select(unregistered).order_by(u.events.desc(), u.source, u.name).limit(500)).all()
    return [UnregisteredRow(r.source, r.name, r.events, r.first_us, r.last_us) for r in rows]


def sinks(engine: sa.Engine) -> list[SinkRow]:
    """Per sink what waits, since when, what was refused for good and what was taken."""
    o = outbox.c
    waiting = o.state.in_(("pending", "unknown"))
    query = sa.select(
        o.sink,
        sa.func.sum(sa.case((waiting, 1), else_=0)),
        sa.func.min(sa.case((waiting, o.created_us))),
        sa.func.sum(sa.case((o.state == "dead", 1), else_=0)),
        sa.func.sum(sa.case((o.state == "sent", 1), else_=0)),
    ).group_by(o.sink).order_by(o.sink)  # fmt: skip
    with engine.connect() as conn:
        return [
            SinkRow(s, int(w), None if t is None else int(t), int(d), int(n))
            for s, w, t, d, n in conn.execute(query).all()
        ]


def beats(engine: sa.Engine) -> list[BeatRow]:
    """Last completed run of every component but the detectors, by name."""
    query = sa.select(heartbeats).where(heartbeats.c.name.not_like("detector:%")).order_by(heartbeats.c.name)
    with engine.connect() as conn:
        return [BeatRow(r.name, r.beat_us) for r in conn.execute(query).all()]


def backlog(engine: sa.Engine) -> Backlog:
    """Rows that are stored and not yet published, and halves that wait for their other side."""
    s = segments.c
    stored = sa.select(sa.func.coalesce(sa.func.sum(s.rows), 0), sa.func.min(s.created_us)).where(
        s.published.is_(sa.false())
    )
    waiting = sa.select(sa.func.count(), sa.func.min(halves.c.received_us))
    with engine.connect() as conn:
        rows, since = conn.execute(stored).one()
        n, oldest = conn.execute(waiting.select_from(halves)).one()
    return Backlog(int(rows), since, int(n), oldest)


def _incident(r: sa.Row[Any]) -> IncidentRow:
    b: Mapping[str, Any] = r.body
    window = b.get("window_us")
    return IncidentRow(
        alert_id=r.alert_id, model=r.model, event=r.event, subject_kind=r.subject_kind, subject_id=r.subject_id,
        family=r.family, severity=r.severity, open=bool(r.open), quiet=bool(b.get("quiet")), seq=r.seq,
        opened_us=r.opened_us, updated_us=r.updated_us, cleared_us=r.cleared_us, detector=b.get("detector"),
        statistic=b.get("statistic"), threshold=b.get("threshold"), p_value=b.get("p_value"), log_e=b.get("log_e"),
        n=b.get("n"), window_us=(int(window[0]), int(window[1])) if window else None,
        techniques=tuple(b.get("techniques") or ()), text=str(b.get("text") or ""), evidence=b.get("evidence") or {},
        owner=b.get("owner"), runbook=str(b.get("runbook") or ""),
    )  # fmt: skip


def _transition(r: sa.Row[Any]) -> TransitionRow:
    told = {k: str(r.body.get(k, "")) for k in ("severity", "text")}
    return TransitionRow(
        r.seq, r.action, r.time_us, r.recorded_us, told["severity"], told["text"], r.body.get("evidence") or {}
    )


def _cursor(time_us: int, alert_id: str) -> str:
    """Where the next page starts, opaque to its reader.

    >>> _uncursor(_cursor(5, "x")), _uncursor("nonsense")
    ((5, 'x'), None)
    """
    return base64.urlsafe_b64encode(f"{time_us} {alert_id}".encode()).decode().rstrip("=")


def _uncursor(cursor: str | None) -> tuple[int, str] | None:
    try:
        time_us, alert_id = base64.urlsafe_b64decode((cursor or "") + "==").decode().split(" ", 1)
        return int(time_us), alert_id
    except ValueError:
        return None
