"""The traffic generators that tests, demo and benchmarks share."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.traffic import (
    ATTACKS,
    BENIGN,
    DRIFTS,
    attack,
    benign,
    interleave,
    log,
    natural,
    reference,
    times,
    victim,
)

WINE = "wine"


@pytest.mark.parametrize("kind", [*BENIGN, *ATTACKS])
def test_rows_are_reproducible(kind: str) -> None:
    """The same seed gives the same rows, as many as asked for, and numpy's global generator is left alone."""
    v = victim(WINE)
    before = json.dumps(np.random.get_state(legacy=False)["state"]["key"].tolist())  # noqa: NPY002 (this is what must not move)
    made = [(benign if kind in BENIGN else attack)(v, kind, 120, np.random.default_rng(3)) for _ in range(2)]
    assert made[0].shape == (120, len(v.columns))
    assert np.array_equal(made[0], made[1], equal_nan=True)
    assert json.dumps(np.random.get_state(legacy=False)["state"]["key"].tolist()) == before  # noqa: NPY002


@pytest.mark.parametrize("kind", DRIFTS)
def test_drift_moves_only_its_feature(kind: str) -> None:
    """A change of one feature leaves the input as it was and, but for exchanged rows, every other feature too."""
    v, rng = victim(WINE), np.random.default_rng(3)
    rows = natural(v, 500, rng)
    kept = rows.copy()
    feature = v.columns[2].name
    changed = DRIFTS[kind](v, rows, feature, 0.5, rng)
    assert np.array_equal(rows, kept)
    assert not np.array_equal(changed[:, 2], rows[:, 2], equal_nan=True)
    if kind != "mix_change":
        assert np.array_equal(np.delete(changed, 2, axis=1), np.delete(rows, 2, axis=1))


def test_flight_events_are_the_size_of_the_benchmark() -> None:
    """A flight event is a JSON object of about 700 bytes with 25 features, numbers and words, some missing."""
    events = list(reference(victim("flights"), 200, np.random.default_rng(0), start_us=0, every_s=3.6))
    sizes = [len(json.dumps(e, separators=(",", ":"))) for e in events]
    kinds = {type(x) for e in events for x in e["features"].values()}
    assert 650 < np.mean(sizes) < 750
    assert {len(e["features"]) for e in events} == {25}
    assert kinds == {int, float, str, type(None)}


def test_interleaved_logs_are_in_time_order() -> None:
    """Two logs become one by event time, and no event is lost."""
    v, rng = victim(WINE), np.random.default_rng(0)
    one = log(v, natural(v, 30, rng), times(30, 0, 7.0), ["a"], rng)
    two = log(v, natural(v, 20, rng), times(20, 3_000_000, 9.0), ["b"], rng)
    merged = list(interleave(one, two))
    assert len(merged) == 50
    assert [e["event_time"] for e in merged] == sorted(e["event_time"] for e in merged)


def test_the_thief_learns_the_model() -> None:
    """The extraction attack is real: its copy agrees with the model far better than chance on rows it never asked."""
    from benchmarks.traffic.oracle import Oracle
    from benchmarks.traffic.toolbox import extract

    v, rng = victim("breast_cancer"), np.random.default_rng(5)
    sent, copy = extract(v, 150, rng, own_rows=True)
    rows = v.complete()
    unit = Oracle(v, len(rows)).unit(rows)
    agree = copy.predict(unit).argmax(axis=1) == v.answer(rows).argmax(axis=1)
    assert len(sent) == 150
    assert agree.mean() > 0.85
