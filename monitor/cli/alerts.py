"""`lanner alerts` and `lanner outbox`: incidents and their way out, read from the state store."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
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
        taken, said = _people(a, acts.get(a.alert_id, ()))
        if a.open and taken is not None:
            state = "taken"
        who = (
            f"  ({said.act.said}, {shown(said.act.actor, 40)})"
            if said
            else f"  ({shown(taken.act.actor, 40)})"
            if taken
            else ""
        )
        typer.echo(f"{a.alert_id[:8]}  {rfc3339(a.opened_us)}  {state:7}  {a.severity.value:8}  {title(a)}{who}")
    if not found:
        typer.echo("no incidents" + (f" of {shown(model)}" if model else ""), err=True)


@alerts.command("show")
def show_alert(
    alert_id: Annotated[str, typer.Argument(help="The id, or the beginning of it.")],
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show one incident: what is known, its evidence, and every step it made."""
    from monitor.store import alertlog, lookups, people

    with store(config) as engine:
        a = one_alert(engine, alert_id)
        line = alertlog.timeline(engine, a.alert_id)
        acts = people.acts_of(engine, [a.alert_id]).get(a.alert_id, [])
        sent = lookups.deliveries(engine, a.alert_id)
    if as_json:
        steps = [{"seq": e.seq, "recorded": rfc3339(e.recorded_us), **e.body} for e in line]
        told = [
            {"sink": d.sink, "seq": d.seq, "state": d.state, "attempts": d.attempts, "error": d.last_error}
            for d in sent
        ]
        typer.echo(json.dumps({"alert": alert_json(a, acts), "transitions": steps, "acts": [act_json(x) for x in acts],
                               "deliveries": told}))  # fmt: skip
        return
    typer.echo(a.text)
    for heading, lines in _sheet(a, line, acts, sent):
        typer.echo("\n".join(["", heading, *(f"  {text}" for text in lines)]))


def _sheet(a: Alert, line: Sequence[Any], acts: Sequence[Any], sent: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    """What an analyst needs below the text: how it stands, its steps, what people and sinks did, techniques, evidence."""
    from alerts.techniques import table
    from alerts.text import duration, shown
    from monitor.telemetry import escaped

    end_us = time.time_ns() // 1000 if a.cleared_us is None else a.cleared_us
    taken, said = _people(a, acts)
    stands = f"{'open' if a.open else 'cleared'}, for {duration(end_us - a.opened_us)}{', quiet' if a.open and a.quiet else ''}"
    if said is not None:
        stands += f", {said.act.said.value} says {shown(said.act.actor, 40)}"
    elif a.open:
        stands += f", {shown(taken.act.actor, 40)} is on it" if taken is not None else ", nobody is on it"
    yield (
        f"alert {a.alert_id}: {stands}",
        [
            f"{e.seq:3}  {rfc3339(e.time_us)}  {e.action:6}  {e.body['severity']:8}  recorded {rfc3339(e.recorded_us)}"
            for e in line
        ],
    )
    if acts:
        yield (
            "people",
            [
                f"{rfc3339(x.act.time_us)}  {x.act.kind if x.act.said is None else f'verdict {x.act.said.value}'} by "
                f"{shown(x.act.actor)}: {shown(x.act.reason, 200)}"
                for x in acts
            ],
        )
    newest = {d.sink: d for d in reversed(sent)}
    yield (
        "sinks",
        [
            f"{shown(d.sink)}: state {d.seq} {d.state}" + (f" ({shown(d.last_error, 200)})" if d.last_error else "")
            for _, d in sorted(newest.items())
        ]
        or ["none was told"],
    )
    if a.techniques:
        yield "techniques", [f"{uid}  {table().names.get(uid, '')}" for uid in a.techniques]
    yield "evidence", [escaped(text) for text in json.dumps(a.evidence, indent=2).splitlines()]
    if a.open:
        short = a.alert_id[:8]
        yield (
            "next",
            [
                f"lanner alerts ack {short}",
                f"lanner alerts verdict {short} true|benign-true|false|undetermined --reason TEXT",
            ],
        )


def _people(a: Alert, acts: Sequence[Any]) -> tuple[Any, Any]:
    """Who is on it and whose verdict counts: acts, or None."""
    from monitor.store import people

    return people.acknowledged(a.severity, acts), people.verdict(acts)


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
    taken, said = _people(alert, acts)
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
        "owner": alert.owner,
        "runbook": alert.runbook,
        "page": alert.page,
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
