"""Training records and canaries as keyed hashes: found in the log, not to be read from the store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from monitor.config import load
from monitor.service.compose import open_service
from monitor.service.known import Index, Known
from monitor.service.watch import Watched

KEY = bytes(range(32))


def rows(n: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    words = pa.array([None if i % 7 == 0 else f"w{i % 5}" for i in range(n)], pa.string())
    return pa.table({"feature:x": rng.normal(size=n) * 1000, "feature:y": rng.normal(size=n), "feature:c": words})


def index(table: pa.Table, key: bytes = KEY) -> Index:
    return Index.of([table], ["x", "y"], ["c"], key)


def test_rows_are_found_as_they_were_and_as_float32_leaves_them() -> None:
    """Exact repeats and what float32 on the way makes of them are found; other rows and real changes are not."""
    table = rows(2000)
    known = index(table.slice(0, 1000))
    assert known.holds(table).tolist() == [True] * 1000 + [False] * 1000
    rounded = table.set_column(1, "feature:y", table["feature:y"].cast(pa.float32(), safe=False).cast(pa.float64()))
    assert known.holds(rounded)[:1000].mean() > 0.9
    moved = table.set_column(1, "feature:y", pa.array(np.asarray(table["feature:y"]) + 0.001))
    assert not known.holds(moved).any()


def test_minus_zero_missing_and_infinite_values_have_one_form() -> None:
    """-0.0 is 0.0, missing equals missing, huge numbers are values like others."""
    known = index(
        pa.table(
            {"feature:x": [0.0, None, 1e308, float("inf")], "feature:y": [1.0] * 4, "feature:c": ["a", None, "a", ""]}
        )
    )
    asked = {"feature:x": [-0.0, None, 1e308, float("inf")], "feature:y": [1.0] * 4, "feature:c": ["a", None, "a", ""]}
    assert known.holds(pa.table(asked)).all()
    assert not known.holds(pa.table(asked | {"feature:c": [None, "a", "b", None]})).any()


def test_nothing_is_found_without_the_key() -> None:
    """The hashes of one key say nothing under another."""
    assert not np.isin(index(rows(500)).hashes, index(rows(500), bytes(32)).hashes).any()


def test_columns_only_for_files_that_are_named() -> None:
    """A model without files costs nothing; an empty file knows no row."""
    table = rows(10)
    assert Known().mark(table) is table
    marked = Known(training=index(table), canary=index(table.slice(0, 0))).mark(table)
    assert marked["training"].to_pylist() == [True] * 10
    assert marked["canary"].to_pylist() == [-1] * 10


def test_canaries_are_told_apart_by_their_lines() -> None:
    """A canary is known by where it stands first in its file, whatever the order of its hash."""
    table = rows(10)
    twice = pa.concat_tables([table.slice(0, 6), table.slice(2, 1)])
    canaries = Index.of([twice], ["x", "y"], ["c"], KEY, numbered=True)
    assert Known(canary=canaries).mark(table)["canary"].to_pylist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1]


def watched(folder: Path) -> Watched:
    service = open_service(load(folder / "lanner.yaml", env={}), owner="test")
    try:
        return service.watched("m", 0)
    finally:
        service.close()


def test_the_index_is_kept_closed_and_follows_its_file(tmp_path: Path) -> None:
    """Mode 0600, no value in clear, read back on restart, one index per file: a new training file replaces the old."""

    def write(name: str, first: float) -> None:
        lines = [json.dumps({"features": {"x": first + i, "c": f"secret-{i}"}}) for i in range(50)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    write("ref.jsonl", 0.0)
    write("train.jsonl", 0.0)
    (tmp_path / "lanner.yaml").write_text("models: {m: {reference: {file: ref.jsonl}, training: train.jsonl}}\n")
    for first in (0.0, 0.0, 500.0):
        write("train.jsonl", first)
        known = watched(tmp_path).known.training
        assert known is not None
        asked = pa.table({"feature:x": [first + 3], "feature:c": ["secret-3"]})
        assert known.holds(asked).tolist() == [True]
        (file,) = tmp_path.rglob("training-*.index")
        (key,) = tmp_path.rglob("training.key")
        assert {file.stat().st_mode & 0o777, key.stat().st_mode & 0o777} == {0o600}
        assert b"secret" not in file.read_bytes()
    assert known is not None
    assert known.holds(pa.table({"feature:x": [3.0], "feature:c": ["secret-3"]})).tolist() == [False]


def test_two_chunks_are_one_index() -> None:
    """How a file was read does not matter beyond the range that its first rows tell."""
    table = rows(100)
    parts = Index.of([table.slice(0, 60), table.slice(60)], ["x", "y"], ["c"], KEY, numbered=True)
    marked = Known(parts, parts).mark(table)
    assert marked["training"].to_pylist() == [True] * 100
    assert marked["canary"].to_pylist() == list(range(100))
