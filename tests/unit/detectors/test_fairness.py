"""Outcomes and errors of groups."""

from __future__ import annotations

import pytest

from detectors.performance.fairness import TOO_LITTLE, Fairness
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, Event
from tests.judging import Court, favoured


def court(**params: str | float) -> Court:
    """Groups by colour, labels looked at at once."""
    detector = Fairness(**{"groups": "colour", "delay_s": 0.0, **params})  # type: ignore[arg-type]
    return Court(detector, detector.calibrate([favoured(i) for i in range(5)], "ref"))


def test_a_group_that_begins_to_be_treated_differently_is_named() -> None:
    """A third of the blue are called fraud without cause: one incident that names blue; quiet before."""
    found = court()
    for i in range(110):
        found.window(favoured(i, 0.35 if i >= 90 else 0.0, rows=500))
    opened = next(d for d in found.decisions if d.firing)
    assert opened.event is Event.PERFORMANCE_DECAY
    assert 0 < opened.time_us // HOUR_US - 150 <= 8
    assert any(f["name"].startswith("colour blue: ") for f in opened.evidence["features"])


def test_every_group_has_its_rates_with_bands_or_says_that_there_is_too_little() -> None:
    """Ten blue rows in a hundred are no rate; red ones are."""
    found = court()
    found.window(favoured(3, rows=100))
    told = {g["group"]: g for g in found.detections[0].evidence["groups"]}
    low, high = told["red"]["outcome rate"]["band"]
    assert low < told["red"]["outcome rate"]["share"] < high
    assert told["blue"]["outcome rate"]["reason"] == TOO_LITTLE
    assert "true positive rate" in told["red"]
    assert "false positive rate" in told["red"]
    assert found.detections[0].evidence["outcome"] == "fraud"


def test_numbers_make_three_groups() -> None:
    """A number is cut at its thirds."""
    detector = Fairness(groups="x0")
    cal = detector.calibrate([favoured(0)], "ref")
    assert len(cal.meta["groups"][0][1]) == 3


@pytest.mark.parametrize(("groups", "why"), [("", "names no groups"), ("nothing", "no feature nothing")])
def test_without_groups_it_refuses(groups: str, why: str) -> None:
    """It says what is missing."""
    with pytest.raises(CalibrationRefused, match=why):
        Fairness(groups=groups).calibrate([favoured(0)], "ref")
