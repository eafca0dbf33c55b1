"""Data quality by rules that the reference kept to, under the model's budget."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.base import Calibration
from detectors.quality.freshness import Freshness
from detectors.quality.rules import Rules
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, Event
from tests.judging import Court, Rows, hours, recorded

Change = Callable[[pa.Table], pa.Table]


def put(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Change:
    """A change of one column."""

    def apply(table: pa.Table) -> pa.Table:
        values = change(np.array(table[name].to_pylist(), dtype=object))
        column = pa.array(values.tolist(), table[name].type)
        return table.set_column(table.column_names.index(name), name, column)

    return apply


def typed(table: pa.Table) -> pa.Table:
    """One row in five has a value of the wrong type."""
    return table.append_column("mismatched", pa.array([i % 5 == 0 for i in range(table.num_rows)]))


def flagged(table: pa.Table) -> pa.Table:
    """One row in five carries a field that the reference does not have."""
    flags = pa.array([["unknown_feature"] if i % 5 == 0 else [] for i in range(table.num_rows)], pa.list_(pa.string()))
    return table.append_column("quality", flags)


def repeated(table: pa.Table) -> pa.Table:
    """The second half of the window repeats the first."""
    half = table.slice(0, table.num_rows // 2)
    return pa.concat_tables([half, half])


@functools.cache
def learnt() -> tuple[Calibration, list[Rows]]:
    """Fourteen days of usual windows learnt, and sixty more."""
    found = hours(396, 100, np.random.default_rng(7))
    return Rules().calibrate(found[:336], "ref"), found[336:]


def judged(change: Change, first: int = 20, last: int = 40) -> Court:
    """Usual windows of which some are changed."""
    calibration, later = learnt()
    court = Court(Rules(), calibration)
    for i, w in enumerate(later[: last + 10]):
        table = change(w.table) if first <= i < last else w.table
        court.window(dataclasses.replace(w, table=table))
    return court


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (put("feature:x6", lambda x: x * 100), "x6/range"),
        (put("feature:colour", lambda x: np.full(len(x), "red", dtype=object)), "colour/constant"),
        (put("feature:x1", lambda x: np.full(len(x), 0.0, dtype=object)), "x1/constant"),
        (typed, "all fields/type"),
        (repeated, "all fields/duplicates"),
        (put("feature:x7", lambda x: x / 100), "x7/unit"),
        (
            put(
                "feature:colour",
                lambda x: np.array(["mauve" if i % 20 == 0 else v for i, v in enumerate(x)], dtype=object),
            ),
            "colour/new",
        ),
        (
            put("feature:x2", lambda x: np.array([None if i % 10 == 0 else v for i, v in enumerate(x)], dtype=object)),
            "all fields/absent",
        ),
        (flagged, "all fields/unknown"),
    ],
    ids=["unit", "one word", "default value", "type", "duplicates", "unit within", "new category", "null", "new field"],
)
def test_broken_data_opens_within_four_windows_and_ends(change: Change, rule: str) -> None:
    """One incident that names the rule, cleared when the data is right again."""
    court = judged(change)
    opened, ended = court.decisions[0], court.decisions[-1]
    assert opened.event is Event.DATA_QUALITY
    assert opened.time_us // HOUR_US - 356 <= 4
    assert rule in opened.evidence["bets"].values()
    assert not ended.firing
    assert ended.time_us // HOUR_US - 376 <= 6
    assert sum(d.firing for d in court.decisions) == 1


def test_change_of_unit_is_named() -> None:
    """Cents instead of riyals: the factor stands in the evidence."""
    court = judged(put("feature:x6", lambda x: x * 100))
    assert any(d.evidence.get("units") == {"x6": 100.0} for d in court.detections)


def test_change_of_unit_within_the_range_is_named() -> None:
    """Codes of 1 to 5 that come as hundredths are never out of range; their typical size tells."""
    court = judged(put("feature:x7", lambda x: x / 100))
    assert any(d.evidence.get("units") == {"x7": 0.01} for d in court.detections)


def test_data_that_become_stale_are_found() -> None:
    """Events recorded ten minutes late instead of five seconds: one DataQuality that names freshness, and its end."""
    court = Court(Freshness(), Freshness().calibrate([], "none"))
    for i in range(110):
        court.window(recorded(i, 600.0 if 80 <= i < 95 else 5.0))
    opened, ended = court.decisions[0], court.decisions[-1]
    assert opened.event is Event.DATA_QUALITY
    assert opened.time_us // HOUR_US - 140 <= 6
    assert [f["name"] for f in opened.evidence["features"]] == ["freshness"]
    assert not ended.firing
    assert court.detections[85].evidence["median_delay_s"] > 100


def test_one_bad_window_and_usual_ones_are_no_incident() -> None:
    """A single burst is one trial."""
    assert judged(typed, 20, 21).decisions == []


def test_a_reference_without_times_is_cut_into_stretches() -> None:
    """Six thousand rows without times are enough, three hundred are refused."""
    rng = np.random.default_rng(9)
    parts = hours(60, 100, rng)
    for n, enough in ((60, True), (3, False)):
        whole = pa.concat_tables([p.table for p in parts[:n]])
        window = Rows("m", 0, 0, whole, parts[0].bins)
        if enough:
            assert Rules().calibrate([window], "ref").meta["windows"] == 30
        else:
            with pytest.raises(CalibrationRefused, match="20 are needed"):
                Rules().calibrate([window], "ref")


def test_rows_that_repeat_by_chance_are_no_duplicates() -> None:
    """Rows of a few thousand cases, drawn again and again: windows ten times as large repeat more, and nothing is broken."""
    rng = np.random.default_rng(3)
    cases = hours(1, 3000, rng)[0]

    def hour(i: int, n: int) -> Rows:
        rows = cases.table.take(pa.array(rng.integers(0, 3000, n)))
        times = pa.array(i * HOUR_US + np.sort(rng.integers(0, HOUR_US, n)))
        table = rows.set_column(rows.column_names.index("event_time"), "event_time", times)
        return Rows("m", i * HOUR_US, (i + 1) * HOUR_US, table, cases.bins)

    court = Court(Rules(), Rules().calibrate([hour(i, 40) for i in range(200)], "ref"))
    for i in range(200, 230):
        court.window(hour(i, 400))
    assert court.decisions == []


def test_shares_of_a_sampled_log_are_those_of_the_traffic() -> None:
    """One row in twenty has a wrong type, in the reference too. Logged in full while all others are logged at a declared
    tenth they make a third of the log, and are still one in twenty of the traffic: no incident; without the fraction one
    comes, and one comes with it when they are four in ten of the traffic.
    """
    rng = np.random.default_rng(31)

    def logged(table: pa.Table, wrong: float, other: float, *, told: bool = True) -> pa.Table:
        odd = rng.random(table.num_rows) < wrong
        fraction = np.where(odd | (not told), 1.0, other)
        table = table.append_column("mismatched", pa.array(odd)).append_column("sampling_fraction", pa.array(fraction))
        return table.filter(pa.array(odd | (rng.random(len(odd)) < other)))

    known = hours(80, 400, rng)
    usual = [dataclasses.replace(w, table=logged(w.table, 0.05, 1.0)) for w in known]
    calibration = Rules().calibrate(usual, "ref")
    opened = {}
    for name, wrong, told in (("same", 0.05, True), ("untold", 0.05, False), ("more", 0.4, True)):
        court = Court(Rules(), calibration)
        for w in hours(12, 600, rng, first=80, bins=known[0].bins):
            court.window(dataclasses.replace(w, table=logged(w.table, wrong, 0.1, told=told)))
        opened[name] = [d.event for d in court.decisions]
    assert opened == {"same": [], "untold": [Event.DATA_QUALITY], "more": [Event.DATA_QUALITY]}
