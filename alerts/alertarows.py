"""Reading Alerta's rows: what a row shows, and what people did to it. Pure; hostile text stays as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from alerts.base import Deed, SinkState
from monitor.model import Severity

CLEARED: Final = "normal"


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
