"""Alerta's rows: what is written into one, what one shows, and what people did to it. Pure.

What is written is harmless: numbers, sentences of ours, and names in which all markup is spelled out. What is read stays as
it came, and is hostile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alerts.base import Deed, SinkState
from alerts.policy import MONITOR, SECURITY
from alerts.text import LOOKALIKES, measure, number, shown
from monitor.model import UNREGISTERED, Action, Alert, Event, Severity, Transition, rfc3339

CLEARED: Final = "normal"
TEXT_CHARS: Final = 1500
RESOURCE_CHARS: Final = 200  # the server's index refuses keys over 2.7 kB


def resource(alert: Alert) -> str:
    r"""What is in trouble, as Alerta names it: bounded, harmless, and different for different things.

    >>> label("a<b"), len(label("x" * 500))
    ('a\\x3cb', 95)
    """
    if alert.subject.kind == "model":
        return f"model:{label(alert.model)}"
    return f"model:{label(alert.model)}/{alert.subject.kind}:{label(alert.subject.id)}"


def row_key(alert: Alert) -> dict[str, str]:
    """What makes it one row there, beside the customer."""
    return {"environment": label(alert.environment), "resource": resource(alert), "event": alert.event.value}


def payload(transition: Transition) -> dict[str, Any]:
    """The body of POST /alert. No id, no createTime (the server's clock stamps it), no correlate, no state in tags."""
    alert = transition.alert
    cleared = transition.action is Action.CLEAR
    window_s = (alert.window_us[1] - alert.window_us[0]) / 1e6
    body: dict[str, Any] = {
        **row_key(alert),
        "severity": CLEARED if cleared else alert.severity.value,
        "correlate": [],
        "service": [label("lanner" if alert.model == UNREGISTERED else alert.model)],
        "value": measure(alert),
        "text": alert.text[:TEXT_CHARS],
        "tags": ["lanner"],
        "attributes": attributes(alert),
        "rawData": "sha256:"
        + hashlib.sha256(json.dumps(alert.evidence, sort_keys=True, default=str).encode()).hexdigest(),
        # Alerta must not expire an open attack while its sender is down; for the rest a silent sender shows after a while.
        "timeout": 0 if alert.event in SECURITY else int(max(3 * window_s, 3600)),
        **_fixed(alert.event),
    }
    if alert.customer is not None:
        body["customer"] = label(alert.customer)
    return body


def attributes(alert: Alert) -> dict[str, str | int]:
    """All attributes, every time: what is omitted would stay as it was, what is null would be shown as null."""
    features = alert.evidence.get("features") or ()
    names = [shown(f.get("name"), 40) for f in features if isinstance(f, Mapping)]
    principals = alert.evidence.get("principals") or ()
    return {
        "finding_id": alert.alert_id,
        "state_seq": alert.seq,
        "family": alert.family.value,
        "model": shown(alert.model),
        "model_version": shown(alert.evidence.get("model_version", "")),
        "subject": f"{alert.subject.kind}: {shown(alert.subject.id)}",
        "first_seen": rfc3339(alert.opened_us),
        "last_eval": rfc3339(alert.updated_us),
        "detector": shown(alert.detector),
        "detector_version": shown(alert.evidence.get("detector_version", "")),
        "calibration": shown(alert.evidence.get("calibration", "")),
        "reference": shown(alert.evidence.get("reference", "")),
        "statistic": number(alert.statistic),
        "threshold": number(alert.threshold),
        "p_value": number(alert.p_value),
        "log_evidence": number(alert.log_e),
        "window": f"{rfc3339(alert.window_us[0])} / {rfc3339(alert.window_us[1])}",
        "n": alert.n if alert.n is not None else "-",
        "features": ", ".join(names[:20]),
        "principals": len(principals) if isinstance(principals, Sequence) else 0,
        "techniques": " ".join(alert.techniques),
        "confidence": shown(alert.evidence.get("confidence", "")),
        "quiet": "yes" if alert.quiet else "no",
        "reason": shown(alert.evidence.get("reason", "")),
        "into": shown(alert.evidence.get("into", "")),
        "owner": shown(alert.owner or ""),
        "runbook": shown(alert.runbook, 200),
        "evidence_url": shown(alert.page or "", 200),
        "look_alikes": LOOKALIKES[alert.event],
    }


def _fixed(event: Event) -> dict[str, str]:
    """Fields that Alerta keeps from the first send, so they depend on the event alone."""
    group, kind = (
        ("ModelSecurity", "modelSecurityAlert") if event in SECURITY
        else ("MonitorDegraded", "monitorAlert") if event in MONITOR
        else ("ModelQuality", "modelQualityAlert")
    )  # fmt: skip
    return {"group": group, "type": kind, "origin": f"lanner/{event.value}"}


def label(text: str) -> str:
    """`shown`, but what is cut ends in a digest, so that long names stay apart."""
    limit = (RESOURCE_CHARS - 10) // 2
    whole = shown(text, 100_000)
    if len(whole) <= limit:
        return whole
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
    return f"{whole[: limit - 13]}~{digest}"


def turns(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The history of a row, oldest first."""
    history = row.get("history")
    known = [h for h in history if isinstance(h, Mapping)] if isinstance(history, Sequence) else []
    return sorted(known, key=lambda h: str(h.get("updateTime")))


def state(row: Mapping[str, Any]) -> SinkState:
    """What a row shows. A person's close also sets `normal`; then the severity before it is named."""
    severity, status = str(row.get("severity")), str(row.get("status"))
    steps = [h for h in turns(row) if h.get("type") not in {"note", "value"}]  # those change no state
    last = str(steps[-1].get("type")) if steps else ""
    if status == "closed" and severity == CLEARED and last == "close":
        before = [str(h.get("severity")) for h in steps if h.get("severity") not in {CLEARED, None}]
        severity = before[-1] if before else severity
    wanted = {
        "ack": ("ack",), "shelved": ("shelve",), "closed": ("close",), "open": ("unack", "unshelve", "timeout"),
    }.get(status, ())  # fmt: skip
    # A row stays acknowledged or shelved through later severities; closed and open are of whoever came last.
    acted = [h for h in steps if h.get("type") in wanted] if status in {"ack", "shelved"} or last in wanted else []
    return SinkState(severity, status, str(row.get("id")), _deed(acted[-1]) if acted else None)


def _deed(turn: Mapping[str, Any]) -> Deed:
    kind, who, note, ref = (str(turn.get(k) or "") for k in ("type", "user", "text", "updateTime"))
    return Deed(kind, "Alerta" if kind == "timeout" else who, note, ref)  # its user is whoever called the housekeeping


def risen_since_shelving(row: Mapping[str, Any], now: Severity) -> bool:
    """Whether the row was cleared, or was less severe, when it was shelved."""
    ordered = turns(row)
    shelved = [i for i, h in enumerate(ordered) if h.get("type") == "shelve"]
    if not shelved:
        return True  # shelved longer ago than Alerta remembers: better seen once too often
    then, later = ordered[shelved[-1]], ordered[shelved[-1] + 1 :]
    if any(h.get("severity") == CLEARED for h in later):
        return True
    ranks = {s.value: s.rank for s in Severity}
    return ranks.get(str(then.get("severity")), -1) < now.rank
