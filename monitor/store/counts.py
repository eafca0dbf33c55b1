"""Stored profiles: counts of every bucket of a model on the bins of its reference, and of its versions and busy callers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from monitor.store.engine import read, write
from monitor.store.schema import profiles


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """Counts of one bucket on the bins of one reference. groups: by version and caller, None: those stored stay."""

    reference_hash: str
    start_us: int
    end_us: int
    n: int
    body: bytes
    groups: bytes | None = None


def put(conn: sa.Connection, model_id: str, row: ProfileRow) -> None:
    """Store the newest counts of a bucket (late rows amend it), in the place of what overlaps it: buckets of another length
    were cut before the model's shortest window changed.
    """
    c = profiles.c
    mine = (c.model_id == model_id) & (c.reference_hash == row.reference_hash)
    same = mine & (c.start_us == row.start_us) & (c.end_us == row.end_us)
    groups = row.groups if row.groups is not None else conn.scalar(sa.select(c.groups).where(same))
    conn.execute(profiles.delete().where(mine, c.start_us < row.end_us, c.end_us > row.start_us))
    conn.execute(
        profiles.insert().values(
            model_id=model_id,
            reference_hash=row.reference_hash,
            start_us=row.start_us,
            end_us=row.end_us,
            n=row.n,
            body=row.body,
            groups=groups,
        )
    )


def put_groups(conn: sa.Connection, model_id: str, reference_hash: str, start_us: int, groups: bytes) -> None:
    """Store the groups of a bucket whose counts are stored."""
    c = profiles.c
    bucket = (c.model_id == model_id) & (c.reference_hash == reference_hash) & (c.start_us == start_us)
    conn.execute(profiles.update().where(bucket).values(groups=groups))


def put_history(
    engine: sa.Engine, model_id: str, rows: Sequence[ProfileRow], of_use: Callable[[bytes], bool] = lambda body: True
) -> None:
    """Store counts that were rebuilt; a bucket of which more is known already, in a body that is `of_use`, stays."""
    wanted = (profiles.c.model_id == model_id) & profiles.c.reference_hash.in_({r.reference_hash for r in rows})
    with write(engine) as conn:
        c = profiles.c
        stored = conn.execute(
            sa.select(c.start_us, c.end_us, c.n, c.body, c.groups.is_(None).label("bare")).where(wanted)
        )
        known = {(int(r.start_us), int(r.end_us)): (int(r.n), not r.bare) for r in stored if of_use(bytes(r.body))}
        for row in rows:
            if known.get((row.start_us, row.end_us), (-1, False)) < (row.n, row.groups is not None):
                put(conn, model_id, row)


def load(
    engine: sa.Engine, model_id: str, reference_hash: str, start_us: int, end_us: int
) -> dict[tuple[int, int], bytes]:
    """Stored counts of the buckets that overlap [start_us, end_us), by (start, end)."""
    c = profiles.c
    mine = (c.model_id == model_id) & (c.reference_hash == reference_hash)
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(c.start_us, c.end_us, c.body).where(mine, c.start_us < end_us, c.end_us > start_us)
        )
        return {(int(r.start_us), int(r.end_us)): bytes(r.body) for r in rows}


def load_groups(
    engine: sa.Engine, model_id: str, reference_hash: str, start_us: int, end_us: int
) -> list[tuple[int, bytes, bytes]]:
    """Buckets that start in [start_us, end_us) and have groups, by start: (start, counts of the whole, groups)."""
    c = profiles.c
    mine = (c.model_id == model_id) & (c.reference_hash == reference_hash) & c.groups.is_not(None)
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(c.start_us, c.body, c.groups)
            .where(mine, c.start_us >= start_us, c.start_us < end_us)
            .order_by(c.start_us)
        )
        return [(int(r.start_us), bytes(r.body), bytes(r.groups)) for r in rows]
