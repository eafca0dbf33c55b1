"""What detectors are given to look at: time windows with counts, stretches of the log, and slices of a reference."""

from __future__ import annotations

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Caller
from detectors.profile import Bins, Profile
from detectors.streamed import Streamed
from monitor.model import HOUR_US
from monitor.service.ordered import Ordered

T = TypeVar("T")
DAY_US = 24 * HOUR_US
BLOCK_ROWS: Final = 16_000  # of a reference whose codes are held at once
UNTIMED_ROWS: Final = 20_000  # of a reference without times that stand together
NO_LABELS = pa.table(
    {
        "request_id": pa.array([], pa.string()),
        "name": pa.array([], pa.string()),
        "value": pa.array([], pa.string()),
        "label_time_us": pa.array([], pa.int64()),
        "labeler": pa.array([], pa.string()),
    }
)


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows of the log, held in memory."""

    model: str
    start_us: int
    end_us: int
    table: pa.Table
    counts: Profile | None = None
    declared: Mapping[str, Caller] = field(default_factory=dict)
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def n(self) -> int:
        return int(self.table.num_rows)

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        if name not in self.made:
            self.made[name] = make()
        return cast("T", self.made[name])

    def profile(self) -> Profile | None:
        return self.counts

    def rows(self, columns: Sequence[str]) -> pa.Table:
        held = set(self.table.column_names)
        return self.table.select([c for c in columns if c in held])

    def callers(self) -> Mapping[str, Caller]:
        return self.declared

    def feedback(self, columns: Sequence[str]) -> pa.Table:
        return NO_LABELS

    def labels(self, as_of_us: int) -> pa.Table:  # a stretch is judged before any label can be known
        return NO_LABELS

    def earlier(self, by_us: int) -> Stretch:
        return Stretch(self.model, self.start_us - by_us, self.end_us - by_us, self.table.slice(0, 0))


@dataclass(frozen=True)
class TimeWindow:
    """One window of the event log: counts are at hand, rows and labels are read when asked for."""

    model: str
    start_us: int
    end_us: int
    counts: Profile | None
    size: int
    read: Callable[[Sequence[str]], pa.Table]
    read_labels: Callable[[int], pa.Table]
    read_callers: Callable[[], Mapping[str, Caller]] = dict
    read_feedback: Callable[[Sequence[str]], pa.Table] = lambda columns: NO_LABELS
    back: Callable[[int], TimeWindow] | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def n(self) -> int:
        return self.size

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        if name not in self.made:
            self.made[name] = make()
        return cast("T", self.made[name])

    def profile(self) -> Any:
        return self.counts

    def rows(self, columns: Sequence[str]) -> pa.Table:
        return self.read(columns)

    def callers(self) -> Mapping[str, Caller]:
        return self.read_callers()

    def feedback(self, columns: Sequence[str]) -> pa.Table:
        return self.read_feedback(columns)

    def labels(self, as_of_us: int) -> pa.Table:
        return self.read_labels(as_of_us)

    def earlier(self, by_us: int) -> TimeWindow:
        start_us, end_us = self.start_us - by_us, self.end_us - by_us
        none = pa.table({"event_time": pa.array([], pa.int64())})
        nothing = TimeWindow(self.model, start_us, end_us, None, 0, lambda columns: none, lambda as_of_us: NO_LABELS)
        return nothing if self.back is None else self.back(by_us)


def reference_windows(
    model: str, rows: pa.Table | Ordered, bins: Bins, window_us: int = HOUR_US, declared: Mapping[str, Caller] | None = None
) -> list[TimeWindow]:  # fmt: skip
    """A reference cut into windows of `window_us`, empty ones between the first and the last included: their counts are at
    hand, their rows are read when asked for.

    Rows without time (event_time 0 throughout) make stretches of UNTIMED_ROWS: they say what values are normal, not how
    much windows vary. `declared`: callers that the directory knows, by the names in the reference.
    """
    rows = Ordered.of(rows) if isinstance(rows, pa.Table) else rows
    if not rows.n:
        return []
    first, last = (int(np.asarray(rows.read(i, i + 1, ["event_time"])["event_time"])[0]) for i in (0, rows.n - 1))
    if last == 0:
        edges, starts = [*range(0, rows.n, UNTIMED_ROWS), rows.n], [0] * -(-rows.n // UNTIMED_ROWS)
    else:
        edges = _edges(rows, first // window_us, last // window_us, window_us)
        starts = [k * window_us for k in range(first // window_us, last // window_us + 1)]
    width = window_us if last else 0
    return [
        TimeWindow(
            model, start, start + width, counts, b - a, functools.partial(rows.read, a, b), no_labels, lambda: declared or {}
        )
        for start, (a, b), counts in zip(starts, pairwise(edges), _counted(rows, bins, edges), strict=True)
    ]  # fmt: skip


def _blocks(rows: Ordered, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    for at in range(0, rows.n, BLOCK_ROWS):
        yield at, rows.read(at, min(rows.n, at + BLOCK_ROWS), columns)


def _edges(rows: Ordered, first: int, last: int, window_us: int) -> list[int]:
    """Where each window begins in the rows, and where the last one ends."""
    sizes = np.zeros(last - first + 1, dtype=np.int64)
    for _, block in _blocks(rows, ["event_time"]):
        sizes += np.bincount(np.asarray(block["event_time"]) // window_us - first, minlength=len(sizes))
    return [0, *np.cumsum(sizes).tolist()]


def _counted(rows: Ordered, bins: Bins, edges: Sequence[int]) -> list[Profile]:
    """Counts of the rows between every two edges, however blocks of rows divide them."""
    found = [bins.empty()] * (len(edges) - 1)
    for at, block in _blocks(rows, [*bins.columns, "event_time", "sampling_fraction"]):
        end = at + block.num_rows
        first, last = bisect_right(edges, at) - 1, bisect_left(edges, end)
        inside = [0, *(e - at for e in edges[first + 1 : last]), block.num_rows]
        for i, counts in enumerate(bins.counts(block, inside), start=first):
            found[i] = found[i].merge(counts) if found[i].n else counts
    return found


def hourly(rows: Streamed) -> NDArray[np.int64]:
    """Rows per hour, counted from the first event on; nothing where some have no time."""
    first, last = rows.span()
    if not first:
        return np.zeros(0, dtype=np.int64)
    found = np.zeros((last - first) // HOUR_US + 1, dtype=np.int64)
    for times in rows.times():
        found += np.bincount((times - first) // HOUR_US, minlength=len(found))
    return found


def per_window(hours: NDArray[np.int64], window_us: int) -> NDArray[np.int64]:
    """Rows per hour as rows per window of whole hours."""
    return np.add.reduceat(hours, np.arange(0, len(hours), window_us // HOUR_US))


def usual_window_us(hours: NDArray[np.int64], min_rows: int) -> int:
    """An hour; a day for a model whose typical hour holds too few rows to judge and whose typical day does not.

    `hours`: the reference's rows per hour, none where it has no times. A reference that is a sample makes a model look slow.

    >>> hourly = np.full(14 * 24, 5)  # five rows an hour for two weeks
    >>> usual_window_us(hourly, 20) == DAY_US, usual_window_us(hourly // 5, 30) == HOUR_US
    (True, True)
    """
    if not len(hours):
        return HOUR_US
    typical = {u: float(np.median(per_window(hours, u))) for u in (HOUR_US, DAY_US)}
    return DAY_US if typical[HOUR_US] < min_rows <= typical[DAY_US] else HOUR_US


def skewed(table: pa.Table) -> NDArray[np.bool_]:
    """Rows whose event time lies ahead of the clock: kept, but they must not move time."""
    if "quality" not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    column = table.column("quality")
    if column.null_count == table.num_rows:
        return np.zeros(table.num_rows, dtype=bool)
    return np.fromiter((bool(v) and "clock_skew" in v for v in column.to_pylist()), dtype=bool, count=table.num_rows)


def principals(table: pa.Table) -> list[str | None]:
    """The callers of these rows, each once."""
    names: list[str | None] = pc.unique(table["principal"]).to_pylist() if "principal" in table.column_names else []
    return names


def no_rows(columns: Sequence[str]) -> pa.Table:
    """These columns, and nothing in them."""
    return pa.table({c: pa.array([], pa.null()) for c in columns})


def no_labels(as_of_us: int) -> pa.Table:
    """No label was ever given."""
    return NO_LABELS
