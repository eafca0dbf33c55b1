"""`lanner reference`: what models are compared with. Building freezes a version; only people make one the model's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.options import DEFAULT, AsJson, ConfigFile, owner, store
from monitor.cli.people import By, actor, now_us
from monitor.errors import UsageError
from monitor.model import rfc3339

reference = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What models are compared with.")

Model = Annotated[str, typer.Argument(help="The model, as the configuration names it.")]
Version = Annotated[str | None, typer.Argument(help="A version or the beginning of a hash; default: see below.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept and audited.")]
FILE = typer.Option(help="JSONL or Parquet of events.", exists=True, dir_okay=False)
TABLE = typer.Option(help="Folder of a Delta table or of Parquet files.", exists=True, file_okay=False)


@reference.command("list")
def list_(
    config: ConfigFile = DEFAULT,
    model: Annotated[str | None, typer.Option(help="One model instead of all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List every version of every model; `*` marks the one that a model is judged by."""
    from monitor.config import load
    from monitor.store import references

    found = []
    with store(config) as engine:
        for name, model_id in _ids(engine, load(config), model):
            current = references.standing(engine, model_id).current
            found += [(name, r, r.reference_hash == current) for r in references.of_model(engine, model_id)]
    if as_json:
        typer.echo(json.dumps({"references": [row_json(n, r, current=c) for n, r, c in found]}))
        return
    for name, r, held in found:
        typer.echo(_line(name, r, current=held))
    if not found:
        typer.echo("none yet", err=True)


@reference.command("show")
def show(model: Model, version: Version = None, config: ConfigFile = DEFAULT, as_json: AsJson = False) -> None:
    """Show one version (default: the one in use): rows, time, what was left out, findings, who approved it."""
    with _one(config, model, version) as (_, row, current):
        _print(model, row, current, as_json=as_json)


@reference.command("check")
def check(
    model: Model,
    version: Version = None,
    config: ConfigFile = DEFAULT,
    fail_on: Annotated[str | None, typer.Option(help="note, warn or fail: exit 3 when a finding is as bad.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the rows of a version anew (default: the one in use): size, season, dead features, odd values, odd rows."""
    from dataclasses import replace

    from detectors.reference import LEVELS, worst
    from monitor.config import load
    from monitor.service.references import findings, frozen_rows

    if fail_on is not None and fail_on not in LEVELS:
        raise UsageError(f"--fail-on: one of {', '.join(LEVELS)}")
    loaded = load(config)
    with _one(config, model, version) as (_, row, current):
        rows = frozen_rows(loaded.path(loaded.store.path) / "references", row)
        found = findings(loaded, model, rows, row.schema)
        _print(model, replace(row, findings=[f.to_json() for f in found]), current, as_json=as_json)
    bad = worst(found)
    if fail_on is not None and bad is not None and LEVELS.index(bad) >= LEVELS.index(fail_on):
        raise typer.Exit(3)


@reference.command("build")
def build(
    model: Model,
    config: ConfigFile = DEFAULT,
    file: Annotated[Path | None, FILE] = None,
    table: Annotated[Path | None, TABLE] = None,
    since: Annotated[str | None, typer.Option(help="From this time of the event log, RFC 3339.")] = None,
    until: Annotated[str | None, typer.Option(help="To this time; default: the newest event.")] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Freeze and check a new version; without a source, what the configuration names is read again. Changes nothing yet."""
    from monitor.config.tree import Reference
    from monitor.service import references

    with _service(config) as service:
        given = service.config.models[_known(service.config, model)].reference
        if file or table or since:
            given = Reference(file=_absolute(file), table=_absolute(table), since=since, until=until)
        if given is None or [given.file, given.table, given.since].count(None) != 2:
            raise UsageError("say what from: one of --file, --table and --since")
        if given.since is not None:
            given = _ranged(service, model, given)
        row = references.build(
            service.config, service.engine, service.log, service.tables[model], service.references, given, now_us(), actor(by)
        )  # fmt: skip
    _print(model, row, False, as_json=as_json)


@reference.command("propose")
def propose(
    model: Model, version: Version = None, config: ConfigFile = DEFAULT, reason: Reason = "", by: By = None, as_json: AsJson = False
) -> None:  # fmt: skip
    """Ask for the approval of a version (default: the newest)."""
    from monitor.store import references

    with _one(config, model, version, newest=True) as (engine, row, _):
        row = references.propose(engine, _id(engine, model), row.reference_hash, actor(by), reason, now_us())
    _print(model, row, False, as_json=as_json)


@reference.command("approve")
def approve(
    model: Model, version: Version = None, config: ConfigFile = DEFAULT, reason: Reason = "", by: By = None, as_json: AsJson = False
) -> None:  # fmt: skip
    """Say yes to a proposed version (default: the newest). Models of tier 1 need two persons; the next tick goes on with it."""
    from monitor.service.references import needed
    from monitor.service.renewal import rebuild
    from monitor.store import references

    with _service(config) as service:
        engine, model_id = service.engine, service.tables[_known(service.config, model)].model_id
        row = _pick(references.of_model(engine, model_id), version, None)
        said = references.Approval(actor(by), now_us(), reason)
        wanted = needed(service.config, model)
        row = references.approve(engine, model_id, row.reference_hash, said, wanted)
        current = references.standing(engine, model_id).current == row.reference_hash
        if current:
            rebuild(service, service.watched(model, now_us()), now_us())
    _print(model, row, current, as_json=as_json)
    if not as_json and len(row.approvals) < wanted:
        typer.echo(f"{wanted - len(row.approvals)} more person must approve it")


@reference.command("compare")
def compare(
    model: Model,
    new: Version = None,
    old: Version = None,
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """What moved, by feature, from OLD (default: the one in use, else the one before) to NEW (default: the newest)."""
    from alerts.text import shown
    from monitor.config import load
    from monitor.reports.compared import moved
    from monitor.service.references import compared
    from monitor.store import references

    loaded = load(config)
    with store(config) as engine:
        model_id = _id(engine, _known(loaded, model))
        rows = references.of_model(engine, model_id)
        after = _pick(rows, new, None)
        current = references.standing(engine, model_id).current
        earlier = [r for r in rows if r.version < after.version]
        held = next((r for r in rows if r.reference_hash == current and r is not after), None)
        before = _pick(rows, old, None) if old else held or (earlier[0] if earlier else None)
        if before is None:
            raise UsageError(f"version {after.version} is the only one: there is nothing to compare it with")
        found = compared(loaded.path(loaded.store.path) / "references", before, after)
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    typer.echo(f"{shown(model)}: version {found['old']} ({before.rows:,} rows) to {found['new']} ({after.rows:,} rows)")
    for line in moved(found):
        typer.echo(f"  {line}")


def row_json(model: str, r: Any, *, current: bool) -> dict[str, Any]:
    """A reference as commands and the API tell it."""
    return {
        "model": model, "version": r.version, "hash": r.reference_hash, "state": r.state, "current": current, "rows": r.rows,
        "origin": r.origin, "span": None if r.span_us is None else [rfc3339(t) for t in r.span_us],
        "created": rfc3339(r.created_us), "excluded": r.excluded, "compared": r.compared, "findings": [dict(f) for f in r.findings],
        "approvals": [{"by": a.by, "at": rfc3339(a.at_us), "why": a.why} for a in r.approvals],
        "features": {"number": list(r.schema.numeric), "category": list(r.schema.categorical)},
    }  # fmt: skip


def _print(model: str, r: Any, current: bool, *, as_json: bool) -> None:
    from alerts.text import shown
    from monitor.reports.compared import moved

    if as_json:
        typer.echo(json.dumps(row_json(model, r, current=current)))
        return
    typer.echo(_line(model, r, current=current))
    if r.excluded:
        e = r.excluded
        typer.echo(
            f"  left out: {e['rows']:,} rows under suspicion ({len(e['incidents'])} incidents, {e['callers']} callers). "
            "A verdict of false or benign-true brings them back"
        )
    if r.compared:
        typer.echo(f"  most changed against version {r.compared['old']}:")
        for line in moved(r.compared):
            typer.echo(f"    {line}")
    for f in r.findings:
        about = f"{shown(f['feature'], 60)}: " if f["feature"] else ""
        fix = f" ({f['fix']})" if f["fix"] else ""
        typer.echo(f"  {f['level']:4}  {about}{f['text']}{fix}")


def _line(model: str, r: Any, *, current: bool) -> str:
    from alerts.text import shown

    span = "no times" if r.span_us is None else f"{rfc3339(r.span_us[0])} to {rfc3339(r.span_us[1])}"
    by = f" by {shown(r.approved_by, 80)}" if r.approvals else ""
    return (
        f"{'*' if current else ' '} {shown(model)} version {r.version}  {r.state}{by}  {r.rows:,} rows, {span}  "
        f"{shown(r.origin, 100)}  {r.reference_hash[:12]}"
    )


@contextmanager
def _service(config: Path) -> Iterator[Any]:
    from contextlib import closing

    from monitor import telemetry
    from monitor.config import load
    from monitor.service.compose import open_service

    loaded = load(config)
    telemetry.configure("console", level="error")
    with closing(open_service(loaded, owner("reference"))) as service:
        yield service


@contextmanager
def _one(config: Path, model: str, version: str | None, *, newest: bool = False) -> Iterator[tuple[Any, Any, bool]]:
    """(engine, row, whether it is the current one) of one version."""
    from monitor.config import load
    from monitor.store import references

    with store(config) as engine:
        model_id = _id(engine, _known(load(config), model))
        current = references.standing(engine, model_id).current
        row = _pick(references.of_model(engine, model_id), version, None if newest else current)
        yield engine, row, row.reference_hash == current


def _pick(rows: Sequence[Any], version: str | None, current: str | None) -> Any:
    """The version asked for; else the current one; else the newest."""
    if not rows:
        raise UsageError("this model has no reference yet: lanner reference build")
    if version is None:
        return next((r for r in rows if r.reference_hash == current), rows[0])
    fits = [r for r in rows if str(r.version) == version] or [r for r in rows if r.reference_hash.startswith(version)]
    if len(fits) != 1:
        raise UsageError(
            f"{len(fits)} versions fit {version[:40]!a}; there are {', '.join(str(r.version) for r in rows)}"
        )
    return fits[0]


def _ranged(service: Any, model: str, given: Any) -> Any:
    from monitor.store import references

    if given.until is not None:
        return given
    _, newest_us = references.progress(service.engine, service.tables[model].model_id)
    if newest_us is None:
        raise UsageError("no event has been read yet")
    return given.model_copy(update={"until": rfc3339(newest_us)})


def _known(config: Any, model: str) -> str:
    if model not in config.models:
        raise UsageError(f"there is no model {model[:60]!a}; there are {', '.join(sorted(config.models))}")
    return model


def _ids(engine: Any, config: Any, model: str | None) -> list[tuple[str, str]]:
    names = sorted(config.models) if model is None else [_known(config, model)]
    return [(name, _id(engine, name)) for name in names]


def _id(engine: Any, model: str) -> str:
    from monitor.store.queries import one_model

    found = one_model(engine, model, 0, clock="log", grace_us=0)
    if found is None:
        raise UsageError(f"nothing is stored of {model[:60]!a} yet: start `lanner run` or `lanner check`")
    return found.model_id


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()
