"""What scores promise without labels: precision, recall, F1 and AUC against a truth that is known, and when they are off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.performance.promises import METRICS, NUMBERS_ONLY, Scored, estimate, kept, metrics, pairs
from monitor.model import HOUR_US
from tests.judging import Rows

Rng = np.random.Generator


def window(
    rng: Rng, n: int = 400, *, mean: float = -1.5, steep: float = 1.0, rates: bool = False
) -> tuple[pa.Table, Any]:
    """Rows whose score is the probability of fraud for `steep` 1, and their truth. rates: declines are logged in full,
    approvals at a fifth."""
    x = rng.normal(mean, 1.2, n)
    truth = np.where(rng.random(n) < 1 / (1 + np.exp(-x)), "fraud", "ok").astype(object)
    p = 1 / (1 + np.exp(-steep * x))
    keep = (rng.random(n) < 0.2) | (p > 0.3) if rates else np.ones(n, dtype=bool)
    p, truth = p[keep], truth[keep]
    table = pa.table({
        "prediction_label": np.where(p > 0.3, "fraud", "ok"), "scores": pa.array(np.column_stack([1 - p, p]).tolist()),
        "class_names": [["ok", "fraud"]] * len(p), "sampling_fraction": np.where(p > 0.3, 1.0, 0.2) if rates else np.ones(len(p)),
    })  # fmt: skip
    return table, truth


def told(rng: Rng, now: pa.Table, **how: Any) -> dict[str, Any]:
    """The estimate after forty labelled windows."""
    history = np.array([kept(*window(rng, **how), "fraud") for _ in range(40)])
    return estimate(Rows("m", 0, HOUR_US, now), history, "fraud")


def value(found: dict[str, Any], metric: str) -> dict[str, Any]:
    """One metric's part of an estimate."""
    return {**found, "value": found.get("accuracy")} if metric == "accuracy" else found["metrics"][metric]


@pytest.mark.parametrize("rates", [False, True])
def test_bands_hold_the_truth_when_inputs_move(rates: bool) -> None:
    """Frauds become twice as frequent because inputs do: of 60 windows some nine in ten tell each metric (the check by
    chance stops the others), and of these bands nine in ten or more hold what labels would have said; of a sampled log what
    labels of the whole traffic say on average.
    """
    inside, shown = np.zeros(len(METRICS)), np.zeros(len(METRICS))
    whole, truth = window(np.random.default_rng(1), 200_000, mean=-0.5)
    sums, kept_word = kept(whole, truth, "fraud")[1], []
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        now, labels = window(rng, mean=-0.5, rates=rates)
        found = told(rng, now, rates=rates)
        kept_word.append(found)
        measured = metrics(sums if rates else kept(now, labels, "fraud")[1])
        for i, m in enumerate(METRICS):
            own = value(found, m)
            if not own["told"]:
                continue
            shown[i] += 1
            inside[i] += own["band"][0] <= measured[i] <= own["band"][1]
            assert abs(own["value"] - metrics(sums)[i]) < 0.12
            assert own["band"][1] - own["band"][0] < 0.4
    assert (shown >= 50).all(), shown
    assert (inside >= 0.9 * shown).all(), (inside, shown)
    cells = next(f["confusion"] for f in reversed(kept_word) if "confusion" in f)
    assert sum(cells.values()) == pytest.approx(400, rel=0.15 if rates else 0.001)


def test_scores_that_broke_their_word_tell_nothing() -> None:
    """Scores twice too steep promise too much precision and too little else: what they broke is off, with the gap."""
    rng = np.random.default_rng(5)
    now, _ = window(rng, steep=2.0)
    found = told(rng, now, steep=2.0)
    for m in ("accuracy", "auc", "f1"):
        own = value(found, m)
        assert own["told"] is False
        assert abs(own["check"]["gap"]) > own["check"]["allowed"]
    assert "confusion" not in found


def test_every_metric_is_checked_by_itself() -> None:
    """Scores that are right about accuracy and wrong about a rare class: accuracy stays, recall of the class goes."""
    rng = np.random.default_rng(6)
    history = []
    for _ in range(40):
        table, truth = window(rng, mean=-5.0)
        truth[(truth == "fraud") & (rng.random(len(truth)) < 0.8)] = "ok"
        history.append(kept(table, truth, "fraud"))
    found = estimate(Rows("m", 0, HOUR_US, window(rng, mean=-5.0)[0]), np.array(history), "fraud")
    assert found["told"]
    assert found["metrics"]["precision"]["told"] is False


def test_few_windows_and_too_few_of_a_class_are_said() -> None:
    """Below ten windows nothing is told; a class that hardly comes leaves recall unchecked."""
    rng = np.random.default_rng(7)
    history = np.array([kept(*window(rng), "fraud") for _ in range(9)])
    found = estimate(Rows("m", 0, HOUR_US, window(rng)[0]), history, "fraud")
    assert found["reason"] == "checked in 9 of 10 windows"
    history = np.array([kept(*window(rng, 60, mean=-6.0), "fraud") for _ in range(40)])
    own = estimate(Rows("m", 0, HOUR_US, window(rng)[0]), history, "fraud")["metrics"]["recall"]
    assert own["told"] is False


def test_numbers_and_many_classes() -> None:
    """Nothing is estimated for a predicted number, and said so; of three classes accuracy alone."""
    rng = np.random.default_rng(8)
    numbers = Rows("m", 0, HOUR_US, pa.table({"prediction_value": [1.0, 2.0]}))
    assert estimate(numbers, np.empty((0, 2, 7)), "") == {"told": False, "reason": NUMBERS_ONLY}
    history = []
    for _ in range(12):
        p = rng.dirichlet([2.0, 2.0, 2.0], 300)
        truth = np.array([rng.choice(["a", "b", "c"], p=q) for q in p], dtype=object)
        said = np.array(["a", "b", "c"])[p.argmax(axis=1)]
        table = pa.table(
            {"prediction_label": said, "scores": pa.array(p.tolist()), "class_names": [["a", "b", "c"]] * 300}
        )
        history.append(kept(table, truth, "c"))
    found = estimate(Rows("m", 0, HOUR_US, table), np.array(history), "c")
    assert found["told"]
    assert "metrics" not in found


def test_pairs_are_those_of_the_textbook() -> None:
    """Ordered pairs over all pairs are the AUC, ties by halves; a promise never pairs an event with itself."""
    order, y = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 1.0, 0.0, 1.0])
    right, every = pairs(order, y, 1 - y)
    assert right / every == (0.5 + 1 + 2) / 4
    p = np.array([0.2, 0.7])
    right, every = pairs(p, p, 1 - p)
    assert right == pytest.approx(0.7 * 0.8)
    assert every == pytest.approx(0.7 * 0.8 + 0.2 * 0.3)
    assert np.isnan(metrics(Scored(np.ones(3), np.ones(3)).sums())[1:]).all()
