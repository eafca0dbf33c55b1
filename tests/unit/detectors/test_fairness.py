"""Outcomes and errors of groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
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


def test_rates_of_a_sampled_log_are_those_of_the_traffic() -> None:
    """Of what is not the outcome a quarter is logged and says so: rates are as they were, with wider bands."""
    whole = favoured(3, rows=4000)
    rng = np.random.default_rng(7)
    fraud = np.asarray(whole.table["prediction_label"].to_pylist()) == "fraud"
    kept = np.flatnonzero(fraud | (rng.random(4000) < 0.25))
    fraction = pa.array(np.where(fraud, 1.0, 0.25))
    table = whole.table.append_column("sampling_fraction", fraction).take(pa.array(kept))
    told = {}
    for name, window in (("whole", whole), ("sampled", dataclasses.replace(whole, table=table))):
        found = court()
        found.window(window)
        told[name] = {g["group"]: g["outcome rate"] for g in found.detections[0].evidence["groups"]}
    for group, was in told["whole"].items():
        now = told["sampled"][group]
        assert now["share"] == pytest.approx(was["share"], abs=0.04)
        assert now["n"] < was["n"]
        assert now["band"][1] - now["band"][0] > was["band"][1] - was["band"][0]


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
