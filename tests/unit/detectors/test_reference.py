"""What a reference lacks is said in words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from detectors.profile import Bins
from detectors.reference import Finding, check, worst
from detectors.season import Calendar
from monitor.model import HOUR_US

DAY_US = 24 * HOUR_US


def rows(days: float = 60, n: int = 6000, columns: Mapping[str, Any] = MappingProxyType({})) -> pa.Table:
    """Two months of events of three features, one answer and many callers; columns given replace them."""
    rng = np.random.default_rng(1)
    table = {
        "event_time": 50 * DAY_US + np.sort(rng.integers(0, round(days * DAY_US), n)),
        "principal": [f"c{i % 40}" for i in range(n)],
        "prediction_label": rng.choice(["ok", "fraud"], n).tolist(),
        "feature:x": rng.normal(size=n),
        "feature:y": np.exp(rng.normal(size=n)),
        "feature:c": rng.choice(["a", "b"], n).tolist(),
    } | dict(columns)
    return pa.table(table)


def codes(table: pa.Table, **more: Any) -> set[tuple[str, str | None]]:
    """(code, feature) of every finding."""
    bins = Bins.fit(table, ["x", "y"], ["c"])
    return {(f.code, f.feature) for f in check(table, bins, **more)}


def test_a_good_reference_has_no_findings() -> None:
    """Rows of two months with all they need, heavy tails included, are found in order."""
    assert codes(rows()) == set()


def test_size_and_season() -> None:
    """No rows, few rows, no times, a short time, a day of the week without events and gaps are each named."""
    assert [f.code for f in check(rows(n=0), Bins.fit(rows(), ["x"], []))] == ["empty"]
    assert {c for c, _ in codes(rows(n=500))} >= {"few_rows"}
    assert ("no_times", None) in codes(rows(columns={"event_time": np.zeros(6000, np.int64)}))
    assert {c for c, _ in codes(rows(days=1))} == {"short", "season"}
    table = rows()
    _, weekday, _ = Calendar().local(table["event_time"].to_numpy())
    assert ("days_missing", None) in codes(table.filter(pa.array(weekday != 4)))
    assert ("gaps", None) in codes(table.filter(pa.array(table["event_time"].to_numpy() // HOUR_US % 24 < 12)))


def test_dead_and_odd_features() -> None:
    """Constants, absent features, identifiers, wrong units and defaults are named with their feature."""
    n, rng = 6000, np.random.default_rng(2)
    assert ("one_value", "x") in codes(rows(columns={"feature:x": [3.0] * n}))
    assert ("always_missing", "c") in codes(rows(columns={"feature:c": pa.nulls(n, pa.string())}))
    half = [None if i % 3 else "a" if i % 2 else "b" for i in range(n)]
    assert ("mostly_missing", "c") in codes(rows(columns={"feature:c": half}))
    assert ("identifier", "c") in codes(rows(columns={"feature:c": [f"id-{i}" for i in range(n)]}))
    x = rng.normal(size=n)
    x[5] = 10_000.0
    assert ("outliers", "x") in codes(rows(columns={"feature:x": x}))
    x = rng.normal(size=n)
    x[:200] = -999.0
    assert ("default_value", "x") in codes(rows(columns={"feature:x": rng.permutation(x)}))


def test_odd_rows() -> None:
    """Copies, one caller's share, and a reference that itself moves are named."""
    table = rows()
    assert ("duplicates", None) in codes(pa.concat_tables([table, table.slice(0, 1000)]))
    assert ("one_caller", None) in codes(
        rows(columns={"principal": [f"c{i % 40}" if i % 4 == 0 else "batch" for i in range(6000)]})
    )
    moved = np.random.default_rng(3).normal(size=6000) + (np.arange(6000) > 3000)
    assert ("moves", "x") in codes(rows(columns={"feature:x": moved}))


def test_worst_comes_first() -> None:
    """Findings are ordered by how bad they are; `worst` names the level."""
    found = check(rows(days=1, n=500), Bins.fit(rows(), ["x", "y"], ["c"]))
    assert [f.level for f in found] == sorted((f.level for f in found), key=["fail", "warn", "note"].index)
    assert (worst(found), worst([]), worst([Finding("note", "a", "b")])) == ("warn", None, "note")
