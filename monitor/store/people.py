"""What people tell Lanner about incidents and models: acknowledgements, verdicts, exceptions, marks. All of it audited.

Nothing here changes an incident. An act waits until the next tick of its model, which alone writes incidents, has
applied it; so a verdict and a detection can never overwrite each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
import sqlalchemy as sa

from monitor.model import HOUR_US, Act, Alert, Exemption, Mark, Said, Severity
from monitor.store.alertlog import column_text, insert_of
from monitor.store.engine import read, write
from monitor.store.schema import acts, audit, exemptions, marks, models

MARKS_US: Final = 14 * 24 * HOUR_US  # marks older than this explain nothing that opens now
TEXT_CHARS: Final = 1000
COUNTED: Final = (Said.TRUE.value, Said.BENIGN_TRUE.value, Said.FALSE.value)

VerdictCounts = Mapping[str, Mapping[Said, int]]  # detector -> verdict -> incidents


@dataclass(frozen=True, slots=True)
class ActRow:
    """An act as it is stored. `severity` is the incident's at that time."""

    id: int
    act: Act
    model: str
    severity: Severity
    applied_us: int | None


@dataclass(frozen=True, slots=True)
class ExemptionRow:
    """An exception, and how often it was used."""

    exemption: Exemption
    revoked_us: int | None
    revoked_by: str | None
    hits: int
    last_hit_us: int | None


@dataclass(frozen=True, slots=True)
class MarkRow:
    """A mark with its number, by which its end can be told."""

    id: int
    mark: Mark


def say(conn: sa.Connection, act: Act, alert: Alert, now_us: int) -> bool:
    """Record an act about an incident; False when it is known already."""
    row = {
        "alert_id": alert.alert_id, "model": column_text(alert.model), "kind": act.kind,
        "said": None if act.said is None else act.said.value, "closes": act.closes, "detector": column_text(alert.detector), "severity": alert.severity.value,
        "actor": _text(act.actor), "reason": _text(act.reason), "source": _text(act.source),
        "ref": _text(act.ref) or f"at {act.time_us}", "time_us": act.time_us,
        "applied_us": None if act.said is not None and act.closes else now_us,
    }  # fmt: skip
    key = ["alert_id", "kind", "source", "ref"]
    made = insert_of(conn)(acts).values(row).on_conflict_do_nothing(index_elements=key).returning(acts.c.id)
    if conn.execute(made).first() is None:
        return False
    detail = {"said": row["said"], "reason": row["reason"], "source": row["source"], "closes": act.closes}
    audited(conn, _text(act.actor), act.kind, alert.alert_id, detail, now_us)
    return True


def pending(conn: sa.Connection, model: str) -> list[ActRow]:
    """Acts that the next tick of a model has to apply, in the order they were recorded."""
    query = sa.select(acts).where(acts.c.model == column_text(model), acts.c.applied_us.is_(None))
    return [_act(r) for r in conn.execute(query.order_by(acts.c.id))]


def waiting(conn: sa.Connection) -> dict[str, str]:
    """Models about whose incidents acts wait to be applied: name -> id."""
    named = sa.select(models.c.name, models.c.model_id).where(
        models.c.name == acts.c.model, acts.c.applied_us.is_(None)
    )
    return {r.name: r.model_id for r in conn.execute(named.distinct())}


def apply(conn: sa.Connection, ids: Sequence[int], hits: Mapping[str, int], now_us: int) -> None:
    """In the tick's transaction: these acts are done, these exceptions were used."""
    if ids:
        conn.execute(acts.update().where(acts.c.id.in_(ids)).values(applied_us=now_us))
    for exemption_id, n in hits.items():
        used = exemptions.update().where(exemptions.c.exemption_id == exemption_id)
        conn.execute(used.values(hits=exemptions.c.hits + n, last_hit_us=now_us))


def acts_of(engine: sa.Engine, alert_ids: Sequence[str]) -> dict[str, list[ActRow]]:
    """What people did about these incidents, oldest first."""
    found: dict[str, list[ActRow]] = {}
    with read(engine) as conn:
        for i in range(0, len(alert_ids), 500):
            some = alert_ids[i : i + 500]
            query = sa.select(acts).where(acts.c.alert_id.in_(some)).order_by(acts.c.time_us, acts.c.id)
            for r in conn.execute(query):
                found.setdefault(r.alert_id, []).append(_act(r))
    return found


def untold(conn: sa.Connection, limit: int = 100) -> list[ActRow]:
    """Acts that the sinks have not been told of."""
    return [
        _act(r) for r in conn.execute(sa.select(acts).where(acts.c.told_us.is_(None)).order_by(acts.c.id).limit(limit))
    ]


def tell(engine: sa.Engine, ids: Sequence[int], now_us: int) -> None:
    """The sinks have been told of these acts."""
    if ids:
        with write(engine) as conn:
            conn.execute(acts.update().where(acts.c.id.in_(ids)).values(told_us=now_us))


def acknowledged(severity: Severity, done: Sequence[ActRow]) -> ActRow | None:
    """The acknowledgement (or verdict) that stands: the newest one, unless the incident has become more severe since."""
    valid = [a for a in done if a.severity.rank >= severity.rank]
    return valid[-1] if valid and valid[-1].act.kind != "unack" else None


def verdict(done: Sequence[ActRow]) -> ActRow | None:
    """The verdict that counts: the newest that says more than `undetermined`, else the newest."""
    said = [a for a in done if a.act.said is not None]
    sure = [a for a in said if a.act.said is not Said.UNDETERMINED]
    counting = sure or said
    return counting[-1] if counting else None


def verdict_counts(conn: sa.Connection, since_us: int) -> VerdictCounts:
    """Incidents per detector by their newest verdict, of verdicts since then; undetermined ones do not count."""
    said = sa.select(acts.c.alert_id, acts.c.said, acts.c.detector)
    newest: dict[str, tuple[str, Said]] = {}
    for r in conn.execute(
        said.where(acts.c.said.in_(COUNTED), acts.c.time_us >= since_us).order_by(acts.c.time_us, acts.c.id)
    ):
        newest[r.alert_id] = (r.detector, Said(r.said))
    counts: dict[str, dict[Said, int]] = {}
    for detector, verdict in newest.values():
        known = counts.setdefault(detector, {})
        known[verdict] = known.get(verdict, 0) + 1
    return counts


def except_(engine: sa.Engine, exemption: Exemption, origin: str, now_us: int) -> None:
    """Record an exception; `origin` is the incident that it was made from."""
    body = cast(dict[str, Any], msgspec.to_builtins(exemption))
    with write(engine) as conn:
        conn.execute(exemptions.insert().values(
            exemption_id=exemption.exemption_id, model=column_text(exemption.model), body=body,
            expires_us=exemption.expires_us,
        ))  # fmt: skip
        audited(conn, exemption.actor, "except", exemption.exemption_id, {**body, "origin": origin}, now_us)


def revoke(engine: sa.Engine, exemption_id: str, actor: str, now_us: int) -> bool:
    """End an exception before its time; False when it had ended already."""
    with write(engine) as conn:
        alive = (exemptions.c.exemption_id == exemption_id, exemptions.c.revoked_us.is_(None))
        done = conn.execute(exemptions.update().where(*alive).values(revoked_us=now_us, revoked_by=_text(actor)))
        if done.rowcount == 1:
            audited(conn, _text(actor), "revoke", exemption_id, {}, now_us)
        return done.rowcount == 1


def all_exemptions(engine: sa.Engine, *, now_us: int | None = None) -> list[ExemptionRow]:
    """Exceptions, the newest first; with `now_us` only those that hold then."""
    query = sa.select(exemptions).order_by(exemptions.c.expires_us.desc(), exemptions.c.exemption_id)
    if now_us is not None:
        query = query.where(exemptions.c.expires_us > now_us, exemptions.c.revoked_us.is_(None))
    with read(engine) as conn:
        return [
            ExemptionRow(msgspec.convert(r.body, Exemption), r.revoked_us, r.revoked_by, int(r.hits), r.last_hit_us)
            for r in conn.execute(query)
        ]


def exemptions_of(conn: sa.Connection, model: str, since_us: int) -> list[Exemption]:
    """Exceptions of a model that are not revoked and had not expired at `since_us`."""
    wanted = (
        exemptions.c.model == column_text(model),
        exemptions.c.revoked_us.is_(None),
        exemptions.c.expires_us > since_us,
    )
    rows = conn.execute(sa.select(exemptions.c.body).where(*wanted).order_by(exemptions.c.exemption_id))
    return [msgspec.convert(r.body, Exemption) for r in rows]


def mark(engine: sa.Engine, mark: Mark, now_us: int) -> int:
    """Record something that explains changes; its number."""
    with write(engine) as conn:
        return put_mark(conn, mark, now_us)


def put_mark(conn: sa.Connection, mark: Mark, now_us: int) -> int:
    """The same inside the caller's transaction."""
    row = {
        "model": None if mark.model is None else column_text(mark.model), "kind": _text(mark.kind),
        "start_us": mark.start_us, "end_us": mark.end_us, "text": _text(mark.text), "actor": _text(mark.actor),
        "recorded_us": now_us,
    }  # fmt: skip
    number = int(conn.execute(marks.insert().values(row).returning(marks.c.id)).scalar_one())
    audited(conn, _text(mark.actor), "mark", f"mark {number}", row, now_us)
    return number


def end_mark(engine: sa.Engine, number: int, actor: str, now_us: int) -> bool:
    """End a mark now; False when it has ended or does not exist."""
    with write(engine) as conn:
        lasting = (marks.c.id == number, sa.or_(marks.c.end_us.is_(None), marks.c.end_us > now_us))
        ended = conn.execute(marks.update().where(*lasting).values(end_us=now_us)).rowcount == 1
        if ended:
            audited(conn, _text(actor), "end", f"mark {number}", {}, now_us)
        return ended


def marks_since(conn: sa.Connection, model: str | None, since_us: int, *, kind: str | None = None) -> list[MarkRow]:
    """Marks of a model and of all models (of any model with None) that had not ended at `since_us`, oldest first."""
    query = sa.select(marks).where(sa.func.coalesce(marks.c.end_us, marks.c.start_us) >= since_us)
    if model is not None:
        query = query.where(sa.or_(marks.c.model == column_text(model), marks.c.model.is_(None)))
    if kind is not None:
        query = query.where(marks.c.kind == kind)
    return [
        MarkRow(int(r.id), Mark(r.model, r.kind, r.start_us, r.end_us, r.text, r.actor))
        for r in conn.execute(query.order_by(marks.c.start_us, marks.c.id).limit(1000))
    ]


def audited(conn: sa.Connection, actor: str, action: str, about: str, detail: Mapping[str, Any], now_us: int) -> None:
    """One line of the audit trail, in the transaction of the act."""
    row = {"recorded_us": now_us, "actor": actor, "action": action, "object": about, "detail": dict(detail)}
    conn.execute(audit.insert().values(row))


def _text(text: str) -> str:
    return column_text(text)[:TEXT_CHARS]


def _act(r: Any) -> ActRow:
    act = Act(
        alert_id=r.alert_id, kind=r.kind, actor=r.actor, reason=r.reason, source=r.source, time_us=r.time_us,
        said=None if r.said is None else Said(r.said), closes=r.closes, ref=r.ref,
    )  # fmt: skip
    return ActRow(int(r.id), act, r.model, Severity(r.severity), r.applied_us)
