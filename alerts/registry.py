"""The kinds of sinks, and the routes between alerts and sinks. Adding a sink is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from alerts.alerta import Alerta
from alerts.base import Sink
from alerts.console import Console
from alerts.memory import MemorySink
from monitor.config import Config, SinkConfig
from monitor.errors import ConfigError, Mistake
from monitor.model import Action, Severity, Transition


def _alerta(name: str, sink: SinkConfig, config: Config) -> Sink:
    key = sink.key.get_secret_value() if sink.key is not None else ""
    if not key and sink.key_file is not None:
        key = config.path(sink.key_file).read_text(encoding="utf-8").strip()
    if sink.url is None or not key:
        raise ConfigError([Mistake(f"sinks.{name}", None, "an alerta sink needs `url` and `key` or `key_file`")])
    return Alerta(name, sink.url, key, timeout_s=sink.timeout, allow_insecure=sink.allow_insecure)


SINKS: Final[Mapping[str, Callable[[str, SinkConfig, Config], Sink]]] = {
    "alerta": _alerta,
    "console": lambda name, sink, config: Console(name),
    "memory": lambda name, sink, config: MemorySink(name),
}


def sinks(config: Config) -> dict[str, Sink]:
    """The sinks that a configuration names, ready to send. ConfigError when one lacks what it needs."""
    return {name: SINKS[sink.type](name, sink, config) for name, sink in config.sinks.items()}


def routing(config: Config) -> Callable[[Transition], Sequence[str]]:
    """Which sinks get a transition: those of every route that fits, or all without routes; never below `min_severity`.

    A clear goes to every sink, whatever its severity, family and the routes of today: the outbox drops it where the
    opening never went, and no sink is left with an alert that nobody clears.
    """
    floor = {name: Severity(sink.min_severity).rank for name, sink in config.sinks.items()}

    def sinks_for(transition: Transition) -> Sequence[str]:
        alert = transition.alert
        if transition.action is Action.CLEAR:
            return sorted(floor)
        named = set(floor) if not config.routes else set()
        for route in config.routes:
            fits = (
                (not route.models or alert.model in route.models)
                and (not route.families or alert.family.value in route.families)
                and alert.severity.rank >= Severity(route.min_severity).rank
            )
            named |= set(route.sinks) & set(floor) if fits else set()
        return sorted(name for name in named if alert.severity.rank >= floor[name])

    return sinks_for
