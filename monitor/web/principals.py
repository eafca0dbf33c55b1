"""The evidence about one caller: a page, its JSON twin, and the export of the raw rows, which is audited.

The page reads the newest rows of the caller inside the incident's window (monitor.store.recent), the export streams all of
them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from detectors.anomaly.learnt import Learnt, callers
from detectors.base import Caller
from monitor.errors import ConfigError, StoreError
from monitor.model import SECOND_US, parse_time_us, rfc3339
from monitor.reports import principal
from monitor.reports.principal import LEARNT_COLUMNS, Rows
from monitor.service.callers import finder
from monitor.service.windows import Stretch
from monitor.store import held, lookups, people, queries, references
from monitor.store.engine import write
from monitor.store.lookups import IncidentRow
from monitor.store.queries import ModelRow
from monitor.store.recent import MINE, Recent, recent
from monitor.web import view
from monitor.web.acts import allowed
from monitor.web.pages import render
from monitor.web.site import Site

SHOWN: Final = 40  # rows of the chain on one page
REFERENCE_ROWS: Final = 3_000
REFERENCE_GROUPS: Final = 3  # row groups of the frozen reference that the sample is taken from
MAX_NAME: Final = 1_000
EXPORTED: Final = (
    "event_time", "request_id", "model_version", "principal", "credential_id", "source_ip", "session_id",
    "prediction_label", "prediction_value", "scores", "class_names", "returned", "status", "quality",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One caller of one model in the time that is looked at; `incident` is what it is suspected of, if anything."""

    model: ModelRow
    name: str
    incident: IncidentRow | None
    start_us: int
    end_us: int


def router(site: Site) -> APIRouter:
    """The page and the export."""
    routes = APIRouter(default_response_class=HTMLResponse)

    @routes.get("/models/{ref}/principal")
    def page(request: Request, ref: str, name: str, incident: str = "", row: int = -1) -> HTMLResponse:
        asked = _asked(site, ref, name, incident)
        shown = _evidence(site, asked, row)
        return render(
            site, request, "principal.html", section="/incidents", live=False, model=asked.model, who=asked.name,
            incident=asked.incident, start_us=asked.start_us, end_us=asked.end_us, may_act=site.may_act, most=MINE, size=SHOWN, **shown,
        )  # fmt: skip

    @routes.post("/models/{ref}/principal/rows")
    async def export(request: Request, ref: str) -> Response:
        allowed(site, request, form=True)
        sent = parse_qs((await request.body())[:20_000].decode("utf-8", "replace"))
        name, incident, by, why, form = (
            sent.get(k, [""])[0].strip() for k in ("name", "incident", "by", "reason", "format")
        )
        if not by or form not in FORMATS:
            raise HTTPException(422, "who: say who you are")
        asked = _asked(site, ref, name, incident)
        try:
            rows = sum(t.num_rows for t in _rows(site, asked, []))
        except StoreError as gone:
            raise HTTPException(404) from gone
        detail = {
            "model": asked.model.name, "reason": why[:MAX_NAME], "format": form, "rows": rows,
            "from": rfc3339(asked.start_us), "to": rfc3339(asked.end_us), "incident": asked.incident.alert_id if asked.incident else None,
        }  # fmt: skip
        with write(site.engine) as conn:  # first the trail, then the rows
            people.audited(conn, by[:100], "export", f"principal {asked.name}", detail, site.now_us())
        media, lines = FORMATS[form]
        found = _rows(site, asked, [*EXPORTED, *_features(site, asked)])
        return StreamingResponse(
            lines(found), media_type=media, headers={"Content-Disposition": f'attachment; filename="rows.{form}"'}
        )

    return routes


def twin(site: Site) -> APIRouter:
    """The same as JSON."""
    routes = APIRouter()

    @routes.get("/models/{ref}/principal")
    def evidence(ref: str, name: str, incident: str = "", row: int = -1) -> dict[str, Any]:
        """The evidence about one caller: its chain of queries, peers, exposure, and what the incident says."""
        asked = _asked(site, ref, name, incident)
        shown = _evidence(site, asked, row)
        return {
            "model": asked.model.name, "principal": asked.name, "window": [rfc3339(asked.start_us), rfc3339(asked.end_us)],
            "incident": asked.incident.alert_id if asked.incident else None, "rows": shown["rows"], "flagged": shown["flagged"],
            "whole": shown["whole"], "first": shown["first"], "compared_with": shown["peer_words"], "exposure": shown["exposure"],
            "unlike_itself": shown["unlike"], "training_overlap": shown["overlap"], "absence": shown["absence"],
            "held_back": shown["held"], "climb": shown["climb"] and asdict(shown["climb"]) | {"climbs": shown["climb"].climbs},
            "chain": [asdict(s) | {"time": rfc3339(s.time_us)} for s in shown["chain"]], "peers": [asdict(p) for p in shown["peers"]],
        }  # fmt: skip

    return routes


def _asked(site: Site, ref: str, name: str, incident: str) -> Asked:
    """What is asked for; 404 without such a model, or with an incident that is not about this caller."""
    model = site.model(ref)
    if model is None or not name or len(name) > MAX_NAME:
        raise HTTPException(404)
    if incident:
        found = lookups.incident(site.engine, incident)
        if found is None or found.model != model.name or name not in members(found):
            raise HTTPException(404)
    else:
        rows, _ = lookups.incidents(site.engine, model=model.name, event="AttackSuspected", limit=200)
        found = next((i for i in rows if name in members(i)), None)
    if found is None:
        end_us = model.last_event_us or site.now_us()
        return Asked(model, name, None, end_us - view.DAY_US, end_us + 1)
    start_us = found.window_us[0] if found.window_us else found.opened_us - view.DAY_US
    try:
        start_us = min(start_us, parse_time_us(str(found.evidence.get("onset"))))
    except (ValueError, OverflowError):
        pass  # an incident of a detector that dates no onset
    until_us = max(found.updated_us, found.opened_us) + SECOND_US if not found.open else site.now_us() + 1
    return Asked(model, name, found, start_us, max(until_us, start_us + 1))


def members(incident: IncidentRow) -> list[str]:
    """The callers that an incident is about."""
    own = [incident.subject_id] if incident.subject_kind == "principal" else []
    named = incident.evidence.get("principals")
    return list(dict.fromkeys([*own, *(str(p) for p in named)] if isinstance(named, list) else own))


def _evidence(site: Site, asked: Asked, row: int) -> dict[str, Any]:
    """Everything that page and twin show."""
    body = queries.calibration(site.engine, asked.model.model_id, "queries", asked.model.reference_hash)
    cal = principal.fitting(body)
    learnt = Learnt.of(cal) if cal is not None else None
    found = _recent(site, asked, learnt.columns if learnt else [*LEARNT_COLUMNS, *_features(site, asked)])
    gauges = {
        name: queries.newest_reading(site.engine, asked.model.model_id, detector, asked.name)
        for name, detector in (
            ("exposure", "exposure"),
            ("unlike", "mmd"),
            ("overlap", "membership"),
            ("absence", "access"),
        )
    }
    gauges["held"] = next(iter(held.held_back(site.engine, asked.model, 0, 1 << 62, asked.name)), None)
    shown: dict[str, Any] = {
        **{k: None if r is None else {**r.evidence, "time": rfc3339(r.end_us)} for k, r in gauges.items()},
        "rows": 0, "flagged": 0, "whole": True, "first": 0, "chain": [], "peers": [], "peer_words": "", "peer_count": 0,
        "climb": None, "scores": None, "margins": None, "picture": None, "base_words": "", "judged": cal is not None, "caller": None,
    }  # fmt: skip
    if found is None or not found.mine.num_rows:
        return shown
    known = _declared(site, asked, found)
    names = _names(learnt, found)
    own, others = Rows.of(found.mine, *names), Rows.of(found.others, *names)
    if cal is not None:
        own, others = _judged(cal, asked, found, names, known)
    first = min(row, max(0, own.n - 1)) if row >= 0 else principal.busiest(own.flag, SHOWN)
    base, words = _base(site, asked, learnt, names), "rows of the reference"
    if base is None or base.n < 20:
        base, words = others, "rows of other callers"
    like, whom = principal.alike(known.get(asked.name), [known.get(n) for n in callers(others.table)[1]])
    levels = cal.meta.get("margins") if cal is not None else None
    rows, count = principal.peers(
        own, found.end_us - found.mine_since_us, others, found.end_us - found.others_since_us,
        float(levels[0]) if levels else None, like,
    )  # fmt: skip
    return shown | {
        "rows": own.n, "flagged": int(own.flag.sum()), "whole": found.whole, "first": first, "peers": rows, "peer_words": whom,
        "chain": principal.chain(own, first, SHOWN, learnt.rules if learnt else None), "peer_count": count, "base_words": words,
        "climb": principal.climbing(own), "scores": principal.scores_chart(own), "margins": principal.margin_chart(own.given.margin, base.given.margin),
        "picture": principal.picture(learnt, own, base.frame, words) if learnt else None, "caller": known.get(asked.name),
    }  # fmt: skip


def _names(learnt: Learnt | None, found: Recent) -> tuple[Sequence[str], Sequence[str]]:
    """Numbers and categories: as learnt, else as the log stores them."""
    if learnt is not None:
        return learnt.rules.numeric, learnt.rules.categorical
    own = [f for f in found.mine.schema if f.name.startswith("feature:")]
    numeric = [f.name.removeprefix("feature:") for f in own if pa.types.is_floating(f.type)]
    return numeric, [n for f in own if (n := f.name.removeprefix("feature:")) not in numeric]


def _judged(
    cal: Any, asked: Asked, found: Recent, names: tuple[Sequence[str], Sequence[str]], known: Mapping[str, Caller]
) -> tuple[Rows, Rows]:
    """The rows of the caller and of the others, judged together in the order of their times."""
    both = pa.concat_tables([found.mine, found.others], promote_options="permissive")
    both = both.append_column("mine", pa.array([i < found.mine.num_rows for i in range(both.num_rows)]))
    both = both.sort_by("event_time")
    flag, why = principal.judge(cal, Stretch(asked.model.name, found.others_since_us, found.end_us, both, None, known))
    whole = Rows.of(both, *names)
    whole = Rows(whole.table, whole.frame, whole.given, flag, why)
    mine = both["mine"].to_numpy()
    return whole.take(mine.nonzero()[0]), whole.take((~mine).nonzero()[0])


def _recent(site: Site, asked: Asked, columns: Sequence[str]) -> Recent | None:
    """Rows of the log; None where there is no log at hand or its files are gone."""
    if site.log is None or asked.model.name not in site.log.models:
        return None
    try:
        return recent(site.log, asked.model.model_id, asked.name, asked.start_us, asked.end_us, columns)
    except StoreError:
        return None


def _rows(site: Site, asked: Asked, columns: Sequence[str]) -> Iterator[pa.Table]:
    """All rows of the caller in the time that is looked at, in the order of the log, a part at a time."""
    if site.log is None or asked.model.name not in site.log.models:
        raise StoreError("no log at hand")
    wanted = list(dict.fromkeys(["event_time", "principal", *columns]))
    for table in site.log.read_window(asked.model.model_id, asked.start_us, asked.end_us, wanted):
        yield table.filter(pc.fill_null(pc.equal(table["principal"], asked.name), False))


def _features(site: Site, asked: Asked) -> list[str]:
    table = site.log.models.get(asked.model.name) if site.log is not None else None
    return [] if table is None else [f"feature:{f}" for f in (*table.schema.numeric, *table.schema.categorical)]


def _declared(site: Site, asked: Asked, found: Recent) -> Mapping[str, Caller]:
    """What the bank declares about the callers at hand; nothing where its directory cannot be read."""
    try:
        return finder(site.config, site.engine, asked.model.name)([asked.name, *callers(found.others)[1]])
    except (ConfigError, OSError):
        return {}


def _base(site: Site, asked: Asked, learnt: Learnt | None, names: tuple[Sequence[str], Sequence[str]]) -> Rows | None:
    """A sample of the frozen reference; None where it cannot be read."""
    held = references.reference(site.engine, asked.model.model_id, asked.model.reference_hash)
    if held is None or learnt is None:
        return None
    file = site.config.path(site.config.store.path) / "references" / held.path
    wanted = tuple(f"feature:{f}" for part in names for f in part)
    table = _sample(file, (*wanted, "prediction_label", "scores"))
    return None if table is None else Rows.of(table, *names)


@lru_cache(maxsize=8)
def _sample(file: Path, columns: tuple[str, ...]) -> pa.Table | None:
    """Rows from a few places of a reference, which never changes once it is frozen."""
    try:
        with pq.ParquetFile(file) as parquet:
            groups = parquet.metadata.num_row_groups
            some = sorted({i * groups // REFERENCE_GROUPS for i in range(REFERENCE_GROUPS)}) if groups else []
            held = [c for c in columns if c in parquet.schema_arrow.names]
            table = parquet.read_row_groups(some, columns=held)
    except (OSError, pa.ArrowInvalid):
        return None
    step = max(1, table.num_rows // REFERENCE_ROWS)
    return table.take(pa.array(range(0, table.num_rows, step)))


def harmless(value: object) -> object:
    r"""A cell that no spreadsheet takes for a formula; lists as JSON.

    >>> harmless("=1+1"), harmless(-2.5), harmless("\t@x"), harmless("plain")
    ("'=1+1", -2.5, "'\t@x", 'plain')
    """
    if isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.lstrip()[:1] in set("=+-@|%"):
        return f"'{value}"
    return "'" + value if isinstance(value, str) and value[:1] in set("\t\r\n") else value


def _records(table: pa.Table) -> Iterator[dict[str, Any]]:
    for record in table.to_pylist():
        yield record | {"event_time": rfc3339(record["event_time"])}


def _csv(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    for at, table in enumerate(tables):
        out = io.StringIO()
        writer = csv.writer(out)
        if at == 0:
            writer.writerow([harmless(c) for c in table.column_names])
        writer.writerows([harmless(v) for v in record.values()] for record in _records(table))
        yield out.getvalue().encode("utf-8", "replace")


def _jsonl(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    for table in tables:
        yield "".join(json.dumps(r) + "\n" for r in _records(table)).encode()


FORMATS: Final = {"csv": ("text/csv; charset=utf-8", _csv), "jsonl": ("application/x-ndjson", _jsonl)}
