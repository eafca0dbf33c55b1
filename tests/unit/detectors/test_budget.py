"""One budget, however many window lengths and segments share it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detectors import decide
from detectors.base import Detection, State, Streams
from monitor.model import HOUR_US, Event, Family, Subject, Verdict

DAY_US = 24 * HOUR_US
SHIFT_US = 6 * HOUR_US
LAM = 0.1  # small bets overshoot the level little, so that what is measured is what the level promises
DAYS = 400
BUDGET = decide.BudgetSettings.derive(1 / (10 * 86400), [SHIFT_US, DAY_US, SHIFT_US])


def nothing_wrong(end_us: int, length_us: int, subject: Subject, share: float, rng: np.random.Generator) -> Detection:
    """A window in which one bet on a standard normal score is made, with this share of the detector's budget."""
    z = rng.normal(size=1)
    streams = Streams(("x/location/+/0.1",), ("x",), np.array([share]), LAM * z - LAM * LAM / 2, z)
    return Detection(
        detector="marginals", family=Family.DRIFT, event=Event.FEATURE_DRIFT, subject=subject,
        window_us=(end_us - length_us, end_us), statistic=1.0, verdict=Verdict.OK, n=100, streams=streams,
    )  # fmt: skip


@pytest.mark.parametrize("segments", [0, 2])
def test_two_window_lengths_keep_one_budget(segments: int) -> None:
    """Windows of six hours and of a day together, with and without segments: at most one false alarm in ten days, and not far below it."""
    rng = np.random.default_rng(21)
    parts = [(Subject("model", "m"), 1.0 if not segments else 0.7)]
    parts += [(Subject("segment", f"s{i}"), 0.3 / segments) for i in range(segments)]
    state: State | None = None
    alarms = {SHIFT_US: 0, DAY_US: 0}
    for end_us in range(SHIFT_US, DAYS * DAY_US + 1, SHIFT_US):
        lengths = [u for u in (SHIFT_US, DAY_US) if end_us % u == 0]
        found = [nothing_wrong(end_us, u, s, share, rng) for u in lengths for s, share in parts]
        decided = decide.budget(state, found, (), BUDGET, "m", end_us)  # whoever closes an incident restarts its lane
        state = decided.state
        for d in decided.decisions:
            alarms[d.window_us[1] - d.window_us[0]] += 1
    expected = DAYS / 10
    assert sum(alarms.values()) <= expected
    assert sum(alarms.values()) >= 0.5 * expected
    assert min(alarms.values()) >= 0.2 * expected  # each length has its half


def test_a_length_alone_has_the_whole_budget() -> None:
    """The level counts windows: a day's is a twenty-fourth of an hour's; two lengths double both."""
    one = decide.BudgetSettings.derive(1 / (30 * 86400), [HOUR_US])
    two = decide.BudgetSettings.derive(1 / (30 * 86400), [HOUR_US, DAY_US])
    assert np.exp(one.log_level(0.9, HOUR_US)) == pytest.approx(800)
    assert np.exp(one.log_level(0.9, DAY_US)) == pytest.approx(800 / 24)
    for length_us in (HOUR_US, DAY_US):
        assert two.log_level(0.9, length_us) == pytest.approx(one.log_level(0.9, length_us) + np.log(2))


def test_what_has_no_part_of_the_budget_is_forgotten() -> None:
    """Evidence of a detector that an older version knew goes, and the others' stays."""
    rng = np.random.default_rng(23)
    found = nothing_wrong(HOUR_US, HOUR_US, Subject("model", "m"), 1.0, rng)
    state = decide.budget(None, [found], (), BUDGET, "m", HOUR_US).state
    (key,) = state.meta["lanes"]
    gone = key.replace("marginals", "gone")
    arrays = {k.replace(key, other): a for k, a in state.arrays.items() for other in (key, gone)}
    older = replace(state, meta={"lanes": dict.fromkeys((key, gone), state.meta["lanes"][key])}, arrays=arrays)
    assert list(decide.budget(older, [found], (), BUDGET, "m", 2 * HOUR_US).state.meta["lanes"]) == [key]


def test_a_segment_that_is_no_longer_judged_leaves_nothing() -> None:
    """Its running evidence goes with the next window, and its open incident ends."""
    rng = np.random.default_rng(22)
    model, segment = Subject("model", "m"), Subject("segment", "s")
    both = [nothing_wrong(HOUR_US, HOUR_US, s, 0.5, rng) for s in (model, segment)]
    state = decide.budget(None, both, (), BUDGET, "m", HOUR_US).state
    assert len(state.meta["lanes"]) == 2
    decided = decide.budget(state, [nothing_wrong(2 * HOUR_US, HOUR_US, model, 0.5, rng)], (), BUDGET, "m", 2 * HOUR_US)
    assert list(decided.state.meta["lanes"]) == [f"drift:marginals:{HOUR_US}:"]
