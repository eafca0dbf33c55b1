"""`lanner alerts` and `lanner outbox`: incidents and their way out, read from the state store."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from monitor.cli.options import DEFAULT, AsJson, ConfigFile, store
from monitor.errors import UsageError
from monitor.model import Action, Alert, Event, OutboxRow, OutboxState, Severity, Transition, rfc3339

Limit = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")]

alerts = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List and show incidents.")
outbox = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List deliveries and try them again.")


@alerts.command("list")
def list_alerts(
    config: ConfigFile = DEFAULT,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    event: Annotated[Event | None, typer.Option(help="Only this kind of problem.")] = None,
    min_severity: Annotated[Severity, typer.Option(help="Only these and worse.")] = Severity.WARNING,
    open_only: Annotated[bool, typer.Option("--open", help="Only what is open.")] = False,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List incidents, the most recently changed first."""
    from alerts.text import shown, title
    from monitor.store import alertlog, people

    with store(config) as engine:
        kind = event.value if event else None
        found = alertlog.find(
            engine, model=model, event=kind, min_severity=min_severity, open_only=open_only, limit=limit
        )
        acts = people.acts_of(engine, [a.alert_id for a in found])
    if as_json:
        typer.echo(json.dumps({"alerts": [alert_json(a, acts.get(a.alert_id, ())) for a in found]}))
        return
    for a in found:
        state = "quiet" if a.open and a.quiet else "open" if a.open else "cleared"
        if a.open and people.acknowledged(a, acts.get(a.alert_id, ())) is not None:
            state = "taken"
        typer.echo(f"{a.alert_id[:8]}  {rfc3339(a.opened_us)}  {state:7}  {a.severity.value:8}  {title(a)}")
    if not found:
        typer.echo("no incidents" + (f" of {shown(model)}" if model else ""), err=True)


@alerts.command("show")
def show_alert(
    alert_id: Annotated[str, typer.Argument(help="The id, or the beginning of it.")],
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show one incident: what is known, its evidence, and every step it made."""
    from alerts.text import shown
    from monitor.store import alertlog, people
    from monitor.telemetry import escaped

    with store(config) as engine:
        a = one_alert(engine, alert_id)
        line = alertlog.timeline(engine, a.alert_id)
        acts = people.acts_of(engine, [a.alert_id]).get(a.alert_id, [])
    if as_json:
        steps = [{"seq": e.seq, "recorded": rfc3339(e.recorded_us), **e.body} for e in line]
        typer.echo(
            json.dumps({"alert": alert_json(a, acts), "transitions": steps, "acts": [act_json(x) for x in acts]})
        )
        return
    typer.echo(a.text)
    typer.echo(f"\nalert {a.alert_id}")
    for e in line:
        typer.echo(
            f"  {e.seq:3}  {rfc3339(e.time_us)}  {e.action:6}  {e.body['severity']}  recorded {rfc3339(e.recorded_us)}"
        )
    for x in acts:
        what = x.act.kind if x.act.said is None else f"verdict {x.act.said.value}"
        typer.echo(f"  {rfc3339(x.act.time_us)}  {what} by {shown(x.act.actor)}: {shown(x.act.reason, 200)}")
    typer.echo("\nevidence")
    typer.echo("\n".join(escaped(text) for text in json.dumps(a.evidence, indent=2).splitlines()))


@outbox.command("list")
def list_outbox(
    config: ConfigFile = DEFAULT,
    state: Annotated[OutboxState | None, typer.Option(help="Only rows in this state; dead ones need a person.")] = None,
    sink: Annotated[str | None, typer.Option(help="Only this sink.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List deliveries, the newest first, with the reason why each is where it is."""
    from alerts.text import shown, title
    from monitor.store import outbox as rows_of

    with store(config) as engine:
        found = rows_of.rows(engine, state=state, sink=sink, limit=limit)
    if as_json:
        typer.echo(json.dumps({"outbox": [row_json(r) for r in found]}))
        return
    for r in found:
        reason = f"  ({shown(r.last_error, 300)})" if r.last_error else ""
        what = f"{r.transition.action.value:6} {title(r.transition.alert)}"
        typer.echo(f"{r.row_id[:8]}  {shown(r.sink)}  {r.state.value:10}  tries {r.attempts}  {what}{reason}")
    if not found:
        typer.echo("nothing in the outbox", err=True)


@outbox.command("redrive")
def redrive(
    row_ids: Annotated[list[str] | None, typer.Argument(help="Ids of dead rows, or the beginnings of them.")] = None,
    config: ConfigFile = DEFAULT,
    sink: Annotated[str | None, typer.Option(help="All dead rows of this sink.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead rows.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead rows again. Those that a newer state has replaced are not sent."""
    from monitor.store import outbox as rows_of

    if bool(row_ids) + bool(sink) + everything != 1:
        raise UsageError("say which: ids of rows, --sink NAME, or --all")
    with store(config) as engine:
        wanted: list[str] = []
        dead = [r.row_id for r in rows_of.rows(engine, state=OutboxState.DEAD, limit=1_000_000)] if row_ids else []
        for prefix in row_ids or ():
            matching = [row_id for row_id in dead if row_id.startswith(prefix)]
            if len(matching) != 1:
                raise UsageError(
                    f"{len(matching)} dead rows have an id that begins with {prefix[:40]!a}; one is needed"
                )
            wanted += matching
        n = rows_of.redrive(engine, time.time_ns() // 1000, row_ids=wanted, sink=sink)
    typer.echo(json.dumps({"redriven": n}) if as_json else f"{n} rows will be sent again")


def one_alert(engine: Any, prefix: str) -> Alert:
    """The alert whose id begins so. UsageError when it is none or not the only one."""
    from monitor.store import alertlog
    from monitor.telemetry import escaped

    found = alertlog.by_id(engine, prefix)
    if not found:
        raise UsageError(f"no alert has an id that begins with {escaped(prefix[:40])}; see `lanner alerts list`")
    if len(found) > 1:
        raise UsageError(f"{len(found)} alerts have an id that begins so: {', '.join(a.alert_id for a in found)}")
    return found[0]


def act_json(row: Any) -> dict[str, Any]:
    """What a person did, as commands print it."""
    said = None if row.act.said is None else row.act.said.value
    return {"kind": row.act.kind, "verdict": said, "by": row.act.actor, "why": row.act.reason, "source": row.act.source,
            "at": rfc3339(row.act.time_us)}  # fmt: skip


def alert_json(alert: Alert, acts: Sequence[Any] = ()) -> dict[str, Any]:
    """An alert as commands print it: the fields of a replay line, its state, and what people did about it."""
    from monitor.store import people

    taken, said = people.acknowledged(alert, acts), people.verdict(acts)
    line = Transition(Action.UPDATE, alert.updated_us, alert).to_json()
    del line["time"], line["action"]
    return {
        **line,
        "environment": alert.environment,
        "customer": alert.customer,
        "open": alert.open,
        "quiet": alert.quiet,
        "seq": alert.seq,
        "opened": rfc3339(alert.opened_us),
        "updated": rfc3339(alert.updated_us),
        "cleared": None if alert.cleared_us is None else rfc3339(alert.cleared_us),
        "acknowledged": None if taken is None else act_json(taken),
        "verdict": None if said is None else act_json(said),
    }


def row_json(row: OutboxRow) -> dict[str, Any]:
    """A delivery as commands print it."""
    return {
        "row_id": row.row_id,
        "sink": row.sink,
        "state": row.state.value,
        "attempts": row.attempts,
        "error": row.last_error,
        "created": rfc3339(row.created_us),
        "action": row.transition.action.value,
        "alert_id": row.transition.alert.alert_id,
        "seq": row.seq,
        "event": row.transition.alert.event.value,
        "severity": row.transition.alert.severity.value,
        "model": row.transition.alert.model,
    }
