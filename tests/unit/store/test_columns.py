"""Events as columns and back: nothing that a log can hold gets lost or makes the writer fail."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.intake import Placed
from monitor.model import InferenceEvent
from monitor.store.columns import FIXED, FeatureSchema, physical, to_table, view
from monitor.store.features import categorical_column, numeric_column

SCHEMA = FeatureSchema(("amount", "Age (years)"), ("country", "device"), coded=("device",))


def table(*events: InferenceEvent, schema: FeatureSchema = SCHEMA) -> pa.Table:
    """The segment of these events."""
    return to_table([Placed("t", 1, 5 + i, e) for i, e in enumerate(events)], schema, "seg", 42, "src")


def one(features: dict[str, Any] | None = None, **fields: Any) -> InferenceEvent:
    """An event with these features."""
    return InferenceEvent(event_time_us=1_700_000_000_000_000, model="m", features=features, **fields)


def seen(segment: pa.Table, *columns: str, schema: FeatureSchema = SCHEMA) -> dict[str, list[Any]]:
    """What readers get for these columns."""
    held = segment.select([c for c in physical(schema, columns) if c in segment.column_names])
    result: dict[str, list[Any]] = view(held, schema, columns).to_pydict()
    return result


def test_every_fixed_column_is_there_with_its_type() -> None:
    """A segment has the documented columns, whatever the events hold."""
    segment = table(one())
    assert {name: segment.schema.field(name).type for name in FIXED} == dict(FIXED)


def test_features_are_typed_and_missing_ones_are_null() -> None:
    """Numbers are floats, texts and booleans are categories, None, absent and not-a-number are null."""
    segment = table(
        one({"amount": 2, "Age (years)": 3.5, "country": "QA", "device": True}),
        one({"amount": float("nan"), "country": None}),
        one(None),
    )
    got = seen(segment, "feature:amount", "feature:Age (years)", "feature:country", "feature:device")
    assert got == {
        "feature:amount": [2.0, None, None],
        "feature:Age (years)": [3.5, None, None],
        "feature:country": ["QA", None, None],
        "feature:device": ["true", None, None],
    }


def test_values_of_the_wrong_type_stay_visible() -> None:
    """A text in a numeric column and a number in a category are null for statistics, flagged, and kept in extra."""
    segment = table(one({"amount": "12", "country": 7}), one({"amount": 1.0, "country": "QA"}))
    assert seen(segment, "feature:amount", "feature:country") == {
        "feature:amount": [None, 1.0],
        "feature:country": [None, "QA"],
    }
    extra = json.loads(segment["extra"][0].as_py())
    assert extra["features"] == {"amount": "12", "country": 7}
    assert sorted(extra["mismatch"]) == ["amount", "country"]
    assert segment["quality"].to_pylist() == [["schema_mismatch"], []]
    assert segment["mismatched"].to_pylist() == [True, False]


def test_unknown_features_go_to_extra_and_can_be_read() -> None:
    """A feature that the reference does not know is flagged and read as text until its column stands."""
    segment = table(one({"amount": 1.0, "new": 5}), one({"new": "x"}), one({}))
    assert seen(segment, "feature:new") == {"feature:new": ["5", "x", None]}
    assert segment["quality"].to_pylist() == [["unknown_feature"], ["unknown_feature"], []]


def test_old_rows_stay_readable_when_columns_are_added() -> None:
    """Rows written before a reference stood show their features under the schema that came later."""
    segment = table(one({"amount": 1.5, "country": True}), one({"amount": "x"}), schema=FeatureSchema())
    assert seen(segment, "feature:amount", "feature:country") == {
        "feature:amount": [1.5, None],
        "feature:country": ["true", None],
    }
    assert segment["quality"].to_pylist() == [[], []]


def test_codes_are_categories() -> None:
    """A category whose values travel as numbers takes 5411 and 5411.0 as one, also from rows that stored a number."""
    assert (
        seen(table(one({"device": 5411}), one({"device": 5411.0})), "feature:device")["feature:device"] == ["5411"] * 2
    )
    old = table(one({"device": 5411.0}), schema=FeatureSchema(("device",)))
    assert seen(old, "feature:device")["feature:device"] == ["5411"]


def test_predictions_keep_their_kind() -> None:
    """Labels are texts ("true" and "false" for booleans), values are numbers."""
    segment = table(one(prediction="ok"), one(prediction=True), one(prediction=2), one(prediction=0.5), one())
    assert segment["prediction_label"].to_pylist() == ["ok", "true", None, None, None]
    assert segment["prediction_value"].to_pylist() == [None, None, 2.0, 0.5, None]


def test_content_stands_in_extra() -> None:
    """Messages, embedding, parameters and what decoders add are kept as JSON."""
    event = one(messages_in=[{"role": "user", "content": "hi"}], embedding=[1.0], params={"n": 1}, extra={"k": [1]})
    assert json.loads(table(event)["extra"][0].as_py()) == {
        "embedding": [1.0],
        "messages_in": [{"role": "user", "content": "hi"}],
        "params": {"n": 1},
        "attributes": {"k": [1]},
    }


@pytest.mark.parametrize(
    ("fields", "column", "value", "flag"),
    [
        ({"tokens_in": 2**80}, "tokens_in", None, "out_of_range"),
        ({"http_status": 2**40}, "http_status", None, "out_of_range"),
        ({"principal": "a\ud800b"}, "principal", "a?b", None),
        ({"scores": [0.5, "x"]}, "scores", [0.5, None], None),
        ({"scores": "x"}, "scores", None, "out_of_range"),
        ({"latency_ms": 2**2000}, "latency_ms", None, "out_of_range"),
        ({"prediction": "\ud800"}, "prediction_label", "?", None),
    ],
)
def test_what_no_column_can_hold_is_flagged(
    fields: dict[str, Any], column: str, value: object, flag: str | None
) -> None:
    """Numbers too large and texts that are not Unicode never stop a batch."""
    segment = table(one(), one(**fields))
    assert segment[column][1].as_py() == value
    assert segment["quality"].to_pylist() == [[], [flag] if flag else []]


def test_impossible_times_are_moved_into_range() -> None:
    """A time outside the years 1 to 9999 is clamped and flagged: dates, statistics and Delta could not hold it."""
    far = one()
    far.event_time_us = 2**70
    segment = table(far)
    assert segment["event_time"].cast(pa.int64())[0].as_py() == 253_402_300_799_999_999
    assert segment["quality"][0].as_py() == ["clock_skew"]


def test_infinite_features_are_null_and_flagged() -> None:
    """Infinity is no value to compare."""
    segment = table(one({"amount": float("inf")}), one({"amount": 1.0}))
    assert seen(segment, "feature:amount")["feature:amount"] == [None, 1.0]
    assert segment["quality"].to_pylist() == [["nonfinite"], []]


def test_events_are_not_changed_by_writing_them() -> None:
    """Flags go to the table, never to the caller's events."""
    event = one({"amount": "bad"}, quality=["late"])
    assert table(event)["quality"][0].as_py() == ["late", "schema_mismatch"]
    assert event.quality == ["late"]


def test_no_events_make_an_empty_segment() -> None:
    """An empty batch is a table without rows."""
    assert table().num_rows == 0


def test_the_schema_is_learnt_from_the_reference() -> None:
    """Numbers make a numeric feature, a stray text among a hundred does not change that; declarations overrule."""
    rows = [one({"a": i, "b": "x", "c": i, "d": True, "e": None}) for i in range(200)] + [one({"a": "typo"})]
    learnt = FeatureSchema.infer(rows, {"c": "category"})
    assert learnt == FeatureSchema(("a", "e"), ("b", "c", "d"), ("c",))
    assert FeatureSchema.from_json(learnt.to_json()) == learnt


@given(st.lists(st.text(max_size=30), unique=True, max_size=30))
@settings(max_examples=100)
def test_no_two_features_share_a_column(names: list[str]) -> None:
    """Column names are safe for every engine, and different for different features even where case does not count."""
    columns = {numeric_column(name).lower() for name in names} | {categorical_column(name).lower() for name in names}
    assert len(columns) == 2 * len(names)
    assert all(c.isidentifier() and c.isascii() and len(c) < 70 for c in columns)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)


@given(st.lists(st.dictionaries(st.sampled_from(["amount", "country", "device", "new", "\ud800"]), values), max_size=5))
@settings(max_examples=200)
def test_any_features_can_be_written_and_every_value_is_found_again(rows: list[dict[str, Any]]) -> None:
    """Whatever the features hold, each present value is in its column or in extra."""
    segment = table(*(one(row) for row in rows))
    got = seen(segment, "feature:amount", "feature:country", "feature:device")
    for place, row in enumerate(rows):
        extra = json.loads(segment["extra"][place].as_py() or "{}").get("features", {})
        for name in ("amount", "country", "device"):
            value = row.get(name)
            nothing = value is None or (isinstance(value, float) and math.isnan(value))
            kept = got[f"feature:{name}"][place] is not None or name in extra
            infinite = name != "country" and isinstance(value, float) and value in (float("inf"), float("-inf"))
            assert nothing or kept or infinite
