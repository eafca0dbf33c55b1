"""The exposure gauge: distinct rows, predicted agreement of a copy, budgets of callers and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.base import Calibration, Caller, Measured, State
from detectors.copies import Copies
from detectors.extraction import exposure
from detectors.extraction.exposure import Exposure
from detectors.sketch import KEPT, Distinct
from monitor.model import SECOND_US
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
    numbers = [np.asarray(table[f"feature:x{j}"]) for j in range(8)]
    words = {"colour": ["red", "green", "blue"], "shop": [f"s{i}" for i in range(1, 33)]}
    told_apart = [np.asarray(table[f"feature:{f}"]) == w for f, known in words.items() for w in known]
    return np.column_stack([*numbers, *told_apart])


@pytest.mark.parametrize("n", [128, 512, 2048])
def test_the_gauge_says_what_real_copies_achieve(calibration: Calibration, n: int) -> None:
    """The predicted kappa stays near that of copies trained on the answers given."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import cohen_kappa_score

    trues, says = [], []
    for seed in range(20 if n < 500 else 3):  # copies from few rows differ by more than .1 from each other
        rng = np.random.default_rng([n, seed])
        table, fresh = events(n + n // 8, rng), events(2000, rng)
        copy = RandomForestClassifier(60, min_samples_leaf=2, random_state=0).fit(
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
    assert 0.7 <= low["kappa"] < 0.85


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


def test_a_flood_of_callers_does_not_grow_memory_nor_push_out_the_exposed(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of callers neither grows memory nor pushes out the exposed."""
    monkeypatch.setattr(exposure, "EVERY", 500)
    rng = np.random.default_rng(10)
    detector = Exposure(max_mb=0.2)
    state = detector.measure(calibration, None, Known("m", 0, 0, events(600, rng, principal="thief"))).state
    for i in range(3):
        state = detector.measure(calibration, state, Known("m", 0, 0, _crowd(rng, 1000, f"f{i}"))).state
        assert len(state.to_bytes()) < 400_000
    assert any("thief" in key for key in (*state.meta["ids"], *state.meta["old_ids"]))


def _crowd(rng: np.random.Generator, n: int, name: str) -> pa.Table:
    """Each row from a caller of its own."""
    flood = events(n, rng)
    names = pa.array([f"{name}-{k}" for k in range(n)])
    return flood.set_column(flood.column_names.index("principal"), "principal", names)


def test_who_is_forgotten_does_not_depend_on_cuts(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a tight cap readings and what is remembered are the same wherever the log is cut."""
    monkeypatch.setattr(exposure, "EVERY", 512)
    rng = np.random.default_rng(11)
    log = mixed(*[events(300, rng, principal=f"c{i}") for i in range(6)], _crowd(rng, 600, "crowd"))
    declared = {f"c{i}": Caller(group="desk", kappa=0.5) for i in range(3)}
    detector, results = Exposure(max_mb=0.03), []
    for pieces in (0, 1, 7, 40):
        state: State | None = None
        found: list[Any] = []
        for piece in cut(log, rng, pieces) if pieces else [log]:
            m = detector.measure(calibration, state, Known("m", 0, 0, piece, declared=declared))
            state, found = m.state, [*found, *m.detections, *passed(m)]
        assert state is not None
        known = Distinct.load(state.meta, state.arrays, len(calibration.arrays["kept"]))
        known.recall([*known.old.ids])
        results.append((found, sorted(zip(known.ids, known.length.tolist(), known.ahead.tolist(), strict=True))))
    assert 10 < len(results[0][1]) < 500
    assert all(len(r[0]) == len(results[0][0]) and r[1] == results[0][1] for r in results)
    assert all(sorted(map(str, r[0])) == sorted(map(str, results[0][0])) for r in results)


def test_a_kappa_budget_is_measured_near_it(calibration: Calibration) -> None:
    """The alarm of a declared kappa comes from a copy that was trained, near the budget four times per doubling."""
    log = events(1200, np.random.default_rng(5))
    alarms = [passed(measured(calibration, log, client=Caller(kappa=k)))[0] for k in (0.4, 0.5, 0.6, 0.7)]
    assert not any("estimated" in a for a in alarms)
    assert {a["distinct_rows"] for a in alarms} - {64, 128, 256, 512, 1024}


def test_a_crowd_cannot_make_training_dear(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """When training has been paid for too often the gauge goes on with the curve, and says so."""
    monkeypatch.setattr(exposure, "PRICE", 256)
    rng = np.random.default_rng(12)
    log = pa.concat_tables([_around(events(140, rng, principal=f"c{i}"), rng) for i in range(12)])
    m = measured(calibration, log, c11=Caller(kappa=0.1))
    estimated = [bool(d.evidence.get("estimated")) for d in m.detections if d.subject.id != "c11"]
    assert not any(estimated[:2])
    assert all(estimated[-6:])
    assert not any(d.evidence.get("estimated") for d in m.detections if d.subject.id == "c11")


def _around(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """Small changes of the first row."""
    table = table.set_column(table.column_names.index("event_time"), "event_time", pa.array(range(len(table))))
    first = table.take(pa.array(np.zeros(len(table), np.int64)))
    moved = pa.array(rng.normal(size=len(table)))
    return first.set_column(first.column_names.index("feature:x5"), "feature:x5", moved)


def test_rows_that_were_sent_are_not_asked_about(calibration: Calibration) -> None:
    """Who sends the reference itself is not flattered by rows that its copy has learnt by heart."""
    copies = Copies.unpack(calibration.arrays)
    rows, label = np.ascontiguousarray(copies.asked.T), copies.answer
    order = np.argsort(copies.hash)[::3]
    honest = copies.trained(rows[order], label[order], copies.hash[order])
    flattered = copies.trained(rows[order], label[order], np.zeros(0, np.uint64))
    assert honest is not None
    assert flattered is not None
    assert honest < flattered - 0.03
    assert copies.trained(rows[np.argsort(copies.hash)], label, np.sort(copies.hash)) is None


def test_coverage_tells_who_spreads_out_and_who_varies_one_case(calibration: Calibration) -> None:
    """Rows drawn from corner to corner cover more than honest rows, small changes of one row less."""
    rng = np.random.default_rng(14)
    honest, spread = events(600, rng), events(600, rng)
    for j in range(6):
        at = spread.column_names.index(f"feature:x{j}")
        spread = spread.set_column(at, f"feature:x{j}", pa.array(rng.uniform(-3, 3, 600)))
    told = {}
    for name, table in (("honest", honest), ("spread", spread), ("varied", _around(honest, rng))):
        m = measured(calibration, table)
        told[name] = m.detections[-1].evidence
        assert m.evidence is not None
        assert list(m.evidence.readings.values())[-1]["exposure"]["coverage"] == told[name]["coverage"]
    assert told["spread"]["coverage"] > told["spread"]["coverage_usual_to"]
    assert told["varied"]["coverage"] < told["varied"]["coverage_usual_from"]
    e = told["honest"]
    assert e["coverage_usual_from"] <= e["coverage_usual"] <= e["coverage_usual_to"]
    assert abs(e["coverage"] - e["coverage_usual"]) < 0.05


def _numeric(table: pa.Table, column: str = "prediction_value") -> pa.Table:
    """The rows as a model answers them that gives numbers, or nothing but scores."""
    x = np.asarray(table["feature:x0"], dtype=np.float64)
    answer = pa.array(x) if column == "prediction_value" else pa.array([[v, 1 - v] for v in x.tolist()])
    kept = [c for c in table.column_names if c not in exposure.ANSWERS]
    return table.select(kept).append_column(column, answer)


def _calibrated(change: Any) -> Calibration:
    reference = [replace(h, table=change(h.table)) for h in hours(20, 100, np.random.default_rng(1))]
    return Exposure().calibrate(reference, "ref")


@pytest.mark.parametrize("column", ["prediction_value", "scores"])
def test_without_labels_a_budget_on_rows_holds_and_kappa_says_why_not(column: str) -> None:
    """Where answers are numbers or scores, distinct rows are counted and their budget alarms; kappa is refused with its reason."""
    cal = _calibrated(lambda t: _numeric(t, column))
    assert "0 distinct rows with a predicted label" in cal.meta["refused"]["kappa"]
    rng = np.random.default_rng(5)
    log = mixed(*[_numeric(events(300, rng, principal=f"c{i}"), column) for i in range(4)])
    desk = {f"c{i}": Caller(group="desk", kappa=0.01, distinct_rows=400) for i in (1, 2, 3)}
    declared = {"c0": Caller(kappa=0.01, distinct_rows=200), **desk}
    found = measured(cal, log, None, **declared)
    told = passed(found)
    alarms = {g: [p["distinct_rows"] for p in told if p.get("group") == g] for g in ("desk", None)}
    assert alarms == {"desk": [400, 512], None: [200, 256]}
    assert all(p["no_kappa"] == cal.meta["refused"]["kappa"] and "kappa" not in p for p in told)
    assert {(d.statistic, d.threshold) for d in found.detections} == {(None, None)}
    assert gauge_rows(found, "c0") == [64, 128, 256]


def gauge_rows(m: Measured, name: str) -> list[int]:
    return [d.n for d in m.detections if d.subject.id == name]


@pytest.mark.parametrize("labels", [1, 300])
def test_labels_that_cannot_be_copied_leave_the_budget_on_rows(labels: int) -> None:
    """One label only, or too many of them, refuse kappa alone."""

    def named(t: pa.Table) -> pa.Table:
        at = t.column_names.index("prediction_label")
        return t.set_column(at, "prediction_label", pa.array([f"l{i % labels}" for i in range(t.num_rows)]))

    cal = Exposure().calibrate(
        [replace(h, table=named(h.table)) for h in hours(5, 300, np.random.default_rng(1))], "ref"
    )
    assert f"have {labels} labels" in cal.meta["refused"]["kappa"]
    m = measured(cal, named(events(300, np.random.default_rng(2))), client=Caller(distinct_rows=250))
    assert m.evidence is not None
    assert min(m.evidence.details) == 249


def test_unanswered_rows_teach_nothing_without_labels_either() -> None:
    """A row without any answer is not counted, unless the log never shows answers."""
    table = _numeric(events(300, np.random.default_rng(6)))
    at = table.column_names.index("prediction_value")
    half = table.set_column(at, "prediction_value", pa.array([1.0 if i % 2 else None for i in range(300)]))
    assert gauge_rows(measured(_calibrated(_numeric), half), "client") == [64, 128]
    silent = _calibrated(lambda t: _numeric(t).drop_columns(["prediction_value"]))
    assert gauge_rows(measured(silent, table.drop_columns(["prediction_value"])), "client") == [64, 128, 256]


def test_asking_for_scores_alone_gets_round_no_budget(calibration: Calibration) -> None:
    """Of a model with labels, rows that are answered by scores without a label count as well."""
    table = events(300, np.random.default_rng(7))
    at = table.column_names.index("prediction_label")
    bare = table.set_column(at, "prediction_label", pa.nulls(300, pa.string()))
    assert gauge_rows(measured(calibration, bare), "client") == [64, 128, 256]
    assert gauge_rows(measured(calibration, bare.drop_columns(["scores"])), "client") == []


@pytest.mark.parametrize("bare", ["all", "first", "decoys"])
def test_answers_without_a_label_do_not_hide_what_the_others_teach(calibration: Calibration, bare: str) -> None:
    """Nothing but scores, or each row first for its scores and then for its label, or as many rows for scores besides: a budget of
    kappa alarms when answers are usually worth so much, if not before.
    """
    n, at = 1_500, np.arange(1_500)
    rows = events(n, np.random.default_rng(8))
    other = events(n, np.random.default_rng(9)) if bare == "decoys" else rows
    column = rows.column_names.index("prediction_label")
    unlabelled = other.set_column(column, "prediction_label", pa.nulls(n, pa.string()))
    both = unlabelled if bare == "all" else pa.concat_tables([unlabelled, rows]).take(np.stack([at, n + at], 1).ravel())
    times = pa.array(np.arange(both.num_rows) * SECOND_US)
    both = both.set_column(both.column_names.index("event_time"), "event_time", times)
    alone, hidden = (
        passed(measured(calibration, t, client=Caller(kappa=0.6)))[0]["distinct_rows"] for t in (rows, both)
    )
    assert max(alone, hidden) <= 400


def test_rows_without_labels_are_counted_wherever_the_log_is_cut() -> None:
    """State of a model without kappa survives as bytes, and cuts change nothing."""
    cal, rng = _calibrated(_numeric), np.random.default_rng(9)
    log = mixed(*[_numeric(events(900, rng, principal=f"c{i}")) for i in range(4)])
    declared = {"c1": Caller(distinct_rows=700), "c2": Caller(group="g", distinct_rows=50)}
    whole = measured(cal, log, None, **declared)
    for pieces in (6, 50):
        state: State | None = None
        found: list[Any] = []
        parts: list[Any] = []
        for piece in cut(log, rng, pieces):
            m = measured(cal, piece, state, **declared)
            state = State.from_bytes(m.state.to_bytes())
            found, parts = [*found, *m.detections], [*parts, *(passed(m) if m.evidence else [])]
        assert parts == passed(whole)
        assert sorted(found, key=lambda d: (d.window_us, d.subject.id)) == sorted(
            whole.detections, key=lambda d: (d.window_us, d.subject.id)
        )
