"""`lanner tune`: what each budget would have raised on stored history."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.cli.options import DEFAULT, AsJson, ConfigFile, owner
from monitor.cli.people import now_us
from monitor.errors import UsageError
from monitor.model import SECOND_US, parse_time_us, rfc3339

if TYPE_CHECKING:  # heavy; the command imports what it needs
    from monitor.reports.diagnosis import Diagnosis
    from monitor.service.tune import Tuned


def tune(
    model: Annotated[str, typer.Argument(help="The model, as the configuration names it.")],
    config: ConfigFile = DEFAULT,
    budget: Annotated[
        list[str] | None, typer.Option(help="A budget, as 1/30d; give several. Default: 1/7d, 1/30d, 1/90d, 1/365d.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", help="RFC 3339; default: 90 days before --to.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="RFC 3339; default: the newest judged window.")] = None,
    attacks: Annotated[bool, typer.Option(help="Replay the event log for callers too; takes much longer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge stored history again under several budgets, in memory: incidents with time, features, severity."""
    from monitor import telemetry
    from monitor.config import load
    from monitor.config.fields import rate
    from monitor.reports.diagnosis import diagnose
    from monitor.service import tune as tuning
    from monitor.service.compose import open_service
    from monitor.service.renewal import HISTORY_US
    from monitor.store import queries

    loaded = load(config)
    telemetry.configure("console", level="error")
    if model not in loaded.models:
        raise UsageError(f"there is no model {model[:60]!a}; there are {', '.join(sorted(loaded.models))}")
    try:
        budgets = {b: rate(b) for b in budget or tuning.BUDGETS}
        start_us, end_us = (None if t is None else parse_time_us(t) for t in (from_, to))
    except ValueError as error:
        raise UsageError(str(error)) from error
    with closing(open_service(loaded, owner("tune"))) as service:
        row = queries.one_model(service.engine, model, now_us(), clock=loaded.clock, grace_us=0)
        first_us = service.log.first_us(service.tables[model].model_id)
        if row is None or row.judged_us is None or first_us is None:
            raise UsageError(f"no window of {model} has been judged yet; `lanner check` judges what is in the log")
        end_us = row.judged_us if end_us is None else end_us
        start_us = max(first_us, end_us - HISTORY_US if start_us is None else start_us)
        if start_us >= end_us:
            raise UsageError("--from: there are no windows between it and --to")
        report = sys.stderr.isatty()
        found = tuning.tune(
            service, model, budgets, (start_us, end_us), now_us(), attacks=attacks,
            progress=lambda b: typer.echo(f"\r{b} ...\033[K", nl=False, err=True) if report else None,
        )  # fmt: skip
        if report:
            typer.echo("\r\033[K", nl=False, err=True)
        lateness_us = round((loaded.schedule.lateness + loaded.schedule.idle) * SECOND_US)
        ailments = diagnose(service.engine, row, clock=loaded.clock, lateness_us=lateness_us)
    span = [rfc3339(start_us), rfc3339(end_us)]
    if as_json:
        told = {"budgets": [t.to_json() for t in found], "diagnosis": [d.to_json() for d in ailments]}
        typer.echo(json.dumps({"model": model, "span": span, **told}, allow_nan=False))
        return
    _show(model, span, found, ailments)


def _show(model: str, span: Sequence[str], found: Sequence[Tuned], ailments: Sequence[Diagnosis]) -> None:
    from alerts.text import shown

    typer.echo(
        f"{shown(model)}, {span[0]} to {span[1]}: {found[0].judged:,} of {found[0].windows:,} windows could be judged"
    )
    typer.echo(f"{'budget':>10}  {'incidents':>9}  {'a month':>8}")
    for t in found:
        typer.echo(f"{t.budget:>10}  {len(t.incidents):9}  {30 * len(t.incidents) / t.days:8.2f}")
    for t in found:
        for i in t.incidents:
            until = "open" if i.cleared_us is None else f"until {rfc3339(i.cleared_us)}"
            names = ", ".join(f"{shown(str(f['name']), 40)} {f['share']:.0%}" for f in i.features[:5])
            typer.echo(
                f"{t.budget:>10}  {rfc3339(i.opened_us)}  {until}  {i.severity:8} {i.event} {shown(i.subject, 80)}  {names}"
            )
    for d in ailments:
        about = shown(d.monitor, 60) if d.feature is None else f"{shown(d.monitor, 60)} on {shown(d.feature, 60)}"
        typer.echo(f"! {about}: {shown(d.text, 300)}. {d.fix}")
