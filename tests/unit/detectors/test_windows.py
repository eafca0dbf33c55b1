"""Drift, volume and silence through the budget: exact alarm windows on seeded streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alerts import lifecycle
from alerts.policy import Policy
from detectors import decide
from detectors.anomaly.volume import Volume
from detectors.drift.marginals import BREAKS_EXPECTED, Marginals
from detectors.quality.missing import Missing
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, SECOND_US, Action, Alert, Event, Severity, Verdict
from tests.judging import Court, Rows, bins_of, events, hours


def drift(reference: list[Rows]) -> Court:
    """The drift detector on this reference, ready to judge."""
    detector = Marginals()
    return Court(detector, detector.calibrate(reference, "ref"))


def told(court: Court) -> list[tuple[int, str, bool]]:
    """Decisions as (hour of the window's end, event, firing)."""
    return [(d.time_us // HOUR_US, str(d.event.value), d.firing) for d in court.decisions]


def test_shift_opens_once_and_clears_when_it_ends() -> None:
    """Half a standard deviation in one of eleven features: opens at the fourth window, clears soon after the return."""
    rng = np.random.default_rng(1)
    reference = hours(120, 200, rng)
    court = drift(reference)
    bins = reference[0].bins
    for i in range(90):
        shift = 0.5 if 20 <= i < 60 else 0.0
        court.window(hours(1, 200, rng, first=120 + i, bins=bins, shift=shift)[0])
    opened, closed = court.decisions[0], court.decisions[-1]
    firing = [d.firing for d in court.decisions]
    assert firing == [True] * (len(firing) - 1) + [False]  # answers that follow the feature join by update
    assert len(firing) <= 4
    assert opened.time_us // HOUR_US == 120 + 24
    assert 120 + 62 <= closed.time_us // HOUR_US <= 120 + 75
    assert "x0" in [f["name"] for f in opened.evidence["features"]]
    assert opened.evidence["onset"] == "1970-01-06T20:00:00.000Z"
    assert opened.evidence["bets"]["x0"] in {"x0/location/+", "x0/shape/+"}
    assert opened.log_e is not None
    assert opened.threshold is not None
    assert opened.log_e >= opened.threshold
    assert closed.evidence["reason"] == "returned"


def test_a_break_of_one_window_is_an_incident_that_tells_how_often_they_come() -> None:
    """A window whose numbers are another's raises DistributionBreak, at most a warning, with the measured rate; the next ends it."""
    rng = np.random.default_rng(7)
    reference = hours(100, 200, rng)
    detector = Marginals(breaks=3)
    calibration = detector.calibrate(reference, "ref")
    state, said = None, []
    open_now: list[Alert] = []
    counters: Mapping[str, Any] = {}
    for i in range(4):
        window = hours(1, 200, rng, first=100 + i, bins=reference[0].bins, shift=3.0 if i == 1 else 0.0)[0]
        measured = detector.measure(calibration, state, window)
        state = measured.state
        (broke,) = [d for d in measured.detections if d.event is Event.DISTRIBUTION_BREAK]
        assert broke.threshold == 3
        assert broke.evidence["expected"] == BREAKS_EXPECTED
        assert broke.streams is None  # it spends nothing of the budget
        decision = decide.fixed("m", broke, window_us=broke.window_us, time_us=window.end_us)
        step = lifecycle.step([decision], open_now, counters, Policy())
        open_now, counters = [a for a in (*step.alerts, *open_now)[:1] if a.open], step.counters
        said += [(i, t.action, t.alert.event, t.alert.severity, t.alert.text) for t in step.transitions]
    (opened, cleared) = said
    assert opened[:4] == (1, Action.OPEN, Event.DISTRIBUTION_BREAK, Severity.WARNING)
    assert cleared[:3] == (2, Action.CLEAR, Event.DISTRIBUTION_BREAK)
    assert "x0" in opened[4]
    assert (
        "outside the budget: 0 to 3.6 in 720 windows are 3 times stranger without any change; features x0" in opened[4]
    )


def test_shift_that_never_ends_is_one_incident() -> None:
    """Two hundred windows later nothing else has been said about the shifted feature."""
    rng = np.random.default_rng(2)
    reference = hours(100, 100, rng)
    court = drift(reference)
    for i in range(200):
        court.window(hours(1, 100, rng, first=100 + i, bins=reference[0].bins, shift=0.8)[0])
    assert [d.firing for d in court.decisions if d.event is Event.FEATURE_DRIFT][:1] == [True]
    assert all(d.firing for d in court.decisions)
    assert len(court.decisions) <= 2


def test_what_drifts_after_the_first_features_joins_the_incident() -> None:
    """A second feature is added by update; when it alone returns it leaves by update."""
    rng = np.random.default_rng(3)
    reference = hours(100, 200, rng)
    court = drift(reference)
    for i in range(70):
        window = hours(1, 200, rng, first=100 + i, bins=reference[0].bins, shift=1.0)[0]
        table = window.table
        if 15 <= i < 40:
            place = table.column_names.index("feature:x3")
            table = table.set_column(place, "feature:x3", pa.array(np.asarray(table["feature:x3"]) - 1.0))
        court.window(dataclasses.replace(window, table=table))
    feature = [d for d in court.decisions if d.event is Event.FEATURE_DRIFT]
    names = [{f["name"] for f in d.evidence["features"]} for d in feature]
    joined = next(i for i, n in enumerate(names) if "x3" in n)
    assert all(d.firing for d in feature)
    assert "x3" not in names[0]
    assert "x0" in names[joined]
    assert "x3" not in names[-1]
    assert feature[-1].evidence["returned"] == ["x3"]


def test_answers_that_move_alone_are_prediction_drift() -> None:
    """Features stay, scores rise: one PredictionDrift."""
    rng = np.random.default_rng(4)
    reference = hours(100, 200, rng)
    court = drift(reference)
    for i in range(20):
        window = hours(1, 200, rng, first=100 + i, bins=reference[0].bins)[0]
        fraud = np.clip(np.array([s[1] for s in window.table["scores"].to_pylist()]) + 0.15, 0, 1)
        table = window.table.set_column(
            window.table.column_names.index("scores"), "scores", pa.array([[1 - s, s] for s in fraud.tolist()])
        )
        court.window(dataclasses.replace(window, table=table))
    assert [d.event for d in court.decisions] == [Event.PREDICTION_DRIFT]
    assert [f["name"] for f in court.decisions[0].evidence["features"]] == ["score:fraud"]


@pytest.mark.parametrize("change", ["missing", "new category"])
def test_missing_values_and_new_categories_are_drift(change: str) -> None:
    """A tenth of a feature's values gone, or of a new word: found and named."""
    rng = np.random.default_rng(5)
    reference = hours(100, 200, rng)
    court = drift(reference)
    name = "feature:x1" if change == "missing" else "feature:colour"
    for i in range(20):
        window = hours(1, 200, rng, first=100 + i, bins=reference[0].bins)[0]
        lost = rng.random(200) < 0.1
        values = window.table[name].to_pylist()
        changed = [
            (None if change == "missing" else "mauve") if gone else v for gone, v in zip(lost, values, strict=True)
        ]
        table = window.table.set_column(window.table.column_names.index(name), name, pa.array(changed))
        court.window(dataclasses.replace(window, table=table))
    assert [d.event for d in court.decisions] == [Event.FEATURE_DRIFT]
    assert [f["name"] for f in court.decisions[0].evidence["features"]] == [name.removeprefix("feature:")]


@pytest.mark.parametrize("reference", ["few rows", "no times", "one hour"])
def test_learning_never_alarms(reference: str) -> None:
    """References without enough windows: no alarm in 49 shifted windows, verdict insufficient, reason told."""
    rng = np.random.default_rng(6)
    table = events(300 if reference == "few rows" else 5000, rng)
    bins = bins_of(table)
    end = {"no times": 0}.get(reference, HOUR_US)
    court = drift([Rows("m", 0, end, table, bins)])
    assert court.calibration.meta["learning"]
    for i in range(48):
        court.window(hours(1, 100, rng, first=10 + i, bins=bins, shift=2.0 if i > 30 else 0.0)[0])
    assert court.decisions == []
    assert {d.verdict for d in court.detections} == {Verdict.INSUFFICIENT}
    assert "learning" in court.detections[-1].evidence["reason"]
    assert court.detections[-1].evidence["features"][0]["psi"] is not None  # distances are shown all the same


def test_learning_ends_with_live_windows() -> None:
    """After 50 live windows a shift is found without any reference window."""
    rng = np.random.default_rng(7)
    table = events(300, rng)
    bins = bins_of(table)
    court = drift([Rows("m", 0, 0, table, bins)])
    for i in range(110):
        court.window(hours(1, 100, rng, first=10 + i, bins=bins, shift=1.0 if i >= 90 else 0.0)[0])
    assert [d.firing for d in court.decisions] == [True]
    assert 10 + 92 < court.decisions[0].time_us // HOUR_US < 10 + 105


def test_busy_and_quiet_hours_do_not_alarm() -> None:
    """Windows of 30 to 1,500 rows after a reference of 200 each: sizes differ, nothing else."""
    rng = np.random.default_rng(8)
    reference = hours(100, 200, rng)
    court = drift(reference)
    for i in range(150):
        size = int(30 * 50 ** rng.random())
        court.window(hours(1, size, rng, first=100 + i, bins=reference[0].bins)[0])
    assert court.decisions == []


@pytest.mark.parametrize("rows", [30, 600])
def test_live_windows_may_be_much_smaller_or_larger_than_the_reference(rows: int) -> None:
    """A reference is often a sample: 100 rows an hour there and 30 or 600 here are no drift."""
    rng = np.random.default_rng(13)
    reference = hours(200, 100, rng)
    court = drift(reference)
    scores = []
    for i in range(100):
        court.window(hours(1, rows, rng, first=200 + i, bins=reference[0].bins)[0])
        streams = court.detections[-1].streams
        assert streams is not None
        scores.append(float(np.nanmean(streams.z[: len(streams.z) // 16])))
    assert court.decisions == []
    assert abs(np.mean(scores)) < 0.2


def test_evidence_is_told_per_feature() -> None:
    """Every feature and answer with its distances, its p-value and this window's evidence."""
    rng = np.random.default_rng(9)
    reference = hours(60, 100, rng)
    court = drift(reference)
    court.window(hours(1, 100, rng, first=60, bins=reference[0].bins, shift=3.0)[0])
    rows = {f["name"]: f for f in court.detections[0].evidence["features"]}
    assert set(rows) == {"x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "colour", "shop", "prediction", "score:fraud"}
    assert {"psi", "js", "ks", "wasserstein", "missing", "p_value", "log_e"} <= set(rows["x0"])
    assert rows["x0"]["log_e"] > 1 > rows["x3"]["log_e"]
    assert rows["x0"]["p_value"] < 0.1


def test_volume_surge_and_slump() -> None:
    """Three times the traffic opens a TrafficAnomaly, usual traffic ends it; a daily wave alone says nothing."""
    rng = np.random.default_rng(10)
    detector = Volume()
    court = Court(detector, detector.calibrate([], "none"))
    empty = events(1, rng)
    for i in range(24 * 30):
        usual = 300 * (1.2 + np.sin(i / 24 * 2 * np.pi))
        n = int(rng.poisson(usual * (3 if 600 <= i < 640 else 1)))
        court.window(Rows("m", i * HOUR_US, (i + 1) * HOUR_US, empty.take(pa.array(np.zeros(n, np.int64)))))
    assert [(d.event, d.firing) for d in court.decisions] == [
        (Event.TRAFFIC_ANOMALY, True),
        (Event.TRAFFIC_ANOMALY, False),
    ]
    assert 600 < court.decisions[0].time_us // HOUR_US <= 610
    assert 640 < court.decisions[1].time_us // HOUR_US <= 660


def test_silence_limit_comes_from_the_reference() -> None:
    """Twice the longest gap, five minutes at least; a person's limit wins; too few gaps are refused."""
    rng = np.random.default_rng(11)
    times = np.cumsum(rng.exponential(60, 1000) * SECOND_US).astype(np.int64)
    window = Rows("m", 0, int(times[-1]), pa.table({"event_time": times}))
    calibration = Missing().calibrate([window], "ref")
    assert calibration.meta["limit_s"] == pytest.approx(2 * np.diff(times).max() / SECOND_US)
    dense = Rows("m", 0, 1, pa.table({"event_time": times // 100}))
    assert Missing().calibrate([dense], "ref").meta["limit_s"] == 300.0
    assert Missing(limit_s=7.0).calibrate([], "none").meta["limit_s"] == 7.0
    still = Rows("m", 0, 0, pa.table({"event_time": np.zeros(1000, np.int64)}))
    for useless in ([], [still], [Rows("m", 0, 1, pa.table({"event_time": times[:50]}))]):
        with pytest.raises(CalibrationRefused, match="gaps"):
            Missing().calibrate(useless, "ref")
    limit = float(calibration.meta["limit_s"])
    for silence, verdict in ((limit - 1, Verdict.OK), (limit + 1, Verdict.ALARM)):
        gap = Rows("m", 0, round(silence * SECOND_US), events(0, rng))
        detection = Missing().measure(calibration, None, gap).detections[0]
        assert (detection.verdict, detection.event) == (verdict, Event.DATA_MISSING)


def test_a_person_who_closes_the_incident_restarts_the_evidence() -> None:
    """The lane starts afresh, and a shift that goes on opens again with all the evidence it takes."""
    rng = np.random.default_rng(12)
    reference = hours(100, 200, rng)
    court = drift(reference)
    for i in range(30):
        if i == 12:
            court.open.clear()
        court.window(hours(1, 200, rng, first=100 + i, bins=reference[0].bins, shift=1.0)[0])
    assert [f for _, _, f in told(court)][:2] == [True, True]
    assert {d.event for d in court.decisions} == {Event.FEATURE_DRIFT}  # answers that follow join by update
    assert court.decisions[1].time_us - 112 * HOUR_US >= 3 * HOUR_US


@pytest.mark.parametrize("told", [True, False])
def test_sampling_that_is_told_is_no_drift(told: bool) -> None:
    """From some hour on only one red row in five is logged: with its fraction nothing has changed, without it red is gone."""
    rng = np.random.default_rng(19)
    found = hours(140, 150, rng)
    court = Court(Marginals(), Marginals().calibrate(found[:100], "ref"))
    for i, w in enumerate(found[100:]):
        red = np.array(w.table["feature:colour"].to_pylist()) == "red"
        kept = ~red | (rng.random(w.n) < 0.2) | (i < 20)
        table = w.table.append_column("sampling_fraction", pa.array(np.where(red & (i >= 20), 0.2, 1.0)))
        table = table if told else table.drop_columns(["sampling_fraction"])
        court.window(dataclasses.replace(w, table=table.filter(pa.array(kept))))
    assert bool(court.decisions) is not told
    assert ("sampled" in court.detections[-1].evidence) is told
