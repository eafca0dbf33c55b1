"""The comparison with peers: every peer has one threshold that spends the budget, and the page tells what was measured."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import table, tuning, walks
from benchmarks.peers.__main__ import ALLOWED, NULL, SEEDS, STREAMS

PAGE = (Path(table.FILE).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("module", [tuning, walks], ids=lambda m: m.__name__)
def test_the_examples_run(module: object) -> None:
    """The examples in the docstrings print what they say."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_a_threshold_spends_the_budget_on_features_of_any_unit() -> None:
    """Tuned on 7,200 windows of features whose units differ a thousandfold there are exactly ten alarms; on as many others the
    interval holds the budget, no feature has all of them, and a lower threshold has more.
    """
    tune, judge = (
        np.random.default_rng(seed).gumbel(size=(STREAMS, NULL, 23)) * np.logspace(-1, 2, 23) for seed in (1, 2)
    )
    scale = tuning.fitted(tune.reshape(-1, 23))
    strangest = scale.of(tune).max(axis=2)
    limit = tuning.threshold(strangest, ALLOWED)
    assert ALLOWED == 10
    assert tuning.alarms(strangest >= limit) == ALLOWED
    assert tuning.alarms(strangest >= np.sort(strangest[strangest < limit])[-1]) > ALLOWED
    found = scale.of(judge) >= limit
    told = tuning.rate(tuning.alarms(np.asarray(found.any(axis=2))), STREAMS * NULL)
    assert told["lower_95"] <= 1 <= told["upper_95"]
    assert found.any(axis=(0, 1)).sum() > 3


def test_equal_scores_forbid_the_threshold() -> None:
    """More windows with one and the same highest score than the budget has alarms leave a peer silent."""
    assert tuning.threshold(np.tile([1.0, 0.0], (1, 20)), ALLOWED) == np.inf


@pytest.mark.parametrize("name", list(walks.WALKS))
def test_a_walk_alarms_where_its_score_first_passes_the_limit(name: str) -> None:
    """Until its first alarm a detector of river's scores as if it had no limit; then it starts anew."""
    walk = walks.WALKS[name][0]
    values = np.random.default_rng(4).normal(size=30_000) + np.repeat([0.0, 0.5], [20_000, 10_000])
    free = walk(values, 10_000, np.inf)
    limit = float(free[:12].max()) - 0.001
    held = walk(values, 10_000, limit)
    first = int(np.argmax(free > limit))
    assert (held[: first + 1] > limit).tolist() == [False] * first + [True]
    assert held[-1] < free[-1]


def test_tuning_and_judging_share_no_shuffle() -> None:
    """The streams that thresholds are tuned on, judged on and shifted have seeds of their own."""
    assert len(set(SEEDS.values())) == len(SEEDS)


@pytest.mark.parametrize("line", [x for x in table.written(table.stored()) if x])
def test_every_stored_number_stands_on_the_page(line: str) -> None:
    """`python -m benchmarks.peers.table` prints the lines; measured anew, they replace those of the page."""
    assert line in PAGE
