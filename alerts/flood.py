"""A flood of incidents is told as one. Whoever sends decoys first must not be able to hide behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from alerts.base import COMPONENT, MANY, slot_key
from alerts.policy import MONITOR
from alerts.quiet import HELD_BACK
from monitor.model import Alert, Severity, Subject, alert_id

TOLD_BY: Final = "told_by"  # in the evidence: the incident that tells of the flood that this one is part of
ALONE: Final = Severity.MAJOR  # from here on an incident is told by itself, however many there are
NAMED: Final = 100  # subjects named in the evidence of a roll-up


def hides(alert: Alert) -> bool:
    """Whether a flood may hide it: what is about a part of a model and not severe, never what is about Lanner itself."""
    return alert.event not in MONITOR and alert.subject.kind != "model" and alert.severity.rank < ALONE.rank


def outgrown(alert: Alert) -> bool:
    """Whether an incident has become too severe for the flood that it is part of."""
    return TOLD_BY in alert.evidence and not hides(alert)


def freed(alert: Alert) -> Alert:
    """An incident that is told by itself from now on."""
    return replace(alert, evidence={k: v for k, v in alert.evidence.items() if k not in {HELD_BACK, TOLD_BY}})


def about(part: Alert) -> Subject:
    """Whom the roll-up of an incident is about: never the model, which may have an incident of its own."""
    return Subject(COMPONENT, f"{MANY}{part.subject.kind}s")


def slot(part: Alert) -> str:
    """Where the roll-up of an incident stands among the open ones."""
    return slot_key(part.model, part.event, about(part))


def counted(whole: Alert | None, part: Alert, per_hour: int) -> Alert:
    """The roll-up with one more incident in it, as severe as the worst of them; a new one where there is none."""
    before, subject = {} if whole is None else whole.evidence, about(part)
    names = f"{part.subject.kind}s"
    n = int(before.get("suppressed", 0)) + 1
    evidence = {
        **before, "suppressed": n, "detail": f"suppressed {n}: more than {per_hour} incidents in an hour",
        names: [*before.get(names, ()), part.subject.id][:NAMED],
    }  # fmt: skip
    made = whole or replace(part, subject=subject, seq=0)
    if whole is None:
        made = replace(made, alert_id=alert_id(made.key, part.updated_us))
    worst = max(made.severity, part.severity, key=lambda s: s.rank)
    return replace(made, severity=worst, updated_us=part.updated_us, evidence=evidence)


def news(before: Alert, whole: Alert) -> bool:
    """Whether sinks are told of the roll-up again: it is more severe, or the number reaches a power of two."""
    n = int(whole.evidence["suppressed"])
    return whole.severity is not before.severity or n & (n - 1) == 0
