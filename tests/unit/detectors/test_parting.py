"""Segments that nobody named: the parts in which the model behaves differently, the same ones every time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from detectors.parting import SAMPLE_ROWS, Part, choose
from detectors.strata import MAX_SEGMENTS, MIN_PART_ROWS
from tests.judging import Rng


def words(prefix: str, codes: np.ndarray) -> pa.Array:
    """Codes as values of a category."""
    return pa.array([f"{prefix}{i}" for i in codes.tolist()])


def names(parts: tuple[Part, ...]) -> list[str]:
    """What the segments are called."""
    return [p.segment.name for p in parts]


def tells(parts: tuple[Part, ...], column: str) -> set[float | None]:
    """What a column's parts tell."""
    return {p.tells for p in parts if p.segment.column == f"feature:{column}"}


def traffic(n: int, rng: Rng, *, answer: str = "prediction_value") -> pa.Table:
    """Rows whose answers hang on the channel and a little on the amount; the day, as frequent, has nothing to do with them."""
    channel, day, noise = rng.integers(0, 3, n), rng.integers(0, 3, n), rng.integers(0, 30, n)
    amount = rng.lognormal(size=n)
    score = channel / 2 + 0.1 * np.log(amount) + 0.3 * rng.normal(size=n)
    columns = {
        "feature:channel": words("c", channel),
        "feature:day": words("d", day),
        "feature:noise": words("n", noise),
        "feature:amount": amount,
        "prediction_value": score,
        "prediction_label": pa.array(np.where(score > 0.5, "fraud", "ok").tolist()),
        "scores": pa.array(np.column_stack([1 - score, score]).tolist()),
        "class_names": pa.array([["ok", "fraud"]] * n),
    }
    given = {"scores": ("scores", "class_names")}.get(answer, (answer,))
    return pa.table({k: v for k, v in columns.items() if k.startswith("feature:") or k in given})


@pytest.mark.parametrize("answer", ["prediction_value", "prediction_label", "scores"])
def test_columns_come_in_the_order_of_what_they_tell(answer: str) -> None:
    """Scores, a predicted number or a class: the channel comes first, then the amount, and chance alone tells nothing."""
    parts = choose(traffic(20_000, np.random.default_rng(1), answer=answer), ["amount"], ["day", "noise", "channel"])
    assert {p.segment.column for p in parts[:3]} == {"feature:channel"}
    assert [p.segment.column for p in parts[3:5]] == ["feature:amount"] * 2
    (channel,), (amount,) = tells(parts, "channel"), tells(parts, "amount")
    assert channel is not None
    assert amount is not None
    assert channel > 10 * amount > 0
    assert (tells(parts, "day") | tells(parts, "noise")) <= {0.0, 1e-4, 2e-4, 3e-4}
    assert sum(p.share for p in parts[:3]) == pytest.approx(1.0)


def test_many_values_do_not_win_by_chance() -> None:
    """30 values of noise explain more of few rows than 3 do; corrected, they tell as little."""
    table = traffic(16_000, np.random.default_rng(2)).drop_columns(["feature:channel"])
    parts = choose(table, ["amount"], ["noise", "day"])
    assert {p.segment.column for p in parts[:2]} == {"feature:amount"}
    for column in ("noise", "day"):
        (found,) = tells(parts, column)
        assert found is not None
        assert found < 1e-3


def test_the_same_rows_give_the_same_parts() -> None:
    """Whatever the order of the columns, however they are laid out, and for a long reference from a sample."""
    table = traffic(30_000, np.random.default_rng(3))
    first = choose(table, ["amount"], ["channel", "day", "noise"])
    coded = pa.table(
        {
            c: table[c].dictionary_encode() if "feature:" in c and c != "feature:amount" else table[c]
            for c in table.column_names
        }
    )
    assert choose(coded, ["amount"], ["noise", "day", "channel"]) == first
    assert (
        choose(pa.concat_tables([table.slice(0, 1000), table.slice(1000)]), ["amount"], ["channel", "day", "noise"])
        == first
    )
    long = pa.concat_tables([table] * 7)
    assert long.num_rows > 2 * SAMPLE_ROWS
    assert names(choose(long, ["amount"], ["channel"]))[:3] == names(first)[:3]


def test_numbers_give_their_lowest_and_highest_tenth() -> None:
    """Or as much as a part needs; values that repeat stand alone: of a flag that few rows have, the flag."""
    rng = np.random.default_rng(4)
    columns = {
        "feature:x": rng.normal(size=8000),
        "feature:flag": (rng.random(8000) < 0.2) * 1.0,
        "feature:rain": np.maximum(0.0, rng.normal(size=8000) - 1.4),
        "feature:same": np.ones(8000),
    }
    table = pa.table(columns)
    flag, low, high, rain = parts = choose(table, ["x", "flag", "rain", "same"], [])
    assert (flag.segment.name, rain.segment.name) == ("flag 1", "rain above 0")
    assert flag.segment.of(table).sum() == columns["feature:flag"].sum()
    assert rain.segment.of(table).sum() == (columns["feature:rain"] > 0).sum()
    assert low.segment.name.startswith("x below -1.")
    assert high.segment.name.startswith("x from 1.")
    assert (low.segment.low, high.segment.high) == (None, None)
    assert [low.share, high.share] == pytest.approx([0.1, 0.1], abs=1e-3)
    assert {p.tells for p in parts} == {None}
    wide = choose(table, ["x"], [], least=0.2)
    assert [p.share for p in wide] == pytest.approx([0.25, 0.25], abs=1e-3)


def test_of_a_category_the_parts_of_a_tenth_come_first() -> None:
    """A drift of half of the rows needs no segment to be seen."""
    share = np.array([0.45, 0.25, 0.15, 0.09, 0.04, 0.02])
    code = np.random.default_rng(7).choice(6, 60_000, p=share)
    found = choose(pa.table({"feature:c": words("c", code)}), [], ["c"], room=5)
    assert names(found) == ["c:c3", "c:c2", "c:c4", "c:c1", "c:c0"]


def test_columns_that_say_the_same_count_once() -> None:
    """A country and its currency overlap; one of them is taken, and the other's place goes to something else."""
    rng = np.random.default_rng(5)
    country = rng.integers(0, 4, 8000)
    currency = np.where(rng.random(8000) < 0.99, country, 0)
    table = pa.table({
        "feature:country": words("C", country), "feature:currency": words("M", currency),
        "feature:day": words("d", rng.integers(0, 3, 8000)), "prediction_value": country + rng.normal(size=8000),
    })  # fmt: skip
    parts = choose(table, [], ["currency", "day", "country"])
    assert {p.segment.column for p in parts} == {"feature:country", "feature:day"}


def test_what_is_small_or_nearly_everything_is_no_part() -> None:
    """A value needs MIN_PART_ROWS rows, and the rows of a usual window; three quarters of all rows are the whole."""
    n = 4 * MIN_PART_ROWS
    code = np.where(np.arange(n) < n * 3 // 4, 0, 1)
    table = pa.table({"feature:c": words("c", code), "feature:few": words("f", np.arange(n) % 8)})
    assert names(choose(table, [], ["c", "few"])) == ["c:c1"]
    assert choose(table, [], ["c", "few"], least=0.3) == ()
    assert choose(table.slice(0, 10), [], ["c", "few"]) == ()
    assert choose(table.slice(0, 0), ["absent"], ["c", "few", "gone"]) == ()


def test_no_column_takes_all_places() -> None:
    """A telling column of very many values leaves room for others, and takes what they leave."""
    rng = np.random.default_rng(6)
    country = rng.integers(0, 20, 40_000)
    table = pa.table({
        "feature:country": words("C", country), "feature:channel": words("c", rng.integers(0, 3, 40_000)),
        **{f"feature:x{i}": rng.normal(size=40_000) for i in range(5)}, "prediction_value": country + rng.normal(size=40_000),
    })  # fmt: skip
    parts = choose(table, [f"x{i}" for i in range(5)], ["channel", "country"])
    columns = [p.segment.column for p in parts]
    assert len(parts) == MAX_SEGMENTS
    assert columns[:4] == ["feature:country"] * 4
    assert columns.count("feature:channel") == 3
    assert sum(c.startswith("feature:x") for c in columns) == 4
    assert columns.count("feature:country") == 5
    assert len(choose(table, ["x0"], ["channel", "country"], room=6)) == 6


def test_values_that_are_no_names_make_no_segments() -> None:
    """Long texts, control and direction characters come from logs, not from people."""
    values = ["ok", "x" * 300, "a\x1b[2J", "b\u202egnp"]
    table = pa.table({"feature:c": values * 600})
    assert names(choose(table, [], ["c"])) == ["c:ok"]
