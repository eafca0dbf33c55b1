"""Who is held back: what was found in callers and told nobody, since they look so much like tools."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from monitor.store.queries import DETECTION, MAX_WINDOWS, DetectionRow, Engine, ModelRow
from monitor.store.schema import alerts, detections

MOST: Final = 500  # callers, and clusters of them, that are read
OPEN: Final = 1 << 62  # when an incident ends that is open


def held_back(
    engine: Engine, model: ModelRow, start_us: int, end_us: int, principal: str | None = None
) -> list[DetectionRow]:
    """What was said last, in (start_us, end_us], of each caller (or of one), newest first: MOST at most. Nothing of whoever
    had an incident on an attack then or after it, among the newest MAX_WINDOWS.
    """
    d, a = detections.c, alerts.c
    wanted = [
        d.model_id == model.model_id, d.end_us > start_us, d.end_us <= end_us, d.detector == "queries",
        d.event == "AttackSuspected", d.verdict == "ok", d.subject_kind != "model",
    ]  # fmt: skip
    if principal is not None:
        wanted.append(sa.or_(d.subject_id == principal, d.subject_kind == "cluster"))
    place = sa.func.row_number().over(partition_by=d.subject_id, order_by=(d.end_us.desc(), d.n.desc()))
    ranked = sa.select(*DETECTION, place.label("place")).where(*wanted).subquery()
    newest = [ranked.c[c.name] for c in DETECTION]
    query = sa.select(*newest).where(ranked.c.place == 1).order_by(ranked.c.end_us.desc(), ranked.c.subject_id)
    incidents = (
        sa.select(a.subject_id, a.body[("evidence", "principals")], a.cleared_us)
        .where(a.model == model.name, a.event == "AttackSuspected", sa.func.coalesce(a.cleared_us, OPEN) >= start_us)
        .order_by(a.opened_us.desc())
        .limit(MAX_WINDOWS)
    )
    guilty: dict[str, int] = {}  # until when
    with engine.connect() as conn:
        found = [DetectionRow(*r) for r in conn.execute(query.limit(MOST)).all()]
        for subject, members, cleared_us in conn.execute(incidents).all() if found else ():
            for name in {subject, *(members or ())}:
                guilty[name] = max(guilty.get(name, 0), OPEN if cleared_us is None else cleared_us)
    return [
        h
        for h in found
        if (principal is None or principal in callers(h))
        and all(guilty.get(name, -1) < h.end_us for name in (h.subject_id, *callers(h)))
    ]


def callers(found: DetectionRow) -> list[str]:
    """The callers that a detection is about: its subject, or those that are one with it."""
    return [found.subject_id] if found.subject_kind == "principal" else list(found.evidence.get("principals") or ())
