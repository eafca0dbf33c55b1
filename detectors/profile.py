"""Profiles: mergeable counts of a window on bins that the reference fixed once.

Every number is cut at quantiles of the reference, every category keeps its own bin (rare and new ones share "other"),
and missing has a bin of its own. For dependence a profile also holds the sum of products of every two numbers' levels.
It holds whole numbers only, so merging is exact: the same rows give the same profile however they were cut. Its size
depends on the bins, never on the rows (some kilobytes per model and window).
The answer of the model is profiled like a feature: `prediction`, and `score:CLASS` per class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final

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
    scores,
)

FIT_ROWS: Final = 200_000  # quantiles of a longer reference are read from evenly spaced rows
BLOCK_ROWS: Final = 32_000  # rows whose codes are held at once
MAX_CROSSED: Final = 32  # numbers whose dependence is followed: 496 pairs, 4 kB a profile


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
        found = [fit_number(n, f"feature:{n}", floats(rows, f"feature:{n}"), max_bins) for n in numeric]
        found += [fit_category(n, f"feature:{n}", rows, max_categories) for n in categorical]
        taken = {f.name for f in found}
        name = "prediction" if "prediction" not in taken else "prediction (answer)"
        values = floats(rows, "prediction_value")
        if np.isfinite(values).sum() * 2 > rows.num_rows:
            found.append(fit_number(name, "prediction_value", values, max_bins))
        elif "prediction_label" in rows.column_names and rows["prediction_label"].null_count < rows.num_rows:
            found.append(fit_category(name, "prediction_label", rows, max_categories))
        classes = class_names(rows)
        # Two scores that sum to one are one number: follow the second.
        for c in classes[1:] if len(classes) == 2 else classes[:MAX_SCORES]:
            found.append(fit_number(f"score:{c}", "scores", scores(rows, classes)[c], max_bins))
        return cls(tuple(found), classes)

    def empty(self) -> Profile:
        """The profile of no rows."""
        blank = np.full(len(self.features), np.nan)
        counts, cross = np.zeros(int(self.offsets[-1]), np.int64), np.zeros(len(self.pairs[0]), np.int64)
        return Profile(0, counts, blank, blank, cross, self.key, self)

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
                x = by_class[f.name.removeprefix("score:")] if f.column == "scores" else floats(rows, f.column)
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
        return Profile(stop - start, counts, low, high, self._cross(start, stop), self.bins.key, self.bins)

    def _cross(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sums of products of levels; exact in float64, whose whole numbers reach far beyond any count of hundredths."""
        used, total = list(self.bins.crossed), np.zeros((len(self.bins.crossed),) * 2)
        for at in range(start, stop, BLOCK_ROWS):
            x = self.bins.levels[self.codes[used, at : min(stop, at + BLOCK_ROWS)]]
            total += x @ x.T
        return np.asarray(np.rint(total[self.bins.pairs]), dtype=np.int64)


@dataclass(frozen=True)
class Profile:
    """Counts of n rows, flat over all features (see Bins.offsets), each number's smallest and largest value, and `cross`:
    the sum over rows of the product of the levels of every two of `Bins.crossed`, in the order of `Bins.pairs`.
    """

    n: int
    counts: NDArray[np.int64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    cross: NDArray[np.int64]
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
        counts, cross = self.counts + other.counts, self.cross + other.cross
        return Profile(self.n + other.n, counts, low, high, cross, self.key, self.bins or other.bins)

    def to_bytes(self) -> bytes:
        arrays = {"counts": self.counts, "low": self.low, "high": self.high, "cross": self.cross}
        return pack({"n": self.n, "bins": self.key}, arrays)

    @classmethod
    def from_bytes(cls, raw: bytes, bins: Bins | None = None) -> Profile:
        meta, a = unpack(raw)
        return cls(meta["n"], a["counts"], a["low"], a["high"], a["cross"], meta["bins"], bins)


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
