"""What a tick reads and the ONE transaction in which it writes: every window judged once, state never rolled back.

The transaction first moves the model's row from the position it read, under the epoch of its lease. When that changes
no row, another scheduler has been here: everything is rolled back and FencedOut is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from monitor.errors import FencedOut
from monitor.model import Alert, Mark, Transition, stable_id
from monitor.store import alertlog, counts, outbox, people
from monitor.store.engine import read, write
from monitor.store.schema import (
    audit,
    detections,
    halves,
    heartbeats,
    ledger,
    models,
    partitions,
    segments,
    states,
    unregistered,
)

ALIVE: Final = "alive"  # the sign of life of the whole service, among those of its parts


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one partition has been read; `caught_up_since_us` is wall time, None while it is behind."""

    source: str
    max_event_us: int | None
    caught_up_since_us: int | None
    updated_us: int
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """A model as the last tick left it, and the progress that bounds its watermark."""

    epoch: int
    position: int
    watermark_us: int | None
    last_event_us: int | None
    last_end_us: Mapping[str, int]  # monitor -> end of its last ledger row
    open: Sequence[Alert]
    partitions: Sequence[PartitionProgress]
    held_us: int | None  # oldest event that is recorded (or half paired) but not readable yet


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One window of one monitor: judged, insufficient, failed or a gap."""

    monitor: str
    start_us: int
    end_us: int
    outcome: str
    n: int
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class TickCommit:
    """Everything one tick changes, all or nothing."""

    model_id: str
    epoch: int
    position: int  # as read
    to_position: int
    watermark_us: int | None
    last_event_us: int | None
    now_us: int
    ledger: Sequence[LedgerRow] = ()
    profiles: Sequence[counts.ProfileRow] = ()
    groups: Mapping[tuple[str, int], bytes] = field(default_factory=dict)  # (reference, bucket) -> its groups
    states: Mapping[str, bytes | None] = field(default_factory=dict)  # None deletes
    detections: Sequence[Mapping[str, Any]] = ()  # rows of the detections table
    alerts: Sequence[Alert] = ()
    transitions: Sequence[Transition] = ()
    applied: Sequence[int] = ()  # acts of people that it has applied
    excepted: Mapping[str, int] = field(default_factory=dict)  # exception -> decisions that it covered
    marks: Sequence[Mark] = ()  # what it has seen that explains changes


def standing(engine: sa.Engine, model_id: str, model: str, upto: int) -> Standing:
    """The model's row, its last windows, its open alerts and what holds its watermark, in one consistent read."""
    with read(engine) as conn:
        row = conn.execute(sa.select(models).where(models.c.model_id == model_id)).one()
        ends = conn.execute(
            sa.select(ledger.c.monitor, sa.func.max(ledger.c.end_us))
            .where(ledger.c.model_id == model_id)
            .group_by(ledger.c.monitor)
        ).all()
        parts = conn.execute(
            sa.select(
                partitions.c.source,
                partitions.c.max_event_us,
                partitions.c.caught_up_since_us,
                partitions.c.updated_us,
                partitions.c.topic,
            )
        ).all()
        unread = conn.execute(
            sa.select(sa.func.min(segments.c.min_event_us)).where(
                segments.c.model_id == model_id, sa.or_(segments.c.batch.is_(None), segments.c.batch > upto)
            )
        ).scalar()
        half = conn.execute(sa.select(sa.func.min(halves.c.event_us)).where(halves.c.model == model)).scalar()
        return Standing(
            epoch=row.epoch,
            position=row.position,
            watermark_us=row.watermark_us,
            last_event_us=row.last_event_us,
            last_end_us={m: int(e) for m, e in ends},
            open=alertlog.open_alerts(conn, model),
            partitions=[PartitionProgress(*p) for p in parts],
            held_us=min((int(v) for v in (unread, half) if v is not None), default=None),
        )


def commit(engine: sa.Engine, tick: TickCommit, sinks_for: Callable[[Transition], Sequence[str]]) -> None:
    """Write the tick in one transaction; FencedOut (nothing written) when the model has another owner or position."""
    key = models.c.model_id == tick.model_id
    with write(engine) as conn:
        moved = conn.execute(
            models.update()
            .where(key, models.c.epoch == tick.epoch, models.c.position == tick.position)
            .values(
                position=tick.to_position,
                watermark_us=tick.watermark_us,
                last_event_us=tick.last_event_us,
                last_tick_us=tick.now_us,
            )
        )
        if moved.rowcount != 1:
            raise FencedOut(
                f"model {tick.model_id}: another scheduler has taken over (epoch {tick.epoch}, batch {tick.position})"
            )
        if tick.ledger:
            rows = [
                {
                    "model_id": tick.model_id,
                    "monitor": r.monitor,
                    "start_us": r.start_us,
                    "end_us": r.end_us,
                    "outcome": r.outcome,
                    "n": r.n,
                    "judged_us": tick.now_us,
                    "detail": r.detail,
                }
                for r in tick.ledger
            ]
            conn.execute(ledger.insert(), rows)
        for p in tick.profiles:
            counts.put(conn, tick.model_id, p)
        for (digest, start_us), groups in tick.groups.items():
            counts.put_groups(conn, tick.model_id, digest, start_us, groups)
        for name, body in tick.states.items():
            conn.execute(states.delete().where(states.c.model_id == tick.model_id, states.c.name == name))
            if body is not None:
                conn.execute(
                    states.insert().values(model_id=tick.model_id, name=name, body=body, updated_us=tick.now_us)
                )
        if tick.detections:
            # Two readings about one caller at one event time share an id: the first stands.
            insert = alertlog.insert_of(conn)(detections).on_conflict_do_nothing()
            conn.execute(insert, [{"model_id": tick.model_id, **row} for row in tick.detections])
        alertlog.write(conn, tick.alerts, tick.transitions, tick.now_us)
        outbox.enqueue(conn, tick.transitions, sinks_for, tick.now_us)
        people.apply(conn, tick.applied, tick.excepted, tick.now_us)
        for made in tick.marks:
            people.put_mark(conn, made, tick.now_us)
        _audit(conn, tick)


def _audit(conn: sa.Connection, tick: TickCommit) -> None:
    if tick.transitions or tick.ledger:
        detail = {
            "windows": len(tick.ledger),
            "transitions": [[t.action.value, t.alert.alert_id, t.alert.seq] for t in tick.transitions],
            "position": [tick.position, tick.to_position],
        }
        conn.execute(
            audit.insert().values(
                recorded_us=tick.now_us, actor="scheduler", action="tick", object=tick.model_id, detail=detail
            )
        )


def load_states(engine: sa.Engine, model_id: str) -> dict[str, bytes]:
    """Every stored state of a model by name."""
    with read(engine) as conn:
        rows = conn.execute(sa.select(states.c.name, states.c.body).where(states.c.model_id == model_id)).all()
        return {name: bytes(body) for name, body in rows}


def load_state(engine: sa.Engine, model_id: str, name: str) -> bytes | None:
    """One stored state."""
    with read(engine) as conn:
        body = conn.scalar(sa.select(states.c.body).where(states.c.model_id == model_id, states.c.name == name))
        return None if body is None else bytes(body)


def put_state(engine: sa.Engine, model_id: str, name: str, body: bytes, now_us: int) -> None:
    """Store one state outside a tick."""
    with write(engine) as conn:
        conn.execute(states.delete().where(states.c.model_id == model_id, states.c.name == name))
        conn.execute(states.insert().values(model_id=model_id, name=name, body=body, updated_us=now_us))


def ledger_rows(engine: sa.Engine, model_id: str, start_us: int, end_us: int) -> list[LedgerRow]:
    """Ledger rows of windows that end in (start_us, end_us], by end and monitor."""
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(ledger)
            .where(ledger.c.model_id == model_id, ledger.c.end_us > start_us, ledger.c.end_us <= end_us)
            .order_by(ledger.c.end_us, ledger.c.monitor)
        ).all()
        return [LedgerRow(r.monitor, r.start_us, r.end_us, r.outcome, r.n, r.detail) for r in rows]


def fill(
    engine: sa.Engine,
    model_id: str,
    rows: Sequence[LedgerRow],
    found: Sequence[Mapping[str, Any]],
    profiles: Sequence[counts.ProfileRow],
    now_us: int,
) -> None:
    """Backfill: put judged windows where the ledger has a gap or nothing; what was judged stays as it was judged."""
    with write(engine) as conn:
        for r in rows:
            at = (ledger.c.model_id == model_id) & (ledger.c.monitor == r.monitor) & (ledger.c.end_us == r.end_us)
            conn.execute(ledger.delete().where(at, ledger.c.outcome == "gap"))
            conn.execute(
                ledger.insert().values(
                    model_id=model_id,
                    monitor=r.monitor,
                    start_us=r.start_us,
                    end_us=r.end_us,
                    outcome=r.outcome,
                    n=r.n,
                    judged_us=now_us,
                    detail=r.detail,
                )
            )
        if found:
            conn.execute(
                detections.delete().where(detections.c.detection_id.in_([row["detection_id"] for row in found]))
            )
            conn.execute(detections.insert(), [{"model_id": model_id, **row} for row in found])
        for p in profiles:
            counts.put(conn, model_id, p)
        detail = {"windows": [[r.monitor, r.start_us, r.end_us] for r in rows]}
        conn.execute(
            audit.insert().values(recorded_us=now_us, actor="backfill", action="fill", object=model_id, detail=detail)
        )


def beat(engine: sa.Engine, name: str, now_us: int, detail: Mapping[str, Any] | None = None) -> None:
    """Record that a component has completed a run; a component that stays silent is noticed by the others."""
    with write(engine) as conn:
        conn.execute(heartbeats.delete().where(heartbeats.c.name == name))
        conn.execute(heartbeats.insert().values(name=name, beat_us=now_us, detail=dict(detail or {})))


def expect(engine: sa.Engine, name: str, now_us: int) -> None:
    """From now on this component's silence counts, though it has never completed a run."""
    with write(engine) as conn:
        row = {"name": name, "beat_us": now_us, "detail": {}}
        conn.execute(alertlog.insert_of(conn)(heartbeats).values(row).on_conflict_do_nothing(index_elements=["name"]))


def beat_all(
    engine: sa.Engine,
    done: Mapping[str, Mapping[str, Any]],
    now_us: int,
    *,
    only: tuple[str, Collection[str]] | None = None,
) -> None:
    """Record many completed runs at once. `only` (prefix, names): others with this prefix are no more, and forgotten."""
    if not done and only is None:
        return
    with write(engine) as conn:
        if only is not None:
            prefix, names = only
            gone = heartbeats.c.name.startswith(prefix, autoescape=True) & heartbeats.c.name.not_in(list(names))
            conn.execute(heartbeats.delete().where(gone))
        if done:
            conn.execute(heartbeats.delete().where(heartbeats.c.name.in_(list(done))))
            conn.execute(
                heartbeats.insert(), [{"name": n, "beat_us": now_us, "detail": dict(d)} for n, d in done.items()]
            )


def beats(engine: sa.Engine) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Last completed run of every component: (time, detail)."""
    with read(engine) as conn:
        return {r.name: (int(r.beat_us), r.detail) for r in conn.execute(sa.select(heartbeats)).all()}


def alive_us(engine: sa.Engine) -> int | None:
    """When some scheduler last found that ticks complete and alerts get out; None before the first time."""
    with read(engine) as conn:
        return conn.scalar(sa.select(heartbeats.c.beat_us).where(heartbeats.c.name == ALIVE))


def unregistered_names(engine: sa.Engine) -> dict[str, list[tuple[str, int, int, int]]]:
    """Per source, the model names that logs use and the configuration lacks: (name, events, first_us, last_us)."""
    found: dict[str, list[tuple[str, int, int, int]]] = {}
    with read(engine) as conn:
        for r in conn.execute(sa.select(unregistered).order_by(unregistered.c.source, unregistered.c.name)).all():
            found.setdefault(r.source, []).append((r.name, int(r.events), int(r.first_us), int(r.last_us)))
    return found


def unpublished_since(engine: sa.Engine) -> int | None:
    """When the oldest segment that no publisher has published was recorded."""
    with read(engine) as conn:
        value = conn.execute(
            sa.select(sa.func.min(segments.c.created_us)).where(segments.c.published.is_(sa.false()))
        ).scalar()
        return None if value is None else int(value)


def detection_id(model_id: str, monitor: str, subject: str, end_us: int) -> str:
    """Same window, same id: a detection can never be stored twice."""
    return stable_id("detection", model_id, monitor, subject, end_us)
