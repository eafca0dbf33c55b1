"""What a model's owner looks after, as JSON: its references and its monitors' health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException

from monitor.model import rfc3339
from monitor.store import references
from monitor.store.queries import ModelRow
from monitor.store.references import ReferenceRow
from monitor.web.api import NOT_HERE, Body, Page
from monitor.web.site import Site


class Ailment(Body):
    """One monitor that cannot be believed, why, and what to do. `code` is stable."""

    monitor: str
    code: str
    text: str
    fix: str
    feature: str | None


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


def twin(site: Site) -> APIRouter:
    """The addresses of the API."""
    routes = APIRouter()

    @routes.get("/models/{ref}/diagnosis", responses=NOT_HERE)
    def diagnosis(ref: str) -> Page[Ailment]:
        """Monitors that cannot be believed: too loud, mute, short of data, late, on dead features; with what to do."""
        return Page(items=[Ailment(**d.to_json()) for d in site.diagnoses(found(site, ref))])

    @routes.get("/models/{ref}/references", responses=NOT_HERE)
    def versions(ref: str) -> Page[Reference]:
        """Every version of the model's reference, the newest first."""
        model = found(site, ref)
        held = references.of_model(site.engine, model.model_id)
        return Page(items=[_reference(r, current=r.reference_hash == model.reference_hash) for r in held])

    return routes


def found(site: Site, ref: str) -> ModelRow:
    """The model of this name or id; 404 without one."""
    model = site.model(ref)
    if model is None:
        raise HTTPException(404)
    return model


def _reference(r: ReferenceRow, *, current: bool) -> Reference:
    return Reference(
        version=r.version, hash=r.reference_hash, state=r.state, current=current, rows=r.rows, origin=r.origin,
        span=None if r.span_us is None else [rfc3339(t) for t in r.span_us], created=rfc3339(r.created_us),
        findings=[dict(f) for f in r.findings], excluded=None if r.excluded is None else dict(r.excluded),
        approvals=[{"by": a.by, "at": rfc3339(a.at_us), "why": a.why} for a in r.approvals],
    )  # fmt: skip
