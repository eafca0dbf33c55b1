"""`lanner principals suggest`: entries for the directory of principals that traffic suggests."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from monitor.cli.options import DEFAULT, AsJson, ConfigFile, store
from monitor.cli.people import DAY_US, now_us
from monitor.errors import UsageError

principals = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@principals.callback()
def about() -> None:
    """The directory of principals: who calls, and what for."""


@principals.command()
def suggest(
    model: Annotated[str, typer.Argument(help="The model, as the configuration names it.")],
    config: ConfigFile = DEFAULT,
    days: Annotated[int, typer.Option(min=1, max=366, help="Incidents of so many days are looked at.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Print entries for callers that look like honest tools, with an incident or without; nothing is declared until you add them."""
    from alerts.text import shown
    from monitor.config import load
    from monitor.reports.profiles import proposals
    from monitor.service.parts import PSEUDONYM
    from monitor.store import lookups, people, queries
    from monitor.store.held import held_back

    known = load(config).models
    if model not in known:
        raise UsageError(f"there is no model {model[:60]!a}; there are {', '.join(sorted(known))}")
    with store(config) as engine:
        now = now_us()
        rows = lookups.incidents_between(engine, model, now - days * DAY_US, now)
        suspected = [i for i in rows if i.event in ("AttackSuspected", "AbuseSuspected")]
        row = queries.one_model(engine, model, 0, clock="log", grace_us=0)
        held = held_back(engine, row, now - days * DAY_US, now) if row is not None else []
        found = proposals(suspected, people.acts_of(engine, [i.alert_id for i in suspected]), held)
    if as_json:
        for p in found:
            typer.echo(json.dumps({"model": model, **asdict(p)}, allow_nan=False))
        return
    if not found:
        typer.echo(f"# no caller of {shown(model)} in {days} days looks like a tool that nobody declared")
        return
    typer.echo(f"# put what is true into the file that models.{shown(model)}.principals names")
    for p in found:
        told = f"verdict benign-true by {shown(p.by, 40)}: " if p.by else ""
        typer.echo(f"# {f'incident {p.incident}' if p.incident else 'no incident'}: {told}{shown(p.why, 200)}")
        if p.name.startswith(PSEUDONYM):
            typer.echo("# a pseudonym: write the caller's own name instead")
        typer.echo(f"- {{id: {json.dumps(p.name)}, profile: {p.profile}}}")
