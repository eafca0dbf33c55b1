"""Profiles: mergeable counts of a window on bins that the reference fixed once.

Every number is cut at quantiles of the reference, every category keeps its own bin (rare and new ones share "other"),
and missing has a bin of its own. A profile holds whole counts only, so merging is exact: the same rows give the same
profile however they were cut. Its size depends on the bins, never on the rows (some kilobytes per model and window).
The answer of the model is profiled like a feature: `prediction`, and `score:CLASS` per class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import stats
from detectors.base import pack, unpack

NUMBER: Final = "number"
CATEGORY: Final = "category"
FIT_ROWS: Final = 200_000  # quantiles of a longer reference are read from evenly spaced rows
MANY_ROWS: Final = 2_000  # from here on comparing with every edge beats searching
MAX_COMPARED: Final = 64  # edges
BLOCK_ROWS: Final = 32_000  # rows whose codes are held at once
MAX_SCORES: Final = 12  # classes whose scores are followed


@dataclass(frozen=True)
class Binned:
    """One feature's bins. `edges` of a number: bin i holds edges[i-1] <= x < edges[i]. `centers`: mean reference value
    of each of those bins; `spread`: the reference's standard deviation. `categories` of a category, most frequent first.
    """

    name: str
    column: str
    kind: str
    edges: tuple[float, ...] = ()
    centers: tuple[float, ...] = ()
    spread: float = 0.0
    categories: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Bins including "other" (categories) and missing, which is always the last."""
        return len(self.edges) + 2 if self.kind == NUMBER else len(self.categories) + 2

    @property
    def is_output(self) -> bool:
        """Whether this is the model's answer rather than its input."""
        return not self.column.startswith("feature:")


@dataclass(frozen=True)
class Bins:
    """Where every feature is cut. Fixed when the reference is frozen; profiles on other bins cannot be merged."""

    features: tuple[Binned, ...]
    classes: tuple[str, ...] = ()  # order of the scores

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each feature's slots in `Profile.counts`; one longer than the features."""
        return np.concatenate([[0], np.cumsum([f.slots for f in self.features], dtype=np.int64)]).astype(np.int64)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the event log that `count` reads."""
        wanted = [f.column for f in self.features]
        if "scores" in wanted:
            wanted.append("class_names")
        return tuple(dict.fromkeys(wanted))

    @cached_property
    def key(self) -> str:
        """Hash of the bins: what profiles carry to say which bins they were counted on."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

    @classmethod
    def fit(
        cls,
        rows: pa.Table,
        numeric: Sequence[str],
        categorical: Sequence[str],
        max_bins: int = 20,
        max_categories: int = 24,
    ) -> Bins:
        """Bins from reference rows (columns `feature:NAME`, `prediction_label`, `prediction_value`, `scores`, `class_names`).

        >>> t = pa.table({"feature:x": [1.0, 2.0, 3.0, None], "feature:c": ["a", "a", "b", None]})
        >>> b = Bins.fit(t, ["x"], ["c"]); p = b.count(t)
        >>> [(f.name, f.slots) for f in b.features], p.of("c").tolist()
        ([('x', 6), ('c', 4)], [2, 1, 0, 1])
        """
        if rows.num_rows > FIT_ROWS:
            rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, FIT_ROWS).astype(np.int64)))
        found = [_fit_number(n, f"feature:{n}", _floats(rows, f"feature:{n}"), max_bins) for n in numeric]
        found += [_fit_category(n, f"feature:{n}", rows, max_categories) for n in categorical]
        taken = {f.name for f in found}
        name = "prediction" if "prediction" not in taken else "prediction (answer)"
        values = _floats(rows, "prediction_value")
        if np.isfinite(values).sum() * 2 > rows.num_rows:
            found.append(_fit_number(name, "prediction_value", values, max_bins))
        elif "prediction_label" in rows.column_names and rows["prediction_label"].null_count < rows.num_rows:
            found.append(_fit_category(name, "prediction_label", rows, max_categories))
        classes = _classes(rows)
        # Two scores that sum to one are one number: follow the second.
        for c in classes[1:] if len(classes) == 2 else classes[:MAX_SCORES]:
            found.append(_fit_number(f"score:{c}", "scores", scores(rows, classes)[c], max_bins))
        return cls(tuple(found), classes)

    def empty(self) -> Profile:
        """The profile of no rows."""
        blank = np.full(len(self.features), np.nan)
        return Profile(0, np.zeros(int(self.offsets[-1]), dtype=np.int64), blank, blank, self.key, self)

    def count(self, rows: pa.Table) -> Profile:
        """Counts of these rows. A column that is absent counts as missing in every row."""
        return next(self.counts(rows, [0, rows.num_rows]))

    def counts(self, rows: pa.Table, edges: Sequence[int]) -> Iterator[Profile]:
        """Profiles of the consecutive stretches rows[edges[i]:edges[i + 1]], holding the codes of BLOCK_ROWS rows at most."""
        first, coded = 0, self.code(rows.slice(0, 0))
        for start, stop in pairwise(edges):
            found, at = self.empty(), start
            while at < stop:
                if at >= first + coded.n or at < first:
                    first, coded = at, self.code(rows.slice(at, BLOCK_ROWS))
                end = min(stop, first + coded.n)
                found = found.merge(coded.count(at - first, end - first))
                at = end
            yield found

    def code(self, rows: pa.Table) -> Coded:
        """Lay rows out on the bins once, so that any stretch of them can be counted without reading columns again."""
        n = rows.num_rows
        codes = np.empty((len(self.features), n), dtype=np.int64)
        values = np.full((len(self.features), n), np.nan)
        by_class = scores(rows, self.classes) if self.classes else {}
        for i, f in enumerate(self.features):
            if f.kind == NUMBER:
                x = by_class[f.name.removeprefix("score:")] if f.column == "scores" else _floats(rows, f.column)
                codes[i] = number_codes(x, f.edges)
                values[i] = np.where(np.isfinite(x), x, np.nan)
            else:
                codes[i] = category_codes(rows, f.column, f.categories)
        codes += self.offsets[:-1, None]
        return Coded(self, codes, values)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode([self.features, self.classes], order="sorted")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Bins:
        features, classes = msgspec.msgpack.decode(raw, type=tuple[tuple[Binned, ...], tuple[str, ...]])
        return cls(features, classes)


@dataclass(frozen=True)
class Coded:
    """Rows as places in `Profile.counts` and as numbers (NaN where there is none); both (features, rows)."""

    bins: Bins
    codes: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def n(self) -> int:
        return int(self.codes.shape[1])

    def part(self, start: int, stop: int) -> Coded:
        """The rows in [start, stop), without copying."""
        return Coded(self.bins, self.codes[:, start:stop], self.values[:, start:stop])

    def take(self, order: NDArray[np.int64]) -> Coded:
        """The same rows in another order."""
        return Coded(self.bins, self.codes[:, order], self.values[:, order])

    def count(self, start: int, stop: int) -> Profile:
        """Counts of the rows in [start, stop)."""
        if stop <= start:
            return self.bins.empty()
        counts = np.bincount(self.codes[:, start:stop].ravel(), minlength=int(self.bins.offsets[-1]))
        low = np.fmin.reduce(self.values[:, start:stop], axis=1)
        high = np.fmax.reduce(self.values[:, start:stop], axis=1)
        return Profile(stop - start, counts, low, high, self.bins.key, self.bins)


@dataclass(frozen=True)
class Profile:
    """Counts of n rows, flat over all features (see Bins.offsets), and each number's smallest and largest value."""

    n: int
    counts: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    key: str
    bins: Bins | None = field(default=None, compare=False, repr=False)

    def of(self, name: str) -> NDArray[np.int64]:
        """One feature's counts. Needs the bins: KeyError without the feature, ValueError without bins."""
        if self.bins is None:
            raise ValueError("this profile was read back without its bins; use Bins.offsets to cut `counts`")
        i = {f.name: i for i, f in enumerate(self.bins.features)}[name]
        return self.counts[self.bins.offsets[i] : self.bins.offsets[i + 1]]

    def merge(self, other: Profile) -> Profile:
        """Counts of both sets of rows together; exact, in any order. ValueError for other bins."""
        if self.key != other.key:
            raise ValueError("profiles on different bins cannot be merged: count the rows again on the new bins")
        low, high = np.fmin(self.low, other.low), np.fmax(self.high, other.high)
        return Profile(self.n + other.n, self.counts + other.counts, low, high, self.key, self.bins or other.bins)

    def to_bytes(self) -> bytes:
        return pack({"n": self.n, "bins": self.key}, {"counts": self.counts, "low": self.low, "high": self.high})

    @classmethod
    def from_bytes(cls, raw: bytes, bins: Bins | None = None) -> Profile:
        meta, a = unpack(raw)
        return cls(meta["n"], a["counts"], a["low"], a["high"], meta["bins"], bins)


def merged(profiles: Iterable[Profile]) -> Profile | None:
    """All profiles as one; None for none."""
    total: Profile | None = None
    for p in profiles:
        total = p if total is None else total.merge(p)
    return total


def compare(bins: Bins, reference: Profile, current: Profile) -> dict[str, dict[str, float | None]]:
    """How far each feature has moved: psi, js, ks, wasserstein (numbers only), missing and missing_reference shares.

    Distances over the bins without missing; None where one side has no value. Sizes, not tests: see detectors.stats.
    """
    out: dict[str, dict[str, float | None]] = {}
    for i, f in enumerate(bins.features):
        a, b = (p.counts[bins.offsets[i] : bins.offsets[i + 1]] for p in (reference, current))
        row: dict[str, float | None] = dict.fromkeys(("psi", "js", "ks", "wasserstein"))
        row["missing"] = float(b[-1] / current.n) if current.n else None
        row["missing_reference"] = float(a[-1] / reference.n) if reference.n else None
        p, q = a[:-1], b[:-1]
        if p.sum() and q.sum():
            row["psi"], row["js"] = stats.psi(p, q), stats.jensen_shannon(p, q)
            if f.kind == NUMBER:
                row["ks"] = stats.kolmogorov_smirnov(p, q)
                row["wasserstein"] = stats.wasserstein(p, q, np.array(f.centers), f.spread)
        out[f.name] = row
    return out


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


def category_codes(rows: pa.Table, column: str, categories: Sequence[str]) -> NDArray[np.int64]:
    """Index of each value in `categories`; len(categories) for others, one more for missing."""
    other, missing = len(categories), len(categories) + 1
    if column not in rows.column_names or pa.types.is_null(rows.schema.field(column).type):
        return np.full(rows.num_rows, missing, dtype=np.int64)
    parts = []
    known = pa.array(categories, pa.string())
    for chunk in rows[column].chunks:
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
    if not classes or "scores" not in rows.column_names or pa.types.is_null(rows.schema.field("scores").type):
        return out
    lists = rows["scores"].combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
    named = np.zeros(rows.num_rows, dtype=bool)
    if "class_names" in rows.column_names and not pa.types.is_null(rows.schema.field("class_names").type):
        names = rows["class_names"].combine_chunks()
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


def _classes(rows: pa.Table) -> tuple[str, ...]:
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


def _floats(rows: pa.Table, column: str) -> NDArray[np.float64]:
    """A numeric column with NaN for missing; all NaN when it is absent."""
    if column not in rows.column_names or pa.types.is_null(rows.schema.field(column).type):
        return np.full(rows.num_rows, np.nan)
    values = rows[column]
    values = values if values.type == pa.float64() else values.cast(pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)  # nulls read as NaN


def _fit_number(name: str, column: str, x: NDArray[np.float64], max_bins: int) -> Binned:
    x = x[np.isfinite(x)]
    if not len(x):
        return Binned(name, column, NUMBER)
    edges = quantile_edges(x, max_bins)
    code = number_codes(x, edges)
    n = np.bincount(code, minlength=len(edges) + 1)[: len(edges) + 1]
    total = np.bincount(code, weights=x, minlength=len(edges) + 1)[: len(edges) + 1]
    bounds = np.concatenate([[edges[0]], edges])  # an empty bin stands at its lower edge
    centers = np.where(n > 0, total / np.maximum(n, 1), bounds)
    return Binned(name, column, NUMBER, tuple(edges.tolist()), tuple(centers.tolist()), float(np.std(x)))


def quantile_edges(x: NDArray[np.float64], max_bins: int) -> NDArray[np.float64]:
    """Inner bin edges at quantiles of finite values. A value that repeats more than a bin's share gets its own bin.

    Few distinct values: one bin each, and outer bins for whatever lies below or above them.

    >>> quantile_edges(np.array([0.0, 0.0, 0.0, 1.0]), 20).tolist()
    [0.0, 1.0, 1.0000000000000002]
    """
    values, counts = np.unique(x, return_counts=True)
    if len(values) <= max_bins:
        return np.append(values, np.nextafter(values[-1], np.inf))
    cuts = np.quantile(x, np.linspace(0, 1, max_bins + 1)[1:-1], method="inverted_cdf")
    heavy = values[counts > len(x) / max_bins]
    return np.unique(np.concatenate([cuts, heavy, np.nextafter(heavy, np.inf)]))


def _fit_category(name: str, column: str, rows: pa.Table, max_categories: int) -> Binned:
    if column not in rows.column_names or rows[column].null_count == rows.num_rows:
        return Binned(name, column, CATEGORY)
    counted = pc.value_counts(rows[column].cast(pa.string()).drop_null()).to_pylist()
    ordered = sorted(((c["values"], c["counts"]) for c in counted), key=lambda vc: (-vc[1], vc[0]))
    return Binned(name, column, CATEGORY, categories=tuple(v for v, _ in ordered[:max_categories]))
