"""Profiles: mergeable counts of a window on bins that the reference fixed once.

Every number is cut at quantiles of the reference, every category keeps its own bin (rare and new ones share "other"),
and missing has a bin of its own. For dependence a profile also holds the sum of products of every two numbers' levels.
Where a model has segments or a context (detectors.strata), every one of their parts has a row of counts of its own.
It holds whole numbers only, so merging is exact: the same rows give the same profile however they were cut. Its size
depends on the bins, never on the rows (some kilobytes per model and window).
The answer of the model is profiled like a feature: `prediction`, and `score:CLASS` per class.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors import stats
from detectors.base import pack, unpack
from detectors.binned import (
    MAX_SCORES,
    NUMBER,
    Binned,
    category_codes,
    class_names,
    fit_category,
    fit_number,
    floats,
    number_codes,
    sampled,
    scores,
)
from detectors.inputs import Inputs, learn
from detectors.strata import Strata

FIT_ROWS: Final = 100_000  # quantiles of a longer reference are read from evenly spaced rows
BLOCK_ROWS: Final = 32_000  # rows whose codes are held at once
ONE_THREAD: Final = (
    1 << 18
)  # products up to which OpenBLAS wakes no other threads, whose waiting costs more than the sum
MAX_CROSSED: Final = 32  # numbers whose dependence is followed: 496 pairs, 4 kB a profile


@dataclass(frozen=True)
class Bins:
    """Where every feature is cut. Fixed when the reference is frozen; profiles on other bins cannot be merged."""

    features: tuple[Binned, ...]
    classes: tuple[str, ...] = ()  # order of the scores
    strata: Strata = field(default_factory=Strata)  # parts that are counted by themselves
    inputs: Inputs = field(default_factory=Inputs)  # how texts and embeddings become numbers

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Start of each feature's slots in `Profile.counts`; one longer than the features."""
        return np.concatenate([[0], np.cumsum([f.slots for f in self.features], dtype=np.int64)]).astype(np.int64)

    @cached_property
    def crossed(self) -> tuple[int, ...]:
        """Features whose products a profile sums up: numbers that vary, answers and the most varied first if too many."""
        found = [i for i, f in enumerate(self.features) if len(set(f.levels)) > 1]
        first = sorted(found, key=lambda i: (not self.features[i].is_output, -len(self.features[i].edges), i))
        return tuple(sorted(first[:MAX_CROSSED]))

    @cached_property
    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every two of `crossed` (as places in it), in the order of `Profile.cross`."""
        left, right = np.triu_indices(len(self.crossed), k=1)
        return left.astype(np.int64), right.astype(np.int64)

    @cached_property
    def levels(self) -> NDArray[np.float64]:
        """The level of each slot, flat as `Profile.counts`: a number's normal score in hundredths, 0 for missing."""
        out = np.zeros(int(self.offsets[-1]))
        for f, start in zip(self.features, self.offsets.tolist(), strict=False):
            out[start : start + len(f.levels)] = f.levels
        return out

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the event log that `count` reads."""
        wanted = [f.column for f in self.features]
        if "scores" in wanted:
            wanted.append("class_names")
        return tuple(
            dict.fromkeys(
                [*(w for w in wanted if not w.startswith("input:")), *self.inputs.columns, *self.strata.columns]
            )
        )

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
        """Bins from reference rows (columns `feature:NAME`, `input:NAME`, `prediction_label`, `prediction_value`, `scores`, `class_names`).

        >>> t = pa.table({"feature:x": [1.0, 2.0, 3.0, None], "feature:c": ["a", "a", "b", None]})
        >>> b = Bins.fit(t, ["x"], ["c"]); p = b.count(t)
        >>> [(f.name, f.slots) for f in b.features], p.of("c").tolist()
        ([('x', 6), ('c', 4)], [2, 1, 0, 1])
        """
        if rows.num_rows > FIT_ROWS:
            rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, FIT_ROWS).astype(np.int64)))
        found = [fit_number(n, f"feature:{n}", floats(rows, f"feature:{n}"), max_bins) for n in numeric]
        found += [fit_category(n, f"feature:{n}", rows, max_categories) for n in categorical]
        taken = {f.name for f in found}
        inputs = learn(rows)
        rows = inputs.project(rows)
        made = [c for c in rows.column_names if c.startswith("input:") and c.removeprefix("input:") not in taken]
        found += [fit_number(c.removeprefix("input:"), c, floats(rows, c), max_bins) for c in made]
        name = "prediction" if "prediction" not in taken else "prediction (answer)"
        values = floats(rows, "prediction_value")
        if np.isfinite(values).sum() * 2 > rows.num_rows:
            found.append(fit_number(name, "prediction_value", values, max_bins))
        elif "prediction_label" in rows.column_names and rows["prediction_label"].null_count < rows.num_rows:
            found.append(fit_category(name, "prediction_label", rows, max_categories))
        classes = class_names(rows)
        # Two scores that sum to one are one number: follow the second.
        for c in classes[1:] if len(classes) == 2 else classes[:MAX_SCORES]:
            found.append(fit_number(f"score:{c}", "scores", scores(rows, classes)[c], max_bins, tails=True))
        return cls(tuple(found), classes, inputs=inputs)

    def empty(self) -> Profile:
        """The profile of no rows."""
        blank = np.full(len(self.features), np.nan)
        counts, cross = np.zeros(int(self.offsets[-1]), np.int64), np.zeros(len(self.pairs[0]), np.int64)
        return Profile(0, counts, blank, blank, cross, self.key, self, *self.no_parts())

    def no_parts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`Profile.parts` and `part_cross` of no rows."""
        parts = np.zeros((self.strata.height, self.strata.width, int(self.offsets[-1])), np.int64)
        return parts, np.zeros((self.strata.width if self.strata.axes else 0, len(self.pairs[0])), np.int64)

    def count(self, rows: pa.Table) -> Profile:
        """Counts of these rows. A column that is absent counts as missing in every row."""
        return next(self.counts(rows, [0, rows.num_rows]))

    def counts(self, rows: pa.Table, edges: Sequence[int]) -> Iterator[Profile]:
        """Profiles of the consecutive stretches rows[edges[i]:edges[i + 1]], holding the codes of BLOCK_ROWS rows at most."""
        first, coded = 0, None
        for start, stop in pairwise(edges):
            found, at = self.empty(), start
            while at < stop:
                if coded is None or at >= first + coded.n or at < first:
                    first, coded = at, self.code(rows.slice(at, BLOCK_ROWS))
                end = min(stop, first + coded.n)
                found = found.merge(coded.count(at - first, end - first))
                at = end
            yield found

    def code(self, rows: pa.Table) -> Coded:
        """Lay rows out on the bins once, so that any stretch of them can be counted without reading columns again."""
        n, rows = rows.num_rows, self.inputs.project(rows)
        codes = np.empty((len(self.features), n), dtype=np.int64)
        values = np.full((len(self.features), n), np.nan)
        by_class = scores(rows, self.classes) if self.classes else {}
        for i, f in enumerate(self.features):
            if f.kind == NUMBER:
                x = by_class[f.name.removeprefix("score:")] if f.column == "scores" else floats(rows, f.column)
                codes[i] = number_codes(x, f.edges)
                values[i] = np.where(np.isfinite(x), x, np.nan)
            else:
                codes[i] = category_codes(rows, f.column, f.categories)
        codes += self.offsets[:-1, None]
        if not self.strata.height:
            return Coded(self, codes, values, weight=sampled(rows))
        return Coded(self, codes, values, self.strata.members(rows), self.strata.cell(rows), sampled(rows))

    def to_bytes(self) -> bytes:
        parts: list[Any] = [self.strata] if self.strata.height or self.inputs.columns else []
        parts += [self.inputs.pack()] if self.inputs.columns else []
        return msgspec.msgpack.encode([self.features, self.classes, *parts], order="sorted")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Bins:
        features, classes, *parts = msgspec.msgpack.decode(raw)
        strata = msgspec.convert(parts[0], Strata) if parts else Strata()
        inputs = Inputs.unpack(parts[1]) if len(parts) > 1 else Inputs()
        return cls(
            msgspec.convert(features, tuple[Binned, ...]), msgspec.convert(classes, tuple[str, ...]), strata, inputs
        )


@dataclass(frozen=True)
class Coded:
    """Rows as places in `Profile.counts` and as numbers (NaN where there is none); both (features, rows).

    members (height, rows), cell (rows,): which parts of the strata each row belongs to; None without any.
    """

    bins: Bins
    codes: NDArray[np.int64]
    values: NDArray[np.float64]
    members: NDArray[np.bool_] | None = None
    cell: NDArray[np.int64] | None = None
    weight: NDArray[np.int64] | None = None  # how many events each row stands for; None: itself

    @property
    def n(self) -> int:
        return int(self.codes.shape[1])

    def part(self, start: int, stop: int) -> Coded:
        """The rows in [start, stop), without copying."""
        return self._at(slice(start, stop))

    def take(self, order: NDArray[np.int64]) -> Coded:
        """The same rows in another order."""
        return self._at(order)

    def _at(self, rows: Any) -> Coded:
        weight = None if self.weight is None else self.weight[rows]
        if self.members is None or self.cell is None:
            return Coded(self.bins, self.codes[:, rows], self.values[:, rows], weight=weight)
        members, cell = self.members[:, rows], self.cell[rows]
        return Coded(self.bins, self.codes[:, rows], self.values[:, rows], members, cell, weight)

    def count(self, start: int, stop: int) -> Profile:
        """Counts of the rows in [start, stop)."""
        if stop <= start:
            return self.bins.empty()
        if self.weight is not None:
            return self._weighted(start, stop)
        counts = np.bincount(self.codes[:, start:stop].ravel(), minlength=int(self.bins.offsets[-1]))
        low = np.fmin.reduce(self.values[:, start:stop], axis=1)
        high = np.fmax.reduce(self.values[:, start:stop], axis=1)
        cross, parts = self._cross(self.codes[:, start:stop]), self._parts(start, stop)
        return Profile(stop - start, counts, low, high, cross, self.bins.key, self.bins, *parts)

    def _weighted(self, start: int, stop: int) -> Profile:
        """Counts in which every row stands for as many events as it was drawn from."""
        assert self.weight is not None
        found, plain = self.bins.empty(), replace(self, weight=None)
        for k in np.unique(self.weight[start:stop]).tolist():
            order = start + np.flatnonzero(self.weight[start:stop] == k)
            found = found.merge(plain.take(order).count(0, len(order)).times(k))
        return found

    def _cross(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums of products of levels; exact in float64, whose whole numbers reach far beyond any count of hundredths."""
        used, total = list(self.bins.crossed), np.zeros((len(self.bins.crossed),) * 2)
        step = max(1, ONE_THREAD // max(1, len(used)) ** 2)
        for at in range(0, codes.shape[1], BLOCK_ROWS):
            x = self.bins.levels[codes[used, at : at + BLOCK_ROWS]]
            for part in (x[:, k : k + step] for k in range(0, x.shape[1], step)):
                total += part @ part.T
        return np.asarray(np.rint(total[self.bins.pairs]), dtype=np.int64)

    def _parts(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Counts of every part of the strata, and the products of every cell of the context."""
        parts, cross = self.bins.no_parts()
        if self.members is None or self.cell is None:
            return parts, cross
        cell, size = self.cell[start:stop], parts.shape[1] * parts.shape[2]
        codes = self.codes[:, start:stop] + cell * parts.shape[2]
        for i, member in enumerate(self.members[:, start:stop]):
            parts[i] = np.bincount(codes[:, member].ravel(), minlength=size).reshape(parts.shape[1:])
        for c in np.unique(cell).tolist() if len(cross) else ():
            cross[c] = self._cross(self.codes[:, start:stop][:, cell == c])
        return parts, cross


@dataclass(frozen=True)
class Profile:
    """Counts of n events, flat over all features (see Bins.offsets), each number's smallest and largest value, and `cross`:
    the sum over rows of the product of the levels of every two of `Bins.crossed`, in the order of `Bins.pairs`.

    parts (height, width, slots), part_cross (width, pairs): counts per part and products per cell, see detectors.strata.
    """

    n: int
    counts: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    cross: NDArray[np.int64]
    key: str
    bins: Bins | None = field(default=None, compare=False, repr=False)
    parts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 1, 0), np.int64), repr=False)
    part_cross: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64), repr=False)
    squares: int = 0  # sum of the squared weights of sampled rows; 0: all rows stand for themselves

    @property
    def effective(self) -> float:
        """How many rows drawn alike would be as sure: (sum of weights)^2 / sum of squared weights (Kish 1965)."""
        return self.n * self.n / self.squares if self.squares else float(self.n)

    def times(self, k: int) -> Profile:
        """The same rows, each standing for k events."""
        if k == 1:
            return self
        squares = (self.squares or self.n) * k * k
        counts, cross, parts = self.counts * k, self.cross * k, self.parts * k
        part_cross = self.part_cross * k
        return replace(
            self, n=self.n * k, counts=counts, cross=cross, parts=parts, part_cross=part_cross, squares=squares
        )

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
        counts, cross, bins = self.counts + other.counts, self.cross + other.cross, self.bins or other.bins
        parts = self.parts + other.parts if self.parts.size else other.parts
        part_cross = self.part_cross + other.part_cross if self.part_cross.size else other.part_cross
        squares = (self.squares or self.n) + (other.squares or other.n) if self.squares or other.squares else 0
        return Profile(self.n + other.n, counts, low, high, cross, self.key, bins, parts, part_cross, squares)

    def to_bytes(self) -> bytes:
        meta: dict[str, Any] = {"n": self.n, "bins": self.key, **({"squares": self.squares} if self.squares else {})}
        arrays: dict[str, NDArray[Any]] = {
            "counts": self.counts,
            "low": self.low,
            "high": self.high,
            "cross": self.cross,
        }
        if self.parts.size:  # mostly zeros
            meta["parts"] = self.parts.shape
            arrays["parts"] = np.frombuffer(zlib.compress(self.parts.astype("<i8").tobytes(), 1), np.uint8)
            arrays["part_cross"] = self.part_cross
        return pack(meta, arrays)

    @classmethod
    def from_bytes(cls, raw: bytes, bins: Bins | None = None) -> Profile:
        meta, a = unpack(raw)
        found = cls(
            meta["n"], a["counts"], a["low"], a["high"], a["cross"], meta["bins"], bins, squares=meta.get("squares", 0)
        )
        if "parts" not in meta:
            return found
        parts = np.frombuffer(zlib.decompress(a["parts"].tobytes()), "<i8").astype(np.int64)
        return replace(found, parts=parts.reshape(meta["parts"]), part_cross=a["part_cross"])


def key_of(raw: bytes) -> str:
    """Which bins a stored profile was counted on (Bins.key)."""
    return str(unpack(raw)[0]["bins"])


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
        row["missing"] = float(b[-1] / b.sum()) if b.sum() else None
        row["missing_reference"] = float(a[-1] / a.sum()) if a.sum() else None
        p, q = a[:-1], b[:-1]
        if p.sum() and q.sum():
            row["psi"], row["js"] = stats.psi(p, q), stats.jensen_shannon(p, q)
            if f.kind == NUMBER:
                row["ks"] = stats.kolmogorov_smirnov(p, q)
                row["wasserstein"] = stats.wasserstein(p, q, np.array(f.centers), f.spread)
        out[f.name] = row
    return out
