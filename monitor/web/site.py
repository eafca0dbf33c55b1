"""What every route of the page needs: configuration, store, templates and clock."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jinja2

from monitor.config import Config
from monitor.model import SECOND_US
from monitor.reports.diagnosis import Diagnosis, diagnose
from monitor.store import queries
from monitor.store.eventlog import EventLog
from monitor.store.queries import Engine, ModelRow


def is_loopback(bind: str) -> bool:
    """Whether an address of the form HOST:PORT can be reached from this machine only.

    >>> is_loopback("127.0.0.1:8080"), is_loopback("[::1]:80"), is_loopback("0.0.0.0:8080")
    (True, True, False)
    """
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Site:
    """One running web application."""

    config: Config
    engine: Engine
    templates: jinja2.Environment
    now_us: Callable[[], int]
    version: str
    log: EventLog | None = None  # rows of the event log; None: pages do without them

    @property
    def may_act(self) -> bool:
        """Whether people may act here: there is no login yet, so only who sits at this machine."""
        return is_loopback(self.config.server.bind)

    @property
    def grace_us(self) -> int:
        """How long after its end a window may rightly be unjudged."""
        return round((self.config.schedule.lateness + self.config.schedule.idle) * SECOND_US)

    def clock_us(self, models: Sequence[ModelRow]) -> int:
        """The time that ages are told by: the wall clock, or the newest event when the log is the clock."""
        newest = [m.last_event_us for m in models if m.last_event_us is not None]
        return max(newest) if self.config.clock == "log" and newest else self.now_us()

    def models(self) -> list[ModelRow]:
        """Every model as it stands now."""
        return queries.all_models(self.engine, self.now_us(), clock=self.config.clock, grace_us=self.grace_us)

    def units(self, model: str) -> Mapping[str, str]:
        """Units of a model's features, where the configuration tells them."""
        configured = self.config.models.get(model)
        return configured.units if configured else {}

    def diagnoses(self, model: ModelRow) -> list[Diagnosis]:
        """Which of its monitors cannot be believed, and why."""
        return diagnose(self.engine, model, clock=self.config.clock, lateness_us=self.grace_us)

    def model(self, ref: str) -> ModelRow | None:
        """One model by name or id."""
        return queries.one_model(self.engine, ref, self.now_us(), clock=self.config.clock, grace_us=self.grace_us)
