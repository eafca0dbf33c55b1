"""What an alert carries beside its fields: evidence as JSON can hold it, and when it has changed enough to be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alerts.quiet import HELD_BACK
from monitor.model import Alert

EVIDENCE_TEXT: Final = 2000  # longest string kept in evidence, characters
EVIDENCE_ITEMS: Final = 1000  # longest list kept in evidence


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


def told_apart(before: Alert, after: Alert) -> bool:
    """Whether an update is worth a line: severity, family, state, the named features or principals, or many queries.

    And when sinks hear of it from now on.
    """
    return (
        (before.severity, before.family, before.quiet) != (after.severity, after.family, after.quiet)
        or names(before) != names(after)
        or set(before.evidence.get("principals") or ()) != set(after.evidence.get("principals") or ())
        or _doublings(before) < _doublings(after)
        or (HELD_BACK in before.evidence and HELD_BACK not in after.evidence)
    )


def members(alert: Alert) -> Sequence[str]:
    """The callers that an attack incident is about."""
    return [alert.subject.id] if alert.subject.kind == "principal" else [*alert.evidence.get("principals", ())]


def names(alert: Alert) -> set[str]:
    """The features that an alert names."""
    return {str(f.get("name")) for f in alert.evidence.get("features") or () if isinstance(f, Mapping)}


def _doublings(alert: Alert) -> int:
    """How often the number of queries since opening has doubled: it grows when they reach a power of two."""
    queries = alert.evidence.get("queries")
    if not isinstance(queries, int):
        return 0
    return max(0, queries - int(alert.evidence.get("queries_at_opening", 0))).bit_length()
