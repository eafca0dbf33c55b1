"""Data quality by rules that the reference kept to, under the model's budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.quality.rules import Rules
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, Event
from tests.judging import Court, Rows, hours

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


def repeated(table: pa.Table) -> pa.Table:
    """The second half of the window repeats the first."""
    half = table.slice(0, table.num_rows // 2)
    return pa.concat_tables([half, half])


def judged(change: Change, first: int = 20, last: int = 40) -> Court:
    """Fourteen days of usual windows learnt, then windows of which some are changed."""
    rng = np.random.default_rng(7)
    reference = hours(336, 100, rng)
    court = Court(Rules(), Rules().calibrate(reference, "ref"))
    for i in range(60):
        w = hours(1, 100, rng, first=336 + i, bins=reference[0].bins)[0]
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
    ],
    ids=["unit", "one word", "default value", "type", "duplicates"],
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
