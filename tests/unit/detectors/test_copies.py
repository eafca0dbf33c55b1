"""Copies: the compiled forest against scikit-learn's, learning curves, and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detectors import forest
from detectors.cells import Cells
from detectors.copies import ASKED, Copies, ahead, onward
from detectors.fine import CODES, Fine
from detectors.signals import Frame

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
                np.ascontiguousarray(x.T), label, copies.field, copies.value, np.ascontiguousarray(ask.T), 3, 60, seed
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
    assert copies.trained(x, np.zeros(200, np.uint8), nobody) == pytest.approx(0.0, abs=1e-12)
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
    points = np.pad(np.tile(np.arange(64.0), (2, 1)), ((0, 0), (0, CODES - 64)), constant_values=np.inf)
    cells = Cells.learn(codes, points, rng)
    usual = cells.usual(200)
    assert usual is not None
    honest, drawn = cells.reached(codes[:200]), cells.reached(rng.integers(0, 64, (200, 2)).astype(np.uint8))
    assert honest is not None
    assert drawn is not None
    assert not cells.odd(honest, codes[:200])
    assert drawn > 2 * usual[1]
    assert cells.odd(drawn, codes[:200])
    one_row = codes[:1].repeat(200, axis=0)
    assert cells.odd(cells.reached(one_row), one_row)
    narrow = Cells.learn(codes[:, :1], points[:1], rng)
    assert narrow.reached(codes[:, :1]) is None
    assert narrow.odd(None, codes[:200, :1])
    assert int(Cells.learn(codes[:300], points, rng).step[0, CODES - 1]) == 7


def test_variants_of_few_rows_are_odd_though_their_pairs_are_usual() -> None:
    """Rows of a few cases, one field after the other drawn anew, reach all pairs and few combinations of four."""
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 64, (4_000, 6)).astype(np.uint8)
    points = np.pad(np.tile(np.arange(64.0), (6, 1)), ((0, 0), (0, CODES - 64)), constant_values=np.inf)
    cells = Cells.learn(codes, points, rng)
    varied = codes[rng.integers(0, 300, 512)]
    varied[np.arange(512), rng.integers(0, 6, 512)] = rng.integers(0, 64, 512)
    usual = cells.usual(512)
    assert usual is not None
    reached = cells.reached(varied)
    assert reached is not None
    assert abs(reached - usual[1]) < 0.02
    assert not cells.odd(cells.reached(codes[-512:]), codes[-512:])
    assert cells.odd(usual[1], varied)


def test_even_answers_are_worth_more_where_one_is_rare() -> None:
    """Of a rare answer a small sample teaches more the more often it holds it; of many rows only the sample is known."""
    rng = np.random.default_rng(8)
    x = rng.integers(0, CODES, (3_000, 6)).astype(np.uint8)
    label = (x[:, 0].astype(int) + x[:, 1] > 400).astype(np.int64)
    copies = Copies.learn(x, 6, label, np.arange(3_000, dtype=np.uint64), rng)
    few, more = ((np.arange(64) < k).astype(np.uint8) for k in (4, 16))
    assert copies.likely(64, few) < copies.usual(64) < copies.likely(64, more)
    assert copies.likely(64_000, more) - copies.usual(64_000) < 0.01


def test_several_copies_of_one_sample_are_one_steadier_reading() -> None:
    """Several copies agree with one about as much as with another seed, and the same rows say the same again."""
    copies, (x, label) = learnt(), made(100, 9)
    sent = np.arange(100, dtype=np.uint64) + np.uint64(10_000)
    one, four = (copies.trained(x, label.astype(np.uint8), sent, k) for k in (1, 4))
    assert one is not None
    assert four is not None
    assert abs(one - four) < 0.1
    assert four == copies.trained(x, label.astype(np.uint8), sent, 4)


def test_more_rows_mend_what_usual_copies_miss_and_no_more() -> None:
    """Who is behind stays behind, who is ahead stays ahead and never passes 1; at once nothing changes."""
    for kappa in (0.0, 0.3, 0.8, 1.0):
        assert np.isclose(onward(ahead(kappa, 0.6), 0.6), kappa)
    assert np.isclose(onward(ahead(0.3, 0.6), 0.7), 0.4)
    assert 0.8 < onward(ahead(0.8, 0.6), 0.7) < 1
    assert onward(ahead(1.0, 0.6), 0.99) <= 1


def test_fine_codes_are_the_nearest_points() -> None:
    """Few values have a code each, many are cut finely and more finely in the tails; what is missing is in the middle."""
    rng = np.random.default_rng(10)
    whole, heavy = rng.integers(0, 5, 4_000).astype(float), rng.lognormal(0, 2, 4_000)
    numbers = np.column_stack([whole, heavy])
    words = np.zeros((4_000, 1), np.int64)
    words[-1] = -1
    frame = Frame(("n", "x"), ("c",), numbers, words, (("a",),), np.zeros((4_000, 3), np.uint64))
    fine = Fine.fit(frame)
    codes = fine.codes(frame)
    assert np.array_equal(codes[:, 0], whole.astype(np.uint8))
    assert codes[-1, 2] != codes[0, 2]
    top = np.sort(heavy)[-20:]
    assert len(np.unique(codes[np.isin(heavy, top), 1])) > 8
    odd = np.array([[1.6, np.nan], [-9.0, np.inf], [9.0, 1e9]])
    asked = fine.codes(Frame(("n", "x"), ("c",), odd, words[:3], (("b",),), np.zeros((3, 3), np.uint64)))
    assert asked[:, 0].tolist() == [2, 0, 4]
    assert asked[0, 1] == asked[1, 1] == fine.middle[1]
    assert asked[2, 1] == codes[:, 1].max()
