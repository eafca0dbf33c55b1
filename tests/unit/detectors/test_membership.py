"""Small steps around training records, and canaries: who is found, who is left in peace, and why."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pytest

from detectors.anomaly.canaries import Canaries
from detectors.base import Calibration, Caller, State
from detectors.membership import records
from detectors.membership.variations import Membership
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family
from monitor.service.windows import Stretch
from tests import judging
from tests.judging import Court, as_log, events, hours, mixed, numbers, sent, with_known


@functools.cache
def calibrated() -> Calibration:
    return Membership().calibrate(judging.CASES["membership"].reference(), "ref")


def court() -> Court:
    return Court(Membership(), calibrated())


def test_noisy_copies_of_training_records_are_named_membership() -> None:
    """Found within a few dozen queries; the incident names the technique and how many records were tried."""
    judge = court()
    judge.stretch(as_log(judging.tested(120, 0.9, np.random.default_rng(1))))
    first, last = judge.decisions[0], judge.decisions[-1]
    assert first.event is Event.ATTACK_SUSPECTED
    assert first.n is not None
    assert first.n <= 20
    assert last.family is Family.MEMBERSHIP
    assert last.evidence["technique"] == "record_variation"
    assert last.evidence["examples"][-1]["record_variation"]["training_rows"] > 1


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_training_records_scored_again_alarm_nobody(share: float) -> None:
    """Overlap alone, whole or mixed with new rows, is a gauge that tells how many, and no alarm."""
    rng = np.random.default_rng(2)
    log = as_log(with_known(events(1000, rng), "training", share, rng))
    judge = court()
    judge.stretch(log)
    assert judge.decisions == []
    measured = Membership().measure(calibrated(), None, log)
    told = [d.statistic for d in measured.detections]
    assert measured.evidence is not None
    assert [r["training_overlap"]["training_rows"] for r in measured.evidence.readings.values()] == told
    assert told == [64.0 * 2**i for i in range(len(told))]
    assert len(told) >= 2


def test_the_same_steps_around_other_rows_are_not_its_business() -> None:
    """Without a training record there are no trials, so nothing is said at all."""
    table = judging.tested(120, 0.9, np.random.default_rng(3)).drop_columns(["training"])
    nobody = with_known(table, "training", 0.0, np.random.default_rng(4))
    measured = Membership().measure(calibrated(), None, as_log(nobody))
    assert measured.evidence is not None
    assert not measured.evidence.log_e.any()
    assert measured.state.meta["ids"] == []


def test_a_what_if_on_a_training_record_is_no_test() -> None:
    """One or two fields of a record may be varied over and over."""
    rng = np.random.default_rng(5)
    table = events(200, rng)
    x = np.tile(numbers(table)[0], (200, 1))
    x[1:, 2] += rng.normal(0, 0.1, 199)
    log = sent(x, table.take(pa.array(np.zeros(200, np.int64))), "analyst")
    judge = court()
    judge.stretch(as_log(log.append_column("training", pa.array([True] + [False] * 199))))
    assert judge.decisions == []


def test_a_declared_explainer_is_never_flagged() -> None:
    """The directory says that it varies rows on purpose."""
    log = judging.tested(120, 0.9, np.random.default_rng(6), "shap")
    for profile, flagged in (("explainer", False), ("batch", True)):
        window = Stretch("m", 0, 1, log, None, {"shap": Caller(profile=profile)})
        evidence = Membership().measure(calibrated(), None, window).evidence
        assert evidence is not None
        assert evidence.flag.any() == flagged


def test_memory_is_bounded_and_the_silent_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many callers with training records stay within max_mb; the last one is remembered."""
    monkeypatch.setattr(records, "EVERY", 60)
    small = Membership(max_mb=0.1)
    calibration = small.calibrate(judging.CASES["membership"].reference(), "ref")
    crowd = [
        with_known(events(3, np.random.default_rng(i), start_us=i), "training", 1.0, np.random.default_rng(i))
        for i in range(60)
    ]
    log = mixed(*[t.set_column(1, "principal", pa.array([f"p{i}"] * 3)) for i, t in enumerate(crowd)])
    state = small.measure(calibration, None, as_log(log)).state
    assert sum(a.nbytes for a in state.arrays.values()) <= 100_000
    assert log["principal"][-1].as_py() in state.meta["ids"]


def test_who_is_forgotten_does_not_depend_on_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a tight cap evidence, gauge and what is remembered are the same wherever the log is cut."""
    monkeypatch.setattr(records, "EVERY", 128)
    small, rng = Membership(max_mb=0.06), np.random.default_rng(16)
    crowd = [with_known(events(20, rng, principal=f"p{i}"), "training", 0.5, rng) for i in range(30)]
    log = mixed(*crowd, judging.tested(200, 0.8, rng), judging.tested(200, 0.3, rng, "other"))
    results = []
    for pieces in (0, 1, 8, 60):
        state: State | None = None
        flags: list[bool] = []
        told: list[tuple[str, int]] = []
        for piece in judging.cut(log, rng, pieces) if pieces else [log]:
            m = small.measure(calibrated(), state, as_log(piece))
            state = m.state
            told += [(d.subject.id, d.n) for d in m.detections]
            flags += m.evidence.flag.tolist() if m.evidence else []
        assert state is not None
        order = np.argsort(state.meta["ids"])
        results.append(
            (
                flags,
                told,
                sorted(state.meta["ids"]),
                state.arrays["sent"][order].tolist(),
                state.arrays["seen"][order].tolist(),
            )
        )
    assert 2 < len(results[0][2]) < 30
    assert any(results[0][0])
    assert results[1:] == results[:1] * 3


def test_without_files_both_say_so() -> None:
    """A model without training rows or canaries has neither detector, and the reason names the key."""
    plain = hours(5, 100, np.random.default_rng(7))
    with pytest.raises(CalibrationRefused, match=r"models\.NAME\.training"):
        Membership().calibrate(plain, "ref")
    with pytest.raises(CalibrationRefused, match=r"models\.NAME\.canaries"):
        Canaries().calibrate(plain, "ref")


def test_one_canary_is_enough_unless_a_probe_sends_it() -> None:
    """A fact: the first one alarms. A declared health probe or batch job sends them on purpose."""
    calibration = Canaries().calibrate(judging.CASES["canaries"].reference(), "ref")
    table = events(5, np.random.default_rng(8), principal="someone").append_column(
        "canary", pa.array([-1, -1, 3, -1, -1])
    )
    judge = Court(Canaries(), calibration)
    (opened,) = [d for d in judge.stretch(as_log(table)) if d.n == 1]
    assert (opened.family, opened.subject.id) == (Family.ANOMALY, "someone")
    for profile, flagged in (("health_probe", 0), ("batch", 0), ("what_if", 1)):
        window = Stretch("m", 0, 1, table, None, {"someone": Caller(profile=profile)})
        evidence = Canaries().measure(calibration, None, window).evidence
        assert evidence is not None
        assert evidence.flag.sum() == flagged
