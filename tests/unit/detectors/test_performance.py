"""Losses against labels that come late, and what scores promise without them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from detectors.performance.labelled import Performance
from monitor.model import HOUR_US, Event, Verdict
from tests.judging import Court, Labelled, known_later


def court() -> Court:
    """A detector with no reference, as it needs none."""
    return Court(Performance(), Performance().calibrate([], "none"))


def test_errors_that_rise_are_found_and_their_end_too() -> None:
    """From 5 % wrong answers to 20 %: one incident, with accuracy, band and recall."""
    found = court()
    for i in range(260):
        found.window(known_later(i, 0.2 if 200 <= i < 230 else 0.05, rows=300))
    opened, ended = found.decisions[0], found.decisions[-1]
    assert opened.event is Event.PERFORMANCE_DECAY
    assert opened.time_us // HOUR_US - 260 <= 5
    assert not ended.firing
    told = found.detections[205].evidence
    assert told["band"][0] < told["accuracy"] < told["band"][1] < 0.9
    assert told["coverage"] == 1.0
    assert set(told["recall"]) == {"ok", "fraud"}


def test_better_answers_are_no_decay() -> None:
    """From 20 % wrong answers to none."""
    found = court()
    for i in range(150):
        found.window(known_later(i, 0.0 if i >= 100 else 0.2))
    assert found.decisions == []


def test_few_labels_are_no_verdict() -> None:
    """Twenty labels among a hundred events: insufficient, nothing learnt, the coverage is told."""
    found = court()
    w = known_later(0)
    found.window(dataclasses.replace(w, known=w.labels(0).slice(0, 20)))
    assert found.detections[0].verdict is Verdict.INSUFFICIENT
    assert found.detections[0].evidence["coverage"] == 0.2
    assert found.detections[0].evidence["history"] == 0


def with_scores(i: int, confident: bool) -> Labelled:
    """Answers right nine times in ten, with scores that say so or say 99 %."""
    w = known_later(i, 0.1, rows=200)
    p = 0.99 if confident else 0.9
    said = w.table["prediction_label"].to_pylist()
    column = pa.array([[p, 1 - p] if s == "ok" else [1 - p, p] for s in said])
    table = w.table.set_column(w.table.column_names.index("scores"), "scores", column)
    return dataclasses.replace(w, table=table)


@pytest.mark.parametrize("confident", [False, True])
def test_promised_accuracy_is_told_only_while_it_was_kept(confident: bool) -> None:
    """Calibrated scores give an estimate before labels come; overconfident ones give none."""
    found = court()
    for i in range(60):
        found.window(with_scores(i, confident))
    late = with_scores(60, confident)
    found.window(dataclasses.replace(late, known=late.labels(0).slice(0, 0)))
    told = found.detections[-1].evidence
    assert ("estimated_accuracy" in told) is not confident
    if not confident:
        assert told["estimated_accuracy"] == 0.9


def test_newest_labels_count_per_event_and_strangers_do_not() -> None:
    """A label of another name or another event is not the truth."""
    w = known_later(0)
    known = w.labels(0)
    other = known.set_column(1, "name", pa.array(["reviewed"] * known.num_rows))
    found = court()
    found.window(dataclasses.replace(w, known=other))
    stranger = known.set_column(0, "request_id", pa.array([f"x{i}" for i in range(known.num_rows)]))
    found.window(dataclasses.replace(w, known=stranger))
    assert [d.n for d in found.detections] == [0, 0]
    assert np.isnan(found.detections[0].statistic or np.nan)
