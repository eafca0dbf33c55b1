"""The measured false alarms and delays of the drift engine: the stored ones against their bars, short runs against those.

All numbers are measured by `python -m benchmarks.drift_null`; these short forms run the same code on fewer windows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import drift_null
from benchmarks.drift_streams import ROWS, Rows, flights, shuffled
from detectors.drift.marginals import BREAKS_EXPECTED

PAGE = (Path(drift_null.__file__).parents[1] / "docs" / "detectors.md").read_text(encoding="utf-8")
BASELINE = json.loads((Path(drift_null.__file__).parent / "drift_null.json").read_text(encoding="utf-8"))
WINDOWS = 200  # judged per stream here
NUMBERS = ("distance", "seats")  # which vary little between days


@pytest.fixture(scope="module")
def year() -> Rows:
    """A year of real flights."""
    return flights()


def test_what_is_stored_can_be_measured_again() -> None:
    """Every stored part is one of the benchmark's."""
    assert set(BASELINE) <= set(drift_null.PARTS)


@pytest.mark.parametrize("stream", ["synthetic", "iid", "block"])
def test_the_budget_is_kept(stream: str) -> None:
    """Stored: at most half a false alarm in 720 checks where nothing changed, at most one in its upper bound."""
    found = BASELINE[f"null/{stream}"]
    assert found["windows"] >= 7200
    assert found["per_720"] <= 0.5
    assert found["upper_95"] <= 1.0


def test_breaks_are_told_as_often_as_they_were_measured() -> None:
    """What alerts and page say of breaks of one window are the stored rates of shuffled rows and days, at the same setting."""
    assert BREAKS_EXPECTED["at_times"] == drift_null.BREAKS
    for key, part in (("shuffled_rows", "null/iid"), ("shuffled_days", "null/block")):
        assert f"{BREAKS_EXPECTED[key]:g}" == f"{BASELINE[part]['breaks_per_720']:.2g}"
    rows, days = BREAKS_EXPECTED["shuffled_rows"], BREAKS_EXPECTED["shuffled_days"]
    windows = BASELINE["null/block"]["windows"]
    told = f"{rows:g} came in 720 windows of shuffled rows, {days:g} of shuffled days ({windows:,} windows each)"
    assert told in " ".join(PAGE.split())


@pytest.mark.parametrize(
    ("part", "bars"),
    [("delay_iid_336", {0.1: 7, 0.25: 4, 0.5: 4}), ("delay_block_100", {0.1: 14, 0.25: 7, 0.5: 6})],
)
def test_shifts_are_found_in_time(part: str, bars: dict[float, int]) -> None:
    """Stored: a number's shift within its bar, and by the break lane a half standard deviation in one window."""
    for name in NUMBERS:
        for size, bar in bars.items():
            assert BASELINE[part][f"{name} {size}"]["drift"] <= bar
        assert BASELINE[part][f"{name} 0.25"]["break"] <= 2
        assert BASELINE[part][f"{name} 0.5"]["break"] <= 1


@pytest.mark.parametrize(("part", "few", "many"), [("delay_iid_336", 5, 4), ("delay_block_100", 8, 6)])
def test_a_changed_mix_is_found_in_time(part: str, few: int, many: int) -> None:
    """Stored: five and ten points of a carrier's share."""
    assert BASELINE[part]["carrier 0.05"]["drift"] <= few
    assert BASELINE[part]["carrier 0.1"]["drift"] <= many


def test_incidents_end_when_the_shift_does_and_not_before() -> None:
    """Stored: one transition under a shift that never ends, in a feature that varies little between days; six windows in
    the median after one that does, in all three.
    """
    for part in ("endless/iid", "endless/block"):
        assert BASELINE[part]["distance 0.25"]["most_transitions"] == 1
    for part in ("ended/iid", "ended/block"):
        for name in ("distance", "dep_delay", "temp"):
            assert BASELINE[part][name]["cleared"] <= 6


@pytest.mark.parametrize("part", sorted(p for p in BASELINE if p.startswith(("hours/", "day/"))))
def test_true_hours_and_days_keep_the_budget(part: str) -> None:
    """Stored: with a season, and with weather that lasts, at most one false alarm in 30 days."""
    found = BASELINE[part]
    assert next(v for k, v in found.items() if k.startswith("per_")) <= 1.0


@pytest.mark.parametrize("kind", ["iid", "block"])
def test_nothing_changed_on_real_rows(year: Rows, kind: str) -> None:
    """Shuffled rows and shuffled days: no more than one opening in 200 windows, which the baseline makes unlikely."""
    table = shuffled(year, kind, np.random.default_rng(21)).slice(0, (100 + WINDOWS) * ROWS)
    opened, _, _ = drift_null.transitions(drift_null.run(table, year, 100))
    assert len(opened) <= 1


def test_delay_on_real_rows(year: Rows) -> None:
    """A quarter of a standard deviation in one of 23 features, a tenth of the carriers' mix: within the baseline + 2."""
    found = drift_null.delays(year, "iid", 100, drift_null.STEADY, 1, 22)
    for name, told in found.items():
        assert told["drift"] <= BASELINE["delay_iid_100"][name]["drift"] + 2
