"""The JSON twin of the pages' tables under `/api/v1`, described by OpenAPI. Read-only; lists page by an opaque cursor."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict

from monitor.model import rfc3339
from monitor.reports.segments import segments
from monitor.store import lookups, queries
from monitor.web.pages import Wanted, reports_about
from monitor.web.scope import Scope, histogram_of, look, span_of
from monitor.web.site import Site
from monitor.web.view import with_query

Item = TypeVar("Item")


class Body(BaseModel):
    """Base of every answer: built from the rows' attributes, closed to unknown keys."""

    model_config = ConfigDict(from_attributes=True, extra="forbid")


class Page(Body, Generic[Item]):
    """A list; `next` is the cursor of the following page, null at the end."""

    items: list[Item]
    next: str | None = None


class Model(Body):
    """One model as the overview shows it."""

    id: str
    name: str
    status: str
    reference: str | None
    judged_until: str | None
    watermark: str | None
    last_event: str | None
    last_tick: str | None
    lag_seconds: float | None
    open_incidents: dict[str, int]


class Window(Body):
    """One judged window of one monitor."""

    monitor: str
    start: str
    end: str
    outcome: str
    events: int
    judged: str
    detail: str | None


class Detection(Body):
    """One detection; `evidence` is as its detector wrote it."""

    monitor: str
    detector: str
    family: str
    event: str
    subject: dict[str, str]
    start: str
    end: str
    statistic: float | None
    threshold: float | None
    p_value: float | None
    log_e: float | None
    events: int
    verdict: str
    evidence: dict[str, Any]


class Segment(Body):
    """How one segment stands after the newest window; smallest: the shift of a feature that it can show, as text."""

    segment: str
    monitor: str
    state: str
    reason: str
    incident: str | None
    events: int
    windows: int
    feature: str | None
    evidence: float | None
    smallest: dict[str, str]


class Histogram(Body):
    """A feature's shares per bin, as text with the page's rounding: bin, reference, current, change in points."""

    feature: str
    summary: str
    columns: list[str]
    rows: list[list[str]]


class Incident(Body):
    """One incident: the current state of one problem."""

    alert_id: str
    model: str
    event: str
    family: str
    severity: str
    subject: dict[str, str]
    open: bool
    quiet: bool
    opened: str
    updated: str
    cleared: str | None
    detector: str | None
    statistic: float | None
    threshold: float | None
    p_value: float | None
    log_e: float | None
    n: int | None
    window: list[str] | None
    techniques: list[str]
    owner: str | None
    runbook: str
    text: str
    evidence: dict[str, Any]


class Step(Body):
    """One transition of an incident."""

    seq: int
    action: str
    time: str
    severity: str
    text: str
    evidence: dict[str, Any]


class Delivery(Body):
    """How one state of an incident fared at one sink."""

    sink: str
    seq: int
    state: str
    attempts: int
    last_error: str | None
    settled: str | None


class IncidentDetail(Body):
    """An incident with its history and delivery."""

    incident: Incident
    history: list[Step]
    deliveries: list[Delivery]
    reports: list[str]  # addresses of stored reports over its time


class Partition(Body):
    """How far one partition of a source has been read."""

    source: str
    topic: str
    partition: int
    next_offset: int | None
    newest_event: str | None
    caught_up: bool
    heard: str


class DeadLetters(Body):
    """Messages of one source that could not become events."""

    source: str
    reason: str
    state: str
    messages: int
    first: str
    last: str


class Unknown(Body):
    """A model name that logs use and the configuration does not know."""

    source: str
    name: str
    events: int
    first: str
    last: str


class Sources(Body):
    """Where events come from and what could not be read."""

    partitions: list[Partition]
    dead_letters: list[DeadLetters]
    unregistered: list[Unknown]
    unpublished_rows: int
    halves: int


class Problem(Body):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str


NOT_HERE: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such thing."}}


def router(site: Site) -> APIRouter:
    """Every address of the API."""
    routes = APIRouter(responses={422: {"model": Problem, "description": "A parameter does not fit."}})

    @routes.get("/models")
    def models() -> Page[Model]:
        """Every configured model, worst status first."""
        return Page(items=[_model(m) for m in site.models()])

    @routes.get("/models/{ref}", responses=NOT_HERE)
    def model(ref: str) -> Model:
        """One model by name or id."""
        return _model(_found(site, ref))

    @routes.get("/models/{ref}/windows", responses=NOT_HERE)
    def windows(ref: str, scope: Annotated[Scope, Query()]) -> Page[Window]:
        """Judged windows of a range, oldest first."""
        found = _found(site, ref)
        start_us, end_us = span_of(found, scope, site.clock_us([found]))
        return Page(items=[_window(w) for w in queries.windows(site.engine, found.model_id, start_us, end_us)])

    @routes.get("/models/{ref}/detections", responses=NOT_HERE)
    def detections(ref: str, scope: Annotated[Scope, Query()]) -> Page[Detection]:
        """Detections of a range with their per-feature evidence, oldest first."""
        seen = look(site, _found(site, ref), scope)
        return Page(items=[_detection(d) for d in sorted([*seen.drift, *seen.others], key=lambda d: d.end_us)])

    @routes.get("/models/{ref}/segments", responses=NOT_HERE)
    def model_segments(ref: str, scope: Annotated[Scope, Query()]) -> Page[Segment]:
        """The model's segments as the newest window of a range left them."""
        found = _found(site, ref)
        start_us, end_us = span_of(found, scope, site.clock_us([found]))
        told = queries.segment_detections(site.engine, found.model_id, start_us, end_us)
        incidents = lookups.incidents_between(site.engine, found.name, start_us, end_us)
        return Page(
            items=[
                Segment(
                    segment=s.name, monitor=s.monitor, state=s.words, reason=s.why, incident=s.incident, events=s.rows,
                    windows=s.windows, feature=s.feature, evidence=s.evidence, smallest=dict(s.smallest),
                )
                for s in segments(told, incidents)
            ]
        )  # fmt: skip

    @routes.get("/models/{ref}/feature", responses=NOT_HERE)
    def feature(ref: str, name: str, scope: Annotated[Scope, Query()]) -> Histogram:
        """A feature's reference beside its counts in a range."""
        found = _found(site, ref)
        chart = histogram_of(site, found, name, *span_of(found, scope, site.clock_us([found])))
        if chart is None:
            raise HTTPException(404)
        return Histogram(
            feature=name, summary=chart.summary, columns=list(chart.columns), rows=[list(r) for r in chart.rows]
        )

    @routes.get("/incidents")
    def incidents(
        response: Response, wanted: Annotated[Wanted, Query()], limit: Annotated[int, Query(ge=1, le=500)] = 50
    ) -> Page[Incident]:
        """Incidents that fit, newest change first."""
        rows, following = lookups.incidents(site.engine, limit=limit, **wanted.filters())
        if following is not None:
            kept = {**wanted.model_dump(), "limit": limit, "cursor": following}
            response.headers["Link"] = f'<{with_query("/api/v1/incidents", kept)}>; rel="next"'
        return Page(items=[_incident(i) for i in rows], next=following)

    @routes.get("/incidents/{alert_id}", responses=NOT_HERE)
    def incident(alert_id: str) -> IncidentDetail:
        """One incident with its history and delivery."""
        found = lookups.incident(site.engine, alert_id)
        if found is None:
            raise HTTPException(404)
        return IncidentDetail(
            incident=_incident(found),
            reports=[url for _, url in reports_about(site, found, site.model(found.model))],
            history=[
                Step(
                    seq=t.seq,
                    action=t.action,
                    time=rfc3339(t.time_us),
                    severity=t.severity,
                    text=t.text,
                    evidence=dict(t.evidence),
                )
                for t in lookups.history(site.engine, alert_id)
            ],
            deliveries=[
                Delivery(
                    sink=d.sink,
                    seq=d.seq,
                    state=d.state,
                    attempts=d.attempts,
                    last_error=d.last_error,
                    settled=_when(d.settled_us),
                )
                for d in lookups.deliveries(site.engine, alert_id)
            ],
        )

    @routes.get("/sources")
    def sources() -> Sources:
        """Partitions, dead letters by reason, names without configuration."""
        return _sources(site)

    return routes


def _found(site: Site, ref: str) -> queries.ModelRow:
    model = site.model(ref)
    if model is None:
        raise HTTPException(404)
    return model


def _when(us: int | None) -> str | None:
    return None if us is None else rfc3339(us)


def _model(m: queries.ModelRow) -> Model:
    return Model(
        id=m.model_id, name=m.name, status=m.status.value, reference=m.reference_hash, judged_until=_when(m.judged_us),
        watermark=_when(m.watermark_us), last_event=_when(m.last_event_us), last_tick=_when(m.last_tick_us),
        lag_seconds=None if m.lag_us is None else m.lag_us / 1e6, open_incidents=dict(m.open),
    )  # fmt: skip


def _window(w: queries.WindowRow) -> Window:
    return Window(
        monitor=w.monitor, start=rfc3339(w.start_us), end=rfc3339(w.end_us), outcome=w.outcome, events=w.n,
        judged=rfc3339(w.judged_us), detail=w.detail,
    )  # fmt: skip


def _detection(d: queries.DetectionRow) -> Detection:
    return Detection(
        monitor=d.monitor, detector=d.detector, family=d.family, event=d.event, start=rfc3339(d.start_us),
        end=rfc3339(d.end_us), subject={"kind": d.subject_kind, "id": d.subject_id}, statistic=d.statistic,
        threshold=d.threshold, p_value=d.p_value, log_e=d.log_e, events=d.n, verdict=d.verdict, evidence=dict(d.evidence),
    )  # fmt: skip


def _incident(i: lookups.IncidentRow) -> Incident:
    shared = {
        k: getattr(i, k) for k in ("alert_id", "model", "event", "family", "severity", "open", "quiet", "detector")
    }
    numbers = {
        k: getattr(i, k) for k in ("statistic", "threshold", "p_value", "log_e", "n", "text", "owner", "runbook")
    }
    return Incident(
        **shared, **numbers, subject={"kind": i.subject_kind, "id": i.subject_id}, opened=rfc3339(i.opened_us),
        updated=rfc3339(i.updated_us), cleared=_when(i.cleared_us), techniques=list(i.techniques), evidence=dict(i.evidence),
        window=[rfc3339(t) for t in i.window_us] if i.window_us else None,
    )  # fmt: skip


def _sources(site: Site) -> Sources:
    backlog = lookups.backlog(site.engine)
    return Sources(
        partitions=[
            Partition(
                source=p.source, topic=p.topic, partition=p.partition, next_offset=p.next_offset,
                newest_event=_when(p.max_event_us), caught_up=p.caught_up_since_us is not None, heard=rfc3339(p.updated_us),
            )
            for p in lookups.all_partitions(site.engine)
        ],
        dead_letters=[
            DeadLetters(
                source=d.source, reason=d.reason, state=d.state, messages=d.messages, first=rfc3339(d.first_us), last=rfc3339(d.last_us)
            )
            for d in lookups.dead_letter_counts(site.engine)
        ],
        unregistered=[
            Unknown(source=u.source, name=u.name, events=u.events, first=rfc3339(u.first_us), last=rfc3339(u.last_us))
            for u in lookups.unregistered_names(site.engine)
        ],
        unpublished_rows=backlog.unpublished_rows,
        halves=backlog.halves,
    )  # fmt: skip
