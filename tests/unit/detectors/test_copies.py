"""Copies: the compiled forest against scikit-learn's, learning curves, and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors import forest
from detectors.cells import Cells
from detectors.copies import ASKED, Copies
from detectors.signals import MISSING

Made = tuple[NDArray[np.uint8], NDArray[np.int64]]


def made(n: int, seed: int, classes: int = 3) -> Made:
    """Codes of three numbers and a category, and labels that hang on two of them."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.integers(0, 64, (n, 3)), rng.integers(0, 5, n)]).astype(np.uint8)
    label = np.clip((x[:, 0].astype(int) + 20 * (x[:, 3] == 1) + rng.integers(-4, 5, n)) // 28, 0, classes - 1)
    return x, label


def learnt(n: int = 3_000, classes: int = 3) -> Copies:
    x, label = made(n, 1, classes)
    return Copies.learn(x, 3, label, np.arange(n, dtype=np.uint64), np.random.default_rng(2))


def test_the_compiled_forest_is_as_good_as_scikit_learns() -> None:
    """The same rows, columns and settings: answers agree with the truth equally often, within two points."""
    from sklearn.ensemble import RandomForestClassifier

    copies, (ask, truth) = learnt(), made(2_000, 3)

    def dense(x: NDArray[np.uint8]) -> NDArray[Any]:
        return np.column_stack(
            [x[:, f] if v < 0 else x[:, f] == v for f, v in zip(copies.field, copies.value, strict=True)]
        )

    for n in (60, 300):
        ours, theirs = [], []
        for seed in range(8):
            x, label = made(n, 10 + seed)
            given = forest.votes(
                np.ascontiguousarray(x.T), label, copies.field, copies.value, np.ascontiguousarray(ask.T), 3, 60
            )
            assert np.allclose(given.sum(axis=1), 60, atol=1e-3)
            other = RandomForestClassifier(60, min_samples_leaf=2, random_state=seed).fit(dense(x), label)
            ours.append(np.mean(given.argmax(axis=1) == truth))
            theirs.append(np.mean(other.predict(dense(ask)) == truth))
        assert abs(np.mean(ours) - np.mean(theirs)) < 0.02


def test_a_copy_of_one_answer_is_worth_nothing() -> None:
    """Who was only ever told one class knows the base rate and no more; the same rows give the same copy."""
    copies, (x, label) = learnt(), made(200, 4)
    nobody = np.zeros(0, np.uint64)
    assert copies.trained(x, np.zeros(200, np.uint8), nobody) == 0.0
    first = copies.trained(x, label.astype(np.uint8), nobody)
    assert first == copies.trained(x, label.astype(np.uint8), nobody)
    unknown = copies.trained(x, np.where(label == 2, 3, label).astype(np.uint8), nobody)  # a label the reference lacks
    assert first is not None
    assert unknown is not None
    assert unknown < first


def test_the_learning_curve_rises_and_goes_on() -> None:
    """More rows are never worth less, beyond the reference either; a small reference has a curve too."""
    for copies in (learnt(), learnt(150)):
        curve = [copies.usual(n) for n in (16, 64, 256, 1_024, 8_192, 100_000)]
        assert curve == sorted(curve)
        assert curve[0] < curve[2] <= 1.0
        assert len(copies.answer) <= ASKED


def test_answers_in_other_shares_are_unlike() -> None:
    """Answers as the reference's are like it; those of one class, or of a class it lacks, are not."""
    copies, (_, label) = learnt(), made(200, 5)
    assert not copies.unlike(label.astype(np.uint8))
    assert copies.unlike(np.full(200, 2, np.uint8))
    assert copies.unlike(np.full(200, 7, np.uint8))


def test_cells_cover_more_for_rows_that_spread_out() -> None:
    """Two fields that go together leave cells empty that independent draws reach; one field has no cells."""
    rng = np.random.default_rng(6)
    one = rng.integers(0, 64, 2_000)
    codes = np.column_stack([one, np.clip(one + rng.integers(-3, 4, 2_000), 0, 63)]).astype(np.uint8)
    edges = np.tile(np.arange(1.0, 64.0), (2, 1))
    cells = Cells.learn(codes, edges, rng)
    usual = cells.usual(200)
    assert usual is not None
    honest, drawn = cells.reached(codes[:200]), cells.reached(rng.integers(0, 64, (200, 2)).astype(np.uint8))
    assert honest is not None
    assert drawn is not None
    assert not cells.odd(honest, 200)
    assert drawn > 2 * usual[1]
    assert cells.odd(drawn, 200)
    assert cells.odd(cells.reached(codes[:1].repeat(200, axis=0)), 200)
    narrow = Cells.learn(codes[:, :1], edges[:1], rng)
    assert narrow.reached(codes[:, :1]) is None
    assert narrow.odd(None, 200)
    assert int(Cells.learn(codes[:300], edges, rng).step[0, MISSING]) == 7
