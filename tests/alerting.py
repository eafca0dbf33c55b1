"""Decisions, alerts and transitions for tests of the alert path, with plain defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from monitor.model import (
    SECOND_US,
    Action,
    Alert,
    Decision,
    Event,
    Family,
    Severity,
    Subject,
    Transition,
    alert_id,
)

DAY0_US = 1_700_000_000 * SECOND_US


def at(seconds: float) -> int:
    """A moment, seconds after the start of the tests' time."""
    return DAY0_US + round(seconds * SECOND_US)


def drift(seconds: float, *, firing: bool = True, **fields: Any) -> Decision:
    """A decision of budget() about the model `m`."""
    base = Decision(
        model="m", event=Event.FEATURE_DRIFT, family=Family.DRIFT, subject=Subject("model", "m"), firing=firing,
        time_us=at(seconds), window_us=(at(seconds - 3600), at(seconds)), detector="marginals", statistic=12.5,
        threshold=9.2, log_e=12.5, n=1000, evidence={"features": [{"name": "amount", "share": 0.8}]},
    )  # fmt: skip
    return replace(base, **fields)


def attack(
    seconds: float, principal: str = "p1", *, firing: bool = True, queries: int = 100, **fields: Any
) -> Decision:
    """A decision of fuse() about one principal."""
    base = Decision(
        model="m", event=Event.ATTACK_SUSPECTED, family=Family.ANOMALY, subject=Subject("principal", principal),
        firing=firing, time_us=at(seconds), window_us=(at(seconds - 60), at(seconds)), detector="queries",
        log_e=14.0, n=queries, evidence={"principals": [principal], "queries": queries},
    )  # fmt: skip
    return replace(base, **fields)


def missing(seconds: float, *, firing: bool = True, **fields: Any) -> Decision:
    """A fixed-rule decision of a clock detector."""
    base = Decision(
        model="m", event=Event.DATA_MISSING, family=Family.QUALITY, subject=Subject("model", "m"), firing=firing,
        time_us=at(seconds), window_us=(at(0), at(seconds)), detector="missing", statistic=seconds, threshold=600.0,
        fixed_rule=True,
    )  # fmt: skip
    return replace(base, **fields)


def traffic(seconds: float, *, firing: bool, statistic: float | None = None, **fields: Any) -> Decision:
    """A fixed-rule decision that needs two of three windows."""
    base = Decision(
        model="m", event=Event.TRAFFIC_ANOMALY, family=Family.QUALITY, subject=Subject("model", "m"), firing=firing,
        time_us=at(seconds), window_us=(at(seconds - 3600), at(seconds)), detector="volume",
        statistic=statistic if statistic is not None else (11.0 if firing else 1.0), threshold=10.0, fixed_rule=True,
    )  # fmt: skip
    return replace(base, **fields)


def alert(subject: str = "p1", severity: Severity = Severity.MAJOR, **fields: Any) -> Alert:
    """An open AttackSuspected about one principal of the model `m`."""
    base = Alert(
        alert_id="", environment="Production", customer=None, model="m", event=Event.ATTACK_SUSPECTED,
        subject=Subject("principal", subject), family=Family.EXTRACTION, severity=severity, open=True, seq=1,
        opened_us=at(0), updated_us=at(0), cleared_us=None, detector="queries", statistic=12.5, threshold=9.2,
        p_value=None, log_e=12.5, n=1000, window_us=(at(-60), at(0)), techniques=("AML.T0024.002",), text="[MAJOR] x",
        evidence={"principals": [subject], "queries": 1000},
    )  # fmt: skip
    made = replace(base, **fields)
    return made if made.alert_id else replace(made, alert_id=alert_id(made.key, made.opened_us))


def opened(subject: str = "p1", **fields: Any) -> Transition:
    """The opening of an alert."""
    made = alert(subject, **fields)
    return Transition(Action.OPEN, made.opened_us, made)


def updated(before: Transition, **fields: Any) -> Transition:
    """The next state of an alert."""
    made = replace(before.alert, seq=before.alert.seq + 1, **fields)
    return Transition(Action.UPDATE, made.updated_us, made)


def cleared(before: Transition, seconds: float = 60.0) -> Transition:
    """The end of an alert."""
    made = replace(before.alert, seq=before.alert.seq + 1, open=False, cleared_us=at(seconds), updated_us=at(seconds))
    return Transition(Action.CLEAR, at(seconds), made)
