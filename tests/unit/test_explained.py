"""What explains a drift is read within bounds, and never keeps an alarm back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from monitor.model import HOUR_US, Event, Subject
from monitor.service.explained import EARLIER_ROWS, EARLIER_WINDOWS, ROWS, explained, reference_rows
from tests.alerting import drift
from tests.judging import bins_of, events

ONSET = "1970-01-01T10:00:00.000Z"


def decision(**fields: Any) -> Any:
    """A drift of x0 since ten o'clock, decided on the window until noon."""
    evidence = {"features": [{"name": "x0", "share": 1.0}], "bets": {"x0": "x0/location/+"}, "onset": ONSET}
    return replace(drift(0), window_us=(11 * HOUR_US, 12 * HOUR_US), evidence=evidence, **fields)


def test_the_decision_is_told_with_rows_since_the_onset() -> None:
    """The log is read from the onset on, and six windows before it for versions."""
    rng = np.random.default_rng(1)
    asked: list[tuple[int, int]] = []

    def read(start_us: int, end_us: int, columns: Sequence[str]) -> pa.Table:
        asked.append((start_us, end_us))
        return events(400, rng, start_us=start_us, shift=1.0)

    before = events(2000, rng)
    found = explained(decision(), bins_of(before), lambda columns: before, read, 200, {"x0": "EUR"})
    assert asked == [(10 * HOUR_US, 12 * HOUR_US), ((10 - EARLIER_WINDOWS) * HOUR_US, 10 * HOUR_US)]
    assert found.evidence["onset"] == ONSET
    assert found.evidence["changes"][0]["unit"] == "EUR"
    assert found.evidence["changes"][0]["in_sd"] > 0.8


def test_no_more_rows_are_read_than_needed() -> None:
    """Of a model with millions of rows a window only the newest part of them is read, and nothing before it."""
    before = events(500, np.random.default_rng(2))
    asked: list[tuple[int, int]] = []

    def read(start_us: int, end_us: int, columns: Sequence[str]) -> pa.Table:
        asked.append((start_us, end_us))
        return events(400, np.random.default_rng(3))

    explained(decision(n=100), bins_of(before), lambda columns: before, read, 4_000_000)
    ((start_us, end_us),) = asked
    assert (end_us - start_us) * 4_000_000 // HOUR_US == ROWS
    assert EARLIER_ROWS < ROWS


def test_a_defect_keeps_no_alarm_back() -> None:
    """When the log cannot be read, the decision goes on as it was; other events and ends are left alone."""

    def broken(*args: object) -> pa.Table:
        raise OSError("the log is away")

    before = events(200, np.random.default_rng(4))
    made = decision()
    assert explained(made, bins_of(before), lambda columns: before, broken, 100) is made
    for other in (decision(firing=False), replace(made, event=Event.TRAFFIC_ANOMALY, subject=Subject("model", "m"))):
        assert explained(other, bins_of(before), broken, broken, 100) is other


def test_a_long_reference_is_thinned_out(tmp_path: Path) -> None:
    """At most so many evenly spaced rows, whatever the file holds; callers by their stored names; no file, no rows."""
    n = 3 * ROWS + 10
    names = pa.array(["ann", "h1-bob"]).take(pa.array(np.arange(n) % 2))
    table = pa.table({"event_time": np.arange(n), "principal": names})
    pq.write_table(table, tmp_path / "r.parquet", row_group_size=20_000)
    found = reference_rows(tmp_path / "r.parquet", str.upper)(["event_time", "principal", "absent"])
    assert found.column_names == ["event_time", "principal"]
    assert 0.7 * ROWS < found.num_rows <= ROWS
    assert set(np.diff(found["event_time"].to_numpy()).tolist()) == {4}
    assert reference_rows(tmp_path / "none.parquet", str.upper)(["event_time"]).num_rows == 0
