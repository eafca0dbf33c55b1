"""Messages that could not become events: kept with their reason and capped bytes until a person deals with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import sqlalchemy as sa

from monitor.intake import DeadLetter
from monitor.store.engine import read, write
from monitor.store.schema import dead_letters

STATES: Final = ("new", "redriven", "discarded")


@dataclass(frozen=True, slots=True)
class Stored:
    """A dead letter as the store keeps it."""

    id: int
    source: str
    state: str
    received_us: int
    letter: DeadLetter


def find(
    engine: sa.Engine,
    *,
    source: str | None = None,
    reason: str | None = None,
    state: str | None = "new",
    limit: int = 100,
    before_id: int | None = None,
) -> Sequence[Stored]:
    """The newest dead letters first; `before_id` continues where the last page ended."""
    c = dead_letters.c
    wanted = sa.select(dead_letters).order_by(c.id.desc()).limit(limit)
    for column, value in ((c.source, source), (c.reason, reason), (c.state, state)):
        if value is not None:
            wanted = wanted.where(column == value)
    if before_id is not None:
        wanted = wanted.where(c.id < before_id)
    with read(engine) as conn:
        return [_stored(row) for row in conn.execute(wanted)]


def get(engine: sa.Engine, dead_letter_id: int) -> Stored | None:
    """One dead letter, None when there is none of this id."""
    with read(engine) as conn:
        row = conn.execute(sa.select(dead_letters).where(dead_letters.c.id == dead_letter_id)).one_or_none()
    return None if row is None else _stored(row)


def mark(engine: sa.Engine, ids: Sequence[int], state: str) -> int:
    """Say what became of new dead letters; how many it was. Those that somebody has dealt with stay as they are."""
    if state not in STATES:
        raise ValueError(f"{state!r} is not one of {', '.join(STATES)}")
    c = dead_letters.c
    with write(engine) as conn:
        changed = conn.execute(dead_letters.update().where(c.id.in_(ids), c.state == "new").values(state=state))
    return int(changed.rowcount)


def counts(engine: sa.Engine) -> Mapping[tuple[str, str, str], int]:
    """How many there are by (source, reason, state)."""
    c = dead_letters.c
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(c.source, c.reason, c.state, sa.func.count()).group_by(c.source, c.reason, c.state)
        ).all()
    return {(source, reason, state): int(n) for source, reason, state, n in rows}


def _stored(row: sa.Row[tuple[object, ...]]) -> Stored:
    r = row._mapping  # noqa: SLF001 -- SQLAlchemy's public name for it
    headers = msgspec.msgpack.decode(r["headers"], type=list[tuple[str, bytes]])
    letter = DeadLetter(
        topic=r["topic"],
        partition=r["partition"],
        offset=r["offset"],
        reason=r["reason"],
        detail=r["detail"],
        key=r["key"],
        value=r["value"],
        headers=headers,
        timestamp_ms=r["timestamp_ms"],
        truncated=r["truncated"],
    )
    return Stored(r["id"], r["source"], r["state"], r["received_us"], letter)
