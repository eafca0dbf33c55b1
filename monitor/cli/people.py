"""`lanner alerts ack`, `verdict`, `except`, `exceptions`, `revoke`, `stats`: what people say about incidents."""

from __future__ import annotations

import getpass
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli.alerts import act_json, alerts, one_alert
from monitor.cli.options import DEFAULT, AsJson, ConfigFile, store
from monitor.errors import UsageError
from monitor.model import SECOND_US, Act, Alert, Exemption, Said, rfc3339, stable_id

__all__ = ["alerts"]

By = Annotated[str | None, typer.Option("--by", help="Who; default: LANNER_ACTOR, else the user of this machine.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept, audited and shown.")]
AlertId = Annotated[str, typer.Argument(help="The id of the incident, or the beginning of it.")]
DAY_US = 86_400 * SECOND_US
LONGEST_DAYS = 366


def actor(by: str | None) -> str:
    """Who acts."""
    return by or os.environ.get("LANNER_ACTOR") or getpass.getuser()


def now_us() -> int:
    """Wall time in microseconds UTC."""
    return time.time_ns() // 1000


@alerts.command("ack")
def ack(
    alert_id: AlertId, config: ConfigFile = DEFAULT, reason: Reason = "", by: By = None, as_json: AsJson = False
) -> None:
    """Say that somebody is working on it: no escalation, no reminders, until it gets worse."""
    _say(config, alert_id, "ack", None, reason, by, closes=False, as_json=as_json)


@alerts.command("verdict")
def verdict(
    alert_id: AlertId,
    said: Annotated[Said, typer.Argument(help="What it was.")],
    reason: Reason,
    config: ConfigFile = DEFAULT,
    keep_open: Annotated[bool, typer.Option("--keep-open", help="Record it; the incident goes on.")] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Say what it was, which closes it at the next tick. Benign-true: rightly seen, with a good reason."""
    _say(config, alert_id, "verdict", said, reason, by, closes=not keep_open, as_json=as_json)


def _say(
    config: Path,
    alert_id: str,
    kind: str,
    said: Said | None,
    reason: str,
    by: str | None,
    *,
    closes: bool,
    as_json: bool,
) -> None:
    from monitor.store import people
    from monitor.store.engine import write

    with store(config) as engine:
        a = one_alert(engine, alert_id)
        at = now_us()
        act = Act(a.alert_id, kind, actor(by), reason, "cli", at, said, closes)
        with write(engine) as conn:
            people.say(conn, act, a, at)
        row = people.acts_of(engine, [a.alert_id])[a.alert_id][-1]
    if as_json:
        typer.echo(json.dumps({"alert_id": a.alert_id, **act_json(row)}))
    elif said is not None and closes and a.open:
        typer.echo(f"recorded; the next tick closes {a.alert_id}")
    else:
        typer.echo(f"recorded for {a.alert_id}")


@alerts.command("except")
def except_(
    alert_id: AlertId,
    reason: Reason,
    config: ConfigFile = DEFAULT,
    lasts: Annotated[str, typer.Option("--for", help="How long it holds: 12h, 30d ...; a year at most.")] = "30d",
    at_most: Annotated[
        list[str] | None, typer.Option("--max", help="NAME=NUMBER: holds up to this statistic, n, queries ...")
    ] = None,
    any_detector: Annotated[
        bool, typer.Option("--any-detector", help="Whatever detector sees it; default: those that saw this one.")
    ] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Let what this incident is about open no incident for a while: same model, subject and event, same detectors."""
    from monitor.store import people

    with store(config) as engine:
        a = one_alert(engine, alert_id)
        made = exemption(a, reason, actor(by), lasts, at_most or (), now_us(), any_detector=any_detector)
        people.except_(engine, made, a.alert_id, now_us())
    if as_json:
        typer.echo(json.dumps(exemption_json(made)))
    else:
        typer.echo(f"exception {made.exemption_id} holds until {rfc3339(made.expires_us)}")


def exemption(a: Alert, reason: str, by: str, lasts: str, at_most: Any, at_us: int, *, any_detector: bool) -> Exemption:
    """An exception for what an incident is about. UsageError when it would last too long or a bound is no number."""
    from alerts.quiet import contributors
    from monitor.config.fields import seconds

    bounds: dict[str, float] = {}
    for text in at_most:
        name, _, value = text.partition("=")
        try:
            bounds[name] = float(value)
            if not math.isfinite(bounds[name]):
                raise ValueError
        except ValueError:
            raise UsageError(f"--max {text[:60]!a}: write NAME=NUMBER, for example queries=5000") from None
    try:
        length_us = round(seconds(lasts) * SECOND_US)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
    if not 0 < length_us <= LONGEST_DAYS * DAY_US:
        raise UsageError("--for: an exception holds for a year at most; make it again when it is still right")
    detectors = () if any_detector else contributors(a)
    return Exemption(
        exemption_id=stable_id("exemption", a.alert_id, at_us), model=a.model, event=a.event, subject=a.subject,
        detectors=detectors, bounds=bounds, reason=reason, actor=by, created_us=at_us, expires_us=at_us + length_us,
    )  # fmt: skip


@alerts.command("exceptions")
def exceptions(
    config: ConfigFile = DEFAULT,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """List exceptions that hold, with how often each was used."""
    from alerts.text import shown
    from monitor.store import people

    with store(config) as engine:
        found = people.all_exemptions(engine, now_us=None if everything else now_us())
    if as_json:
        typer.echo(json.dumps({"exceptions": [
            {**exemption_json(r.exemption), "hits": r.hits, "last_hit": _when(r.last_hit_us),
             "revoked": _when(r.revoked_us), "revoked_by": r.revoked_by} for r in found
        ]}))  # fmt: skip
        return
    for r in found:
        e = r.exemption
        over = "revoked " if r.revoked_us is not None else ""
        what = f"{e.event.value} of {e.subject.kind} {shown(e.subject.id)} on {shown(e.model)}"
        typer.echo(
            f"{e.exemption_id[:8]}  {over}until {rfc3339(e.expires_us)}  used {r.hits}  {what}  "
            f"({shown(e.actor, 40)}: {shown(e.reason, 200)})"
        )
    if not found:
        typer.echo("no exceptions", err=True)


@alerts.command("revoke")
def revoke(
    exemption_id: Annotated[str, typer.Argument(help="The id of an exception, or the beginning of it.")],
    config: ConfigFile = DEFAULT,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """End an exception now."""
    from monitor.store import people

    with store(config) as engine:
        held = [r.exemption.exemption_id for r in people.all_exemptions(engine, now_us=now_us())]
        matching = [i for i in held if i.startswith(exemption_id)]
        if len(matching) != 1:
            raise UsageError(f"{len(matching)} exceptions that hold have an id that begins so; one is needed")
        people.revoke(engine, matching[0], actor(by), now_us())
    typer.echo(json.dumps({"revoked": matching[0]}) if as_json else f"revoked {matching[0]}")


@alerts.command("stats")
def stats(
    config: ConfigFile = DEFAULT,
    days: Annotated[int, typer.Option(min=1, max=3660, help="Incidents that opened in so many days.")] = 28,
    as_json: AsJson = False,
) -> None:
    """Per detector: incidents per model and week, precision by verdicts, time to acknowledgement and verdict."""
    from alerts.text import duration
    from monitor.config import load
    from monitor.service.feedback import qualities
    from monitor.service.told import demoted

    until_us = now_us()
    with store(config) as engine:
        loaded = load(config)
        found = qualities(engine, loaded, until_us - days * DAY_US, until_us)
        reported = demoted(engine, until_us, loaded)
    if as_json:
        rows = [{**asdict(q), "report_only": reported.get(q.detector)} for q in found]
        typer.echo(json.dumps({"days": days, "models": len(loaded.models), "detectors": rows}))
        return
    for q in found:
        right = "-" if q.precision is None else f"{q.precision:.0%}"
        said = ", ".join(f"{n} {what}" for what, n in q.verdicts.items() if n) or "no verdicts"
        note = "  REPORT ONLY" if q.detector in reported else ""
        times = [f"{what} after {duration(round(s * SECOND_US))}" for what, s in
                 (("taken", q.acknowledged_s), ("verdict", q.verdict_s)) if s is not None]  # fmt: skip
        told = ", ".join([said, *times])
        typer.echo(
            f"{q.detector:16} {q.incidents:5}  {q.per_model_week:.2f} a model and week  precision {right}  {told}{note}"
        )
    if not found:
        typer.echo(f"no incidents in {days} days", err=True)


def exemption_json(e: Exemption) -> dict[str, Any]:
    """An exception as commands print it."""
    return {
        "exception_id": e.exemption_id, "model": e.model, "event": e.event.value,
        "subject": {"kind": e.subject.kind, "id": e.subject.id}, "detectors": list(e.detectors), "max": dict(e.bounds),
        "by": e.actor, "why": e.reason, "created": rfc3339(e.created_us), "expires": rfc3339(e.expires_us),
    }  # fmt: skip


def _when(us: int | None) -> str | None:
    return None if us is None else rfc3339(us)
