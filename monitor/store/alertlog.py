"""The record of alerts: the current state of each and every transition it made. Alert consoles are only views of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from monitor.model import Alert, Severity, Transition, alert_from_json, alert_to_json
from monitor.store.engine import read
from monitor.store.schema import alerts, transitions


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an alert's timeline: `body` is what Transition.to_json gave."""

    alert_id: str
    seq: int
    action: str
    time_us: int
    recorded_us: int
    body: dict[str, Any]


def write(conn: sa.Connection, changed: Sequence[Alert], made: Sequence[Transition], now_us: int) -> None:
    """Record alerts and transitions inside the caller's transaction. Repeating it changes nothing."""
    insert = insert_of(conn)
    if changed:
        statement = insert(alerts)
        fresh = statement.excluded
        newest = {c.name: fresh[c.name] for c in alerts.c if c.name not in {"alert_id", "model", "event", "opened_us"}}
        conn.execute(
            statement.on_conflict_do_update(index_elements=["alert_id"], set_=newest, where=alerts.c.seq <= fresh.seq),
            [_row(alert) for alert in changed],
        )
    if made:
        rows = [
            {
                "alert_id": t.alert.alert_id, "seq": t.alert.seq, "action": t.action.value, "time_us": t.time_us,
                "recorded_us": now_us, "body": t.to_json(),
            }
            for t in made
        ]  # fmt: skip
        conn.execute(insert(transitions).on_conflict_do_nothing(index_elements=["alert_id", "seq"]), rows)


def insert_of(conn: sa.Connection) -> Any:
    """The INSERT of this database that knows ON CONFLICT."""
    return postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert


def open_alerts(conn: sa.Connection, model: str | None = None) -> tuple[Alert, ...]:
    """The open alerts of one model, or of all; oldest first."""
    query = sa.select(alerts.c.body).where(alerts.c.open.is_(sa.true()))
    if model is not None:
        query = query.where(alerts.c.model == column_text(model))
    return tuple(alert_from_json(body) for body in conn.scalars(query.order_by(alerts.c.opened_us, alerts.c.alert_id)))


def alerts_between(engine: sa.Engine, model: str, from_us: int, to_us: int) -> list[Alert]:
    """Alerts of a model that were open at some time in (from, to], oldest first."""
    with read(engine) as conn:
        query = (
            sa.select(alerts.c.body)
            .where(
                alerts.c.model == column_text(model),
                alerts.c.opened_us <= to_us,
                sa.or_(alerts.c.cleared_us.is_(None), alerts.c.cleared_us > from_us),
            )
            .order_by(alerts.c.opened_us, alerts.c.alert_id)
        )
        return [alert_from_json(body) for body in conn.scalars(query)]


def opened_between(engine: sa.Engine, from_us: int, to_us: int, limit: int = 20_000) -> list[Alert]:
    """Alerts that opened in (from, to], the newest `limit`, oldest first."""
    wanted = (alerts.c.opened_us > from_us, alerts.c.opened_us <= to_us)
    with read(engine) as conn:
        query = sa.select(alerts.c.body).where(*wanted).order_by(alerts.c.opened_us.desc(), alerts.c.alert_id)
        return [alert_from_json(body) for body in reversed(list(conn.scalars(query.limit(limit))))]


def find(
    engine: sa.Engine,
    *,
    model: str | None = None,
    event: str | None = None,
    min_severity: Severity = Severity.WARNING,
    open_only: bool = False,
    limit: int = 100,
) -> list[Alert]:
    """The `limit` most recently changed alerts of those that fit, newest change first."""
    severe = [s.value for s in Severity if s.rank >= min_severity.rank]
    query = sa.select(alerts.c.body).where(alerts.c.severity.in_(severe))
    if model is not None:
        query = query.where(alerts.c.model == column_text(model))
    if event is not None:
        query = query.where(alerts.c.event == event)
    if open_only:
        query = query.where(alerts.c.open.is_(sa.true()))
    with read(engine) as conn:
        ordered = query.order_by(alerts.c.updated_us.desc(), alerts.c.alert_id).limit(limit)
        return [alert_from_json(body) for body in conn.scalars(ordered)]


def by_id(engine: sa.Engine, prefix: str) -> list[Alert]:
    """The alerts whose id starts so (at most ten)."""
    with read(engine) as conn:
        query = sa.select(alerts.c.body).where(alerts.c.alert_id.startswith(prefix, autoescape=True))
        return [alert_from_json(body) for body in conn.scalars(query.order_by(alerts.c.alert_id).limit(10))]


def by_ids(conn: sa.Connection, ids: Sequence[str]) -> dict[str, Alert]:
    """These alerts by their id."""
    query = sa.select(alerts.c.alert_id, alerts.c.body).where(alerts.c.alert_id.in_(ids))
    return {alert_id: alert_from_json(body) for alert_id, body in conn.execute(query)}


def timeline(engine: sa.Engine, alert_id: str) -> list[Entry]:
    """Every transition of an alert, first to last."""
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(transitions).where(transitions.c.alert_id == alert_id).order_by(transitions.c.seq)
        )
        return [Entry(r.alert_id, r.seq, r.action, r.time_us, r.recorded_us, r.body) for r in rows]


def column_text(text: str) -> str:
    r"""Text that every database takes: PostgreSQL refuses NUL, encoders refuse lone surrogates.

    >>> column_text("a" + chr(0) + "b")
    'a\\x00b'
    """
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def _row(alert: Alert) -> dict[str, Any]:
    return {
        "alert_id": alert.alert_id, "model": column_text(alert.model), "event": alert.event.value,
        "subject_kind": alert.subject.kind, "subject_id": column_text(alert.subject.id), "family": alert.family.value,
        "severity": alert.severity.value, "open": alert.open, "opened_us": alert.opened_us,
        "updated_us": alert.updated_us, "cleared_us": alert.cleared_us, "seq": alert.seq, "body": alert_to_json(alert),
    }  # fmt: skip
