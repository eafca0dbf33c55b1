"""References that are sorted and cut piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from detectors.profile import Bins
from detectors.streamed import KEPT, Distinct, Streamed
from monitor.model import HOUR_US
from monitor.service import ordered as sorting
from monitor.service.ordered import Ordered, by_time
from monitor.service.windows import BLOCK_ROWS, UNTIMED_ROWS, TimeWindow, reference_windows

COLUMNS = ["event_time", "feature:x", "feature:c", "scores", "at", "absent"]


def made(times: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Table:
    """Rows of these times with values of several types, each with its place."""
    rng, n = np.random.default_rng(3), len(times)
    return pa.table({
        "event_time": times, "at": np.arange(n), "feature:x": rng.normal(size=n),
        "feature:c": pa.array([None if i % 7 == 0 else f"c{i % 5}" for i in range(n)], pa.string()),
        "scores": pa.array([[i / n, 1 - i / n] for i in range(n)]),
    })  # fmt: skip


def same(a: list[TimeWindow], b: list[TimeWindow]) -> bool:
    """Whether two cuts have the same windows, counts and rows."""
    assert [(w.start_us, w.end_us, w.n) for w in a] == [(w.start_us, w.end_us, w.n) for w in b]
    for x, y in zip(a, b, strict=True):
        assert x.counts is not None
        assert y.counts is not None
        assert x.counts.to_bytes() == y.counts.to_bytes()
        assert x.rows(COLUMNS).to_pydict() == y.rows(COLUMNS).to_pydict()
    return True


@pytest.mark.parametrize("run_bytes", [40_000, 100_000, 1 << 30])  # merged in two rounds, in one, and a single run
@pytest.mark.parametrize("order", ["none", "time", "nearly", "no times"])
def test_streamed_windows_are_those_of_the_rows_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_bytes: int, order: str
) -> None:
    """Sorted from files and cut piece by piece, rows with ties, gaps and missing values make the windows that they make in memory."""
    monkeypatch.setattr(sorting, "RUN_BYTES", run_bytes)
    rng, n = np.random.default_rng(1), BLOCK_ROWS + 4_321
    seconds = rng.integers(0, 3600 * 40, n) // 30 * 30
    seconds[seconds > 3600 * 20] += 3600 * 30
    if order in ("time", "nearly"):
        seconds.sort()
    if order == "nearly":
        seconds[::50] = np.maximum(0, seconds[::50] - 900)
    table = made(np.zeros(n, np.int64) if order == "no times" else 5 * HOUR_US + seconds * 1_000_000)
    bins = Bins.fit(table, ["x"], ["c"])
    expected = reference_windows("m", table, bins)
    with by_time((table.slice(i, 997) for i in range(0, n, 997)), tmp_path) as rows:
        assert rows.n == n
        assert same(reference_windows("m", rows, bins), expected)
    assert list(tmp_path.iterdir()) == []
    by_hand = table.sort_by([("event_time", "ascending"), ("at", "ascending")])
    assert pa.concat_tables([w.rows(COLUMNS) for w in expected]).equals(by_hand.select(COLUMNS[:-1]))
    for window, start in zip(expected, np.cumsum([0, *(w.n for w in expected)]), strict=False):
        counted = bins.count(by_hand.slice(start, window.n))
        assert window.counts is not None
        assert window.counts.to_bytes() == counted.to_bytes()
    assert len(expected) == (-(-n // UNTIMED_ROWS) if order == "no times" else 70)


def test_rows_are_read_by_their_places(tmp_path: Path) -> None:
    """Any stretch can be read, an empty one too, with the columns that there are; no rows make no windows."""
    table = made(np.arange(100, dtype=np.int64) * HOUR_US)
    with by_time([table], tmp_path) as rows:
        for a, b in ((0, 0), (0, 100), (99, 100), (100, 100), (17, 42)):
            assert rows.read(a, b, COLUMNS).equals(table.slice(a, b - a).select(COLUMNS[:-1]))
    with by_time([table.slice(0, 0)], tmp_path) as rows:
        assert (rows.n, reference_windows("m", rows, Bins.fit(table, ["x"], ["c"]))) == (0, [])
    assert Ordered.of(table.slice(0, 0)).n == 0


def test_samples_and_sums_of_streamed_rows_are_those_of_the_whole() -> None:
    """Evenly spaced rows, words and the span of tables read one by one are those of the rows in one table."""
    table = made(np.random.default_rng(2).integers(1, 10**9, 5_000))
    parts = Streamed(table.num_rows, lambda columns: (table.slice(i, 333).select(columns or table.column_names) for i in range(0, 5_000, 333)))  # fmt: skip
    whole = Streamed.of(table)
    places = np.linspace(0, 4_999, 777).astype(np.int64)
    assert parts.sample(777, ["at"])["at"].to_pylist() == places.tolist() == whole.sample(777)["at"].to_pylist()
    assert parts.sample(5_000).equals(table)
    assert parts.words("feature:c") == whole.words("feature:c")
    assert parts.span() == whole.span() == (min(table["event_time"].to_pylist()), max(table["event_time"].to_pylist()))


def test_distinct_values_are_counted_exactly_and_then_nearly() -> None:
    """Few distinct hashes are counted exactly, many within two percent, however often each comes."""
    rng, few, many = np.random.default_rng(4), Distinct(), Distinct()
    hashes = rng.integers(0, 1 << 64, 3 * KEPT, dtype=np.uint64)
    for at in range(0, len(hashes), 1 << 14):
        few.add(hashes[np.arange(at, at + (1 << 14)) % 1_000])
        many.add(np.repeat(hashes[at : at + (1 << 14)], 2))
    assert few.count() == 1_000
    assert abs(many.count() / len(np.unique(hashes)) - 1) < 0.02
