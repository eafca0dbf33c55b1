"""`lanner routes`: which sinks get which alerts, and why, before one is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from monitor.config import Config, load
from monitor.errors import UsageError
from monitor.model import UNREGISTERED, Alert, Decision, Event, Family, Severity, Subject

ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")]
FAMILIES: Final[Mapping[Event, tuple[Family, ...]]] = {  # which families make an event; the first is the usual one
    Event.FEATURE_DRIFT: (Family.DRIFT,),
    Event.PREDICTION_DRIFT: (Family.DRIFT,),
    Event.PERFORMANCE_DECAY: (Family.PERFORMANCE,),
    Event.DISTRIBUTION_BREAK: (Family.DRIFT,),
    Event.DATA_QUALITY: (Family.QUALITY,),
    Event.TRAFFIC_ANOMALY: (Family.QUALITY,),
    Event.ATTACK_SUSPECTED: (
        Family.ANOMALY, Family.EXTRACTION, Family.EVASION, Family.MEMBERSHIP, Family.INVERSION,
    ),
    Event.POISONING_SUSPECTED: (Family.POISONING,),
    Event.PROMPT_INJECTION_SUSPECTED: (Family.INJECTION,),
    Event.DATA_LEAK_SUSPECTED: (Family.LEAKAGE,),
    Event.ABUSE_SUSPECTED: (Family.ABUSE,),
    Event.ACCESS_ANOMALY: (Family.ACCESS,),
    Event.DATA_MISSING: (Family.QUALITY,),
    Event.UNREGISTERED_MODEL: (Family.ACCESS,),
    Event.DETECTOR_FAILED: (Family.MONITOR,),
    Event.DETECTOR_SILENT: (Family.MONITOR,),
    Event.DELIVERY_DEGRADED: (Family.MONITOR,),
    Event.MONITOR_DEGRADED: (Family.MONITOR,),
}  # fmt: skip

OF_NO_MODEL: Final = frozenset(
    {Event.UNREGISTERED_MODEL, Event.DETECTOR_SILENT, Event.DELIVERY_DEGRADED, Event.MONITOR_DEGRADED}
)

routes = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show which sinks get which alerts, and why.")


@routes.callback()
def about() -> None:
    """Show which sinks get which alerts, and why."""


@routes.command("test")
def try_routes(
    config: ConfigFile = Path("lanner.yaml"),
    event: Annotated[Event | None, typer.Option(help="What the alert is about.")] = None,
    model: Annotated[str | None, typer.Option(help="The model; without it each in turn.")] = None,
    family: Annotated[Family | None, typer.Option(help="The family, where an event has several.")] = None,
    severity: Annotated[Severity | None, typer.Option(help="Instead of the one that policy gives.")] = None,
    customer: Annotated[str | None, typer.Option(help="Instead of the model's own.")] = None,
    sink: Annotated[str | None, typer.Option(help="The sink that is in trouble, for DeliveryDegraded.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every event, on every model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
) -> None:
    """Show for an alert which sinks get it, and why; nothing is sent and no server is asked."""
    from alerts.routes import choices
    from alerts.text import shown

    if (event is None) != everything:
        raise UsageError("say which alert: --event NAME, or --all")
    loaded = load(config)
    for option, name, known in (("--model", model, loaded.models), ("--sink", sink, loaded.sinks)):
        if name is not None and name not in known:
            raise UsageError(f"{option}: the configuration has no such name; it has {', '.join(known) or 'none'}")
    if not loaded.sinks:
        raise UsageError("the configuration has no sinks")
    found = []
    for alert in alerts(loaded, event, model, family, severity, customer, sink):
        chosen = choices(loaded, alert)
        what = {"model": alert.model, "customer": alert.customer, "event": alert.event.value,
                "family": alert.family.value, "severity": alert.severity.value}  # fmt: skip
        found.append({**what, "sinks": [{"sink": c.sink, "told": c.told, "why": c.why} for c in chosen]})
        if not as_json:
            on = "" if alert.model == UNREGISTERED else f" on {shown(alert.model)}"
            typer.echo(f"{what['event']} {what['family']} {what['severity']}{on}")
            for c in chosen:
                typer.echo(f"  {'yes' if c.told else 'no ':3}  {shown(c.sink)}: {shown(c.why, 200)}")
    if as_json:
        typer.echo(json.dumps({"routes": found}))


def alerts(
    config: Config,
    event: Event | None,
    model: str | None,
    family: Family | None,
    severity: Severity | None,
    customer: str | None,
    sink: str | None,
) -> Iterator[Alert]:
    """The alerts that a question is about: severity by policy, customer by the model, unless it says otherwise.

    Those about Lanner itself and about unknown models belong to no model, so that no route by model gets them.
    """
    from alerts.policy import policy

    rules = policy(config)
    for name in [*([model] if model is not None else config.models), UNREGISTERED]:
        for kind in [event] if event is not None else Event:
            for kin in FAMILIES[kind]:
                if (kind in OF_NO_MODEL) != (name == UNREGISTERED) or family not in (None, kin):
                    continue
                subject = Subject("sink", sink) if sink is not None else Subject("model", name)
                decision = Decision(
                    model=name, event=kind, family=kin, subject=subject, firing=True, time_us=0, window_us=(0, 0),
                    detector="",
                )  # fmt: skip
                given: dict[str, Any] = {
                    "severity": severity or rules.severity(decision),
                    "customer": customer or rules.named(name).customer,
                }
                yield Alert(
                    alert_id="", environment=config.environment, model=name, event=kind, subject=subject, family=kin,
                    open=True, seq=1, opened_us=0, updated_us=0, cleared_us=None, detector="", statistic=None,
                    threshold=None, p_value=None, log_e=None, n=None, window_us=(0, 0), techniques=(), text="",
                    evidence={}, **given,
                )  # fmt: skip
