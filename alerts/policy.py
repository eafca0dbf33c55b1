"""What the configuration says about alerts: severities, how long a fixed rule must hold, how much is told in an hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from monitor.config import Config
from monitor.model import Decision, Event, Family, Severity

SEVERITY: Final[Mapping[Event, Severity]] = {  # for a model of tier 2; tier 1 is one step up, tier 3 one step down
    Event.FEATURE_DRIFT: Severity.MINOR,
    Event.PREDICTION_DRIFT: Severity.MINOR,
    Event.PERFORMANCE_DECAY: Severity.MAJOR,
    Event.DISTRIBUTION_BREAK: Severity.WARNING,
    Event.DATA_QUALITY: Severity.MINOR,
    Event.TRAFFIC_ANOMALY: Severity.MINOR,
    Event.ATTACK_SUSPECTED: Severity.MAJOR,
    Event.POISONING_SUSPECTED: Severity.MAJOR,
    Event.PROMPT_INJECTION_SUSPECTED: Severity.MAJOR,
    Event.DATA_LEAK_SUSPECTED: Severity.MAJOR,
    Event.ABUSE_SUSPECTED: Severity.MINOR,
    Event.ACCESS_ANOMALY: Severity.MINOR,
    Event.UNREGISTERED_MODEL: Severity.WARNING,
    Event.DATA_MISSING: Severity.MAJOR,
    Event.DETECTOR_FAILED: Severity.MINOR,
    Event.DETECTOR_SILENT: Severity.MAJOR,
    Event.DELIVERY_DEGRADED: Severity.MAJOR,
    Event.MONITOR_DEGRADED: Severity.MAJOR,
}
UNTIERED: Final = frozenset({Event.DISTRIBUTION_BREAK, Event.UNREGISTERED_MODEL, Event.MONITOR_DEGRADED})
SECURITY: Final = frozenset(
    {
        Event.ATTACK_SUSPECTED, Event.POISONING_SUSPECTED, Event.PROMPT_INJECTION_SUSPECTED, Event.DATA_LEAK_SUSPECTED,
        Event.ABUSE_SUSPECTED, Event.ACCESS_ANOMALY, Event.UNREGISTERED_MODEL,
    }
)  # fmt: skip
MONITOR: Final = frozenset(
    {Event.DETECTOR_FAILED, Event.DETECTOR_SILENT, Event.DELIVERY_DEGRADED, Event.MONITOR_DEGRADED}
)


@dataclass(frozen=True, slots=True)
class Persistence:
    """How long a fixed rule must hold: opens after `fired` of the last `of` evaluations, clears after `clean` clean ones.

    An evaluation is clean when the rule does not fire and its statistic is under `lower` times the threshold.
    """

    fired: int = 2
    of: int = 3
    clean: int = 3
    lower: float = 0.8


PERSISTENCE: Final[Mapping[Event, Persistence]] = {
    Event.DATA_MISSING: Persistence(1, 1, 1),  # its limit already is a time, and the next event ends it
    Event.TRAFFIC_ANOMALY: Persistence(
        1, 1, 1
    ),  # of fixed rules only the flood of new principals, which has its own end
    Event.UNREGISTERED_MODEL: Persistence(1, 1, 1),
    Event.DETECTOR_FAILED: Persistence(1, 1, 3),  # open on the first failure, clear after three good runs
    Event.DETECTOR_SILENT: Persistence(1, 1, 1),
    Event.DELIVERY_DEGRADED: Persistence(1, 1, 3),
    Event.MONITOR_DEGRADED: Persistence(1, 1, 3),
}


@dataclass(frozen=True, slots=True)
class Named:
    """What the configuration says about one model."""

    customer: str | None = None
    owner: str | None = None
    tier: int = 2
    runbook: str | None = None


@dataclass(frozen=True)
class Policy:
    """What the configuration says about alerts. `severities` maps (model, detector) to a severity that always wins.

    `per_hour`: how many incidents of one event on one model may open in an hour before the rest is told as a number.
    """

    environment: str = "Production"
    models: Mapping[str, Named] = field(default_factory=dict)
    severities: Mapping[tuple[str, str], Severity] = field(default_factory=dict)
    persistence: Mapping[Event, Persistence] = field(default_factory=lambda: PERSISTENCE)
    per_hour: int = 20

    def named(self, model: str) -> Named:
        """What is known of a model; a model that is not configured has tier 2 and no owner."""
        return self.models.get(model, Named())

    def severity(self, decision: Decision) -> Severity:
        """The configured severity of its monitor, else the proposal of the detector, else the table and the tier."""
        fixed = self.severities.get((decision.model, decision.detector))
        if fixed is not None:
            return fixed
        if decision.severity is not None:
            return decision.severity
        rank = SEVERITY[decision.event].rank
        if decision.event not in UNTIERED:
            rank += 2 - self.named(decision.model).tier
        if decision.event is Event.ATTACK_SUSPECTED and decision.family is Family.ANOMALY:
            rank -= 1  # something is wrong, but nobody can name it yet
        return list(Severity)[min(max(rank, 0), Severity.CRITICAL.rank)]


def policy(config: Config) -> Policy:
    """The policy that a configuration asks for."""
    return Policy(
        environment=config.environment,
        models={name: Named(m.customer, m.owner, m.tier, m.runbook) for name, m in config.models.items()},
        severities={
            (m.model, m.detector): Severity(m.severity) for m in config.monitors.values() if m.severity is not None
        },
        per_hour=config.alerting.per_hour,
    )
