"""Parts of a model's traffic that are counted by themselves: segments, and the cells of its context.

A segment is a condition on one column (country = QA, amount from 1,000 on); segments may overlap. The context is what
may change without meaning anything (channel, product, client mix): its values, or combinations of values, are cells, and
every row falls into exactly one. Both are fixed with the bins; a profile then holds one row of counts per segment and
cell, so that drift can be judged inside a segment, and at the reference's mix of cells whatever the mix is now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.binned import category_codes, floats, number_codes, quantile_edges
from detectors.streamed import Streamed

MAX_SEGMENTS: Final = 12
MAX_CELLS: Final = 12  # beside the one of all other rows
MAX_PARTS: Final = 96  # segments times cells: what bounds a profile
MIN_PART_ROWS: Final = 500  # rows of the reference that a segment or cell needs
CONTEXT_BINS: Final = 4  # of a number that is context
AXIS_ROWS: Final = 100_000  # of a longer reference that say where the numbers of its context are cut
FEW: Final = 24  # values up to which a number that is context counts by value, such as the hour
PRIOR_ROWS: Final = 5.0  # reference rows that stand in every cell: one that is empty counts as unchanged


@dataclass(frozen=True)
class Segment:
    """Rows with one of `values` in `column`, or a number in [low, high) there."""

    name: str
    column: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def of(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Which rows are in it; none where the column is missing."""
        if self.values:
            return np.asarray(category_codes(rows, self.column, self.values) < len(self.values))
        x = floats(rows, self.column)
        inside = np.isfinite(x)
        inside &= x >= self.low if self.low is not None else True
        inside &= x < self.high if self.high is not None else True
        return inside


@dataclass(frozen=True)
class Axis:
    """One column of the context: its values by frequency, or the edges that cut its numbers."""

    column: str
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def slots(self) -> int:
        return len(self.values or self.edges) + 2

    @property
    def feature(self) -> str:
        return self.column.removeprefix("feature:")

    def codes(self, rows: pa.Table) -> NDArray[np.int64]:
        if self.values:
            return category_codes(rows, self.column, self.values)
        return number_codes(floats(rows, self.column), self.edges)

    def word(self, code: int) -> str:
        """What a code means, in words."""
        if code == self.slots - 1:
            return f"{self.feature} missing"
        if self.values:
            return f"{self.feature}:{self.values[code]}" if code < len(self.values) else f"other {self.feature}"
        below = [f"from {self.edges[code - 1]:.4g}"] if code else []
        above = [f"below {self.edges[code]:.4g}"] if code < len(self.edges) else []
        return " ".join([self.feature, *below, *above])


@dataclass(frozen=True)
class Strata:
    """How rows are divided. cells: codes along `axes` of each cell, most frequent first; all other rows are one more."""

    segments: tuple[Segment, ...] = ()
    axes: tuple[Axis, ...] = ()
    cells: tuple[tuple[int, ...], ...] = ()

    @property
    def width(self) -> int:
        """Cells, the one of other rows included; 1 without context."""
        return len(self.cells) + 1 if self.axes else 1

    @property
    def height(self) -> int:
        """Rows of parts: the whole model first where there is a context, then the segments."""
        return len(self.segments) + bool(self.axes)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(s.column for s in self.segments), *(a.column for a in self.axes))

    @property
    def context(self) -> frozenset[str]:
        """Features that are context: their own change is a change of mix, never drift."""
        return frozenset(a.feature for a in self.axes)

    def members(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Whether each row belongs to the whole model and to each segment: (height, rows)."""
        out = np.ones((self.height, rows.num_rows), dtype=np.bool_)
        for i, segment in enumerate(self.segments):
            out[i + bool(self.axes)] = segment.of(rows)
        return out

    def cell(self, rows: pa.Table) -> NDArray[np.int64]:
        """The cell of each row."""
        return self._places[_mixed(self.axes, rows)] if self.axes else np.zeros(rows.num_rows, dtype=np.int64)

    def words(self) -> list[str]:
        """What each cell is, in words."""
        return [", ".join(a.word(c) for a, c in zip(self.axes, cell, strict=True)) for cell in self.cells] + [
            "all else"
        ]

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Cell by mixed code."""
        sizes = [a.slots for a in self.axes]
        out = np.full(int(np.prod(sizes)), len(self.cells), dtype=np.int64)
        for i, cell in enumerate(self.cells):
            out[int(np.ravel_multi_index(cell, sizes))] = i
        return out


def fit_strata(
    rows: pa.Table | Streamed,
    segments: Sequence[Segment | str] = (),
    context: Sequence[str] = (),
    *,
    numeric: Sequence[str] = (),
) -> Strata:
    """Divide reference rows. A segment that is only a column stands for its frequent values, as far as they find room.

    Columns are named as in `rows` (`feature:NAME`, `principal`); numbers among them also in `numeric`. A named segment is
    kept whatever its size; a value needs MIN_PART_ROWS rows.

    >>> t = pa.table({"feature:c": ["a"] * 600 + ["b"] * 900 + ["rare"]})
    >>> found = fit_strata(t, ["feature:c"], ["feature:c"])
    >>> [s.name for s in found.segments], found.words()
    (['c:b', 'c:a'], ['c:b', 'c:a', 'all else'])
    """
    rows = Streamed.of(rows)
    named = [s for s in segments if isinstance(s, Segment)]
    listed = [
        (n, Segment(f"{column.removeprefix('feature:')}:{value}", column, (value,)))
        for column in segments
        if isinstance(column, str)
        for value, n in frequent(rows, column)
        if n >= MIN_PART_ROWS
    ]
    listed.sort(key=lambda found: (-found[0], found[1].name))
    kept = (*named, *(s for _, s in listed))[:MAX_SEGMENTS]
    axes = tuple(_axis(rows, c, number=c in numeric) for c in context)
    room = min(MAX_CELLS, MAX_PARTS // (1 + len(kept)) - 1)
    return Strata(kept, axes, _cells(rows, axes)[:room])


def frequent(rows: Streamed, column: str) -> list[tuple[str, int]]:
    """Values of a column and their rows, most frequent first; none where it is missing."""
    counted = ((word, int(n)) for word, n in rows.words(column).items())
    return sorted(counted, key=lambda found: (-found[1], found[0]))


def _axis(rows: Streamed, column: str, *, number: bool) -> Axis:
    if not number:
        return Axis(column, values=tuple(v for v, _ in frequent(rows, column)[:FEW]) or ("",))
    x = floats(rows.sample(AXIS_ROWS, [column]), column)
    x = x[np.isfinite(x)]
    most = FEW if len(np.unique(x)) <= FEW else CONTEXT_BINS
    return Axis(column, edges=tuple(quantile_edges(x, most).tolist()) if len(x) else (0.0,))


def _mixed(axes: Sequence[Axis], rows: pa.Table) -> NDArray[np.int64]:
    """Codes along all axes as one number."""
    code = np.zeros(rows.num_rows, dtype=np.int64)
    for a in axes:
        code = code * a.slots + a.codes(rows)
    return code


def _cells(rows: Streamed, axes: Sequence[Axis]) -> tuple[tuple[int, ...], ...]:
    """Combinations of codes that the reference holds often enough, most frequent first."""
    if not axes:
        return ()
    sizes = [a.slots for a in axes]
    often = np.zeros(int(np.prod(sizes)), dtype=np.int64)
    for table in rows.tables(*(a.column for a in axes)):
        often += np.bincount(_mixed(axes, table), minlength=len(often))
    found = np.flatnonzero(often)
    n = often[found]
    order = np.lexsort((found, -n))
    return tuple(tuple(int(x) for x in np.unravel_index(int(found[i]), sizes)) for i in order if n[i] >= MIN_PART_ROWS)


def least_worth(rows: NDArray[Any], usual: NDArray[Any]) -> float:
    """What a window's rows are worth for something that hangs on one cell alone, the worst one; of 1 at the reference's mix.

    How rows are weighted to the reference's mix costs all statistics the same on average (`at_mix`), but relations of
    numbers often hang on a few cells, and where these have become rare their errors are larger than that average says.

    >>> least_worth(np.array([90.0, 10.0]), np.array([500.0, 500.0]))
    0.45
    """
    share = usual / max(float(usual.sum()), 1.0)
    there = (rows > 0) & (share > 0)
    worth = (rows[there] + PRIOR_ROWS) ** 2 / (rows[there] * share[there] * max(float(rows.sum()), 1.0))
    return min(1.0, float(np.min(worth, initial=1.0)))


def at_mix(parts: NDArray[Any], rows: NDArray[Any], reference: NDArray[Any], usual: NDArray[Any]) -> tuple[Any, float]:
    """Sums of one window as they would be at the reference's mix of cells, and how many rows they are worth.

    parts (C, K): sums per cell, of `rows` (C,); reference and usual: the same of the reference. Cell c counts with its
    share in the reference, `PRIOR_ROWS` rows of the reference added, so that a cell the window lacks counts as unchanged.
    The result adds up to the rows it is worth: those of a simple sample with the same variance, at most the window's own.

    >>> a = np.array([[8.0, 2.0], [0.0, 90.0]]); b = np.array([[400.0, 100.0], [0.0, 500.0]])  # the mix moved, else nothing
    >>> found, n = at_mix(a, a.sum(axis=1), b, b.sum(axis=1))
    >>> np.round(found / n, 2).tolist(), round(n)
    ([0.4, 0.6], 74)
    """
    share = usual / max(float(usual.sum()), 1.0)
    per_row = reference / np.maximum(usual, 1.0)[:, None]
    mean = (parts + PRIOR_ROWS * per_row) / (rows + PRIOR_ROWS)[:, None]
    worth = 1 / max(float((share**2 * rows / (rows + PRIOR_ROWS) ** 2).sum()), 1e-12)
    n = min(worth, float(rows.sum()))
    return share @ mean * n, n
