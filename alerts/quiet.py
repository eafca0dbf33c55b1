"""What keeps an incident from opening, from closing too soon, or from being told: exceptions, maintenance, floods.

All of it bears on openings only. An incident that is open is updated and cleared whatever is said here, and nothing is
lost by waiting: the deciders and rules say it again as long as the problem lasts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from alerts.policy import SECURITY
from monitor.model import (
    HOUR_US,
    MAINTENANCE,
    SECOND_US,
    Alert,
    Decision,
    Event,
    Exemption,
    Mark,
    Said,
    Severity,
    Transition,
)

DAY_US: Final = 24 * HOUR_US
SETTLED_US: Final = DAY_US  # what a person settled does not come back unchanged for so long
FLAP_OPENINGS: Final = 3  # openings within a day, from which on an incident closes only after CALM_US without a sign
CALM_US: Final = 6 * HOUR_US
REMEMBERED: Final = 5000  # subjects whose earlier incidents are counted; the oldest are forgotten
HELD_BACK: Final = "held_back"  # in the evidence: why sinks are not told of an incident
REPORT_ONLY: Final = "the detector is on report only"

INHIBITED: Final = frozenset(  # what missing data looks like to other monitors
    {
        Event.FEATURE_DRIFT, Event.PREDICTION_DRIFT, Event.PERFORMANCE_DECAY, Event.DISTRIBUTION_BREAK,
        Event.DATA_QUALITY, Event.TRAFFIC_ANOMALY,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What people told Lanner that bears on the decisions about one model.

    `demoted`: detectors whose precision by verdicts is under the floor; their incidents are kept but not sent.
    """

    exemptions: Sequence[Exemption] = ()
    marks: Sequence[Mark] = ()
    demoted: frozenset[str] = frozenset()


def covers(exemption: Exemption, d: Decision) -> bool:
    """Whether an exception covers a decision: subject, event, every contributing detector, and all bounds.

    >>> from monitor.model import Family, Subject
    >>> e = Exemption("x", "m", Event.ATTACK_SUSPECTED, Subject("principal", "p"), ("queries",), {"queries": 500.0},
    ...               "batch", "ann", 0, 100)
    >>> d = Decision("m", Event.ATTACK_SUSPECTED, Family.ANOMALY, Subject("principal", "p"), True, 50, (0, 50), "queries",
    ...              evidence={"queries": 400})
    >>> from dataclasses import replace
    >>> covers(e, d), covers(e, replace(d, evidence={"queries": 501})), covers(e, replace(d, time_us=100))
    (True, False, False)
    """
    same = (d.model, d.event, d.subject) == (exemption.model, exemption.event, exemption.subject)
    if not same or d.time_us >= exemption.expires_us:
        return False
    named = [x.get("name") for x in d.evidence.get("detectors") or () if isinstance(x, Mapping)]
    if exemption.detectors and not {d.detector, *named} <= set(exemption.detectors):
        return False
    for name, bound in exemption.bounds.items():
        value = {"statistic": d.statistic, "n": d.n, "log_e": d.log_e}.get(name, d.evidence.get(name))
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= bound:
            return False
    return True


def contributors(alert: Alert) -> tuple[str, ...]:
    """The detectors that an incident rests on: an exception made of it covers these and no others."""
    named = [str(x.get("name")) for x in alert.evidence.get("detectors") or () if isinstance(x, Mapping)]
    return tuple(sorted({alert.detector, *named}))


def moment(d: Decision) -> int:
    """When a decision was true last: rules date it to the beginning of the problem, and a silence tells its length."""
    if d.event is Event.DATA_MISSING and d.statistic is not None:
        return d.window_us[0] + round(d.statistic * SECOND_US)
    return max(d.time_us, d.window_us[1])


def in_maintenance(d: Decision, marks: Sequence[Mark]) -> bool:
    """Whether a maintenance window explains it. Attacks are not explained by maintenance."""
    if d.event in SECURITY:
        return False
    at_us = moment(d)
    windowed = d.event in INHIBITED
    for m in marks:
        if m.kind != MAINTENANCE or m.model not in (None, d.model) or m.end_us is None:
            continue
        if m.start_us <= at_us < m.end_us:
            return True
        if windowed and d.window_us[0] < m.end_us and m.start_us < d.window_us[1]:
            return True
    return False


def nearby(alert: Alert, marks: Sequence[Mark]) -> list[Mark]:
    """Marks that may explain an incident: those that touch its window or the day before its opening, newest first."""
    since_us = min(alert.window_us[0], alert.opened_us - DAY_US)
    found = [
        m
        for m in marks
        if m.model in (None, alert.model)
        and m.start_us <= alert.updated_us
        and (m.start_us if m.end_us is None else m.end_us) >= since_us
    ]
    return sorted(found, key=lambda m: (-m.start_us, m.kind, m.text))[:5]


def told(transition: Transition) -> bool:
    """Whether sinks hear of a transition: not of what was held back by the hourly cap or a detector's demotion."""
    return HELD_BACK not in transition.alert.evidence


def watched(counters: Mapping[str, Any]) -> bool:
    """Whether a problem that a person settled is watched for its end: then rules must also say that nothing is wrong."""
    return bool(counters.get("remembered", {}).get("settled"))


@dataclass
class Remembered:
    """What is kept about problems beyond their incidents; plain JSON in the counters of the alert pipeline."""

    past: dict[str, dict[str, Any]] = field(default_factory=dict)  # subject -> earlier incidents, verdicts
    opened: dict[str, list[int]] = field(default_factory=dict)  # of a rule: problem -> openings, the last day's
    calm: dict[str, int] = field(default_factory=dict)  # problem that flaps -> since when there has been no sign of it
    settled: dict[str, dict[str, Any]] = field(default_factory=dict)  # problem -> what a person has seen of it
    hours: dict[str, list[int]] = field(default_factory=dict)  # model and event -> [hour, incidents opened in it]

    @classmethod
    def load(cls, counters: Mapping[str, Any]) -> Remembered:
        """From the counters that the step before handed back. Values are replaced, never changed: those stay as they were."""
        return cls(**{name: dict(part) for name, part in counters.get("remembered", {}).items()})

    def to_json(self) -> dict[str, Any]:
        """Only what is not empty."""
        parts = {
            "past": self.past,
            "opened": self.opened,
            "calm": self.calm,
            "settled": self.settled,
            "hours": self.hours,
        }
        return {name: part for name, part in parts.items() if part}

    def open(self, key: str, subject: str, time_us: int, *, rule: bool) -> Mapping[str, Any]:
        """Note an opening; what was known of the subject before it."""
        self.calm.pop(key, None)
        self.settled.pop(key, None)
        if rule:
            self.opened[key] = [*(t for t in self.opened.pop(key, ()) if t > time_us - DAY_US), time_us]
            self.opened = dict(list(self.opened.items())[-REMEMBERED:])
        before = dict(self.past.get(subject, {}))
        self.past[subject] = {**before, "incidents": before.get("incidents", 0) + 1, "last_us": time_us}
        if len(self.past) > REMEMBERED:
            del self.past[min(self.past, key=lambda k: (self.past[k]["last_us"], k))]
        before.pop("last_us", None)
        return before

    def flaps(self, key: str, time_us: int) -> int:
        """How often a problem opened within a day, when that is too often; else 0."""
        n = sum(t > time_us - DAY_US for t in self.opened.get(key, ()))
        return n if n >= FLAP_OPENINGS else 0

    def settle(self, key: str, subject: str, alert: Alert, said: Said, time_us: int) -> None:
        """A person has judged an incident."""
        past = self.past.get(subject, {"incidents": 1, "last_us": time_us})
        self.past[subject] = {**past, said.value: past.get(said.value, 0) + 1}
        until_us, names = time_us + SETTLED_US, sorted(_named(alert.evidence))
        self.settled[key] = {
            "at_us": time_us, "until_us": until_us, "rank": alert.severity.rank, "names": names,
        }  # fmt: skip

    def is_settled(self, key: str, d: Decision, severity: Severity) -> bool:
        """Whether a person has closed this problem as it is: no worse, no other features, not long ago."""
        known = self.settled.get(key)
        if d.event in SECURITY and not d.fixed_rule:
            return False  # weighed anew, evidence of an attack is news, whoever closed the incident before
        if known is None or moment(d) >= known["until_us"] or severity.rank > known["rank"]:
            return False
        return _named(d.evidence) <= set(known["names"])

    def reopens_us(self, key: str, time_us: int) -> int:
        """When a problem opens: rules date it to its beginning, which may lie before the end that a person gave it.

        Never when it opened before: that would be the same incident, and its first steps are told already.
        """
        known = self.settled.get(key)
        opens_us = time_us if known is None else max(time_us, known["at_us"] + 1)
        while opens_us in self.opened.get(key, ()):
            opens_us += 1
        return opens_us

    def over(self, key: str) -> None:
        """The problem was seen to be gone: when it comes back, it is news."""
        self.settled.pop(key, None)

    def this_hour(self, model: str, event: Event, time_us: int) -> int:
        """How many incidents of this event on this model that a flood may hide have opened in the hour, this one included."""
        key, hour = json.dumps([model, event.value]), time_us // HOUR_US
        self.hours = {k: v for k, v in self.hours.items() if v[0] >= hour - 1}
        known = self.hours.get(key, [hour, 0])
        self.hours[key] = [hour, known[1] + 1 if known[0] == hour else 1]
        return self.hours[key][1]


def _named(evidence: Mapping[str, Any]) -> set[str]:
    """The features or models that an incident is about."""
    listed = [*(evidence.get("features") or ()), *(evidence.get("models") or ())]
    return {str(x.get("name")) for x in listed if isinstance(x, Mapping)}
