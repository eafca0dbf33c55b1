"""Finished reports of models, compressed in the state store: any process may make one, any web process serves it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from monitor.errors import UsageError
from monitor.model import stable_id
from monitor.store.engine import read, write
from monitor.store.people import audited
from monitor.store.schema import reports

OWNER: Final = "owner"
EVIDENTLY: Final = "evidently"
MOST_BYTES: Final = 20_000_000  # of one report, uncompressed


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One report over (start_us, end_us], without its body. `meta`: headline, policy, bytes, sha256."""

    report_id: str
    kind: str
    start_us: int
    end_us: int
    made_us: int
    meta: Mapping[str, Any] = field(default_factory=dict)


def put(
    engine: sa.Engine, model_id: str, kind: str, span_us: tuple[int, int], html: str, meta: Mapping[str, Any], keep: int, now_us: int
) -> ReportRow:  # fmt: skip
    """Store a report in the place of one over the same time, and let go of all but the newest `keep` of its kind."""
    body = html.encode()
    if len(body) > MOST_BYTES:
        raise UsageError(f"the report has {len(body) / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} are kept")
    digest = hashlib.sha256(body).hexdigest()
    row = ReportRow(
        stable_id("report", model_id, kind, span_us[1]), kind, *span_us, now_us, {**meta, "bytes": len(body), "sha256": digest}
    )  # fmt: skip
    own = (reports.c.model_id == model_id) & (reports.c.kind == kind)
    with write(engine) as conn:
        conn.execute(reports.delete().where(reports.c.report_id == row.report_id))
        conn.execute(reports.insert().values(
            report_id=row.report_id, model_id=model_id, kind=kind, start_us=row.start_us, end_us=row.end_us,
            made_us=now_us, meta=dict(row.meta), body=zlib.compress(body, 6),
        ))  # fmt: skip
        kept = conn.scalars(
            sa.select(reports.c.report_id).where(own).order_by(reports.c.end_us.desc()).limit(keep)
        ).all()
        conn.execute(reports.delete().where(own, reports.c.report_id.not_in(kept)))
        audited(conn, "lanner", "report", model_id, {"report": row.report_id, "kind": kind, "sha256": digest}, now_us)
    return row


def listed(engine: sa.Engine, model_id: str, *, covers_us: tuple[int, int] | None = None) -> list[ReportRow]:
    """A model's reports, the newest first; with `covers_us` those that touch that time."""
    c = reports.c
    query = sa.select(c.report_id, c.kind, c.start_us, c.end_us, c.made_us, c.meta).where(c.model_id == model_id)
    if covers_us is not None:
        query = query.where(c.end_us > covers_us[0], c.start_us <= covers_us[1])
    with read(engine) as conn:
        rows = conn.execute(query.order_by(c.end_us.desc(), c.kind.desc())).all()
        return [ReportRow(r.report_id, r.kind, r.start_us, r.end_us, r.made_us, r.meta) for r in rows]


def html(engine: sa.Engine, model_id: str, report_id: str) -> str | None:
    """The page of a report; None where there is none."""
    wanted = (reports.c.model_id == model_id) & (reports.c.report_id == report_id)
    with read(engine) as conn:
        body = conn.scalar(sa.select(reports.c.body).where(wanted))
        return None if body is None else zlib.decompress(bytes(body)).decode()


def newest_end(engine: sa.Engine, model_id: str) -> int | None:
    """The end of the newest owner's report."""
    c = reports.c
    with read(engine) as conn:
        end = conn.scalar(sa.select(sa.func.max(c.end_us)).where(c.model_id == model_id, c.kind == OWNER))
        return None if end is None else int(end)


def due(newest_end_us: int | None, judged_us: int | None, every_us: int) -> tuple[int, int] | None:
    """The time of the next report: the last whole period that is judged, unless it has its report.

    Periods are whole multiples since 1970 (a week begins on Thursday), so that every process means the same one.

    >>> due(None, 25, 10), due(20, 25, 10), due(20, 41, 10), due(None, None, 10), due(None, 25, 0)
    ((10, 20), None, (30, 40), None, None)
    """
    if judged_us is None or every_us <= 0:
        return None
    end_us = judged_us // every_us * every_us
    return None if newest_end_us is not None and newest_end_us >= end_us else (end_us - every_us, end_us)
