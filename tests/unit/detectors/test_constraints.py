"""Rules that a reference teaches: steps, orders, sums, products and values that never meet; and what breaks them."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from detectors import constraints
from detectors.constraints import Constraints
from detectors.relations import NEVER, ORDER, PRODUCT, SUM, redrawn
from detectors.signals import Frame

NUMERIC = ("net", "tax", "total", "price", "pieces", "worth", "loan", "hours", "first", "last", "free", "spouse_income")
CATEGORICAL = ("status", "card")
Rng = np.random.Generator


def orders(n: int, rng: Rng) -> pa.Table:
    """total = net + tax, worth = price times pieces within a cent, loan in steps of 25, hours in quarters from .1 on, first
    <= last; only who is married has a spouse's income; no student has a gold card.
    """
    net, tax = np.round(rng.lognormal(4, 1, n), 2), np.round(rng.lognormal(2, 1, n), 2)
    price, pieces, first = np.round(rng.lognormal(1, 0.5, n), 2), rng.integers(1, 60, n), rng.integers(0, 900, n)
    status = rng.choice(["single", "married", "student"], n, p=[0.4, 0.4, 0.2])
    card = np.where((status == "student") | (rng.random(n) < 0.6), "plain", "gold")
    columns = {
        "net": net, "tax": tax, "total": np.round(net + tax, 2), "price": price, "pieces": pieces.astype(float),
        "worth": np.round(price * pieces, 1), "loan": 25.0 * rng.integers(4, 400, n), "hours": 0.25 * rng.integers(0, 160, n) + 0.1,
        "first": first.astype(float), "last": first + rng.integers(0, 300, n).astype(float), "free": rng.normal(size=n),
        "spouse_income": np.where(status == "married", np.round(rng.lognormal(7, 1, n)), np.nan),
    }  # fmt: skip
    made = {f"feature:{k}": pa.array(v, from_pandas=True) for k, v in columns.items()}
    return pa.table(made | {"feature:status": status.tolist(), "feature:card": card.tolist()})


def frame(table: pa.Table) -> Frame:
    return Frame.of(table, NUMERIC, CATEGORICAL)


@pytest.fixture(scope="module")
def rules() -> Constraints:
    """What 4,000 such rows teach."""
    found = constraints.learn(frame(orders(4_000, np.random.default_rng(1))), 0.01, np.random.default_rng(2))
    assert found is not None
    return found


def with_(table: pa.Table, **values: object) -> pa.Table:
    """The rows with some columns set to one value."""
    for name, value in values.items():
        i = table.column_names.index(f"feature:{name}")
        table = table.set_column(i, f"feature:{name}", pa.array([value] * table.num_rows, table.schema.field(i).type))
    return table


def told(rules: Constraints, table: pa.Table) -> list[str]:
    """What is said of the first row."""
    f = frame(table)
    return [rules.say(b, f, 0) for b in rules.breaches(f) if b.rows[0]]


def test_steps_are_learnt_with_their_offset(rules: Constraints) -> None:
    """Multiples of 25, and quarters that begin at a tenth; amounts in cents and free numbers have no further step."""
    steps = dict(zip(NUMERIC, zip(rules.step.tolist(), rules.offset.tolist(), strict=True), strict=True))
    assert steps["loan"] == (25, 0)
    assert steps["hours"] == (25, 10)
    assert {steps[n] for n in ("net", "tax", "total", "price", "pieces", "first", "free")} == {(1, 0)}


def test_rules_across_fields_are_learnt(rules: Constraints) -> None:
    """Each one that the rows were made by, and none about the column that is independent of all others."""
    found = {
        (r.kind, tuple(sorted(rules.numeric[f] if f < 12 else CATEGORICAL[f - 12] for f in r.fields)))
        for r in rules.relations.rules
    }
    assert {
        (SUM, ("net", "tax", "total")), (PRODUCT, ("pieces", "price", "worth")), (ORDER, ("first", "last")),
        (NEVER, ("spouse_income", "status")), (NEVER, ("card", "status")),
    } <= found  # fmt: skip
    assert not any("free" in names or "loan" in names for _, names in found)


def test_an_analyst_reads_what_is_broken(rules: Constraints) -> None:
    """The values, and what they should come to."""
    row = with_(orders(1, np.random.default_rng(3)), net=10.0, tax=5.1, total=17.3, loan=1013.0, hours=2.25)
    said = told(rules, row)
    assert "total = 17.3, but net + tax = 15.1 in every reference row" in said
    assert "loan = 1013: not a multiple of 25" in said
    assert "hours = 2.25: not 0.1 more than a multiple of 0.25" in said
    married = with_(row, status="student", card="gold", first=500.0, last=400.0)
    assert "status = student with card = gold: such values never meet in the reference" in told(rules, married)
    assert "first = 500 is above last = 400, in no reference row" in told(rules, married)


def test_fresh_rows_keep_what_was_learnt(rules: Constraints) -> None:
    """Also with gaps: what is missing breaks no rule."""
    rng = np.random.default_rng(4)
    fresh = orders(4_000, rng)
    assert rules.broken(frame(fresh)).torn.mean() < 0.001
    for name in (*NUMERIC, *CATEGORICAL):
        gone = pa.array(rng.random(fresh.num_rows) < 0.3)
        i = fresh.column_names.index(f"feature:{name}")
        column = pa.compute.if_else(gone, pa.scalar(None, fresh.schema.field(i).type), fresh.column(i))
        fresh = fresh.set_column(i, f"feature:{name}", column)
    broken = rules.broken(frame(fresh))
    assert (broken.torn | (broken.single >= 2)).mean() < 0.001


@pytest.mark.parametrize("name", NUMERIC)
def test_one_wrong_field_is_one_broken_rule(rules: Constraints, name: str) -> None:
    """A client that sends one number in another unit breaks every rule that it is in, and is not torn for it."""
    table = orders(2_000, np.random.default_rng(5))
    x = np.asarray(table[f"feature:{name}"].to_numpy(zero_copy_only=False)) * 2.54
    i = table.column_names.index(f"feature:{name}")
    broken = rules.broken(frame(table.set_column(i, f"feature:{name}", pa.array(x, from_pandas=True))))
    assert (broken.single > 0).mean() + broken.torn.mean() < 1.01
    assert (broken.torn | (broken.single >= 2)).mean() < 0.002


def test_books_with_changed_fields_are_not_torn_but_columns_by_themselves_are(rules: Constraints) -> None:
    """Honest clients who score a book again with a tenth of the fields changed stay far below the tolerated rate."""
    rng = np.random.default_rng(6)
    whole = frame(orders(3_000, rng))
    assert rules.broken(constraints._replaced(whole, 0.1, rng)).torn.mean() < 0.01
    assert rules.broken(redrawn(whole, rng)).torn.mean() > 0.1


def test_independent_columns_teach_no_rule_across_fields() -> None:
    """Also with flags, codes and small numbers, of which many keep to an order by chance."""
    rng = np.random.default_rng(7)
    n = 3_000
    columns = {f"feature:n{j}": rng.integers(0, 2 + j, n).astype(float) for j in range(12)}
    columns |= {f"feature:x{j}": rng.normal(size=n) + j for j in range(6)}
    words = {f"feature:w{j}": rng.choice(["a", "b", "c", "d"], n, p=[0.5, 0.3, 0.15, 0.05]).tolist() for j in range(4)}
    table = pa.table(columns | words)
    f = Frame.of(table, [c[8:] for c in columns], [c[8:] for c in words])
    found = constraints.learn(f, 0.01, rng)
    assert found is not None
    assert found.relations.rules == ()
    assert set(found.step.tolist()) == {1}


def test_calibrations_hold_the_rules(rules: Constraints) -> None:
    """What is read back from bytes judges alike and says the same."""
    meta, arrays = rules.pack()
    again = Constraints.unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(meta)), arrays)
    table = with_(orders(50, np.random.default_rng(8)), total=3.0, loan=7.0)
    assert all(
        np.array_equal(a, b) for a, b in zip(again.broken(frame(table)), rules.broken(frame(table)), strict=True)
    )
    assert told(again, table) == told(rules, table)
