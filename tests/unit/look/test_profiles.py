"""Uses that incidents suggest to declare."""

from __future__ import annotations

import pytest

from monitor.model import Act, Said, Severity
from monitor.reports.profiles import proposals
from monitor.store.lookups import IncidentRow
from monitor.store.people import ActRow


def abused(name: str, signal: str) -> IncidentRow:
    """An incident on abuse that one signal led."""
    evidence = {"detectors": [{"name": f"abuse/{signal}", "log_e": 20.0}, {"name": "abuse/tokens", "log_e": 3.0}]}
    return IncidentRow(
        f"of {name}", "m", "AbuseSuspected", "principal", name, "abuse", "minor", True, False, 1, 0, 0, None,
        "abuse", None, None, None, None, None, None, (), "", evidence,
    )  # fmt: skip


def said(what: Said) -> list[ActRow]:
    """A verdict on it."""
    act = Act("of x", "verdict", "ann", "a backfill", "cli", 1, said=what)
    return [ActRow(1, act, "m", Severity.MINOR, 1)]


@pytest.mark.parametrize(("signal", "profile"), [("odd_hours", "batch"), ("errors", "retries"), ("flood", "load_test")])
def test_a_good_reason_for_what_was_taken_for_abuse_suggests_a_use(signal: str, profile: str) -> None:
    """By the signal that led it, with the person's reason; without such a verdict, or with another, nothing."""
    found = proposals([abused("x", signal)], {"of x": said(Said.BENIGN_TRUE)}, [])
    assert [(p.name, p.profile, p.why, p.by) for p in found] == [("x", profile, "a backfill", "ann")]
    for acts in ({}, {"of x": said(Said.TRUE)}):
        assert proposals([abused("x", signal)], acts, []) == []
