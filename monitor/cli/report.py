"""`lanner report`: a model owner's report as files."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.options import DEFAULT, ConfigFile, owner
from monitor.config import load
from monitor.errors import UsageError
from monitor.model import SECOND_US, parse_time_us

WEEK_US = 7 * 86_400 * SECOND_US


def report(
    model: Annotated[str, typer.Argument(help="The model, as the configuration names it.")],
    config: ConfigFile = DEFAULT,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
    from_: Annotated[str | None, typer.Option("--from", help="RFC 3339; default: a week before --to.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="RFC 3339; default: the newest judged window.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    evidently: Annotated[bool, typer.Option(help="Add Evidently's report on a sample.")] = True,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it in the state store, for the page, instead of writing files.")
    ] = False,
) -> None:
    """Write a self-contained HTML report of one model: incidents, volume, drift of every feature over all events."""
    from monitor import telemetry
    from monitor.service.compose import open_service

    loaded = load(config)
    telemetry.configure("console", level="error")
    if model not in loaded.models:
        raise UsageError(f"{model}: no such model; configured are {', '.join(sorted(loaded.models))}")
    start_us, end_us = _time(from_), _time(to)
    with closing(open_service(loaded, owner("report"))) as service:
        made = _made(service, model, start_us, end_us, evidently=evidently)
        told = _kept(service, model, made) if keep else _written(model, made, out, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({**told, **made.owner.summary}, ensure_ascii=False, allow_nan=False))


@dataclass(frozen=True)
class Made:
    """The reports over one time, not put anywhere yet."""

    span_us: tuple[int, int]
    owner: Any
    evidently: str | None
    now_us: int


def _made(service: Any, model: str, start_us: int | None, end_us: int | None, *, evidently: bool) -> Made:
    from monitor.reports import owner as owners
    from monitor.reports.diagnosis import diagnose
    from monitor.store import queries

    loaded = service.config
    now_us = time.time_ns() // 1000
    row = queries.one_model(service.engine, model, now_us, clock=loaded.clock, grace_us=0)
    if row is None or row.judged_us is None:
        raise UsageError(f"no window of {model} has been judged yet; `lanner check` judges what is in the log")
    end_us = row.judged_us if end_us is None else end_us
    start_us = end_us - WEEK_US if start_us is None else start_us
    lateness_us = round((loaded.schedule.lateness + loaded.schedule.idle) * SECOND_US)
    made = owners.report(
        service.engine, row, start_us, end_us, environment=loaded.environment, owner=loaded.models[model].owner,
        made_us=now_us, version=version("lanner"),
        ailments=diagnose(service.engine, row, clock=loaded.clock, lateness_us=lateness_us),
        units=loaded.models[model].units,
    )  # fmt: skip
    second = _evidently(service, row, start_us, end_us) if evidently else None
    return Made((start_us, end_us), made, second, now_us)


def _written(model: str, made: Made, out: Path, *, as_json: bool) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    file, second = out / f"{_safe(model)}-report.html", out / f"{_safe(model)}-evidently.html"
    file.write_text(made.owner.html, encoding="utf-8")
    typer.echo(f"{file}  ({len(made.owner.html.encode()) / 1000:.0f} kB)", err=as_json)
    if made.evidently is not None:
        second.write_text(made.evidently, encoding="utf-8")
        typer.echo(f"{second}  (Evidently, on a sample)", err=as_json)
    return {"report": str(file), "evidently": None if made.evidently is None else str(second)}


def _kept(service: Any, model: str, made: Made) -> dict[str, Any]:
    from monitor.store import reports

    model_id, most = service.tables[model].model_id, service.config.models[model].reports.keep
    meta = {"policy": made.owner.policy, "headline": made.owner.summary["headline"]}
    row = reports.put(service.engine, model_id, reports.OWNER, made.span_us, made.owner.html, meta, most, made.now_us)
    ids = {"report": row.report_id, "evidently": None}
    if made.evidently is not None:
        kind = reports.EVIDENTLY
        second = reports.put(service.engine, model_id, kind, made.span_us, made.evidently, {}, most, made.now_us)
        ids["evidently"] = second.report_id
    return ids


def _evidently(service: Any, model: Any, start_us: int, end_us: int) -> str | None:
    """Evidently's report, or None with the reason on stderr: it never stops ours."""
    from monitor.reports import evidently
    from monitor.service.frozen import rows_of
    from monitor.store import queries, references

    reference = references.reference(service.engine, model.model_id, model.reference_hash)
    if reference is None:
        typer.echo("Evidently compares with a reference, and this model has none.", err=True)
        return None
    schema = service.tables[model.name].schema
    columns = [
        *(f"feature:{f}" for f in (*schema.numeric, *schema.categorical)),
        "prediction_label",
        "prediction_value",
    ]
    before = evidently.sampled(rows_of(service.root / "references" / reference.path).tables(), reference.rows)
    counts = queries.counts(service.engine, model.model_id, model.reference_hash, start_us, end_us)
    rows = service.log.read_window(model.model_id, start_us, end_us, columns)
    current = evidently.sampled(rows, sum(c.n for c in counts))
    if before is None or current is None:
        typer.echo("There are no events in this time for Evidently to look at.", err=True)
        return None
    try:
        return evidently.report(before, current)
    except evidently.EvidentlyFailed as error:
        typer.echo(str(error), err=True)
        return None


def _safe(name: str) -> str:
    """A model's name as part of a file name.

    >>> _safe("card-fraud"), _safe("../x y")
    ('card-fraud', '.._x_y')
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _time(text: str | None) -> int | None:
    try:
        return None if text is None else parse_time_us(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
