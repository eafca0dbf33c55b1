"""Which patterns of the directories of principals fit the callers that the event log knows, by stored ids only."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from monitor.store.engine import insert, read, write
from monitor.store.features import clean
from monitor.store.schema import callers

CHUNK = 500  # names asked for in one statement


def note(engine: sa.Engine, found: Iterable[tuple[str, str]]) -> None:
    """Keep (principal, pattern) pairs, both as stored ids; what is known already stays as it is."""
    rows = [{"principal": clean(principal), "pattern": clean(pattern)} for principal, pattern in sorted(set(found))]
    if rows:
        with write(engine) as conn:
            conn.execute(insert(conn, callers).on_conflict_do_nothing(), rows)


def patterns(engine: sa.Engine, principals: Iterable[str]) -> dict[str, set[str]]:
    """The patterns that were noted for each of these principals; those without any are left out."""
    names = sorted(set(principals))
    found: dict[str, set[str]] = {}
    with read(engine) as conn:
        for start in range(0, len(names), CHUNK):
            wanted = callers.c.principal.in_(names[start : start + CHUNK])
            for principal, pattern in conn.execute(sa.select(callers.c.principal, callers.c.pattern).where(wanted)):
                found.setdefault(principal, set()).add(pattern)
    return found
