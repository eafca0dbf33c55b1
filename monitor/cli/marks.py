"""`lanner mark` and `lanner maintain`: what people and pipelines tell Lanner that explains changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.options import DEFAULT, AsJson, ConfigFile, store
from monitor.cli.people import By, actor, now_us
from monitor.errors import UsageError
from monitor.model import MAINTENANCE, SECOND_US, Mark, parse_time_us, rfc3339

DAY_US = 86_400 * SECOND_US

mark = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tell what explains changes.")
maintain = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Announce maintenance.")

Model = Annotated[str | None, typer.Option(help="The model; default: all of them.")]
Start = Annotated[str | None, typer.Option("--from", help="When it begins, RFC 3339; default: now.")]
Days = Annotated[int, typer.Option(min=1, max=3660, help="Those of the last so many days, and those to come.")]
Number = Annotated[int, typer.Argument(help="Its number.")]


@mark.command("add")
def add_mark(
    text: Annotated[str, typer.Argument(help="What happened, for example: version 4 of the scorer.")],
    config: ConfigFile = DEFAULT,
    kind: Annotated[str, typer.Option(help="deploy, version, batch, test or a word of your own.")] = "deploy",
    model: Model = None,
    start: Start = None,
    until: Annotated[str | None, typer.Option(help="When it ends, RFC 3339; default: it is a moment.")] = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Record a deploy, a version, a batch job or a test; alerts name it, and it silences nothing."""
    if kind == MAINTENANCE:
        raise UsageError("maintenance silences: use `lanner maintain start`")
    _record(config, model, kind, start, until, text, by, as_json=as_json)


@maintain.command("start")
def start_maintenance(
    reason: Annotated[str, typer.Argument(help="Why.")],
    until: Annotated[str, typer.Option(help="When it ends: RFC 3339, or a length such as 2h.")],
    config: ConfigFile = DEFAULT,
    model: Model = None,
    start: Start = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Until then no incident opens but those of attacks; what lasts beyond the end is told then."""
    _record(config, model, MAINTENANCE, start, until, reason, by, as_json=as_json)


@mark.command("list")
def list_marks(config: ConfigFile = DEFAULT, model: Model = None, days: Days = 14, as_json: AsJson = False) -> None:
    """List marks, oldest first."""
    _list(config, model, None, days, as_json=as_json)


@maintain.command("list")
def list_maintenance(
    config: ConfigFile = DEFAULT, model: Model = None, days: Days = 14, as_json: AsJson = False
) -> None:
    """List maintenance windows, oldest first."""
    _list(config, model, MAINTENANCE, days, as_json=as_json)


@mark.command("end")
@maintain.command("end")
def end(number: Number, config: ConfigFile = DEFAULT, by: By = None, as_json: AsJson = False) -> None:
    """End it now."""
    from monitor.store import people

    with store(config) as engine:
        if not people.end_mark(engine, number, actor(by), now_us()):
            raise UsageError(f"number {number} is none, or has ended")
    typer.echo(json.dumps({"ended": number}) if as_json else f"ended {number}")


def _record(
    config: Path, model: str | None, kind: str, start: str | None, until: str | None, text: str, by: str | None,
    *, as_json: bool,
) -> None:  # fmt: skip
    from monitor.config import load
    from monitor.store import people

    known = load(config).models
    if model is not None and model not in known:
        raise UsageError(f"there is no model {model[:60]!a}; there are {', '.join(sorted(known))}")
    begin_us = now_us() if start is None else _time("--from", start)
    end_us = None if until is None else _until(until, begin_us)
    if end_us is not None and end_us <= begin_us:
        raise UsageError("--until: it must end after it begins")
    with store(config) as engine:
        made = Mark(model, kind, begin_us, end_us, text, actor(by))
        number = people.mark(engine, made, now_us())
    typer.echo(json.dumps(mark_json(number, made)) if as_json else f"recorded as number {number}")


def _list(config: Path, model: str | None, kind: str | None, days: int, *, as_json: bool) -> None:
    from alerts.text import shown
    from monitor.store import people
    from monitor.store.engine import read

    with store(config) as engine, read(engine) as conn:
        found = people.marks_since(conn, model, now_us() - days * DAY_US, kind=kind)
    if as_json:
        typer.echo(json.dumps({"marks": [mark_json(r.id, r.mark) for r in found]}))
        return
    for r in found:
        m = r.mark
        until = "" if m.end_us is None else f" until {rfc3339(m.end_us)}"
        about = shown(m.model) if m.model is not None else "all models"
        typer.echo(
            f"{r.id:5}  {rfc3339(m.start_us)}{until}  {shown(m.kind)}  {about}  {shown(m.text, 200)}  by {shown(m.actor, 40)}"
        )
    if not found:
        typer.echo("none", err=True)


def mark_json(number: int, m: Mark) -> dict[str, Any]:
    """A mark as commands print it."""
    return {
        "number": number, "model": m.model, "kind": m.kind, "start": rfc3339(m.start_us),
        "end": None if m.end_us is None else rfc3339(m.end_us), "text": m.text, "by": m.actor,
    }  # fmt: skip


def _time(option: str, text: str) -> int:
    try:
        return parse_time_us(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _until(text: str, begin_us: int) -> int:
    from monitor.config.fields import seconds

    try:
        return begin_us + round(seconds(text) * SECOND_US)
    except ValueError:
        return _time("--until", text)
