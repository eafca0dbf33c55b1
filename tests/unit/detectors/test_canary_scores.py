"""Answers to canary rows: a change behind everybody's back alarms, noise and told changes do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.base import Calibration, Detection, Feedback, State
from detectors.poisoning.scores import ERAS, MOST, CanaryScores
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, Event, Mark, Verdict
from monitor.service.watch import Monitor
from monitor.service.work import Work
from tests.judging import CASES, Rows, as_log, hours, probed


@pytest.fixture(scope="module")
def cal() -> Calibration:
    return CanaryScores().calibrate(CASES["canary_scores"].reference(), "ref")


def rng() -> np.random.Generator:
    return np.random.default_rng(31)


def heard(cal: Calibration, *tables: pa.Table, changes_us: tuple[int, ...] = ()) -> tuple[list[Detection], State]:
    """Detections over tables that follow each other, each an hour after the one before it ended."""
    state, found, start_us = None, list[Detection](), 0
    for table in tables:
        times = np.asarray(table["event_time"]) + start_us
        start_us = int(times.max()) // HOUR_US * HOUR_US + HOUR_US
        moved = table.set_column(table.column_names.index("event_time"), "event_time", pa.array(times))
        measured = CanaryScores().measure(cal, state, as_log(moved), Feedback(changes_us=changes_us))
        state = measured.state
        found += measured.detections
    assert state is not None
    return found, state


def alarms(found: list[Detection]) -> list[Detection]:
    return [d for d in found if d.verdict is Verdict.ALARM]


def test_a_changed_model_alarms_with_the_second_other_answer(cal: Calibration) -> None:
    """Two canaries of twenty that are answered otherwise twice in a row are enough, and the evidence names them."""
    found, _ = heard(cal, probed([0.0] * 8 + [0.1] * 2, rng(), noise=0.002))
    (opened,) = alarms(found)
    assert (opened.event, opened.subject.id, opened.threshold) == (Event.POISONING_SUSPECTED, "canaries", 0.1)
    assert opened.window_us == (8 * HOUR_US, 9 * HOUR_US + 1_000_000)
    assert [c["canary"] for c in opened.evidence["canaries"]] == [1, 2]
    assert "no change was told" in opened.evidence["detail"]


def test_it_ends_when_answers_are_as_before(cal: Calibration) -> None:
    """The poisoned model is taken back: one detection says that nothing has moved any more."""
    found, _ = heard(cal, probed([0.0] * 8 + [0.5] * 4 + [0.0], rng(), noise=0.002))
    assert [d.verdict for d in found][-1] is Verdict.OK
    assert found[-1].evidence["reason"] == "canaries are answered as before"
    assert len({d.verdict for d in found}) == 2


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.1])
def test_what_the_model_varies_itself_is_no_change(cal: Calibration, noise: float) -> None:
    """Two hundred rounds of a model that answers as exactly as ever alarm nobody."""
    found, _ = heard(cal, probed([0.0] * 200, rng(), noise=noise))
    assert alarms(found) == []


def test_a_new_version_is_told_and_gauged(cal: Calibration) -> None:
    """Another version may answer otherwise: a gauge names it and how many canaries moved, and ends the old one's alarm."""
    old, wrong, new = (
        probed(r, rng(), model_version=v) for r, v in (([0.0] * 6, "1"), ([0.5] * 3, "1"), ([0.3] * 6, "2"))
    )
    found, _ = heard(cal, old, new)
    assert alarms(found) == []
    assert found[-1].statistic == pytest.approx(0.3)
    assert found[-1].evidence["change"]["version"] == "2"
    found, _ = heard(cal, old, wrong, new)
    assert alarms(found) != []
    assert found[-1].verdict is Verdict.OK
    assert found[-1].evidence["reason"] == "version 2 or a deploy replaced it"
    found, _ = heard(cal, old, new, probed([0.6] * 2, rng(), model_version="2"))
    assert next(d.evidence["version"] for d in alarms(found)) == "2"


def test_a_deploy_that_was_told_begins_anew_and_is_remembered(cal: Calibration) -> None:
    """Answers move with a deploy mark: no alarm, then or when the mark itself is forgotten; moving again alarms."""
    log = [probed([0.0] * 6, rng()), probed([0.5] * 6, rng())]
    assert alarms(heard(cal, *log)[0]) != []
    found, state = heard(cal, *log, changes_us=(6 * HOUR_US,))
    assert alarms(found) == []
    later = probed([0.5] * 3 + [0.0] * 2, rng())
    times = pa.array(np.asarray(later["event_time"]) + 20 * HOUR_US)
    later = later.set_column(later.column_names.index("event_time"), "event_time", times)
    again = alarms(list(CanaryScores().measure(cal, state, as_log(later)).detections))
    assert again[0].window_us == (23 * HOUR_US, 24 * HOUR_US + 1_000_000)


def test_marks_of_people_are_changes_and_those_of_the_log_are_not(cal: Calibration) -> None:
    """Deploys and versions that somebody told restart the answers; batch jobs and what the log shows itself do not."""
    marks = [("deploy", 5, "ci"), ("version", 6, "ann"), ("version", 7, "lanner"), ("batch", 8, "ci")]
    work = Work(0, {}, Feedback(), {}, {}, {}, None, 0)
    work.told = replace(work.told, marks=[Mark("m", kind, at, None, "", who) for kind, at, who in marks])
    assert work.told_to(Monitor("x", CanaryScores(), cal, HOUR_US)).changes_us == (5, 6)


def test_only_declared_probes_count(cal: Calibration) -> None:
    """Whoever else sends a canary neither teaches nor moves anything."""
    table = probed([0.0] * 6 + [0.5] * 4, rng())
    other = pa.array(["someone"] * table.num_rows, pa.string())
    found, state = heard(cal, table.set_column(table.column_names.index("principal"), "principal", other))
    assert found == []
    assert state.meta["eras"] == []


@pytest.mark.parametrize("kind", ["value", "label"])
def test_values_and_labels_are_answers_too(cal: Calibration, kind: str) -> None:
    """A regression's value and a bare label move like scores; failed calls say nothing."""
    table = probed([0.0] * 6 + [1.0] * 2, rng()).drop_columns(["scores", "prediction_label"])
    late = np.asarray(table["event_time"]) >= 6 * HOUR_US
    if kind == "value":
        table = table.append_column("prediction_value", pa.array(np.where(late, 5.0, 4.0)))
    else:
        table = table.append_column("prediction_label", pa.array(np.where(late, "ok", "fraud").tolist()))
    assert len(alarms(heard(cal, table)[0])) >= 1
    silent = table.drop_columns([f"prediction_{kind}"])
    assert heard(cal, silent)[0] == []


def test_memory_is_bounded(cal: Calibration) -> None:
    """Versions and lines beyond what is followed take no room, and the newest versions are kept."""
    versions = [probed([0.0], rng(), canaries=3, model_version=f"v{i}") for i in range(4 * ERAS)]
    _, state = heard(cal, *versions)
    assert [e["version"] for e in state.meta["eras"]] == [f"v{i}" for i in range(3 * ERAS, 4 * ERAS)]
    assert len(state.arrays["whole"]) == 3 * ERAS
    far: Any = probed([0.0], rng(), canaries=5)
    line = pa.array(np.arange(5) + MOST - 2)
    found, state = heard(cal, far.set_column(far.column_names.index("canary"), "canary", line))
    assert (found, len(state.arrays["whole"])) == ([], 2)


def test_without_canaries_it_says_so() -> None:
    """The refusal names the key of the configuration."""
    plain: list[Rows] = hours(2, 100, np.random.default_rng(1))
    with pytest.raises(CalibrationRefused, match=r"models\.NAME\.canaries"):
        CanaryScores().calibrate(plain, "ref")
