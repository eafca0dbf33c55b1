"""The pages: one function an address. All state is in the address, so a link shows the next reader the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from alerts.text import TITLES
from collectors.base import REASONS
from monitor.model import Said, Severity, rfc3339
from monitor.reports import charts, features, owner
from monitor.reports.charts import Annotation, Chart, Span
from monitor.reports.words import moment, number
from monitor.service.feedback import qualities
from monitor.service.told import demoted
from monitor.store import comparisons, lookups, people, queries, reports
from monitor.store.lookups import IncidentRow
from monitor.store.queries import ModelRow
from monitor.store.reports import ReportRow
from monitor.web import view
from monitor.web.scope import Scope, feature_view, incident_features, model_view, span_of
from monitor.web.site import Site
from monitor.web.view import Here

OPEN_SHOWN = 6  # open incidents on the overview
REPORTS_SHOWN = 4  # stored reports on an incident
SILENT_US = 300 * 1_000_000  # a partition whose owner has not reported for so long is shown as silent


STATES: Final[Mapping[str, bool | None]] = {"open": True, "closed": False, "all": None}


class Wanted(BaseModel):
    """Which incidents a reader wants to see; the fields are the query parameters. What makes no sense is default."""

    model_config = ConfigDict(frozen=True)

    state: str = "open"
    severity: str = ""
    model: str = ""
    event: str = ""
    q: str = ""
    cursor: str = ""

    def filters(self) -> dict[str, Any]:
        """The arguments of lookups.incidents."""
        return {
            "open": STATES.get(self.state, True), "min_severity": self.severity, "model": self.model,
            "event": self.event, "text": self.q[:200], "cursor": self.cursor,
        }  # fmt: skip


def render(
    site: Site, request: Request, name: str, *, status: int = 200, live: bool = True, **values: Any
) -> HTMLResponse:
    """A page with what every page needs. Reading goes on by itself (`live`) until the reader pauses it."""
    here = Here(request.url.path, dict(request.query_params))
    twin = f"/api/v1{'/models' if here.path == '/' else here.path}"
    body = site.templates.get_template(name).render(
        here=here,
        live=live and here.params.get("live") != "off",
        environment_name=site.config.environment,
        version=site.version,
        twin=view.with_query(twin, here.params) if status == 200 else "/api/v1/models",
        **{"now_us": site.now_us(), **values},
    )
    return HTMLResponse(body, status)


def router(site: Site) -> APIRouter:
    """Every page."""
    routes = APIRouter(default_response_class=HTMLResponse)

    @routes.get("/")
    def overview(request: Request) -> HTMLResponse:
        models = site.models()
        found, _ = lookups.incidents(site.engine, open=True, limit=500)
        found.sort(key=lambda i: (-queries.rank(i.severity), -i.updated_us))
        return render(
            site,
            request,
            "overview.html",
            section="/",
            now_us=site.clock_us(models),
            models=models,
            incidents=found[:OPEN_SHOWN],
            opened=sum(lookups.open_counts(site.engine).values()),
            sentence=_sentence(models, sum(lookups.open_counts(site.engine).values())),
            volumes={m.model_id: _volume_spark(m) for m in models},
            strips={m.model_id: _evidence_strip(m) for m in models},
            spark_windows=queries.SPARK_WINDOWS,
        )

    @routes.get("/models/{ref}")
    def model_page(request: Request, ref: str, scope: Annotated[Scope, Query()]) -> HTMLResponse:
        model, open_here = _model(site, ref)
        shown = model_view(site, model, scope)
        return render(
            site, request, "model.html", section="/", model=model, incidents=open_here,
            owner=_owner(site, model), diagnoses=site.diagnoses(model), versions=comparisons.listed(site.engine, model.model_id)[:3], **shown,
        )  # fmt: skip

    @routes.get("/models/{ref}/feature")
    def feature_page(
        request: Request, ref: str, scope: Annotated[Scope, Query()], name: str, at: str = ""
    ) -> HTMLResponse:
        model, _ = _model(site, ref)
        return render(
            site,
            request,
            "feature.html",
            section="/",
            model=model,
            feature=name,
            **feature_view(site, model, scope, name, at),
        )

    @routes.get("/models/{ref}/report")
    def report_page(ref: str, scope: Annotated[Scope, Query()]) -> HTMLResponse:
        model, _ = _model(site, ref)
        start_us, end_us = span_of(model, scope, site.clock_us([model]))
        report = owner.report(
            site.engine, model, start_us, end_us, environment=site.config.environment, owner=_owner(site, model),
            made_us=site.now_us(), version=site.version, ailments=site.diagnoses(model), units=site.units(model.name),
        )  # fmt: skip
        return HTMLResponse(report.html, headers={"Content-Security-Policy": f"sandbox; {report.policy}"})

    @routes.get("/incidents")
    def incident_list(request: Request, wanted: Annotated[Wanted, Query()]) -> HTMLResponse:
        rows, following = lookups.incidents(site.engine, **wanted.filters())
        models = site.models()
        acts = people.acts_of(site.engine, [i.alert_id for i in rows])
        return render(
            site,
            request,
            "incidents.html",
            section="/incidents",
            now_us=site.clock_us(models),
            rows=rows,
            people={i.alert_id: view.by_people(i, acts.get(i.alert_id, ())) for i in rows},
            next=following,
            state=wanted.state if wanted.state in STATES else "open",
            opened=sum(lookups.open_counts(site.engine).values()),
            model_names=sorted({m.name for m in models}),
            event_words=[(e.value, w) for e, w in TITLES.items()],
            filtered=bool(wanted.severity or wanted.model or wanted.event or wanted.q),
        )

    @routes.get("/incidents/{alert_id}")
    def incident_page(request: Request, alert_id: str) -> HTMLResponse:
        found = lookups.incident(site.engine, alert_id)
        if found is None:
            raise HTTPException(404)
        model = site.model(found.model)
        features = incident_features(found)
        chart = _incident_chart(site, found, model)
        sent = lookups.deliveries(site.engine, alert_id)
        acts = people.acts_of(site.engine, [alert_id]).get(alert_id, [])
        return render(
            site,
            request,
            "incident.html",
            section="/incidents",
            now_us=site.clock_us([model] if model else []),
            incident=found,
            model_path=view.model_url(model.name, model.model_id) if model else None,
            features=features,
            feature_columns=list(dict.fromkeys(k for f in features for k in f.values)),
            chart=chart[1] if chart else None,
            chart_title=chart[0] if chart else "",
            detectors=[d for d in found.evidence.get("detectors") or () if isinstance(d, Mapping)],
            principals=[str(p) for p in found.evidence.get("principals") or ()],
            others=view.other_evidence(found.evidence),
            history=lookups.history(site.engine, alert_id),
            deliveries=[d for i, d in enumerate(sent) if i == 0 or sent[i - 1].sink != d.sink],
            delivered_before=[d for i, d in enumerate(sent) if i and sent[i - 1].sink == d.sink],
            acts=acts,
            taken=people.acknowledged(Severity(found.severity), acts) if found.open else None,
            reports=reports_about(site, found, model),
            may_act=site.may_act,
            verdicts=[s.value for s in Said],
        )

    @routes.get("/detectors")
    def detectors(request: Request, days: Annotated[int, Query(ge=1, le=3660)] = 28) -> HTMLResponse:
        until_us = site.now_us()
        return render(
            site, request, "detectors.html", section="/incidents", live=False, days=days,
            rows=qualities(site.engine, site.config, until_us - days * view.DAY_US, until_us),
            demoted=demoted(site.engine, until_us, site.config),
            exceptions=people.all_exemptions(site.engine, now_us=until_us),
        )  # fmt: skip

    @routes.get("/sources")
    def sources(request: Request, source: str = "", reason: str = "") -> HTMLResponse:
        dead = lookups.dead_letter_counts(site.engine)
        return render(
            site,
            request,
            "sources.html",
            section="/sources",
            partitions=lookups.all_partitions(site.engine),
            backlog=lookups.backlog(site.engine),
            dead=dead,
            waiting_dead=sum(d.messages for d in dead if d.state == "new"),
            samples=lookups.dead_letters_of(site.engine, source=source, reason=reason, limit=5) if reason else (),
            reasons=REASONS,
            unknown=lookups.unregistered_names(site.engine),
            sinks=lookups.sinks(site.engine),
            beats=lookups.beats(site.engine),
            silent_us=SILENT_US,
            empty_value=b"",
        )

    return routes


def reports_about(site: Site, found: IncidentRow, model: ModelRow | None) -> list[tuple[ReportRow, str]]:
    """The newest stored reports over the time of an incident, with their addresses."""
    if model is None:
        return []
    span_us = (found.opened_us, found.cleared_us if found.cleared_us is not None else found.updated_us)
    rows = reports.listed(site.engine, model.model_id, covers_us=span_us)[:REPORTS_SHOWN]
    return [(r, f"{view.model_url(model.name, model.model_id)}/reports/{r.report_id}") for r in rows]


def _model(site: Site, ref: str) -> tuple[ModelRow, list[IncidentRow]]:
    """A model and its open incidents, worst first; 404 without such a model."""
    model = site.model(ref)
    if model is None:
        raise HTTPException(404)
    found, _ = lookups.incidents(site.engine, open=True, model=model.name, limit=100)
    return model, sorted(found, key=lambda i: (-queries.rank(i.severity), -i.updated_us))


def _sentence(models: Sequence[ModelRow], opened: int) -> str:
    """The overview in one line."""
    some = f"{len(models)} model{'' if len(models) == 1 else 's'} watched. "
    state = "No incident is open." if not opened else f"{opened} incident{'' if opened == 1 else 's'} open."
    judged = max((m.judged_us for m in models if m.judged_us is not None), default=None)
    return some + state + (f" Judged up to {moment(judged)} UTC." if judged is not None else "")


def _owner(site: Site, model: ModelRow) -> str | None:
    configured = site.config.models.get(model.name)
    return configured.owner if configured else None


def _volume_spark(model: ModelRow) -> Markup:
    values = [float(n) for _, n in model.volume]
    words = f"Events per window: newest {number(values[-1])}, highest {number(max(values))}" if values else "none"
    return charts.spark(values, words)


def _evidence_strip(model: ModelRow) -> Markup | str:
    """The windows' running evidence of drift as shades; empty without any."""
    if not model.evidence:
        return ""
    points = features.accumulated(model.evidence, model.ended)
    span = charts.Span(points[0].start_us, points[-1].end_us)
    measure = features.MEASURES["evidence"]
    words = f"Running evidence of drift: newest {number(points[-1].value)} nats"
    return charts.strip(points, span, lambda v: features.level(measure, v), label=words, height=22)


def _incident_chart(site: Site, found: IncidentRow, model: ModelRow | None) -> tuple[str, Chart] | None:
    """The most blamed feature's evidence around the incident; None when no feature is named."""
    named = incident_features(found)
    if model is None or not named:
        return None
    until_us = found.cleared_us if found.cleared_us is not None else model.judged_us or found.updated_us
    scope = Scope(range="30d", until=rfc3339(until_us + 1000))
    start_us, end_us = span_of(model, scope, until_us)
    segment = found.subject_id if found.subject_kind == "segment" else None
    drift = queries.drift_detections(site.engine, model.model_id, start_us, end_us, segment=segment)
    ended = lookups.incidents_between(site.engine, model.name, start_us, end_us)
    restarts = [
        i.cleared_us for i in ended if i.family == "drift" and i.cleared_us and i.subject_id == found.subject_id
    ]
    series = next((s for s in features.series(drift, "evidence", restarts) if s.name == named[0].name), None)
    if series is None or series.last is None:
        return None
    since_us = found.opened_us - max(2 * view.DAY_US, until_us - found.opened_us)
    points = [p for p in series.points if p.end_us > since_us]
    span = Span(points[0].start_us, points[-1].end_us)
    note = Annotation("incident", found.opened_us, found.cleared_us, view.title(found))
    heading = f"Running evidence of {series.name}"
    return heading, charts.line(charts.thinned(points, "max"), span, title=heading, unit="nats", notes=[note])
