"""Losses against labels that come late, and what scores promise without them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.performance.labelled import Performance
from monitor.model import HOUR_US, Event, Verdict
from tests.judging import Court, Labelled, known_later


def court(**params: Any) -> Court:
    """A detector with no reference, as it needs none; labels are looked at at once unless said otherwise."""
    detector = Performance(**{"delay_s": 0.0, **params})
    return Court(detector, detector.calibrate([], "none"))


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
    """From 20 % wrong answers to none, from a model without scores (scores that were right would not be any more)."""
    found = court()
    for i in range(150):
        w = known_later(i, 0.0 if i >= 100 else 0.2)
        found.window(dataclasses.replace(w, table=w.table.drop_columns(["scores"])))
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
    """Answers right nine times in ten, with scores that say so or say 99 %, for either class."""
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
    late_one = with_scores(60, confident)
    found.window(dataclasses.replace(late_one, known=late_one.labels(0).slice(0, 0)))
    told = found.detections[-1].evidence["estimate"]
    assert told["told"] is not confident
    assert told["check"]["windows"] == 60
    if confident:
        assert told["reason"] == "scores did not keep what they promised"
        assert told["check"]["gap"] > told["check"]["allowed"]
    else:
        assert told["accuracy"] == 0.9
        assert told["band"][0] < 0.9 < told["band"][1]
        assert told["assumes"]


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


def late(i: int, quick: float = 0.0, hours: int = 30, wrong: float = 0.05) -> Labelled:
    """An hour of 100 events whose labels come `hours` later, a share `quick` of them at once; i counts from 0."""
    w = known_later(i, wrong)
    now = np.random.default_rng([6, i]).random(w.n) < quick
    times = w.end_us - 1 + np.where(now, 0, hours * HOUR_US)
    assert w.known is not None
    known = w.known.append_column("label_time_us", pa.array(times))
    return dataclasses.replace(w, known=known, before=lambda by: late(i - by, quick, hours, wrong))


def test_no_labels_no_words() -> None:
    """Without labels the detector stays silent for good and says why."""
    found = court(delay_s=-1.0)
    for i in range(30):
        found.window(dataclasses.replace(late(i), known=late(i).labels(0)))
    assert {d.verdict for d in found.detections} == {Verdict.INSUFFICIENT}
    assert "no labels yet" in found.detections[-1].evidence["reason"]


def test_delay_is_learnt_from_the_labels() -> None:
    """Labels that come after 30 hours: windows are judged 32 hours later with all of them, without configuration."""
    found = court(delay_s=-1.0)
    for i in range(60):
        found.window(late(i))
    told = found.detections[-1]
    assert told.evidence["labels_known_after_s"] == 32 * 3600
    assert told.evidence["delay"] == "learnt"
    assert told.evidence["coverage"] == 1.0
    assert told.known_us == told.window_us[1] + 32 * HOUR_US
    assert told.evidence["by"] == "event time"
    assert found.detections[20].evidence["reason"].startswith("no labels yet")


def test_delay_grows_when_most_labels_turn_out_to_come_later() -> None:
    """Four in ten labels come at once: judged at once at first, later only when the rest has come."""
    found = court(delay_s=-1.0)
    for i in range(80):
        found.window(late(i, quick=0.4))
    after = [d.evidence.get("labels_known_after_s") for d in found.detections]
    assert 0 in after
    assert after[-1] == 32 * 3600
    assert found.detections[-1].evidence["coverage"] == 1.0


def test_a_configured_delay_wins() -> None:
    """Six hours are six hours, whatever comes later; only what was known then counts."""
    found = court(delay_s=6 * 3600.0)
    for i in range(50):
        found.window(late(i, quick=0.4))
    told = found.detections[-1].evidence
    assert told["labels_known_after_s"] == 6 * 3600
    assert told["delay"] == "configured"
    assert 0.2 < told["coverage"] < 0.6


def test_scores_that_lose_their_meaning_are_found() -> None:
    """Answers as good as ever, but scores that say 99 % where they said 90 %: calibration is named, the estimate goes off."""
    found = court()
    for i in range(160):
        found.window(with_scores(i, confident=i >= 130))
    opened = next(d for d in found.decisions if d.firing)
    assert opened.time_us // HOUR_US - 190 <= 6
    assert {f["name"] for f in opened.evidence["features"]} & {"scores too high", "scores too steep"}
    told = found.detections[-1].evidence
    assert told["ece"] > 2 * told["ece_by_chance"]
    assert told["estimate"]["told"] is False
    assert len(told["reliability"]) >= 1


def test_labels_by_their_own_time_stand_apart() -> None:
    """Accuracy over labels given in the window has its own name, number of labels and band."""
    w = known_later(0)
    given = w.table.append_column("value", w.labels(0)["value"]).append_column("name", pa.array(["label"] * w.n))
    found = court()
    found.window(dataclasses.replace(w, table=given))
    told = found.detections[0].evidence
    assert told["by"] == "event time"
    assert told["by_label_time"]["labelled"] == 100
    assert told["by_label_time"]["band"][0] < told["by_label_time"]["accuracy"]
    assert told["by_label_time"]["labels_given_in"] == told["events_of"]


def test_a_rare_class_among_labels_is_followed() -> None:
    """The reference names the rarest class; its share among labels is told with a band."""
    detector = Performance(delay_s=0.0)
    usual = [known_later(i) for i in range(3)]
    cal = detector.calibrate(usual, "ref")
    assert cal.meta["rates"] == ["fraud"]
    told = detector.measure(cal, None, known_later(0)).detections[0].evidence["rates"]["fraud"]
    assert told["n"] == 100
    assert told["band"][0] < told["share"] < told["band"][1]


def test_losses_of_a_sampled_log_are_those_of_the_traffic() -> None:
    """Wrong answers logged in full, right ones at a declared fifth: accuracy, its band, coverage and recall are those of
    the traffic, no incident comes when the log begins to be a sample, and bands are those of fewer rows.
    """
    found, rng = court(), np.random.default_rng(9)
    for i in range(110):
        w = known_later(i, 0.1, rows=400)
        assert w.known is not None
        wrong = np.array(w.table["prediction_label"].to_pylist()) != np.array(w.known["value"].to_pylist())
        fraction = np.where(wrong | (i < 70), 1.0, 0.2)
        keep = rng.random(w.n) < fraction
        table = w.table.append_column("sampling_fraction", pa.array(fraction)).filter(pa.array(keep))
        found.window(dataclasses.replace(w, table=table, known=w.known.filter(pa.array(keep))))
    assert found.decisions == []
    before, after = found.detections[69].evidence, [d.evidence for d in found.detections[70:]]
    assert np.mean([e["accuracy"] for e in after]) == pytest.approx(0.9, abs=0.01)
    assert np.mean([e["events"] for e in after]) == pytest.approx(400, rel=0.05)
    assert all(e["coverage"] == 1.0 for e in after)
    assert after[-1]["band"][1] - after[-1]["band"][0] > 1.2 * (before["band"][1] - before["band"][0])
