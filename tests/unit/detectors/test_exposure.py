"""The exposure gauge: distinct rows, predicted agreement of a copy, budgets of callers and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.base import Calibration, Caller, Measured, State
from detectors.extraction.exposure import Exposure
from detectors.sketch import KEPT
from tests.judging import Rows, cut, events, hours, mixed


@dataclass(frozen=True)
class Known(Rows):
    """A stretch with declared callers."""

    declared: Mapping[str, Caller] = field(default_factory=dict)

    def callers(self) -> dict[str, Caller]:
        return dict(self.declared)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Exposure().calibrate(hours(60, 100, np.random.default_rng(1)), "ref")


def measured(cal: Calibration, table: pa.Table, /, state: State | None = None, **declared: Caller) -> Measured:
    return Exposure().measure(cal, state, Known("m", 0, 0, table, declared=declared))


def passed(m: Measured) -> list[dict[str, Any]]:
    assert m.evidence is not None
    return [m.evidence.details[r]["exposure"] for r in sorted(m.evidence.details)]


def gauge(m: Measured, name: str) -> tuple[float, int]:
    last = [d for d in m.detections if d.subject.id == name][-1]
    assert last.statistic is not None
    return last.statistic, last.n


def _copy(table: pa.Table) -> np.ndarray[Any, Any]:
    x = [np.asarray(table[f"feature:x{j}"]) for j in range(8)]
    return np.column_stack(x)


@pytest.mark.parametrize("n", [128, 512, 2048])
def test_the_gauge_says_what_real_copies_achieve(calibration: Calibration, n: int) -> None:
    """The predicted kappa stays near that of copies trained on the answers given."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import cohen_kappa_score

    trues, says = [], []
    for seed in range(6 if n < 500 else 2):  # copies from few rows differ by more than .1 from each other
        rng = np.random.default_rng([n, seed])
        table, fresh = events(n + n // 8, rng), events(2000, rng)
        copy = RandomForestClassifier(60, random_state=0).fit(
            _copy(table)[:n], table["prediction_label"].to_pylist()[:n]
        )
        trues.append(cohen_kappa_score(fresh["prediction_label"].to_pylist(), copy.predict(_copy(fresh))))
        kappa, rows = gauge(measured(calibration, table), "client")
        assert rows == n
        says.append(kappa)
    assert abs(np.mean(says) - np.mean(trues)) < 0.1


def test_repeats_and_small_changes_teach_little(calibration: Calibration) -> None:
    """Exact repeats count nothing, near-duplicates little."""
    rng = np.random.default_rng(2)
    table = events(600, rng)
    repeats = measured(calibration, table.slice(0, 70).take(pa.array(np.arange(600) % 70)))
    assert gauge(repeats, "client")[1] == 64
    swept = table.take(pa.array(np.arange(600) // 50))
    swept = swept.set_column(
        swept.column_names.index("feature:x5"), "feature:x5", pa.array(rng.normal(size=600).tolist())
    )
    kappa, rows = gauge(measured(calibration, swept), "client")
    assert rows == 512
    assert kappa < gauge(measured(calibration, table), "client")[0] - 0.1


def test_distinct_rows_are_counted_within_the_declared_error(calibration: Calibration) -> None:
    """The sketch counts distinct rows within its stated error."""
    table = events(20_000, np.random.default_rng(3))
    evidence = measured(calibration, table, client=Caller(distinct_rows=10_000)).evidence
    assert evidence is not None
    assert min(evidence.details) == pytest.approx(10_000, rel=3 / np.sqrt(KEPT))


def test_nobody_is_accused_without_a_budget(calibration: Calibration) -> None:
    """Without a declared budget exposure is a gauge and never an alarm."""
    assert passed(measured(calibration, events(3000, np.random.default_rng(4)), other=Caller(kappa=0.1))) == []


def test_a_budget_alarms_with_the_row_that_passes_it_and_again_when_rows_double(calibration: Calibration) -> None:
    """A declared budget alarms with the row that passes it and again when rows double."""
    m = measured(calibration, events(1200, np.random.default_rng(5)), client=Caller(distinct_rows=300))
    assert [p["distinct_rows"] for p in passed(m)] == [300, 512, 1024]
    assert m.evidence is not None
    assert min(m.evidence.details) == 299
    low = passed(measured(calibration, events(1200, np.random.default_rng(5)), client=Caller(kappa=0.7)))[0]
    assert 0.7 <= low["kappa"] < 0.8


def test_a_group_shares_its_budget(calibration: Calibration) -> None:
    """Callers of one group with one budget share it."""
    rng = np.random.default_rng(6)
    log = mixed(*[events(80, rng, principal=f"c{i}") for i in range(5)])
    group = {f"c{i}": Caller(group="desk", distinct_rows=200) for i in range(5)}
    found = passed(measured(calibration, log, None, **group))
    assert [(p["group"], p["distinct_rows"]) for p in found] == [("desk", 200), ("desk", 256)]
    same = [events(80, np.random.default_rng(7), principal=f"c{i}") for i in range(5)]
    assert passed(measured(calibration, mixed(*same), None, **group)) == []  # the same rows teach nothing new


def test_a_new_model_version_starts_anew(calibration: Calibration) -> None:
    """Exposure belongs to a model version."""
    table = events(180, np.random.default_rng(8))
    versions = pa.array(["1"] * 90 + ["2"] * 90)
    m = measured(calibration, table.append_column("model_version", versions), client=Caller(distinct_rows=100))
    assert passed(m) == []
    assert [d.evidence["model_version"] for d in m.detections] == ["1", "2"]


def test_readings_do_not_depend_on_cuts(calibration: Calibration) -> None:
    """The log may be cut anywhere: the readings are the same."""
    rng = np.random.default_rng(9)
    log = mixed(*[events(900, rng, principal=f"c{i}") for i in range(4)])
    whole = measured(calibration, log, c1=Caller(kappa=0.8), c2=Caller(distinct_rows=700))
    for pieces in (1, 6, 50):
        state: State | None = None
        found: list[Any] = []
        parts: list[Any] = []
        for piece in cut(log, rng, pieces):
            m = measured(calibration, piece, state, c1=Caller(kappa=0.8), c2=Caller(distinct_rows=700))
            state, found, parts = m.state, [*found, *m.detections], [*parts, *(passed(m) if m.evidence else [])]
        assert parts == passed(whole)
        key = lambda d: (d.window_us, d.subject.id)  # noqa: E731
        assert sorted(found, key=key) == sorted(whole.detections, key=key)


def test_a_flood_of_callers_does_not_grow_memory_nor_push_out_the_exposed(calibration: Calibration) -> None:
    """A flood of callers neither grows memory nor pushes out the exposed."""
    rng = np.random.default_rng(10)
    detector = Exposure(max_mb=0.2)
    state = detector.measure(calibration, None, Known("m", 0, 0, events(600, rng, principal="thief"))).state
    for i in range(3):
        flood = events(1000, rng)
        names = pa.array([f"f{i}-{k}" for k in range(1000)])
        flood = flood.set_column(flood.column_names.index("principal"), "principal", names)
        state = detector.measure(calibration, state, Known("m", 0, 0, flood)).state
        assert len(state.to_bytes()) < 400_000
    assert any("thief" in key for key in (*state.meta["ids"], *state.meta["old_ids"]))
