"""From decisions to incidents: one alert per problem, opened, updated and cleared. Pure and deterministic.

Decisions are applied one by one in the order of their own times, so results do not depend on where ticks fall.
A problem is (environment, customer, model, subject, event). Decisions of budget() and fuse() open and clear it at
once, because they already weigh their evidence; fixed rules open it after m of their last n evaluations fired and
clear it after some clean ones under a lower line. A problem that comes back after it was cleared is a new alert.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from alerts.base import Step
from alerts.techniques import techniques
from alerts.text import render
from monitor.config import Config
from monitor.model import Action, Alert, Decision, Event, Family, Severity, Transition, alert_id

COUNTERS_VERSION: Final = 1
EVIDENCE_TEXT: Final = 2000  # longest string kept in evidence, characters
EVIDENCE_ITEMS: Final = 1000  # longest list kept in evidence

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
ADDED_TO_ATTACK: Final = frozenset({Event.ACCESS_ANOMALY, Event.ABUSE_SUSPECTED, Event.TRAFFIC_ANOMALY})


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
    """What the configuration says about alerts. `severities` maps (model, detector) to a severity that always wins."""

    environment: str = "Production"
    models: Mapping[str, Named] = field(default_factory=dict)
    severities: Mapping[tuple[str, str], Severity] = field(default_factory=dict)
    persistence: Mapping[Event, Persistence] = field(default_factory=lambda: PERSISTENCE)

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
    )


def step(decisions: Iterable[Decision], open: Sequence[Alert], counters: Mapping[str, Any], policy: Policy) -> Step:
    """Apply decisions to the open alerts. `counters` is what the previous step handed back, {} at first.

    `dropped` counts the decisions that led to no transition, by reason: unchanged, not_open, not_yet, still_firing,
    not_clean, added_to_attack, in_cluster.
    """
    work = _Work(policy, {_slot_key(a.model, a.event, a.subject.kind, a.subject.id): a for a in open}, counters)
    for decision in sorted(decisions, key=_order):
        work.apply(decision)
    return Step(
        transitions=tuple(work.transitions),
        alerts=tuple(work.changed.values()),
        counters={"version": COUNTERS_VERSION, "slots": {k: v for k, v in sorted(work.slots.items()) if v}},
        dropped=dict(sorted(work.dropped.items())),
    )


def clean(value: object) -> Any:
    """Evidence as JSON can carry it: finite numbers, bounded strings and lists, text keys.

    >>> clean({"a": float("nan"), "b": (1, 2)})
    {'a': None, 'b': [1, 2]}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, str):
        text = value.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= EVIDENCE_TEXT else text[: EVIDENCE_TEXT - 1] + "…"
    if isinstance(value, Mapping):
        return {str(clean(str(k))): clean(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [clean(v) for v in list(items)[:EVIDENCE_ITEMS]]
    return clean(value.item()) if hasattr(value, "item") else clean(str(value))  # numpy scalars


def _order(d: Decision) -> tuple[Any, ...]:
    return (d.time_us, d.window_us[1], d.model, d.event.value, d.subject.kind, d.subject.id, d.detector, d.firing)


def _slot_key(model: str, event: Event, kind: str, subject_id: str) -> str:
    return json.dumps([model, event.value, kind, subject_id], ensure_ascii=False)


class _Work:
    """The running state of one step: open alerts and counters, changed decision by decision."""

    def __init__(self, policy: Policy, open_alerts: dict[str, Alert], counters: Mapping[str, Any]) -> None:
        self.policy = policy
        self.open = open_alerts
        known = counters.get("version") == COUNTERS_VERSION
        self.slots: dict[str, dict[str, Any]] = {
            key: {name: dict(slot) for name, slot in slots.items()}
            for key, slots in (counters.get("slots", {}) if known else {}).items()
        }
        self.transitions: list[Transition] = []
        self.changed: dict[str, Alert] = {}
        self.dropped: dict[str, int] = {}

    def apply(self, d: Decision) -> None:
        """One decision: count it, then open, update or clear."""
        key = _slot_key(d.model, d.event, d.subject.kind, d.subject.id)
        if d.firing and self._folded(d):
            return
        current = self.open.get(key)
        verdict = self._count(key, d) if d.fixed_rule else self._decided(key, d)
        if verdict is not None:
            self._drop(verdict)
        elif not d.firing:
            if current is None:
                self._drop("not_open")
            else:
                self._clear(key, current, d)
        elif current is None:
            self._open(key, d)
        else:
            self._update(key, current, d)

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _decided(self, key: str, d: Decision) -> str | None:
        """A weighed decision counts at once; it only clears when no fixed rule still holds the incident open."""
        slots = self.slots.setdefault(key, {})
        if d.firing:
            slots["decided"] = {"on": True}
            return None
        slots.pop("decided", None)
        return "still_firing" if any(s["on"] for s in slots.values()) else None

    def _count(self, key: str, d: Decision) -> str | None:
        """Count one evaluation of a fixed rule; the reason to wait, or None when it counts.

        Each rule has a slot of its own: hits (the last evaluations, "1" fired), clean (in a row), on.
        """
        rule = self.policy.persistence.get(d.event, Persistence())
        slots = self.slots.setdefault(key, {})
        slot = slots.setdefault(d.detector, {"hits": "", "clean": 0, "on": False})
        slot["hits"] = (slot["hits"] + ("1" if d.firing else "0"))[-rule.of :]
        over = d.statistic is not None and d.threshold is not None and d.statistic > rule.lower * d.threshold
        slot["clean"] = 0 if d.firing or over else slot["clean"] + 1
        if d.firing:
            slot["on"] = slot["on"] or slot["hits"].count("1") >= rule.fired
            return None if slot["on"] else "not_yet"
        if slot["clean"] >= rule.clean or not (slot["on"] or "1" in slot["hits"]):
            del slots[d.detector]
        elif slot["on"]:
            return "not_clean"
        return "still_firing" if any(s["on"] for s in slots.values()) else None

    def _folded(self, d: Decision) -> bool:
        """Whether a firing decision about one principal belongs to an attack incident that is already open."""
        if d.subject.kind != "principal" or d.event not in ADDED_TO_ATTACK | {Event.ATTACK_SUSPECTED}:
            return False
        cluster = self._cluster_of(d.model, d.subject.id)
        if d.event is Event.ATTACK_SUSPECTED:
            if cluster is None:
                return False
            self._drop("in_cluster")
            return True
        home = self.open.get(_slot_key(d.model, Event.ATTACK_SUSPECTED, "principal", d.subject.id)) or cluster
        if home is None:
            return False
        also = [e for e in home.evidence.get("also", []) if e["event"] != d.event.value]
        also.append({"event": d.event.value, "detector": d.detector, "statistic": clean(d.statistic),
                     "log_e": clean(d.log_e), "time_us": d.time_us})  # fmt: skip
        self._keep(replace(home, evidence={**home.evidence, "also": also}))
        self._drop("added_to_attack")
        return True

    def _cluster_of(self, model: str, principal: str) -> Alert | None:
        for alert in self.open.values():
            if alert.model == model and alert.event is Event.ATTACK_SUSPECTED and alert.subject.kind == "cluster" \
                    and principal in alert.evidence.get("principals", ()):  # fmt: skip
                return alert
        return None

    def _open(self, key: str, d: Decision) -> None:
        named = self.policy.named(d.model)
        problem = (self.policy.environment, named.customer or "", d.model, d.subject.kind, d.subject.id, d.event)
        evidence = clean(d.evidence)
        if isinstance(evidence.get("queries"), int):
            evidence["queries_at_opening"] = evidence["queries"]
        alert = Alert(
            alert_id=alert_id(problem, d.time_us), environment=self.policy.environment, customer=named.customer,
            model=d.model, event=d.event, subject=d.subject, family=d.family, severity=self.policy.severity(d),
            open=True, seq=0, opened_us=d.time_us, updated_us=d.time_us, cleared_us=None, detector=d.detector,
            statistic=None, threshold=None, p_value=None, log_e=None, n=None, window_us=d.window_us,
            techniques=(), text="", evidence=evidence,
        )  # fmt: skip
        alert = self._emit(Action.OPEN, self._measured(alert, d, evidence))
        self.open[key] = alert
        self._absorb(alert)

    def _update(self, key: str, current: Alert, d: Decision) -> None:
        evidence = clean(d.evidence)
        for kept in ("queries_at_opening", "also"):
            if kept in current.evidence:
                evidence.setdefault(kept, current.evidence[kept])
        alert = self._measured(current, d, evidence)
        # Within one incident severity only rises, so that a borderline series does not flap.
        severity = max(current.severity, self.policy.severity(d), key=lambda s: s.rank)
        alert = replace(alert, severity=severity, family=d.family)
        if not _told_apart(current, alert):
            self._drop("unchanged")
            return
        alert = self._emit(Action.UPDATE, alert)
        self.open[key] = alert
        self._absorb(alert)

    def _clear(self, key: str, current: Alert, d: Decision) -> None:
        evidence = {**current.evidence, **clean(d.evidence)}
        alert = replace(current, open=False, cleared_us=d.time_us, updated_us=d.time_us, evidence=evidence,
                        window_us=d.window_us)  # fmt: skip
        self._emit(Action.CLEAR, alert)
        del self.open[key]
        self.slots.pop(key, None)

    def _absorb(self, into: Alert) -> None:
        """Clear the incidents that an attack incident contains: those of its members, and earlier access anomalies."""
        if into.event is not Event.ATTACK_SUSPECTED:
            return
        members = [into.subject.id] if into.subject.kind == "principal" else into.evidence.get("principals", ())
        events = ADDED_TO_ATTACK | ({Event.ATTACK_SUSPECTED} if into.subject.kind == "cluster" else frozenset())
        for member in members:
            for event in sorted(events):
                key = _slot_key(into.model, event, "principal", str(member))
                if (absorbed := self.open.get(key)) is not None:
                    end = replace(
                        absorbed, open=False, cleared_us=into.updated_us, updated_us=into.updated_us,
                        evidence={**absorbed.evidence, "reason": "absorbed", "into": into.alert_id},
                    )  # fmt: skip
                    self._emit(Action.CLEAR, end)
                    del self.open[key]
                    self.slots.pop(key, None)

    def _measured(self, alert: Alert, d: Decision, evidence: Mapping[str, Any]) -> Alert:
        return replace(
            alert, updated_us=d.time_us, detector=d.detector, statistic=clean(d.statistic), threshold=clean(d.threshold),
            p_value=clean(d.p_value), log_e=clean(d.log_e), n=d.n, window_us=d.window_us, evidence=evidence,
            techniques=techniques(d.event, d.family), quiet=bool(evidence.get("quiet", False)),
        )  # fmt: skip

    def _emit(self, action: Action, alert: Alert) -> Alert:
        named = self.policy.named(alert.model)
        runbook = named.runbook or f"docs/runbooks/{alert.event.value}.md"
        alert = replace(alert, seq=alert.seq + 1)
        alert = replace(alert, text=render(alert, action, tier=named.tier, owner=named.owner, runbook=runbook))
        self.transitions.append(Transition(action, alert.updated_us, alert))
        self._keep(alert)
        return alert

    def _keep(self, alert: Alert) -> None:
        self.changed[alert.alert_id] = alert
        key = _slot_key(alert.model, alert.event, alert.subject.kind, alert.subject.id)
        if alert.open:
            self.open[key] = alert


def _told_apart(before: Alert, after: Alert) -> bool:
    """Whether an update is worth a line: severity, family, state, the named features or principals, or many queries."""
    return (
        (before.severity, before.family, before.quiet) != (after.severity, after.family, after.quiet)
        or _names(before) != _names(after)
        or set(before.evidence.get("principals") or ()) != set(after.evidence.get("principals") or ())
        or _doublings(before) < _doublings(after)
    )


def _names(alert: Alert) -> set[str]:
    return {str(f.get("name")) for f in alert.evidence.get("features") or () if isinstance(f, Mapping)}


def _doublings(alert: Alert) -> int:
    """How often the number of queries since opening has doubled: it grows when they reach a power of two."""
    queries = alert.evidence.get("queries")
    if not isinstance(queries, int):
        return 0
    return max(0, queries - int(alert.evidence.get("queries_at_opening", 0))).bit_length()
