"""Model versions compared: one row per pair, made anew until enough of the new version has been seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from monitor.store.alertlog import column_text
from monitor.store.engine import read, write
from monitor.store.schema import comparisons, states

MOST: Final = 50  # pairs that are listed


def put(engine: sa.Engine, model_id: str, old: str, new: str, body: Mapping[str, Any], now_us: int) -> None:
    """Store what was found about a pair, in the place of what was found before."""
    c = comparisons.c
    old, new = column_text(old), column_text(new)
    with write(engine) as conn:
        conn.execute(comparisons.delete().where(c.model_id == model_id, c.old == old, c.new == new))
        row = {"model_id": model_id, "old": old, "new": new, "made_us": now_us, "body": dict(body)}
        conn.execute(comparisons.insert().values(row))


def listed(engine: sa.Engine, model_id: str) -> list[dict[str, Any]]:
    """What was found about the pairs of a model, the newest first; see monitor.service.versions for the keys."""
    c = comparisons.c
    with read(engine) as conn:
        rows = conn.execute(sa.select(c.body).where(c.model_id == model_id).order_by(c.made_us.desc()).limit(MOST))
        return [dict(r.body) for r in rows]


def versions(engine: sa.Engine, model_id: str) -> dict[str, int]:
    """Every version of a model that ticks have seen, with the time of its first answer (0: in the reference)."""
    with read(engine) as conn:
        body = conn.scalar(sa.select(states.c.body).where(states.c.model_id == model_id, states.c.name == "service"))
    return {} if body is None else dict(msgspec.json.decode(bytes(body)).get("versions") or {})
