"""Label flips per labeler: found quickly, and honest labelers with other cases left in peace."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from detectors import decide
from detectors.base import Calibration, State
from detectors.poisoning.feedback import LabelFlips
from monitor.model import Alert, Event
from tests.judging import ATTACKS, Rows, hours, incident, told_by


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return LabelFlips().calibrate(hours(20, 100, np.random.default_rng(1)), "ref")


def accused(cal: Calibration, windows: list[Rows]) -> dict[str, int]:
    """Labeler -> the window in which its incident opened."""
    state: State | None = None
    decider: State | None = None
    found: dict[str, int] = {}
    alerts: list[Alert] = []
    for i, window in enumerate(windows):
        measured = LabelFlips().measure(cal, state, window)
        state = measured.state
        if measured.evidence is not None:
            decided = decide.fuse(decider, [measured.evidence], tuple(alerts), ATTACKS, "m")
            decider = decided.state
            for d in decided.decisions:
                assert (d.event, d.subject.kind) == (Event.POISONING_SUSPECTED, "labeler")
                if d.subject.id not in found:
                    found[d.subject.id] = i
                    alerts.append(incident(d))
    return found


def days(count: int, flips: dict[str, float], *, since: int = 0, seed: int = 3) -> list[Rows]:
    rng = np.random.default_rng(seed)
    made = hours(count, 300, rng)
    usual = dict.fromkeys(flips, 0.02)
    return [told_by(w, flips if i >= since else usual, rng) for i, w in enumerate(made)]


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_labeler_who_flips_is_named_and_nobody_else(calibration: Calibration, share: float) -> None:
    """A labeler who flips labels is named, and nobody else."""
    found = accused(calibration, days(12, {"ann": 0.02, "bob": 0.02, "eve": share}, since=4))
    assert list(found) == ["eve"]
    assert found["eve"] <= 8


def test_honest_labelers_are_left_in_peace(calibration: Calibration) -> None:
    """Sixty hours of honest labels accuse nobody."""
    for seed in range(4):
        assert accused(calibration, days(15, {"ann": 0.01, "bob": 0.05, "cid": 0.03, "dan": 0.08}, seed=seed)) == {}


def test_a_labeler_who_sees_only_one_queue_is_no_poisoner(calibration: Calibration) -> None:
    """Another mix of cases is no flip."""

    def queued(window: Rows) -> Rows:
        """Only ann sees most frauds; the others see what is left, and a tenth of them."""
        table = window.table
        fraud = np.array(table["prediction_label"].to_pylist()) == "fraud"
        who = np.array(table["labeler"].to_pylist())
        other = np.where(np.arange(len(who)) % 2 == 0, "bob", "cid")
        who = np.where(fraud & (np.arange(len(who)) % 10 > 0), "ann", other)
        place = table.column_names.index("labeler")
        return dataclasses.replace(window, table=table.set_column(place, "labeler", pa.array(who.tolist())))

    assert accused(calibration, [queued(w) for w in days(15, {"ann": 0.02, "bob": 0.02})]) == {}


def test_one_labeler_alone_cannot_be_judged(calibration: Calibration) -> None:
    """Without others to compare with there is no verdict."""
    assert accused(calibration, days(8, {"eve": 0.9})) == {}
    gauge = LabelFlips().measure(calibration, None, days(1, {"eve": 0.9})[0]).detections[0]
    assert (gauge.evidence["busiest"], gauge.statistic) == ("eve", 1.0)


def test_what_a_suspect_says_is_not_trusted(calibration: Calibration) -> None:
    """Labels of a suspect are no neighbours for anybody."""
    from detectors.base import Feedback

    window = days(1, {"ann": 0.0, "eve": 1.0})[0]
    state = LabelFlips().measure(calibration, None, window, Feedback(suspects=frozenset({"eve"}))).state
    assert set(np.unique(state.arrays["who"]).tolist()) == {state.meta["ids"].index("ann")}


def test_a_night_of_labels_in_one_window_is_judged_piece_by_piece(calibration: Calibration) -> None:
    """Whoever begins to flip is named within the first night, though nothing was known before; alarms are dated to the window."""
    parts = days(12, {"ann": 0.02, "bob": 0.02, "eve": 1.0}, since=4)
    night = dataclasses.replace(parts[0], table=pa.concat_tables([w.table for w in parts]))
    assert accused(calibration, [night]) == {"eve": 0}
    early = dataclasses.replace(night, start_us=1 << 60, end_us=(1 << 60) + 10)
    evidence = LabelFlips().measure(calibration, None, early).evidence
    assert evidence is not None
    assert set(evidence.time_us.tolist()) == {1 << 60}
