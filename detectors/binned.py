"""One feature's bins: how they are fitted to a reference, and which bin every row of a table falls into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import stats

NUMBER: Final = "number"
CATEGORY: Final = "category"
MANY_ROWS: Final = 2_000  # from here on comparing with every edge beats searching
MAX_COMPARED: Final = 64  # edges
MAX_SCORES: Final = 12  # classes whose scores are followed
TAILS: Final = (0.001, 0.002, 0.005, 0.01)  # shares of rows at each end of a score that have a bin of their own
TAIL_ROWS: Final = 20  # of the reference that such a bin needs
MAX_WEIGHT: Final = 10_000  # events that one row may stand for
LEVEL: Final = 100  # levels are whole hundredths, so that their products add up exactly in any order


@dataclass(frozen=True)
class Binned:
    """One feature's bins. `edges` of a number: bin i holds edges[i-1] <= x < edges[i]. `centers`: mean reference value
    of each of those bins; `spread`: the reference's standard deviation; `levels`: its normal score in whole hundredths.
    `categories` of a category, most frequent first.
    """

    name: str
    column: str
    kind: str
    edges: tuple[float, ...] = ()
    centers: tuple[float, ...] = ()
    spread: float = 0.0
    levels: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Bins including "other" (categories) and missing, which is always the last."""
        return len(self.edges) + 2 if self.kind == NUMBER else len(self.categories) + 2

    @property
    def is_output(self) -> bool:
        """Whether this is the model's answer rather than its input."""
        return not self.column.startswith(("feature:", "input:"))


def number_codes(x: NDArray[np.float64], edges: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of each value; missing (NaN) and infinite values get the last slot, len(edges) + 1.

    >>> number_codes(np.array([0.5, 1.0, 9.0, np.nan]), [1.0, 2.0]).tolist()
    [0, 1, 2, 3]
    """
    cuts = np.asarray(edges, dtype=np.float64)
    if len(x) < MANY_ROWS or len(cuts) > MAX_COMPARED:
        code = np.searchsorted(cuts, x, side="right")
    else:  # a block fits the cache, where twenty comparisons a value cost a third of a binary search
        passed, count = np.empty(len(x), dtype=np.bool_), np.zeros(len(x), dtype=np.uint8)
        for cut in cuts:
            np.add(count, np.greater_equal(x, cut, out=passed), out=count, casting="unsafe")
        code = count.astype(np.int64)
    code[~np.isfinite(x)] = len(cuts) + 1
    return code


def given(rows: pa.Table, column: str) -> pa.ChunkedArray | None:
    """A column of a table; None where it is absent or never had a value. Listing the names of a wide table to look for one
    costs more than all that is done with a column of a usual window.

    >>> given(pa.table({"x": [1.0]}), "x").to_pylist(), given(pa.table({"x": [None]}), "x"), given(pa.table({}), "x")
    ([1.0], None, None)
    """
    place = rows.schema.get_field_index(column)
    return None if place < 0 or pa.types.is_null(rows.schema.field(place).type) else rows.column(place)


def category_codes(rows: pa.Table, column: str, categories: Sequence[str]) -> NDArray[np.int64]:
    """Index of each value in `categories`; len(categories) for others, one more for missing."""
    other, missing = len(categories), len(categories) + 1
    values = given(rows, column)
    if values is None:
        return np.full(rows.num_rows, missing, dtype=np.int64)
    parts = []
    known = pa.array(categories, pa.string())
    for chunk in values.chunks:
        words = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        code = (
            pc.index_in(words.cast(pa.string()), known).fill_null(other).to_numpy(zero_copy_only=False).astype(np.int64)
        )
        if pa.types.is_dictionary(chunk.type):
            place = chunk.indices.fill_null(0).to_numpy(zero_copy_only=False)
            code = code[place] if len(code) else np.full(len(chunk), other, dtype=np.int64)
        if chunk.null_count:
            code[chunk.is_null().to_numpy(zero_copy_only=False)] = missing
        parts.append(code)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def scores(rows: pa.Table, classes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The score of each class per row, NaN where it is not given. Rows without class names go by position."""
    out = {c: np.full(rows.num_rows, np.nan) for c in classes}
    held, spelt = given(rows, "scores"), given(rows, "class_names")
    if not classes or held is None:
        return out
    lists = held.combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
    named = np.zeros(rows.num_rows, dtype=bool)
    if spelt is not None:
        names = spelt.combine_chunks()
        named = (lengths > 0) & (pc.list_value_length(names).fill_null(-2).to_numpy(zero_copy_only=False) == lengths)
        words = pc.list_flatten(names.filter(pa.array(named)))
        code = pc.index_in(words.cast(pa.string()), pa.array(classes)).fill_null(-1).to_numpy(zero_copy_only=False)
        _spread(out, classes, np.flatnonzero(named), lengths, code, lists.filter(pa.array(named)))
    plain = ~named & (lengths == len(classes))
    code = np.tile(np.arange(len(classes)), int(plain.sum()))
    _spread(out, classes, np.flatnonzero(plain), lengths, code, lists.filter(pa.array(plain)))
    return out


def _spread(
    out: dict[str, NDArray[np.float64]],
    classes: Sequence[str],
    rows: NDArray[np.int64],
    lengths: NDArray[Any],
    code: NDArray[Any],
    lists: pa.Array,
) -> None:
    """Put flattened scores into their class's column."""
    values = pc.list_flatten(lists).cast(pa.float64()).to_numpy(zero_copy_only=False)
    parent = np.repeat(rows, lengths[rows])
    for k, c in enumerate(classes):
        mine = code == k
        out[c][parent[mine]] = values[mine]


def stands_for(rows: pa.Table) -> NDArray[np.float64]:
    """How many events each row stands for: one over its sampling fraction, 1 where none is told, MAX_WEIGHT at most.

    >>> stands_for(pa.table({"sampling_fraction": [1.0, 0.25, None]})).tolist()
    [1.0, 4.0, 1.0]
    """
    fraction = np.nan_to_num(floats(rows, "sampling_fraction"), nan=1.0)
    return np.asarray(1 / np.clip(fraction, 1 / MAX_WEIGHT, 1), dtype=np.float64)


def frequent(rows: pa.Table, column: str) -> list[tuple[str, float]]:
    """The words of a column with the events of each, the most first."""
    words = rows[column].cast(pa.string()).combine_chunks()
    counted = pa.table({"word": words, "events": stands_for(rows)}).group_by("word").aggregate([("events", "sum")])
    found = zip(counted["word"].to_pylist(), counted["events_sum"].to_pylist(), strict=True)
    return sorted(((w, n) for w, n in found if w is not None), key=lambda x: (-x[1], x[0]))


def sampled(rows: pa.Table) -> NDArray[np.int64] | None:
    """How many events each row stands for, one over its sampling fraction in whole numbers; None when all were logged.

    What is no whole number is rounded up or down by chance that hangs on the event time only: right on average.

    >>> sampled(pa.table({"event_time": [1, 2], "sampling_fraction": [1.0, 0.1]})).tolist()
    [1, 10]
    """
    weight = stands_for(rows)
    if (weight <= 1).all() or "event_time" not in rows.column_names:
        return None
    weight = np.where(np.abs(weight - np.rint(weight)) < 1e-6, np.rint(weight), weight)
    mixed = np.asarray(rows["event_time"].cast(pa.int64()), np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    chance = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(11)
    return np.asarray(np.floor(weight + chance / 2.0**53), dtype=np.int64)


def class_names(rows: pa.Table) -> tuple[str, ...]:
    if "scores" not in rows.column_names or rows["scores"].null_count == rows.num_rows:
        return ()
    if "class_names" in rows.column_names and rows["class_names"].null_count < rows.num_rows:
        return tuple(
            str(c)
            for c in pc.unique(pc.list_flatten(rows["class_names"].combine_chunks())).to_pylist()
            if c is not None
        )
    longest = pc.max(pc.list_value_length(rows["scores"])).as_py() or 0
    return tuple(str(i) for i in range(min(longest, MAX_SCORES)))


def floats(rows: pa.Table, column: str) -> NDArray[np.float64]:
    """A numeric column with NaN for missing; all NaN when it is absent."""
    values = given(rows, column)
    if values is None:
        return np.full(rows.num_rows, np.nan)
    values = values if values.type == pa.float64() else values.cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)  # nulls read as NaN


def fit_number(name: str, column: str, x: NDArray[np.float64], max_bins: int, *, tails: bool = False) -> Binned:
    """Bins of a number. `tails`: finer ones at both ends, as far as the reference has rows for them (rare classes)."""
    x = x[np.isfinite(x)]
    if not len(x):
        return Binned(name, column, NUMBER)
    ordered = np.sort(x)
    edges = _edges(ordered, max_bins)
    ends = [t for t in TAILS if t * len(x) >= TAIL_ROWS] if tails and len(edges) >= max_bins - 1 else []
    if ends:
        edges = np.unique(np.r_[edges, _quantiles(ordered, np.array([*ends, *(1 - t for t in ends)]))])
    code = number_codes(x, edges)
    n = np.bincount(code, minlength=len(edges) + 1)[: len(edges) + 1]
    total = np.bincount(code, weights=x, minlength=len(edges) + 1)[: len(edges) + 1]
    bounds = np.concatenate([[edges[0]], edges])  # an empty bin stands at its lower edge
    centers = np.where(n > 0, total / np.maximum(n, 1), bounds)
    levels = np.rint(stats.normal_scores(n) * LEVEL).astype(np.int64)
    return Binned(
        name, column, NUMBER, tuple(edges.tolist()), tuple(centers.tolist()), float(np.std(x)), tuple(levels.tolist())
    )


def quantile_edges(x: NDArray[np.float64], max_bins: int) -> NDArray[np.float64]:
    """Inner bin edges at quantiles of finite values. A value that repeats more than a bin's share gets its own bin.

    Few distinct values: one bin each, and outer bins for whatever lies below or above them.

    >>> quantile_edges(np.array([0.0, 0.0, 0.0, 1.0]), 20).tolist()
    [0.0, 1.0, 1.0000000000000002]
    """
    return _edges(np.sort(x), max_bins)


def _edges(ordered: NDArray[np.float64], max_bins: int) -> NDArray[np.float64]:
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    values, counts = ordered[starts], np.diff(starts, append=len(ordered))
    if len(values) <= max_bins:
        return np.append(values, np.nextafter(values[-1], np.inf))
    cuts = _quantiles(ordered, np.linspace(0, 1, max_bins + 1)[1:-1])
    heavy = values[counts > len(ordered) / max_bins]
    return np.unique(np.concatenate([cuts, heavy, np.nextafter(heavy, np.inf)]))


def _quantiles(ordered: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """NumPy's "inverted_cdf"; picking from what is sorted already costs a tenth."""
    return ordered[np.maximum(np.ceil(levels * len(ordered) - 1), 0).astype(np.int64)]


def fit_category(name: str, column: str, rows: pa.Table, max_categories: int) -> Binned:
    if column not in rows.column_names or rows[column].null_count == rows.num_rows:
        return Binned(name, column, CATEGORY)
    counted = pc.value_counts(rows[column].cast(pa.string()).drop_null()).to_pylist()
    ordered = sorted(((c["values"], c["counts"]) for c in counted), key=lambda vc: (-vc[1], vc[0]))
    return Binned(name, column, CATEGORY, categories=tuple(v for v, _ in ordered[:max_categories]))


def bin_labels(feature: Binned) -> list[str]:
    """The words under a feature's bins, "other" and "missing" included.

    >>> bin_labels(Binned("x", "feature:x", "number", edges=(0.0, 1.0, 2.5)))
    ['below 0', '0 to 1', '1 to 2.5', 'from 2.5', 'missing']
    >>> bin_labels(Binned("c", "feature:c", "category", categories=("a",)))
    ['a', 'other', 'missing']
    """
    if feature.kind == "category":
        return [*feature.categories, "other", "missing"]
    if not feature.edges:
        return ["any value", "missing"]
    inner = [
        _short(low) if high <= math.nextafter(low, math.inf) else f"{_short(low)} to {_short(high)}"
        for low, high in pairwise(feature.edges)
    ]
    return [f"below {_short(feature.edges[0])}", *inner, f"from {_short(feature.edges[-1])}", "missing"]


def _short(value: float) -> str:
    return f"{value:.4g}"
