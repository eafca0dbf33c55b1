"""Profiles: exact merging, every kind of value in its bin, distances."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import ks_2samp

from detectors.binned import quantile_edges, sampled
from detectors.profile import Bins, Profile, compare, merged
from tests.judging import bins_of, events


def test_merging_is_exact_wherever_rows_are_cut() -> None:
    """Any cut and any order of merging gives the profile of all rows."""
    rng = np.random.default_rng(1)
    table = events(1000, rng)
    bins = bins_of(table)
    parts = [bins.count(p) for p in (table.slice(0, 17), table.slice(17, 600), table.slice(617))]
    whole = bins.count(table)
    for order in ([0, 1, 2], [2, 0, 1]):
        found = merged(parts[i] for i in order)
        assert found is not None
        assert found.to_bytes() == whole.to_bytes()
    assert bins.empty().merge(whole).to_bytes() == whole.to_bytes()


def test_every_row_is_counted_once_per_feature() -> None:
    """Missing, infinite, unknown and ordinary values: each feature's counts add up to the rows."""
    bins = bins_of(events(500, np.random.default_rng(1)))
    odd = pa.table(
        {
            "feature:x0": pa.array([None, float("nan"), float("inf"), -1e300, 0.0]),
            "feature:shop": pa.array(["s1", None, "never seen", "", "s2"]),
            "feature:colour": pa.array(["red", "red", None, "blue", "mauve"]).dictionary_encode(),
        }
    )
    p = bins.count(odd)
    assert all(p.of(f.name).sum() == 5 for f in bins.features)
    assert p.of("x0")[-1] == 3  # missing, not a number, infinite
    assert p.of("colour").tolist() == [2, 0, 1, 1, 1]  # red, green, blue, other, missing
    assert p.of("x1")[-1] == 5  # the column is absent
    assert (p.low[0], p.high[0]) == (-1e300, 0.0)  # of the finite values


def test_dictionary_and_plain_words_count_alike() -> None:
    """How a category is stored does not matter, chunks and unused words included."""
    words = pa.array(["red", None, "blue", "red", "grey"])
    bins = bins_of(events(500, np.random.default_rng(1)))
    plain = pa.table({"feature:colour": words})
    coded = pa.table(
        {
            "feature:colour": pa.chunked_array(
                [words.dictionary_encode().slice(0, 2), words.dictionary_encode().slice(2)]
            )
        }
    )
    assert bins.count(plain).to_bytes() == bins.count(coded).to_bytes()


def test_scores_go_by_name_and_else_by_position() -> None:
    """A source that lists classes in another order gives the same counts."""
    bins = bins_of(events(500, np.random.default_rng(1)))
    assert bins.classes == ("ok", "fraud")
    assert [f.name for f in bins.features if f.column == "scores"] == ["score:fraud"]  # two scores are one number
    kind = pa.list_(pa.float64())
    one = pa.table(
        {"scores": pa.array([[0.2, 0.8], [0.9, 0.1]], kind), "class_names": [["ok", "fraud"], ["ok", "fraud"]]}
    )
    two = pa.table(
        {"scores": pa.array([[0.8, 0.2], [0.1, 0.9]], kind), "class_names": [["fraud", "ok"], ["fraud", "ok"]]}
    )
    bare = pa.table({"scores": pa.array([[0.2, 0.8], [0.9, 0.1]], kind)})
    found = [bins.count(t).of("score:fraud").tolist() for t in (one, two, bare)]
    assert found[0] == found[1] == found[2]
    odd = pa.table(
        {
            "scores": pa.array([[0.2, 0.3, 0.5], None], kind),
            "class_names": pa.array([None, None], pa.list_(pa.string())),
        }
    )
    assert bins.count(odd).of("score:fraud")[-1] == 2


def test_regression_answers_are_numbers() -> None:
    """A model that predicts numbers gets a numeric prediction profile."""
    table = pa.table({"feature:a": [1.0, 2.0, 3.0], "prediction_value": [10.0, 20.0, 30.0]})
    bins = Bins.fit(table, ["a"], [])
    assert [(f.name, f.kind, f.is_output) for f in bins.features] == [
        ("a", "number", False),
        ("prediction", "number", True),
    ]


def test_repeated_values_have_their_own_bin() -> None:
    """Half zeros: the zeros are one bin, so that their share can be watched."""
    x = np.concatenate([np.zeros(500), np.random.default_rng(0).normal(5, 1, 500)])
    edges = quantile_edges(x, 10)
    counts = np.bincount(np.searchsorted(edges, x, side="right"))
    assert counts.max() == 500


def test_no_rows_and_no_features() -> None:
    """Bins of nothing count nothing, and survive their bytes."""
    bins = Bins.fit(events(0, np.random.default_rng(0)), ["x0", "gone"], ["shop"])
    assert Bins.from_bytes(bins.to_bytes()) == bins
    assert bins.count(events(3, np.random.default_rng(0))).n == 3
    assert Bins.fit(pa.table({}), [], []).count(pa.table({})).n == 0


def test_bytes() -> None:
    """A profile read back without its bins still merges, and refuses to merge with others'."""
    table = events(200, np.random.default_rng(1))
    bins = bins_of(table)
    back = Profile.from_bytes(bins.count(table).to_bytes())
    assert back.merge(bins.count(table)).n == 400
    with pytest.raises(ValueError, match="without its bins"):
        back.of("x0")
    other = bins_of(events(200, np.random.default_rng(2)))
    with pytest.raises(ValueError, match="cannot be merged"):
        back.merge(other.empty())


def test_distances_grow_with_the_shift_and_stay_below_the_raw_ones() -> None:
    """PSI, Jensen-Shannon, KS and Wasserstein from counts: zero without change, growing with it; KS below scipy's."""
    rng = np.random.default_rng(1)
    reference = events(4000, rng)
    bins = bins_of(reference)
    a = bins.count(reference)
    rows = []
    for shift in (0.0, 0.2, 0.5, 1.0):
        current = events(4000, np.random.default_rng(7), shift=shift)
        rows.append(compare(bins, a, bins.count(current))["x0"])
        raw = ks_2samp(np.asarray(reference["feature:x0"]), np.asarray(current["feature:x0"])).statistic
        assert rows[-1]["ks"] is not None
        assert rows[-1]["ks"] <= raw + 1e-12
    for key in ("psi", "js", "ks", "wasserstein"):
        values = [r[key] or 0.0 for r in rows]
        assert values == sorted(values)
    assert rows[-1]["wasserstein"] == pytest.approx(1.0, abs=0.1)  # one standard deviation
    same = compare(bins, a, a)
    assert same["x0"]["psi"] == 0.0
    assert same["colour"]["ks"] is None
    assert compare(bins, a, bins.empty())["x0"]["psi"] is None


def test_sampled_rows_stand_for_as_many_events() -> None:
    """A row with fraction 0.1 counts ten times; the effective n says how sure that is; cuts change nothing."""
    table = pa.table({
        "event_time": list(range(6)), "sampling_fraction": [1.0, 1.0, 0.1, 0.1, 0.1, None],
        "feature:c": ["a", "b", "a", "a", "a", "b"], "feature:x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    })  # fmt: skip
    bins = Bins.fit(table, ["x"], ["c"])
    whole = bins.count(table)
    assert whole.n == 33
    assert whole.of("c").tolist() == [31, 2, 0, 0]
    assert whole.effective == 33 * 33 / 303
    cut = [bins.count(table.slice(a, b - a)) for a, b in ((0, 2), (2, 5), (5, 6))]
    again = cut[0].merge(cut[1]).merge(cut[2])
    assert again.to_bytes() == whole.to_bytes()
    assert Profile.from_bytes(whole.to_bytes()).effective == whole.effective
    assert bins.code(table).part(1, 4).count(0, 3).to_bytes() == bins.count(table.slice(1, 3)).to_bytes()


def test_fractions_that_are_no_whole_weights_are_right_on_average() -> None:
    """0.3 means 3 or 4 events, ten thirds on average."""
    table = pa.table({"event_time": np.arange(30_000) * 977, "sampling_fraction": np.full(30_000, 0.3)})
    weight = sampled(table)
    assert weight is not None
    assert set(weight.tolist()) == {3, 4}
    assert abs(weight.mean() - 10 / 3) < 0.02
