"""What the configuration says about alerts: severities, how long a fixed rule must hold, how much is told in an hour."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from alerts.base import tells_of_many
from monitor.config import Config, Severities
from monitor.model import SECOND_US, Alert, Decision, Event, Family, Severity

SEVERITY: Final[Mapping[Event, Severity]] = {  # where an incident begins, before any step
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
    Event.UNREGISTERED_MODEL: Severity.MINOR,
    Event.DATA_MISSING: Severity.MAJOR,
    Event.DETECTOR_FAILED: Severity.MINOR,
    Event.DETECTOR_SILENT: Severity.MAJOR,
    Event.DELIVERY_DEGRADED: Severity.MAJOR,
    Event.MONITOR_DEGRADED: Severity.MAJOR,
}
STEADY: Final = frozenset({Event.DISTRIBUTION_BREAK, Event.UNREGISTERED_MODEL})  # no step makes them more or less
PATIENT: Final = frozenset(  # what stands open until somebody looks at it, and gets no worse by that
    {(Event.MONITOR_DEGRADED, "detector"), (Event.TRAFFIC_ANOMALY, "principal")}  # on report only; use that crept up
)
UNTIERED: Final = STEADY | {Event.MONITOR_DEGRADED}  # not about a model
SECURITY: Final = frozenset(
    {
        Event.ATTACK_SUSPECTED, Event.POISONING_SUSPECTED, Event.PROMPT_INJECTION_SUSPECTED, Event.DATA_LEAK_SUSPECTED,
        Event.ABUSE_SUSPECTED, Event.ACCESS_ANOMALY, Event.UNREGISTERED_MODEL,
    }
)  # fmt: skip
MONITOR: Final = frozenset(
    {Event.DETECTOR_FAILED, Event.DETECTOR_SILENT, Event.DELIVERY_DEGRADED, Event.MONITOR_DEGRADED}
)


RAISED: Final = "raised"  # in the evidence: why an incident is more severe than where it began
LASTING: Final = "lasting"
STRONG: Final = "evidence"
RAISES: Final[Mapping[str, str]] = {LASTING: "it lasts", STRONG: "its evidence is far above the level"}


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
    Event.DISTRIBUTION_BREAK: Persistence(1, 1, 1),  # one window is what it is about
    Event.DATA_MISSING: Persistence(1, 1, 1),  # its limit already is a time, and the next event ends it
    Event.TRAFFIC_ANOMALY: Persistence(
        1, 1, 1
    ),  # of fixed rules only floods of calls and of new principals, and use that crept up, which have their own end
    Event.POISONING_SUSPECTED: Persistence(1, 1, 1),  # of fixed rules only canaries, which ask twice themselves
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

    `per_hour`: how many incidents under major of one event on one model may open in an hour before the rest is told as
    a number.
    """

    environment: str = "Production"
    models: Mapping[str, Named] = field(default_factory=dict)
    severities: Mapping[tuple[str, str], Severity] = field(default_factory=dict)
    weights: Severities = field(default_factory=Severities)
    persistence: Mapping[Event, Persistence] = field(default_factory=lambda: PERSISTENCE)
    per_hour: int = 20
    page: str | None = None  # where people reach the page, without a slash at its end
    runbooks: str = "docs/runbooks"

    def named(self, model: str) -> Named:
        """What is known of a model; a model that is not configured has tier 2 and no owner."""
        return self.models.get(model, Named())

    def severity(self, d: Decision, raised: Collection[str] = ()) -> Severity:
        """How severe a decision is. `raised`: reasons of RAISES that hold, a step each.

        The configured severity of its monitor, and what Lanner proposes about itself, take no steps. All else begins
        where its family or event says and goes up or down by the tier of the model and by `raised`. What fuse() proposes
        about an attack is as much as it may be yet.

        >>> from monitor.model import Subject
        >>> d = Decision("m", Event.ATTACK_SUSPECTED, Family.EXTRACTION, Subject("principal", "p"), True, 0, (0, 0), "queries")
        >>> Policy().severity(d).value, Policy(models={"m": Named(tier=1)}).severity(d).value
        ('major', 'critical')
        """
        fixed = self.severities.get((d.model, d.detector))
        if fixed is not None:
            return fixed
        begins = self.weights.families.get(d.family) or self.weights.events.get(d.event)
        attack = d.event is Event.ATTACK_SUSPECTED
        if begins is None and d.severity is not None and not attack:
            return d.severity
        rank = (SEVERITY[d.event] if begins is None else Severity(begins)).rank
        if d.event in STEADY:
            return list(Severity)[rank]
        if d.event not in UNTIERED:
            rank += self.weights.tiers[self.named(d.model).tier - 1]
        if attack and d.family is Family.ANOMALY and d.family not in self.weights.families:
            rank -= 1  # something is wrong, but nobody can name it yet
        rank += sum(reason in RAISES for reason in raised)
        if attack and d.severity is not None:
            rank = min(rank, d.severity.rank)
        return list(Severity)[min(max(rank, 0), Severity.CRITICAL.rank)]

    def raises(self, d: Decision, level: float | None, lasted_us: int) -> list[str]:
        """Which reasons of RAISES a decision about a caller gives, when its incident has had evidence for so long.

        `level`: natural logarithm of the evidence that alarms, where the decision does not say it again.
        """
        found: list[str] = []
        if d.event not in SECURITY - STEADY or (d.model, d.detector) in self.severities or d.severity is not None:
            return found
        if self.lasts_us is not None and lasted_us >= self.lasts_us:
            found.append(LASTING)
        level = level if d.threshold is None else d.threshold
        strong = None if not self.weights.evidence or level is None else level + math.log(self.weights.evidence)
        if strong is not None and not d.fixed_rule and (d.log_e or 0.0) >= strong:
            found.append(STRONG)
        return found

    @property
    def lasts_us(self) -> int | None:
        """From which age on an incident counts as lasting; None when age does not matter."""
        return round(self.weights.lasting * SECOND_US) if self.weights.lasting else None

    def lasting_at(self, alert: Alert) -> int | None:
        """When an incident that only stands open becomes lasting; None when it will not, or more is needed than time.

        Drift, silence and what is wrong with Lanner last as long as they are open. A caller is open for a week after the
        last sign of an attack, so attacks last as long as there is new evidence. What tells of a flood is as severe as
        the worst in it.
        """
        fixed = (alert.model, alert.detector) in self.severities or alert.event in STEADY | SECURITY
        fixed |= tells_of_many(alert.subject) or (alert.event, alert.subject.kind) in PATIENT
        if fixed or self.lasts_us is None or LASTING in alert.evidence.get(RAISED, ()):
            return None
        return alert.opened_us + self.lasts_us


def policy(config: Config) -> Policy:
    """The policy that a configuration asks for."""
    return Policy(
        environment=config.environment,
        models={name: Named(m.customer, m.owner, m.tier, m.runbook) for name, m in config.models.items()},
        severities={
            (m.model, m.detector): Severity(m.severity) for m in config.monitors.values() if m.severity is not None
        },
        weights=config.alerting.severity,
        per_hour=config.alerting.per_hour,
        page=None if config.server.url is None else config.server.url.rstrip("/"),
        runbooks=config.alerting.runbooks.rstrip("/"),
    )
