"""The web application: pages, JSON twin, health and metrics over the state store; only `acts` writes.

Every answer carries a strict content security policy: no inline script or style, nothing from another host, no frame.
On a loopback address only loopback host names are answered, so that no web page elsewhere can read it by re-binding
a name to 127.0.0.1.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import metadata
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from monitor import telemetry
from monitor.config import Config
from monitor.model import SECOND_US
from monitor.store import ledger
from monitor.store.engine import check_migrated
from monitor.store.eventlog import EventLog
from monitor.store.queries import Engine
from monitor.web import acts, api, assets, ownership, pages, principals, view
from monitor.web.site import Site, is_loopback

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
PROBLEMS: Final = {
    403: ("Not from here", "There is no login yet: acts are taken from this machine and this page only."),
    404: ("Not here", "There is no such page. The address may be old, or the thing it names was never recorded."),
    405: ("Not possible", "This page can only be read."),
    500: ("Something failed", "The page could not be made; the log says why. Reload it, and look at /readyz."),
    503: ("Not ready", "The state store does not answer."),
}


def wall_clock_us() -> int:
    """Now, in microseconds UTC."""
    return time.time_ns() // 1000


def create_app(
    config: Config, engine: Engine, *, log: EventLog | None = None, now_us: Callable[[], int] = wall_clock_us
) -> FastAPI:
    """The application over one state store and its event log. `now_us` is the clock that lags and ages are measured by."""
    static = assets.load()
    site = Site(config, engine, view.environment(static), now_us, metadata.version("lanner"), log)
    app = FastAPI(
        title="Lanner", version=site.version, docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json",
        telemetry={"auto_configure": False},  # nothing is exported, whatever the environment says
        description="What the page shows, as JSON. Times are RFC 3339 UTC; errors are problem documents (RFC 9457).",
    )  # fmt: skip
    app.include_router(api.router(site), prefix="/api/v1")
    app.include_router(ownership.twin(site), prefix="/api/v1")
    app.include_router(acts.router(site), prefix="/api/v1")
    app.include_router(acts.forms(site), include_in_schema=False)
    app.include_router(principals.twin(site), prefix="/api/v1")
    app.include_router(principals.router(site), include_in_schema=False)
    app.include_router(ownership.router(site), include_in_schema=False)
    app.include_router(pages.router(site), include_in_schema=False)
    _operations(app, site)
    app.add_middleware(GZipMiddleware, minimum_size=2_000, compresslevel=5)  # a live page comes again every few seconds
    allowed = _allowed_hosts(config.server.bind)

    @app.get("/static/{path:path}", include_in_schema=False)
    def static_file(path: str) -> Response:
        asset = static.by_url.get(f"/static/{path}")
        if asset is None:
            raise HTTPException(404)
        # The name holds the content's hash, so it may be kept for ever.
        return Response(
            asset.body, media_type=asset.media_type, headers={"Cache-Control": "public, max-age=31536000, immutable"}
        )

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        host = (request.url.hostname or "").strip("[]")
        known = allowed is None or host in allowed
        response = await answer(request) if known else PlainTextResponse("unknown host name", 421)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        route = getattr(request.scope.get("route"), "path", "none")
        telemetry.count("http_requests_total", route=route, status=str(response.status_code))
        telemetry.observe("http_request_duration_seconds", time.perf_counter() - started, route=route)
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return _problem(site, request, error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _problem(site, request, 422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(Exception)
    async def failed(request: Request, _error: Exception) -> Response:
        response = _problem(site, request, 500, "")
        response.headers.update(HEADERS)  # this handler runs outside the guard
        return response

    return app


def _problem(site: Site, request: Request, status: int, detail: str) -> Response:
    heading, words = PROBLEMS.get(status, ("Not possible", ""))
    if request.url.path.startswith("/api/"):
        body = {"type": "about:blank", "title": heading, "status": status, "detail": detail or words}
        return JSONResponse(body, status, media_type="application/problem+json")
    shown = detail if status == 422 else words
    return pages.render(
        site, request, "error.html", status=status, section="", heading=heading, detail=shown, live=False
    )


def _operations(app: FastAPI, site: Site) -> None:
    """Health and metrics: `/livez` asks the process alone, `/readyz` the store; neither depends on lag."""

    @app.get("/livez", include_in_schema=False)
    def livez() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @app.get("/readyz", include_in_schema=False)
    @app.get("/healthz", include_in_schema=False)
    def readyz() -> JSONResponse:
        try:
            check_migrated(site.engine)
        except Exception as error:
            return JSONResponse({"ready": False, "checks": {"store": type(error).__name__}}, 503)
        return JSONResponse({"ready": True, "checks": {"store": "ok"}})

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        with suppress(Exception):  # while the store is away the time stands still, and pages
            if (alive_us := ledger.alive_us(site.engine)) is not None:
                telemetry.gauge("deadman_timestamp_seconds", alive_us / SECOND_US)
        return Response(generate_latest(telemetry.REGISTRY), media_type=CONTENT_TYPE_LATEST)


def _allowed_hosts(bind: str) -> frozenset[str] | None:
    """Host names that a loopback address answers to; None (any) when the page is bound elsewhere.

    >>> sorted(_allowed_hosts("127.0.0.1:8080")), _allowed_hosts("0.0.0.0:8080")
    (['127.0.0.1', '::1', 'localhost'], None)
    """
    if not is_loopback(bind):
        return None
    return frozenset({"127.0.0.1", "::1", "localhost", bind.rpartition(":")[0].strip("[]")})
