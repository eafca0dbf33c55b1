"""Events as Arrow columns and back: the layout of the event log (docs/event-log.md has the list).

Every feature of the reference has a typed column; everything else an event carries goes to `extra`, JSON text.
Readers ask for `feature:NAME` and get one value per event wherever it stands. Written column by column, because a row
at a time costs more than Kafka and JSON together. Nothing that a log can hold makes `to_table` fail: a value that does
not fit its column goes to `extra` and the row is flagged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import astuple

from monitor.intake import Placed
from monitor.model import InferenceEvent, Scalar
from monitor.store.features import (
    FeatureSchema,
    as_category,
    as_number,
    categorical_column,
    clean,
    number_text,
    numeric_column,
    truth,
)

__all__ = ["FIXED", "ORDER", "TIME", "TYPES", "FeatureSchema", "json_text", "physical", "storable", "to_table", "view"]

TIME: Final = pa.timestamp("us", "UTC")
STRINGS: Final = pa.list_(pa.string())
FLOATS: Final = pa.list_(pa.float64())
EARLIEST_US: Final = -62_135_596_800_000_000  # year 1 and the end of year 9999: what dates can hold
LATEST_US: Final = 253_402_300_799_999_999
BLOCK: Final = 512  # events

# Columns that are an attribute of the event as it stands: (column, attribute, type).
_PLAIN: Final[tuple[tuple[str, str, pa.DataType], ...]] = (
    ("model", "model", pa.string()),
    ("row_index", "row_index", pa.int32()),
    ("model_version", "model_version", pa.string()),
    ("request_id", "request_id", pa.string()),
    ("client_request_id", "client_request_id", pa.string()),
    ("principal", "principal", pa.string()),
    ("principal_kind", "principal_kind", pa.string()),
    ("credential_id", "credential_id", pa.string()),
    ("source_ip", "source_ip", pa.string()),
    ("user_agent", "user_agent", pa.string()),
    ("session_id", "session_id", pa.string()),
    ("tenant", "tenant", pa.string()),
    ("scores", "scores", FLOATS),
    ("class_names", "class_names", STRINGS),
    ("returned", "returned", pa.string()),
    ("latency_ms", "latency_ms", pa.float64()),
    ("status", "status", pa.string()),
    ("http_status", "http_status", pa.int32()),
    ("error_type", "error_type", pa.string()),
    ("tokens_in", "tokens_in", pa.int64()),
    ("tokens_out", "tokens_out", pa.int64()),
    ("finish_reason", "finish_reason", pa.string()),
    ("batch_size", "batch_size", pa.int32()),
    ("sampling_fraction", "sampling_fraction", pa.float64()),
    ("event_time_source", "event_time_source", pa.string()),
)
# Columns of every segment besides the features, in file order. `batch` and `ordinal` are known only after publishing:
# compacted files hold them, for others the reader adds them.
FIXED: Final[Mapping[str, pa.DataType]] = {
    "event_time": TIME,
    "segment": pa.string(),
    "position": pa.int32(),
    "source": pa.string(),
    "topic": pa.string(),
    "partition": pa.int32(),
    "offset": pa.int64(),
    "ingest_time": TIME,
    "prediction_label": pa.string(),
    "prediction_value": pa.float64(),
    "quality": STRINGS,
    "mismatched": pa.bool_(),
    "extra": pa.string(),
    **{column: kind for column, _, kind in _PLAIN},
}
ORDER: Final[Mapping[str, pa.DataType]] = {"batch": pa.int64(), "ordinal": pa.int64()}
_FIELDS: Final = InferenceEvent.__struct_fields__
_CONTENT: Final = {  # where in `extra` the fields stand that have no column
    "embedding": "embedding",
    "messages_in": "messages_in",
    "messages_out": "messages_out",
    "params": "params",
    "attributes": "extra",
}
TYPES: Final[Mapping[str, pa.DataType]] = {**FIXED, **ORDER}


def to_table(
    placed: Sequence[Placed],
    schema: FeatureSchema,
    segment: str,
    received_us: int,
    source: str = "",
    *,
    replayed: bool = False,
) -> pa.Table:
    """The rows of one segment, in the given order. Never fails on what a log holds; see the module's first lines.

    `replayed`: the rows are a replay's, and each was recorded when it happened.
    """
    n = len(placed)
    odd = _Odd()
    rows = _transposed(placed)
    features = _feature_columns(rows["features"], schema, odd)
    predictions = rows["prediction"]
    columns: dict[str, pa.Array] = {
        "event_time": _times(rows["event_time_us"], odd),
        "segment": _constant(segment, n),
        "position": pa.array(np.arange(n, dtype=np.int32)),
        "source": _constant(source, n),
        "topic": _array(rows["topic"], pa.string(), odd),
        "partition": pa.array(rows["partition"], pa.int32()),
        "offset": pa.array(rows["offset"], pa.int64()),
        "ingest_time": pa.array(np.full(n, received_us, dtype=np.int64)).view(TIME),
        "prediction_label": _array([p if type(p) is str else truth(p) for p in predictions], pa.string(), odd),
        "prediction_value": _array(
            [p if type(p) is float or type(p) is int else None for p in predictions], pa.float64(), odd
        ),
        **{column: _array(rows[name], kind, odd) for column, name, kind in _PLAIN},
    }
    if replayed:
        columns["ingest_time"] = columns["event_time"]
    columns["extra"] = _extra(rows, odd)
    columns["mismatched"] = _mismatched(n, odd)
    columns["quality"] = _array(_quality(rows["quality"], odd), STRINGS, odd)
    ordered = {name: columns[name] for name in FIXED} | features
    return pa.table(ordered)


def _transposed(placed: Sequence[Placed]) -> dict[str, list[Any]]:
    """The fields of the events and of their places, one list each.

    Every event is touched once, in blocks that fit the processor's cache: going through all events once per field
    costs twice as much, for by then they have left it.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("topic", "partition", "offset", *_FIELDS)}
    for first in range(0, len(placed), BLOCK):
        topics, partitions, offsets, events = zip(*placed[first : first + BLOCK], strict=True)
        fields = zip(*map(astuple, events), strict=True)
        for column, values in zip(columns.values(), (topics, partitions, offsets, *fields), strict=True):
            column.extend(values)
    return columns


class _Odd:
    """Rows that are not as the schema wants them: by row index, what did not fit and which flags that earns."""

    def __init__(self) -> None:
        self.features: dict[int, dict[str, Scalar]] = {}  # values that have no typed column, or do not fit it
        self.mismatch: dict[int, list[str]] = {}
        self.flags: dict[int, set[str]] = {}

    def feature(self, row: int, name: str, value: Scalar, flag: str | None) -> None:
        self.features.setdefault(row, {})[name] = value
        if flag:
            self.flag(row, flag)
        if flag == "schema_mismatch":
            self.mismatch.setdefault(row, []).append(name)

    def flag(self, row: int, flag: str) -> None:
        self.flags.setdefault(row, set()).add(flag)


def _constant(text: str, n: int) -> pa.Array:
    return pa.array([clean(text)], pa.string()).take(pa.array(np.zeros(n, dtype=np.int64)))


def _times(times: list[int], odd: _Odd) -> pa.Array:
    if times and not (min(times) >= EARLIEST_US and max(times) <= LATEST_US):
        for row, time in enumerate(times):
            if not EARLIEST_US <= time <= LATEST_US:
                odd.flag(row, "clock_skew")
                times[row] = min(max(time, EARLIEST_US), LATEST_US)
    return pa.array(times, pa.int64()).view(TIME)


def _feature_columns(
    held: Sequence[Mapping[str, Scalar] | None], schema: FeatureSchema, odd: _Odd
) -> dict[str, pa.Array]:
    rows: list[Mapping[str, Scalar]] = [row or {} for row in held]
    known = frozenset(schema.numeric) | frozenset(schema.categorical)
    kinds = {**dict.fromkeys(schema.numeric, pa.float64()), **dict.fromkeys(schema.categorical, pa.string())}
    try:  # one pass over all rows, written in C++; it stops at the first value that does not fit
        fitting = dict(zip(kinds, pa.array(rows, pa.struct(list(kinds.items()))).flatten(), strict=True))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
        fitting = {}
    coded = frozenset(schema.coded)
    arrays: dict[str, pa.Array] = {}
    for name, kind in kinds.items():
        array = fitting.get(name)
        if kind == pa.float64():
            array = _numeric(name, [row.get(name) for row in rows], odd) if array is None else array
            arrays[numeric_column(name)] = _finite(array, odd)
        else:
            array = _categorical(name, [row.get(name) for row in rows], name in coded, odd) if array is None else array
            arrays[categorical_column(name)] = array
    # As many values in the columns as in the rows: nothing unknown, and no need to compare names. Else those of all rows
    # together are compared first, which is half the work.
    kept = sum(len(array) - array.null_count for array in arrays.values())
    if kept != sum(map(len, rows)) and not known.issuperset(set().union(*rows)):
        for i, row in enumerate(rows):
            if not known.issuperset(row):
                for name in row.keys() - known:
                    odd.feature(i, name, row[name], "unknown_feature" if known else None)
    return arrays


def _numeric(name: str, values: Sequence[Scalar], odd: _Odd) -> pa.Array:
    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # a text, a bool, or an integer beyond 2**53
        good: list[float | None] = []
        for row, value in enumerate(values):
            good.append(as_number(value))
            if value is not None and good[-1] is None:
                odd.feature(row, name, value, "schema_mismatch")
        return pa.array(good, pa.float64())


def _finite(array: pa.Array, odd: _Odd) -> pa.Array:
    if pc.all(pc.is_finite(array)).as_py() is False:
        for place in np.flatnonzero(np.asarray(pc.fill_null(pc.invert(pc.is_finite(array)), False))):
            odd.flag(int(place), "nonfinite")
        array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float64()))
    return array


def _categorical(name: str, values: Sequence[Scalar], coded: bool, odd: _Odd) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError):
        good: list[str | None] = []
        for row, value in enumerate(values):
            good.append(as_category(value, coded))
            if value is not None and good[-1] is None:
                odd.feature(row, name, value, "schema_mismatch")
        return pa.array(good, pa.string())


def _array(values: list[Any], kind: pa.DataType, odd: _Odd) -> pa.Array:
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError, TypeError):
        good = [_fitting(value, kind) for value in values]
        for row, (before, after) in enumerate(zip(values, good, strict=True)):
            if before is not None and after is None:
                odd.flag(row, "out_of_range")
        return pa.array(good, kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_fitting(v, kind.value_type) for v in value] if isinstance(value, list | tuple) else None
    if pa.types.is_string(kind):
        return clean(value if isinstance(value, str) else str(value))
    if pa.types.is_floating(kind):
        return as_number(value)
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return int(value) if whole and abs(value) < 2 ** (kind.bit_width - 1) else None


def _extra(rows: Mapping[str, Sequence[Any]], odd: _Odd) -> pa.Array:
    n = len(rows["extra"])
    texts: list[str | None] = [None] * n
    held = {name: rows[field] for name, field in _CONTENT.items() if any(rows[field])}
    carrying = {i for values in held.values() for i, value in enumerate(values) if value}
    for i in carrying | odd.features.keys():
        content = {"features": odd.features.get(i), "mismatch": odd.mismatch.get(i)}
        content |= {name: values[i] for name, values in held.items()}
        texts[i] = json_text({name: value for name, value in content.items() if value})
    return pa.array(texts, pa.string())


def json_text(value: object) -> str:
    """Strict JSON text of a value from a log: what is not a number becomes null, what is not UTF-8 is replaced."""
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeError, OverflowError):
        return msgspec.json.encode(storable(value)).decode()


def storable(value: Any) -> Any:
    """A JSON-ready value from a log as every store takes it: texts cleaned, integers beyond 64 bits as text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(k)): storable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [storable(v) for v in value]
    return str(value) if isinstance(value, int) and not -(2**63) <= value < 2**64 else value


def _mismatched(n: int, odd: _Odd) -> pa.Array:
    flags = np.zeros(n, dtype=bool)
    flags[list(odd.mismatch)] = True
    return pa.array(flags)


def _quality(quality: list[list[str]], odd: _Odd) -> list[list[str]]:
    for row, flags in odd.flags.items():
        quality[row] = sorted({*quality[row], *flags})
    return quality


def physical(schema: FeatureSchema, columns: Sequence[str]) -> list[str]:
    """Physical columns that `view` needs to answer for `columns`."""
    needed: dict[str, None] = {}
    for column in columns:
        if not column.startswith("feature:"):
            needed[column] = None
            continue
        feature = column.removeprefix("feature:")
        needed["extra"] = None
        if feature in schema.numeric:
            needed[numeric_column(feature)] = None
        elif feature in schema.categorical:
            needed[categorical_column(feature)] = None
            if feature in schema.coded:
                needed[numeric_column(feature)] = None  # rows from before it became a category
    return list(needed)


def view(table: pa.Table, schema: FeatureSchema, columns: Sequence[str]) -> pa.Table:
    """The columns as readers know them: `event_time` in microseconds, `feature:NAME` from its typed column or `extra`.

    Numeric features are float64, categorical ones and those that the schema does not know are strings; missing is null.
    A value that did not fit its column reads as null here and stands in `extra`.
    """
    found = held(table) if any(c.startswith("feature:") for c in columns) else {}
    return pa.table({column: _logical(table, schema, column, found) for column in columns})


def _logical(
    table: pa.Table, schema: FeatureSchema, column: str, apart: Mapping[int, dict[str, Any]]
) -> pa.ChunkedArray:
    if column in ("event_time", "ingest_time"):
        return table[column].cast(TIME).cast(pa.int64())
    if not column.startswith("feature:"):
        return table[column] if _has(table, column) else pa.chunked_array([pa.nulls(table.num_rows, TYPES[column])])
    name = column.removeprefix("feature:")
    numeric = name in schema.numeric
    coded = name in schema.coded or name not in schema.categorical
    own = numeric_column(name) if numeric else categorical_column(name)
    kind = pa.float64() if numeric else pa.string()
    values = table[own] if _has(table, own) else pa.chunked_array([pa.nulls(table.num_rows, kind)])
    if not numeric and coded and _has(table, other := numeric_column(name)):
        texts = [None if v is None else number_text(v) for v in table[other].to_pylist()]
        values = pc.coalesce(values, pa.array(texts, pa.string()))
    fit: Callable[[Any], Any] = as_number if numeric else (lambda value: as_category(value, coded))
    found = {row: fit(features[name]) for row, features in apart.items() if name in features}
    if not found:
        return values
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[list(found)] = True
    return pc.replace_with_mask(values.combine_chunks(), mask, pa.array(list(found.values()), kind))


def _has(table: pa.Table, column: str) -> bool:
    return bool(table.schema.get_field_index(column) >= 0)  # to list the names for every column is quadratic


def held(table: pa.Table) -> dict[int, dict[str, Any]]:
    """By row, ascending: features that stand in `extra`."""
    extra = table["extra"]
    if extra.null_count == len(extra):
        return {}
    rows = np.flatnonzero(np.asarray(pc.fill_null(pc.match_substring(extra, '"features":'), False)))
    texts = extra.take(pa.array(rows)).to_pylist()
    decoded = ((int(row), _FEATURES.decode(text).features) for row, text in zip(rows, texts, strict=True))
    return {row: features for row, features in decoded if features}


class _Extra(msgspec.Struct):
    features: dict[str, Any] = msgspec.field(default_factory=dict)


_FEATURES: Final = msgspec.json.Decoder(_Extra)
