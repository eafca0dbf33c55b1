"""Which sinks get an alert, and why: the routes of the configuration, the severity floor of each sink, and two exceptions.

A clear goes to every sink, whatever its severity, family and the routes of today: the outbox drops it where the opening
never went, and no sink is left with an alert that nobody clears. What is wrong with a sink is told to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from monitor.config import Config, Route
from monitor.model import Action, Alert, Event, Severity, Transition

BROKEN_SINK = frozenset({Event.DELIVERY_DEGRADED, Event.MONITOR_DEGRADED})


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether one sink gets an alert, with the reason as a sentence of ours."""

    sink: str
    told: bool
    why: str


def routing(config: Config) -> Callable[[Transition], Sequence[str]]:
    """The sinks that a transition goes to, by name."""
    return lambda transition: [c.sink for c in choices(config, transition.alert, transition.action) if c.told]


def choices(config: Config, alert: Alert, action: Action = Action.OPEN) -> list[Choice]:
    """One choice per sink, by name.

    An alert about a sink goes to the others that its routes name; if they name no other, to all others; and to the
    sink itself only when it is the only one.
    """
    names = sorted(config.sinks)
    if action is Action.CLEAR:
        return [Choice(n, told=True, why="a clear follows its opening everywhere") for n in names]
    found = [_choice(config, n, alert) for n in names]
    if alert.event not in BROKEN_SINK or alert.subject.kind != "sink" or len(names) < 2:
        return found
    broken = alert.subject.id
    others = any(c.told for c in found if c.sink != broken)
    return [
        Choice(c.sink, told=False, why="it is the sink that the alert is about") if c.sink == broken
        else c if others
        else Choice(c.sink, told=True, why=f"no route leads to a sink other than {broken}, which is in trouble")
        for c in found
    ]  # fmt: skip


def _choice(config: Config, sink: str, alert: Alert) -> Choice:
    floor = Severity(config.sinks[sink].min_severity)
    if alert.severity.rank < floor.rank:
        return Choice(sink, told=False, why=f"it takes {floor.value} and worse")
    if not config.routes:
        return Choice(sink, told=True, why="there are no routes: every sink gets every alert")
    misses = []
    for i, route in enumerate(config.routes):
        if sink in route.sinks:
            missed = _missed(route, alert)
            if missed is None:
                return Choice(sink, told=True, why=f"routes.{i} fits")
            misses.append(f"routes.{i} {missed}")
    return Choice(sink, told=False, why="; ".join(misses) or "no route names it")


def _missed(route: Route, alert: Alert) -> str | None:
    """Why a route does not fit an alert; None when it does."""
    for named, value, what in (
        (route.models, alert.model, "models"),
        (route.families, alert.family.value, "families"),
        (route.customers, alert.customer, "customers"),
    ):
        if named and value not in named:
            return f"is for other {what}"
    if alert.severity.rank < Severity(route.min_severity).rank:
        return f"is for {route.min_severity} and worse"
    return None
