"""Answers of two versions compared window by window: how often nothing is called something."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from detectors import expected, groups
from detectors.profile import Bins
from detectors.versions import Side, compared, verdict


def rows(rng: np.random.Generator, n: int, mean: float, wander: float, lift: float = 0.0) -> pa.Table:
    """One window of a model whose score follows x; x wanders from window to window."""
    x = rng.normal(mean + wander, 1, n)
    p = 1 / (1 + np.exp(-x + 1)) + lift + rng.normal(0, 0.02, n)
    return pa.table({
        "event_time": np.ones(n, np.int64), "feature:x": x, "model_version": ["1"] * n, "latency_ms": rng.exponential(50, n),
        "prediction_value": p,
    })  # fmt: skip


def compare(seed: int, mean: float = 0.0, lift: float = 0.0) -> str:
    """Sixty windows of the old version and thirty of the new; hours hang together."""
    rng = np.random.default_rng(seed)
    reference = pa.concat_tables([rows(rng, 200, 0.0, 0.0) for _ in range(20)])
    bins = Bins.fit(reference, ["x"], [])
    fitted = expected.fit(bins, reference)
    sides = []
    for k, mine, own in ((60, 0.0, 0.0), (30, mean, lift)):
        wander, found = 0.0, []
        for _ in range(k):
            wander = 0.6 * wander + rng.normal(0, 0.15)
            table = rows(rng, 60, mine, wander, own)
            found += groups.count(bins.code(table), table, fitted, [("version", "1")])
        sides.append(Side.of(found, bins))
    return verdict(compared(bins, *sides))


def test_nothing_is_seldom_called_another_version() -> None:
    """Of 120 pairs without any difference, whose inputs wander for hours, few are called other answers."""
    found = [compare(seed) for seed in range(120)]
    assert found.count("other answers") <= 6
    assert found.count("same") >= 90


def test_another_answer_and_another_mix_are_told_apart() -> None:
    """A lift of the score by .03 is another answer; inputs moved by .7 sd are other inputs."""
    assert [compare(seed, lift=0.03) for seed in range(10)] == ["other answers"] * 10
    found = [compare(seed, mean=0.7) for seed in range(20)]
    assert found.count("other inputs") >= 17
