"""What a model's owner looks after: references, stored reports, health of the monitors; pages and their JSON twin.

A report is served so that it can do nothing: ours under its own policy and `sandbox`, Evidently's as a download, since its
page is a program made of what the log holds.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from monitor.model import rfc3339
from monitor.reports import features
from monitor.reports.held import HeldRow
from monitor.store import comparisons, references, reports
from monitor.store.queries import ModelRow
from monitor.store.references import ReferenceRow
from monitor.store.reports import ReportRow
from monitor.web.api import NOT_HERE, Body, Page
from monitor.web.pages import render
from monitor.web.scope import Scope, groups_of, held_of, look
from monitor.web.site import Site
from monitor.web.view import model_url

NOTHING: Final = "default-src 'none'"


class Ailment(Body):
    """One monitor that cannot be believed, why, and what to do. `code` is stable."""

    monitor: str
    code: str
    text: str
    fix: str
    feature: str | None


class Visible(Body):
    """What a feature can show: its newest running evidence in nats, and the smallest lasting shift found within 24 windows
    as text (none: not judged yet, or nothing to tell).
    """

    feature: str
    evidence: float | None
    smallest: str | None


class Held(Body):
    """A caller that is so much like a tool that no incident was opened. look_alike: the tool and why; others: callers that
    are one with it, whose queries are counted too; time: when it was said last.
    """

    principal: str
    others: int
    look_alike: dict[str, Any]
    queries: int
    flagged: int
    onset: str
    time: str


class Reference(Body):
    """One version of what is normal for a model, with what was found in it and who approved it."""

    version: int
    hash: str
    state: str
    current: bool
    rows: int
    origin: str
    span: list[str] | None
    created: str
    findings: list[dict[str, Any]]
    approvals: list[dict[str, str]]
    excluded: dict[str, Any] | None
    compared: dict[str, Any] | None


class Report(Body):
    """One stored report. `url` is where it stands on this server; `headline` is its first sentence."""

    report_id: str
    kind: str
    start: str
    end: str
    made: str
    headline: str | None
    bytes: int
    sha256: str
    url: str


def twin(site: Site) -> APIRouter:
    """The addresses of the API."""
    routes = APIRouter()

    @routes.get("/models/{ref}/diagnosis", responses=NOT_HERE)
    def diagnosis(ref: str) -> Page[Ailment]:
        """Monitors that cannot be believed: too loud, mute, short of data, late, on dead features; with what to do."""
        return Page(items=[Ailment(**d.to_json()) for d in site.diagnoses(found(site, ref))])

    @routes.get("/models/{ref}/features", responses=NOT_HERE)
    def visible(ref: str, scope: Annotated[Scope, Query()]) -> Page[Visible]:
        """Every feature of a range, the most changed first, with the smallest shift that it can show."""
        model = found(site, ref)
        seen = look(site, model, scope)
        rows = features.series(seen.drift, "evidence", seen.restarts, site.units(model.name))
        return Page(items=[Visible(feature=s.name, evidence=s.last, smallest=s.smallest) for s in rows])

    @routes.get("/models/{ref}/versions", responses=NOT_HERE)
    def compared(ref: str) -> Page[dict[str, Any]]:
        """Model versions against the one before: verdict of the drift engine, answers and features on both sides."""
        return Page(items=comparisons.listed(site.engine, found(site, ref).model_id))

    @routes.get("/models/{ref}/groups", responses=NOT_HERE)
    def groups(ref: str, scope: Annotated[Scope, Query()]) -> Page[dict[str, Any]]:
        """Versions and busy callers in a range's newest week: share of events, and what differs most from all other rows."""
        model = found(site, ref)
        seen = look(site, model, scope)
        return Page(items=[g.to_json() for g in groups_of(site, model, seen.start_us, seen.end_us)])

    @routes.get("/models/{ref}/held_back", responses=NOT_HERE)
    def held_back(ref: str, scope: Annotated[Scope, Query()]) -> Page[Held]:
        """Callers of a range that are so much like a tool that nobody was told, newest first; at most 500 findings are read."""
        return Page(items=[_held(h) for h in held_of(site, found(site, ref), scope)])

    @routes.get("/models/{ref}/references", responses=NOT_HERE)
    def versions(ref: str) -> Page[Reference]:
        """Every version of the model's reference, the newest first."""
        model = found(site, ref)
        held = references.of_model(site.engine, model.model_id)
        return Page(items=[_reference(r, current=r.reference_hash == model.reference_hash) for r in held])

    @routes.get("/models/{ref}/reports", responses=NOT_HERE)
    def stored(ref: str) -> Page[Report]:
        """The model's stored reports, the newest first."""
        model = found(site, ref)
        return Page(items=[report_json(model, r) for r in reports.listed(site.engine, model.model_id)])

    return routes


def router(site: Site) -> APIRouter:
    """The pages."""
    routes = APIRouter(default_response_class=HTMLResponse)

    @routes.get("/models/{ref}/reports")
    def reports_page(request: Request, ref: str) -> HTMLResponse:
        model = found(site, ref)
        held = references.of_model(site.engine, model.model_id)
        return render(
            site, request, "reports.html", section="/", live=False, model=model, every_s=_every_s(site, model),
            rows=[(r, url(model, r)) for r in reports.listed(site.engine, model.model_id)], references=held,
        )  # fmt: skip

    @routes.get("/models/{ref}/reports/newest")
    def newest_report(ref: str) -> RedirectResponse:
        """The newest stored report for the owner, which alerts link; without any, one of the last days."""
        model = found(site, ref)
        own = [r for r in reports.listed(site.engine, model.model_id) if r.kind == reports.OWNER]
        there = url(model, own[0]) if own else f"{model_url(model.name, model.model_id)}/report"
        return RedirectResponse(there, status_code=303)

    @routes.get("/models/{ref}/reports/{report_id}")
    def report_page(ref: str, report_id: str) -> HTMLResponse:
        model = found(site, ref)
        row = next((r for r in reports.listed(site.engine, model.model_id) if r.report_id == report_id), None)
        html = reports.html(site.engine, model.model_id, report_id)
        if row is None or html is None:
            raise HTTPException(404)
        own = row.kind == reports.OWNER
        headers = {"Content-Security-Policy": f"sandbox; {row.meta['policy'] if own else NOTHING}"}
        if not own:
            headers["Content-Disposition"] = f'attachment; filename="{row.kind}-{report_id}.html"'
        return HTMLResponse(html, headers=headers)

    return routes


def report_json(model: ModelRow, r: ReportRow) -> Report:
    """A stored report as the API tells it."""
    return Report(
        report_id=r.report_id, kind=r.kind, start=rfc3339(r.start_us), end=rfc3339(r.end_us), made=rfc3339(r.made_us),
        headline=r.meta.get("headline"), bytes=r.meta["bytes"], sha256=r.meta["sha256"], url=url(model, r),
    )  # fmt: skip


def url(model: ModelRow, r: ReportRow) -> str:
    """Where a stored report stands."""
    return f"{model_url(model.name, model.model_id)}/reports/{r.report_id}"


def _every_s(site: Site, model: ModelRow) -> float:
    configured = site.config.models.get(model.name)
    return configured.reports.every if configured else 0.0


def found(site: Site, ref: str) -> ModelRow:
    """The model of this name or id; 404 without one."""
    model = site.model(ref)
    if model is None:
        raise HTTPException(404)
    return model


def _held(h: HeldRow) -> Held:
    return Held(
        principal=h.principal, others=h.others, look_alike=dict(h.look_alike), queries=h.queries, flagged=h.flagged,
        onset=rfc3339(h.onset_us), time=rfc3339(h.time_us),
    )  # fmt: skip


def _reference(r: ReferenceRow, *, current: bool) -> Reference:
    return Reference(
        version=r.version, hash=r.reference_hash, state=r.state, current=current, rows=r.rows, origin=r.origin,
        span=None if r.span_us is None else [rfc3339(t) for t in r.span_us], created=rfc3339(r.created_us),
        findings=[dict(f) for f in r.findings], excluded=None if r.excluded is None else dict(r.excluded),
        compared=None if r.compared is None else dict(r.compared),
        approvals=[{"by": a.by, "at": rfc3339(a.at_us), "why": a.why} for a in r.approvals],
    )  # fmt: skip
