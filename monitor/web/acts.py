"""What people do by page and API: acknowledge, judge, except, mark. Everything else of the web application only reads.

There is no login yet, so acts are taken on a loopback address only, and only from our own page or from a program: what a
browser sends for a strange page is refused (JSON bodies need a preflight, which is not answered; forms carry their origin).
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from alerts.quiet import contributors
from monitor.model import MAINTENANCE, SECOND_US, Act, Alert, Exemption, Mark, Said, parse_time_us, rfc3339, stable_id
from monitor.service.feedback import qualities
from monitor.store import alertlog, people
from monitor.store.engine import read, write
from monitor.web.site import Site

DAY_US = 86_400 * SECOND_US
Who = Annotated[str, Field(min_length=1, max_length=100)]
Why = Annotated[str, Field(max_length=1000)]


class Told(BaseModel):
    """Base of what is sent: closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Who
    reason: Why = ""


class Judgement(Told):
    """A verdict; it closes the incident at the next tick, unless `keep_open`."""

    verdict: Said
    keep_open: bool = False


class Exempted(Told):
    """An exception for what an incident is about. `at_most`: numbers up to which it holds, such as queries."""

    days: float = Field(default=30, gt=0, le=366)
    at_most: dict[str, FiniteFloat] = {}


class Marked(BaseModel):
    """Something that explains changes. Maintenance needs an end. Times are RFC 3339."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Who
    text: Annotated[str, Field(min_length=1, max_length=1000)]
    kind: Annotated[str, Field(min_length=1, max_length=40)] = "deploy"
    model: str | None = None
    start: str | None = None
    end: str | None = None


def router(site: Site) -> APIRouter:
    """Every act of the API."""
    routes = APIRouter()

    @routes.post("/incidents/{alert_id}/ack", status_code=201)
    def ack(request: Request, alert_id: str, told: Told) -> dict[str, str]:
        """Say that somebody is working on it."""
        allowed(site, request)
        return _say(site, alert_id, "ack", None, told.by, told.reason, "api", closes=False)

    @routes.post("/incidents/{alert_id}/verdict", status_code=201)
    def verdict(request: Request, alert_id: str, told: Judgement) -> dict[str, str]:
        """Say what it was."""
        allowed(site, request)
        closes = not told.keep_open
        return _say(site, alert_id, "verdict", told.verdict, told.by, told.reason, "api", closes=closes)

    @routes.post("/incidents/{alert_id}/exception", status_code=201)
    def exception(request: Request, alert_id: str, told: Exempted) -> dict[str, str]:
        """Let what it is about open no incident for a while."""
        allowed(site, request)
        made = _except(site, alert_id, told)
        return {"exception_id": made.exemption_id, "expires": rfc3339(made.expires_us)}

    @routes.post("/marks", status_code=201)
    def mark(request: Request, told: Annotated[Marked, Body()]) -> dict[str, int]:
        """Record a deploy, a version, a batch job, a test or maintenance."""
        allowed(site, request)
        start_us = site.now_us() if told.start is None else _time("start", told.start)
        end_us = None if told.end is None else _time("end", told.end)
        if told.model is not None and told.model not in site.config.models:
            raise HTTPException(422, "model: there is no such model")
        if (end_us is None and told.kind == MAINTENANCE) or (end_us is not None and end_us <= start_us):
            raise HTTPException(422, "end: maintenance needs one, and it comes after the start")
        made = Mark(told.model, told.kind, start_us, end_us, told.text, told.by)
        return {"number": people.mark(site.engine, made, site.now_us())}

    @routes.get("/marks")
    def marks(days: Annotated[int, Query(ge=1, le=3660)] = 14) -> dict[str, list[dict[str, str | int | None]]]:
        """Marks of the last days and those to come, oldest first."""
        with read(site.engine) as conn:
            found = people.marks_since(conn, None, site.now_us() - days * DAY_US)
        return {"items": [
            {"number": r.id, "model": r.mark.model, "kind": r.mark.kind, "start": rfc3339(r.mark.start_us),
             "end": None if r.mark.end_us is None else rfc3339(r.mark.end_us), "text": r.mark.text, "by": r.mark.actor}
            for r in found
        ]}  # fmt: skip

    @routes.get("/detectors")
    def detectors(days: Annotated[int, Query(ge=1, le=3660)] = 28) -> dict[str, list[dict[str, object]]]:
        """Per detector: incidents per model and week, precision by verdicts, times; the busiest first."""
        until_us = site.now_us()
        found = qualities(site.engine, site.config, until_us - days * DAY_US, until_us)
        return {"items": [{name: getattr(q, name) for name in q.__slots__} for q in found]}

    return routes


def forms(site: Site) -> APIRouter:
    """The forms of the pages."""
    routes = APIRouter()

    @routes.post("/incidents/{alert_id}/acts")
    async def act(request: Request, alert_id: str) -> RedirectResponse:
        allowed(site, request, form=True)
        what, by, why = await _sent(request, "what", "by", "reason")
        if not by or what not in {"ack", *Said}:
            raise HTTPException(422, "who: say who you are")
        said = None if what == "ack" else Said(what)
        kind = "ack" if said is None else "verdict"
        _say(site, alert_id, kind, said, by[:100], why[:1000], "page", closes=said is not None)
        return RedirectResponse(f"/incidents/{alert_id}", 303)

    @routes.post("/incidents/{alert_id}/exception")
    async def exception(request: Request, alert_id: str) -> RedirectResponse:
        allowed(site, request, form=True)
        by, why, days, queries = await _sent(request, "by", "reason", "days", "queries")
        try:
            at_most = {"queries": float(queries)} if queries else {}
            told = Exempted(by=by, reason=why, days=float(days), at_most=at_most)
        except ValueError:
            raise HTTPException(422, "an exception names who and at most 366 days") from None
        if not why:
            raise HTTPException(422, "an exception says why")
        _except(site, alert_id, told)
        return RedirectResponse(f"/incidents/{alert_id}", 303)

    return routes


async def _sent(request: Request, *names: str) -> list[str]:
    """Fields of a form, empty where they are not sent."""
    sent = parse_qs((await request.body())[:20_000].decode("utf-8", "replace"))
    return [sent.get(name, [""])[0].strip() for name in names]


def allowed(site: Site, request: Request, *, form: bool = False) -> None:
    """403 unless it comes from this machine, and, from a browser, from our own page."""
    origin, fetch = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    # Browsers hide the origin of forms under our referrer policy ("null"); where it came from they still say in the other.
    hidden = origin == "null" and fetch == "same-origin"
    foreign = origin is not None and not hidden and urlsplit(origin).netloc != request.url.netloc
    strange = foreign or fetch not in {None, "same-origin", "none"}
    anonymous = form and origin is None and fetch is None
    if not site.may_act or strange or anonymous:
        raise HTTPException(403)


def _say(
    site: Site, alert_id: str, kind: str, said: Said | None, by: str, why: str, source: str, *, closes: bool
) -> dict[str, str]:
    a, at = _alert(site, alert_id), site.now_us()
    with write(site.engine) as conn:
        people.say(conn, Act(a.alert_id, kind, by, why, source, at, said, closes), a, at)
    return {"alert_id": a.alert_id, "at": rfc3339(at)}


def _except(site: Site, alert_id: str, told: Exempted) -> Exemption:
    a, at = _alert(site, alert_id), site.now_us()
    made = Exemption(
        stable_id("exemption", a.alert_id, at), a.model, a.event, a.subject, contributors(a), told.at_most,
        told.reason, told.by, at, at + round(told.days * DAY_US),
    )  # fmt: skip
    people.except_(site.engine, made, a.alert_id, at)
    return made


def _alert(site: Site, alert_id: str) -> Alert:
    with read(site.engine) as conn:
        found = alertlog.by_ids(conn, [alert_id]).get(alert_id)
    if found is None:
        raise HTTPException(404)
    return found


def _time(field: str, text: str) -> int:
    try:
        return parse_time_us(text)
    except ValueError as error:
        raise HTTPException(422, f"{field}: {error}") from None
