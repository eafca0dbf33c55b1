"""Who is held back, from stored detections: the list, and what is suggested."""

from __future__ import annotations

from typing import Any

from monitor.model import HOUR_US
from monitor.reports.held import held_rows
from monitor.reports.profiles import proposals
from monitor.store.queries import DetectionRow

TOOL = {"profile": "explainer", "why": "84 of 97 strange queries are samples around rows that it sent as they are"}


def held(kind: str, name: str, hour: int, **evidence: Any) -> DetectionRow:
    """What was found in a caller, or in several that are one, by this hour."""
    told = {"look_alike": TOOL, "flagged": 9, **evidence}
    return DetectionRow(
        "queries", "queries", "anomaly", "AttackSuspected", kind, name, 0, hour * HOUR_US, 12.1, 11.1, None, 12.1, 70, "ok", told,
    )  # fmt: skip


def test_callers_that_are_one_are_listed_by_their_names() -> None:
    """Each once, with what was said last, be it of all together or of one alone."""
    found = [held("principal", "b", 3), held("cluster", "some id", 2, principals=["a", "b"]), held("principal", "a", 1)]
    assert [(h.principal, h.others, h.time_us // HOUR_US) for h in held_rows(found)] == [("b", 0, 3), ("a", 1, 2)]


def test_callers_that_are_one_are_suggested_by_their_names() -> None:
    """None where it is told why they are no tool."""
    doubted = held("principal", "c", 1, look_alike={"profile": "explainer", "why_not": "12% of its 900 queries are"})
    found = [held("cluster", "some id", 2, principals=["a", "b"]), doubted]
    assert [(p.name, p.profile, p.incident) for p in proposals([], {}, found)] == [
        ("a", "explainer", None), ("b", "explainer", None),
    ]  # fmt: skip
