"""From decisions to incidents: one alert per problem, opened, updated and cleared. Pure and deterministic.

Decisions are applied one by one in the order of their own times, so results do not depend on where ticks fall.
A problem is (environment, customer, model, subject, event). Decisions of budget() and fuse() open and clear it at
once, because they already weigh their evidence; fixed rules open it after m of their last n evaluations fired and
clear it after some clean ones under a lower line. A problem that comes back after it was cleared is a new alert.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from alerts import flood
from alerts.base import Step, slot_key, subject_key, tells_of_many
from alerts.evidence import clean, members, names, told_apart
from alerts.holds import Holds
from alerts.policy import LASTING, MONITOR, RAISED, Persistence, Policy
from alerts.quiet import (
    CALM_US,
    HELD_BACK,
    INHIBITED,
    REPORT_ONLY,
    Remembered,
    Told,
    covers,
    in_maintenance,
    moment,
    nearby,
)
from alerts.techniques import techniques
from alerts.text import render
from monitor.model import Act, Action, Alert, Decision, Event, Severity, Subject, Transition, alert_id, rfc3339

COUNTERS_VERSION: Final = 2
RETIRED: Final = "its monitor is no more"
KEPT: Final = ("queries_at_opening", "also", "marks", "before", HELD_BACK, flood.TOLD_BY, "flapping", "inhibited", RAISED)  # fmt: skip

BY_SEGMENT: Final = frozenset({Event.FEATURE_DRIFT, Event.PREDICTION_DRIFT})  # judged for segments as well
ADDED_TO_ATTACK: Final = frozenset({Event.ACCESS_ANOMALY, Event.ABUSE_SUSPECTED, Event.TRAFFIC_ANOMALY})


def step(
    decisions: Iterable[Decision],
    open: Sequence[Alert],
    counters: Mapping[str, Any],
    policy: Policy,
    told: Told = Told(),
) -> Step:
    """Apply decisions to the open alerts. `counters` is what the previous step handed back, {} at first.

    `dropped` counts the decisions that led to no transition, by reason: unchanged, not_open, not_yet, still_firing,
    not_clean, flapping, added_to_attack, in_cluster, excepted, maintenance, inhibited, settled.
    """
    work = _Work(policy, told, open, counters)
    for decision in sorted(decisions, key=_order):
        work.apply(decision)
    return work.result()


def settle(
    acts: Iterable[Act], open: Sequence[Alert], counters: Mapping[str, Any], policy: Policy, now_us: int
) -> Step:
    """Close the open incidents that people gave a verdict on, dated `now_us` (or their last change, if that is later).

    Acts about incidents that are not open change nothing here; their verdicts count all the same.
    """
    work = _Work(policy, Told(), open, counters)
    for act in acts:
        work.settle(act, now_us)
    return work.result()


def believed(open: Sequence[Alert], counters: Mapping[str, Any], policy: Policy, told: Told, at_us: int) -> Step:
    """Tell of the open incidents that were held back for a detector that is on report only no longer."""
    work = _Work(policy, told, open, counters)
    for alert in open:
        mended = alert.evidence.get(HELD_BACK) == REPORT_ONLY and alert.detector not in told.demoted
        if mended and _key(alert) in work.open:  # one before it may have absorbed it
            work.believe(alert, at_us)
    return work.result()


def lasting(open: Sequence[Alert], counters: Mapping[str, Any], policy: Policy, until_us: int) -> Step:
    """Raise the open incidents that have lasted too long by then, each dated to the moment when it had."""
    work = _Work(policy, Told(), open, counters)
    for alert in sorted(open, key=lambda a: (policy.lasting_at(a) or 0, a.alert_id)):
        # This may change or end what tells of a flood, and no other alert; that one never lasts by itself.
        work.lasting(alert, until_us)
    return work.result()


def lasting_from(open: Iterable[Alert], policy: Policy) -> int | None:
    """When `lasting` has something to do next; None when it has not."""
    return min((at_us for a in open if (at_us := policy.lasting_at(a)) is not None), default=None)


def end(
    gone: Iterable[Alert], open: Sequence[Alert], counters: Mapping[str, Any], policy: Policy, at_us: int, reason: str
) -> Step:
    """Clear open incidents, whoever holds them open: what they rest on is no more."""
    work = _Work(policy, Told(), open, counters)
    for alert in gone:
        work.end(alert, at_us, {"reason": reason})
    return work.result()


def retire(
    running: Collection[str], open: Sequence[Alert], counters: Mapping[str, Any], policy: Policy, at_us: int
) -> Step:
    """Clear what only rules of other detectors than these held open: nothing would ever say that it is over."""
    work = _Work(policy, Told(), open, counters)
    work.holds.only(running)
    for alert in open if work.remembers else ():
        if alert.detector not in running and not tells_of_many(alert.subject) and not work.holds.on(_key(alert)):
            work.end(alert, at_us, {"reason": RETIRED})
    return work.result()


def _key(about: Alert | Decision) -> str:
    return slot_key(about.model, about.event, about.subject)


def _order(d: Decision) -> tuple[Any, ...]:
    return (d.time_us, d.window_us[1], d.model, d.event.value, d.subject.kind, d.subject.id, d.detector, d.firing)


class _Work:
    """The running state of one step: open alerts and counters, changed decision by decision."""

    def __init__(self, policy: Policy, told: Told, open: Sequence[Alert], counters: Mapping[str, Any]) -> None:
        self.policy = policy
        self.told = told
        self.open = {_key(a): a for a in open}
        self.remembers = counters.get("version") == COUNTERS_VERSION
        self.remembered = Remembered.load(counters if self.remembers else {})
        self.holds = Holds.load(counters if self.remembers else {})
        self.transitions: list[Transition] = []
        self.changed: dict[str, Alert] = {}
        self.dropped: dict[str, int] = {}
        self.excepted: dict[str, int] = {}

    def result(self) -> Step:
        """What this step changed."""
        slots, remembered = self.holds.to_json(), self.remembered.to_json()
        return Step(
            transitions=tuple(self.transitions),
            alerts=tuple(self.changed.values()),
            counters={"version": COUNTERS_VERSION, "slots": slots, "remembered": remembered},
            dropped=dict(sorted(self.dropped.items())),
            excepted=self.excepted,
        )

    def apply(self, d: Decision) -> None:
        """One decision: count it, then open, update or clear."""
        key = _key(d)
        if d.firing and self._folded(d):
            return
        current = self.open.get(key)
        rule = self.policy.persistence.get(d.event, Persistence())
        waits = self.holds.counted(key, d, rule) if d.fixed_rule else self.holds.decided(key, firing=d.firing)
        if waits is not None:
            self._drop(waits)
        elif not d.firing:
            self.remembered.over(key)
            if current is None:
                self._drop("not_open")
            elif not self._held(key, current, d):
                self.end(replace(current, window_us=d.window_us), d.time_us, clean(d.evidence))
        elif current is None:
            if (reason := self._silenced(key, d)) is not None:
                self._drop(reason)
            else:
                self._open(key, d)
        else:
            self._update(key, current, d)
        if d.firing and (lives := self.open.get(key)) is not None:
            self.lasting(lives, moment(d))  # a silence tells its length: one decision may open and raise

    def lasting(self, alert: Alert, until_us: int) -> None:
        """Raise one incident by a step when it stands open for too long by then."""
        at_us = self.policy.lasting_at(alert)
        if at_us is None or at_us > until_us:
            return
        worse = list(Severity)[min(alert.severity.rank + 1, Severity.CRITICAL.rank)]
        evidence = {**alert.evidence, RAISED: [*alert.evidence.get(RAISED, ()), LASTING]}
        made = replace(alert, severity=worse, updated_us=max(at_us, alert.updated_us), evidence=evidence)
        if worse is alert.severity:
            self._keep(made)
        else:
            self._tell(made)

    def believe(self, alert: Alert, at_us: int) -> None:
        """Tell of one incident that was held back."""
        self._absorb(self._tell(replace(alert, updated_us=max(at_us, alert.updated_us)), free=True))

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _folded(self, d: Decision) -> bool:
        """Whether a firing decision about one principal belongs to an attack incident that is open and told already."""
        if d.subject.kind != "principal" or d.event not in ADDED_TO_ATTACK | {Event.ATTACK_SUSPECTED}:
            return False
        told = [a for a in self.open.values() if a.event is Event.ATTACK_SUSPECTED and HELD_BACK not in a.evidence]
        homes = {a.subject.kind: a for a in told if a.model == d.model and d.subject.id in members(a)}
        if d.event is Event.ATTACK_SUSPECTED:
            if "cluster" in homes:
                self._drop("in_cluster")
            return "cluster" in homes
        home = homes.get("principal") or homes.get("cluster")
        if home is None:
            return False
        also = [e for e in home.evidence.get("also", []) if e["event"] != d.event.value]
        also.append({"event": d.event.value, "detector": d.detector, "statistic": clean(d.statistic),
                     "log_e": clean(d.log_e), "time_us": d.time_us})  # fmt: skip
        self._keep(replace(home, evidence={**home.evidence, "also": also}))
        self._drop("added_to_attack")
        return True

    def _silenced(self, key: str, d: Decision) -> str | None:
        """Why this decision opens nothing now; it may later, when it is made again."""
        for exemption in self.told.exemptions:
            if covers(exemption, d):
                self.excepted[exemption.exemption_id] = self.excepted.get(exemption.exemption_id, 0) + 1
                return "excepted"
        if in_maintenance(d, self.told.marks):
            return "maintenance"
        if d.event in INHIBITED:
            missing = self.open.get(slot_key(d.model, Event.DATA_MISSING, Subject("model", d.model)))
            if missing is not None:
                known = dict(missing.evidence.get("inhibited", {}))
                known[d.event.value] = known.get(d.event.value, 0) + 1
                self._keep(replace(missing, evidence={**missing.evidence, "inhibited": known}))
                return "inhibited"
        return "settled" if self.remembered.is_settled(key, d, self.policy.severity(d)) else None

    def _held(self, key: str, current: Alert, d: Decision) -> bool:
        """A rule that has opened too often in a day closes its incident only after a long calm; the first time, say so."""
        openings = self.remembered.flaps(key, current.opened_us) if d.fixed_rule else 0
        since_us = self.remembered.calm.setdefault(key, d.time_us) if openings else d.time_us
        if not openings or d.time_us - since_us >= CALM_US:
            self.remembered.calm.pop(key, None)
            return False
        self._drop("flapping")
        if "flapping" not in current.evidence:
            evidence = {**current.evidence, "flapping": openings}
            self._emit(Action.UPDATE, replace(current, updated_us=d.time_us, evidence=evidence))
        return True

    def settle(self, act: Act, now_us: int) -> None:
        """Close one incident because a person gave a verdict."""
        alert = next((a for a in self.open.values() if a.alert_id == act.alert_id), None)
        if alert is None or act.said is None or not act.closes:
            return
        key = _key(alert)
        at_us = max(now_us, alert.updated_us)
        subject = subject_key(alert.model, alert.subject)
        self.remembered.settle(key, subject, alert, act.said, at_us)
        verdict = {"verdict": act.said.value, "by": act.actor, "why": act.reason, "at": rfc3339(act.time_us)}
        self.end(alert, at_us, {"reason": "verdict", "verdict": clean(verdict)})

    def _open(self, key: str, d: Decision) -> None:
        d = replace(d, time_us=self.remembered.reopens_us(key, d.time_us))
        named = self.policy.named(d.model)
        problem = (self.policy.environment, named.customer or "", d.model, d.subject.kind, d.subject.id, d.event)
        evidence = clean(d.evidence)
        if isinstance(evidence.get("queries"), int):
            evidence["queries_at_opening"] = evidence["queries"]
        if raised := self.policy.raises(d, None, 0):
            evidence[RAISED] = raised
        alert = Alert(
            alert_id=alert_id(problem, d.time_us), environment=self.policy.environment, customer=named.customer,
            model=d.model, event=d.event, subject=d.subject, family=d.family,
            severity=self.policy.severity(d, raised), open=True, seq=0, opened_us=d.time_us, updated_us=d.time_us, cleared_us=None, detector=d.detector,
            statistic=None, threshold=None, p_value=None, log_e=None, n=None, window_us=d.window_us,
            techniques=(), text="", evidence=evidence,
        )  # fmt: skip
        alert = self._measured(alert, d, evidence)
        if marks := nearby(alert, self.told.marks):
            evidence["marks"] = [{"kind": m.kind, "at": rfc3339(m.start_us), "text": clean(m.text)} for m in marks]
        if before := self.remembered.open(key, subject_key(d.model, d.subject), d.time_us, rule=d.fixed_rule):
            evidence["before"] = before
        if d.detector in self.told.demoted and d.event not in MONITOR:
            evidence[HELD_BACK] = REPORT_ONLY
        elif flood.hides(alert) and self.remembered.this_hour(d.model, d.event, d.time_us) > self.policy.per_hour:
            evidence |= {HELD_BACK: f"more than {self.policy.per_hour} in an hour", flood.TOLD_BY: self._roll_up(alert)}
        self._absorb(self._emit(Action.OPEN, alert))

    def _roll_up(self, part: Alert) -> str:
        """Count an incident of a flood in the one incident that sinks are told of; its id."""
        before = self.open.get(flood.slot(part))
        whole = flood.counted(before, part, self.policy.per_hour)
        if before is None or flood.news(before, whole):
            self._emit(Action.OPEN if before is None else Action.UPDATE, whole)
        else:
            self._keep(whole)
        return whole.alert_id

    def _follow(self, into: str, part: Alert) -> None:
        """A roll-up is as severe as the worst in it, and over when the last is over or has left it."""
        whole = next((a for a in self.open.values() if a.alert_id == into), None)
        if whole is None:
            return
        if part.open and flood.TOLD_BY in part.evidence:
            if part.severity.rank > whole.severity.rank:
                at_us = max(whole.updated_us, part.updated_us)
                self._emit(Action.UPDATE, replace(whole, severity=part.severity, updated_us=at_us))
        elif not any(a.evidence.get(flood.TOLD_BY) == into for a in self.open.values()):
            self.end(whole, part.updated_us, {"reason": "all of them are over or told by themselves"})

    def _update(self, key: str, current: Alert, d: Decision) -> None:
        evidence = clean(d.evidence)
        self.remembered.calm.pop(key, None)
        for kept in KEPT:
            if kept in current.evidence:
                evidence.setdefault(kept, current.evidence[kept])
        if evidence.get(HELD_BACK) == REPORT_ONLY and d.detector not in self.told.demoted:
            del evidence[HELD_BACK]  # what it rests on now is believed
        lasted_us = 0 if evidence.get("quiet") else moment(d) - current.opened_us
        raised = sorted({*evidence.get(RAISED, ()), *self.policy.raises(d, current.threshold, lasted_us)})
        if raised:
            evidence[RAISED] = raised
        alert = self._measured(current, d, evidence)
        if d.threshold is None and not d.fixed_rule:
            alert = replace(alert, threshold=current.threshold)  # the level stays what it was at the opening
        # Within one incident severity only rises, so that a borderline series does not flap.
        severity = max(current.severity, self.policy.severity(d, raised), key=lambda s: s.rank)
        alert = replace(alert, severity=severity, family=d.family)
        if not told_apart(current, alert):
            self._drop("unchanged")
            return
        self._absorb(self._tell(alert))

    def _tell(self, alert: Alert, *, free: bool = False) -> Alert:
        """An update. What has become too severe for a flood leaves it."""
        made = self._emit(Action.UPDATE, flood.freed(alert) if free or flood.outgrown(alert) else alert)
        if (into := alert.evidence.get(flood.TOLD_BY)) is not None:
            self._follow(into, made)
        return made

    def end(self, alert: Alert, at_us: int, evidence: Mapping[str, Any]) -> None:
        """Emit a clear; the last of a flood takes its roll-up along."""
        evidence, at_us = {**alert.evidence, **evidence}, max(at_us, alert.updated_us)  # a clock may have gone back
        alert = replace(alert, open=False, cleared_us=at_us, updated_us=at_us, evidence=evidence)
        self._emit(Action.CLEAR, alert)
        key = _key(alert)
        del self.open[key]
        self.holds.end(key)
        if (into := alert.evidence.get(flood.TOLD_BY)) is not None:
            self._follow(into, alert)

    def _absorb(self, into: Alert) -> None:
        """Clear the incidents that an attack incident contains: those of its members, and earlier access anomalies.

        Likewise those of segments that say nothing beyond the model's own: the same event, no other features. What sinks
        are not told of absorbs nothing: they would hear of an end, and of nothing instead.
        """
        found = self._contained(into)
        told = [a for a in found if a.event is into.event and HELD_BACK not in a.evidence]
        if HELD_BACK not in into.evidence:
            for part in found:
                self.end(part, into.updated_us, {"reason": "absorbed", "into": into.alert_id})
        elif told and into.subject.kind == "cluster":
            self.believe(into, into.updated_us)  # of its members the deciders say no more, and they were told

    def _contained(self, into: Alert) -> list[Alert]:
        if into.event in BY_SEGMENT and into.subject.kind == "model":
            own = (into.model, into.event, "segment")
            found = [a for a in self.open.values() if (a.model, a.event, a.subject.kind) == own]
            return [a for a in found if names(a) <= names(into)]
        if into.event is not Event.ATTACK_SUSPECTED:
            return []
        events = ADDED_TO_ATTACK | ({Event.ATTACK_SUSPECTED} if into.subject.kind == "cluster" else frozenset())
        who = [Subject("principal", str(m)) for m in members(into)]
        found = [self.open[k] for w in who for e in sorted(events) if (k := slot_key(into.model, e, w)) in self.open]
        return [a for a in found if a.event is into.event or a.severity.rank <= into.severity.rank]

    def _measured(self, alert: Alert, d: Decision, evidence: Mapping[str, Any]) -> Alert:
        return replace(
            alert, updated_us=d.time_us, detector=d.detector, statistic=clean(d.statistic), threshold=clean(d.threshold),
            p_value=clean(d.p_value), log_e=clean(d.log_e), n=d.n, window_us=d.window_us, evidence=evidence,
            techniques=techniques(d.event, d.family), quiet=bool(evidence.get("quiet", False)),
        )  # fmt: skip

    def _emit(self, action: Action, alert: Alert) -> Alert:
        named = self.policy.named(alert.model)
        runbook = named.runbook or f"{self.policy.runbooks}/{alert.event.value}.md"
        page = None if self.policy.page is None else f"{self.policy.page}/incidents/{alert.alert_id}"
        alert = replace(alert, seq=alert.seq + 1, owner=named.owner, runbook=runbook, page=page)
        alert = replace(alert, text=render(alert, action, tier=named.tier))
        self.transitions.append(Transition(action, alert.updated_us, alert))
        self._keep(alert)
        return alert

    def _keep(self, alert: Alert) -> None:
        self.changed[alert.alert_id] = alert
        key = _key(alert)
        if alert.open:
            self.open[key] = alert
