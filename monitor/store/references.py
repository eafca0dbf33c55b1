"""References of models as the state store knows them: built, proposed, approved by people, one of them current.

A reference is frozen: its rows are a Parquet copy under its hash, and a row here never changes but by what people say
about it. Every such act is audited in its own transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from monitor.errors import UsageError
from monitor.store.alertlog import column_text
from monitor.store.engine import read, write
from monitor.store.features import FeatureSchema
from monitor.store.people import audited
from monitor.store.schema import models
from monitor.store.schema import references as table

BUILT: Final = "built"
PROPOSED: Final = "proposed"
APPROVED: Final = "approved"


@dataclass(frozen=True, slots=True)
class Approval:
    """One person's yes (or the configuration's)."""

    by: str
    at_us: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """What a model is compared with. `span_us`: first and last event time, None for rows without times."""

    reference_hash: str
    version: int
    state: str
    path: str  # of the frozen Parquet copy, relative to the store's references
    rows: int
    origin: str
    created_us: int
    span_us: tuple[int, int] | None = None
    schema: FeatureSchema = field(default_factory=FeatureSchema)
    findings: Sequence[Mapping[str, Any]] = ()
    approvals: Sequence[Approval] = ()
    excluded: Mapping[str, Any] | None = None  # what was left out, and why
    sha256: str | None = None  # of the frozen copy
    compared: Mapping[str, Any] | None = None  # what moved most from the version that was in use when it was built

    @property
    def approved_by(self) -> str | None:
        """Who approved it, in words; None while nobody has."""
        return ", ".join(a.by for a in self.approvals) or None

    def body(self) -> dict[str, Any]:
        """The JSON column."""
        return {
            "span_us": self.span_us, "schema": self.schema.to_json(), "findings": [dict(f) for f in self.findings],
            "approvals": [{"by": a.by, "at_us": a.at_us, "why": a.why} for a in self.approvals],
            "excluded": self.excluded, "sha256": self.sha256, "compared": self.compared,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """Which reference a model is judged by, and what its configuration named last (a key, not a hash of rows)."""

    current: str | None
    named: str | None


def standing(engine: sa.Engine, model_id: str) -> Standing:
    """What stands now."""
    with read(engine) as conn:
        r = conn.execute(
            sa.select(models.c.reference_hash, models.c.reference_named).where(models.c.model_id == model_id)
        ).one()
        return Standing(r.reference_hash, r.reference_named)


def progress(engine: sa.Engine, model_id: str) -> tuple[int | None, int | None]:
    """The model's watermark and its newest event, as its last tick left them."""
    c = models.c
    with read(engine) as conn:
        r = conn.execute(sa.select(c.watermark_us, c.last_event_us).where(c.model_id == model_id)).one()
        return r.watermark_us, r.last_event_us


def current_schemas(engine: sa.Engine) -> dict[str, FeatureSchema]:
    """The typed features of every model's current reference, by model name."""
    both = (table.c.model_id == models.c.model_id) & (table.c.reference_hash == models.c.reference_hash)
    with read(engine) as conn:
        rows = conn.execute(sa.select(models.c.name, table.c.body).join(table, both)).all()
        return {r.name: FeatureSchema.from_json(r.body["schema"]) for r in rows if r.body.get("schema")}


def schemas(engine: sa.Engine, name: str) -> dict[str, FeatureSchema]:
    """The typed features of every reference of a model, by hash."""
    query = sa.select(table.c.reference_hash, table.c.body).join(models, table.c.model_id == models.c.model_id)
    with read(engine) as conn:
        rows = conn.execute(query.where(models.c.name == name)).all()
        return {r.reference_hash: FeatureSchema.from_json(r.body["schema"]) for r in rows if r.body.get("schema")}


def of_model(engine: sa.Engine, model_id: str) -> list[ReferenceRow]:
    """Every reference of a model, the newest first."""
    with read(engine) as conn:
        query = sa.select(table).where(table.c.model_id == model_id).order_by(table.c.version.desc())
        return [_row(r) for r in conn.execute(query)]


def waiting(engine: sa.Engine) -> dict[str, int]:
    """Models without an approved reference one of which waits for people: model -> its version."""
    bare = sa.or_(models.c.reference_hash.is_(None), models.c.reference_hash == table.c.reference_hash)
    query = (
        sa.select(models.c.name, sa.func.max(table.c.version))
        .join(table, table.c.model_id == models.c.model_id)
        .where(table.c.state == PROPOSED, bare)
        .group_by(models.c.name)
    )
    with read(engine) as conn:
        return {name: int(version) for name, version in conn.execute(query)}


def reference(engine: sa.Engine, model_id: str, reference_hash: str | None) -> ReferenceRow | None:
    """The reference with this hash."""
    wanted = (table.c.model_id == model_id) & (table.c.reference_hash == (reference_hash or ""))
    with read(engine) as conn:
        r = conn.execute(sa.select(table).where(wanted)).one_or_none()
        return None if r is None else _row(r)


def put(engine: sa.Engine, model_id: str, row: ReferenceRow, actor: str) -> ReferenceRow:
    """Record a reference under the model's next version; one with the same rows stays as it is. What is stored now."""
    with write(engine) as conn:
        same = (table.c.model_id == model_id) & (table.c.reference_hash == row.reference_hash)
        held = conn.execute(sa.select(table).where(same)).one_or_none()
        if held is not None:
            return _row(held)
        newest = conn.execute(sa.select(sa.func.max(table.c.version)).where(table.c.model_id == model_id)).scalar()
        conn.execute(table.insert().values(
            reference_hash=row.reference_hash, model_id=model_id, version=(newest or 0) + 1, state=row.state,
            path=row.path, rows=row.rows, origin=column_text(row.origin), body=row.body(), created_us=row.created_us,
        ))  # fmt: skip
        detail = {"hash": row.reference_hash, "rows": row.rows, "origin": column_text(row.origin)}
        audited(conn, column_text(actor), "reference built", model_id, detail, row.created_us)
        return _row(conn.execute(sa.select(table).where(same)).one())


def propose(engine: sa.Engine, model_id: str, reference_hash: str, by: str, why: str, now_us: int) -> ReferenceRow:
    """Ask people to approve it. UsageError when it is approved already."""
    with write(engine) as conn:
        row = _locked(conn, model_id, reference_hash)
        if row.state == APPROVED:
            raise UsageError(f"version {row.version} is approved already")
        _update(conn, model_id, row, PROPOSED, row.approvals)
        audited(
            conn, column_text(by), "reference proposed", model_id, {"hash": reference_hash, "why": why[:1000]}, now_us
        )
    return _reread(engine, model_id, reference_hash)


def approve(
    engine: sa.Engine, model_id: str, reference_hash: str, said: Approval, needed: int, named: str | None = None
) -> ReferenceRow:
    """Record one person's yes; with as many as are needed it becomes the model's current reference.

    The same name counts once. `named`: it is the configuration that names this reference, under that key; then nobody
    has to propose it, and a model without any reference takes it at once (to be watched beats to wait for the others).
    """
    with write(engine) as conn:
        row = _locked(conn, model_id, reference_hash)
        if named is None and row.state == BUILT:
            raise UsageError(f"version {row.version} is not proposed yet: lanner reference propose")
        fresh = said.by not in {a.by for a in row.approvals}
        approvals = [*row.approvals, said] if fresh else list(row.approvals)
        enough = len(approvals) >= needed
        _update(conn, model_id, row, APPROVED if enough else PROPOSED, approvals)
        mine = models.c.model_id == model_id
        held = conn.execute(sa.select(models.c.reference_hash).where(mine)).scalar_one()
        values: dict[str, Any] = {} if named is None else {"reference_named": named}
        if enough or (named is not None and held is None):
            values["reference_hash"] = reference_hash
        if values:
            conn.execute(models.update().where(mine).values(**values))
        if fresh:
            detail = {"hash": reference_hash, "why": said.why[:1000], "current": "reference_hash" in values}
            audited(conn, column_text(said.by), "reference approved", model_id, detail, said.at_us)
    return _reread(engine, model_id, reference_hash)


def name(engine: sa.Engine, model_id: str, key: str, *, keep: bool) -> None:
    """Remember what the configuration names when it names no rows: `learn` keeps what stands, none gives it up."""
    with write(engine) as conn:
        values: dict[str, Any] = {"reference_named": key} if keep else {"reference_named": key, "reference_hash": None}
        conn.execute(models.update().where(models.c.model_id == model_id).values(**values))


def _locked(conn: sa.Connection, model_id: str, reference_hash: str) -> ReferenceRow:
    wanted = (table.c.model_id == model_id) & (table.c.reference_hash == reference_hash)
    return _row(conn.execute(sa.select(table).where(wanted).with_for_update()).one())


def _update(conn: sa.Connection, model_id: str, row: ReferenceRow, state: str, approvals: Sequence[Approval]) -> None:
    same = (table.c.model_id == model_id) & (table.c.reference_hash == row.reference_hash)
    told = [{"by": column_text(a.by), "at_us": a.at_us, "why": column_text(a.why)[:1000]} for a in approvals]
    conn.execute(table.update().where(same).values(state=state, body={**row.body(), "approvals": told}))


def _reread(engine: sa.Engine, model_id: str, reference_hash: str) -> ReferenceRow:
    found = reference(engine, model_id, reference_hash)
    assert found is not None
    return found


def _row(r: Any) -> ReferenceRow:
    body: Mapping[str, Any] = r.body or {}
    span = body.get("span_us")
    return ReferenceRow(
        r.reference_hash, int(r.version), r.state, r.path, int(r.rows), r.origin, int(r.created_us),
        None if not span else (int(span[0]), int(span[1])), FeatureSchema.from_json(body.get("schema") or {"numeric": (), "categorical": ()}),
        body.get("findings") or (), [Approval(**a) for a in body.get("approvals") or ()], body.get("excluded"), body.get("sha256"),
        body.get("compared"),
    )  # fmt: skip
