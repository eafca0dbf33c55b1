"""Made-up rows with perfect margins are told from real ones; gaps are not held against a row."""

from __future__ import annotations

import numpy as np

from detectors import plausibility
from detectors.plausibility import Joint
from detectors.signals import LEVELS, MISSING


def rows(n: int, seed: int) -> np.ndarray:
    """Codes of five numbers that follow each other and one category that goes with the first."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=n)
    x = np.stack([base + 0.4 * rng.normal(size=n) for _ in range(5)], axis=1)
    codes = np.clip(((x + 3) / 6 * LEVELS).astype(int), 0, LEVELS - 1)
    word = np.clip((base + 2).astype(int), 0, 3)[:, None]
    return np.concatenate([codes, word], axis=1).astype(np.uint8)


def values(codes: np.ndarray) -> np.ndarray:
    """The five numbers behind the codes."""
    return np.where(codes[:, :5] == MISSING, np.nan, codes[:, :5].astype(float))


def shuffled(codes: np.ndarray, seed: int) -> np.ndarray:
    """The same values of every field, drawn independently: margins stay as they are."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(c) for c in codes.T], axis=1)


def test_made_up_rows_are_strange() -> None:
    """At the level that one real row in two hundred passes, nearly all independent draws do."""
    known = rows(4000, 1)
    joint = Joint.fit(known, values(known))
    crossed = plausibility.crossed(known, values(known), joint.pairs, np.random.default_rng(2))
    level = np.quantile(crossed, 0.9975, axis=0)
    real_rows, made = rows(2000, 3), shuffled(rows(2000, 4), 5)
    real = (joint.strangeness(real_rows, values(real_rows)) > level).any(axis=1).mean()
    made_up = (joint.strangeness(made, values(made)) > level).any(axis=1).mean()
    assert real < 0.02
    assert made_up > 0.6


def test_missing_values_combine_with_everything() -> None:
    """A real row that has lost fields is no stranger than it was."""
    known, some = rows(4000, 1), rows(500, 6)
    joint, mixed = Joint.fit(known, values(known)), shuffled(some, 7)
    gaps = some.copy()
    gaps[:, 1] = MISSING
    assert joint.strangeness(gaps, values(gaps))[:, 0].mean() < joint.strangeness(mixed, values(mixed))[:, 0].mean()
    assert (
        joint.strangeness(gaps, values(gaps))[:, 0] > joint.strangeness(mixed, values(mixed))[:, 0].mean()
    ).mean() < 0.05


def test_it_travels_as_arrays() -> None:
    """What was packed judges as before."""
    known, some = rows(1000, 1), rows(50, 2)
    joint = Joint.fit(known, values(known))
    again = Joint.unpack(joint.pack())
    assert np.array_equal(again.strangeness(some, values(some)), joint.strangeness(some, values(some)))


def test_one_number_in_another_unit_is_not_implausible() -> None:
    """A client that sends one field in cents where others send whole units is no attacker; two such fields are strange."""
    known, some = rows(4000, 1), rows(500, 9)
    joint = Joint.fit(known, values(known))
    crossed = plausibility.crossed(known, values(known), joint.pairs, np.random.default_rng(2))
    level = np.quantile(crossed[:, 1], 0.9975)
    one, two = values(some), values(some)
    one[:, 0] = two[:, 0] = two[:, 1] = 1e6
    assert (joint.strangeness(some, one)[:, 1] > level).mean() < 0.05
    assert (joint.strangeness(some, two)[:, 1] > level).mean() > 0.9
