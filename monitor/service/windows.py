"""What detectors are given to look at: time windows with counts, stretches of the log, and slices of a reference."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Caller
from detectors.profile import Bins, Profile
from monitor.model import HOUR_US

T = TypeVar("T")
DAY_US = 24 * HOUR_US
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
    """Consecutive rows of the log, or a reference slice, held in memory."""

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
    model: str, table: pa.Table, bins: Bins, window_us: int = HOUR_US, declared: Mapping[str, Caller] | None = None
) -> list[Stretch]:
    """A reference cut into windows of `window_us`, empty ones between the first and the last included.

    Rows without time (event_time 0 throughout) make one single window: they say what values are normal, not how much
    windows vary. `declared`: callers that the directory knows, by the names in the reference.
    """
    declared = declared or {}
    if table.num_rows == 0:
        return []
    times = np.asarray(table.column("event_time"))
    if (times[1:] < times[:-1]).any():  # rows that are in order already are not held twice
        table = table.take(pc.sort_indices(table, sort_keys=[("event_time", "ascending")]))
        times = np.asarray(table.column("event_time"))
    if times[-1] == 0:
        return [Stretch(model, 0, 0, table, bins.count(table), declared)]
    first, last = int(times[0]) // window_us, int(times[-1]) // window_us
    edges = np.searchsorted(times, np.arange(first, last + 2, dtype=np.int64) * window_us).tolist()
    return [
        Stretch(model, (first + i) * window_us, (first + i + 1) * window_us, table.slice(a, b - a), counts, declared)
        for i, ((a, b), counts) in enumerate(zip(pairwise(edges), bins.counts(table, edges), strict=True))
    ]


def usual_window_us(times: NDArray[np.int64], min_rows: int) -> int:
    """An hour; a day for a model whose typical hour holds too few rows to judge and whose typical day does not.

    `times`: event times of the reference, 0 where it has none. A reference that is a sample makes a model look slow.

    >>> hourly = np.arange(14 * 24 * 5) * HOUR_US // 5 + DAY_US  # five rows an hour for two weeks
    >>> usual_window_us(hourly, 20) == DAY_US, usual_window_us(hourly // 10, 20) == HOUR_US
    (True, True)
    """
    if not len(times) or not times.min():
        return HOUR_US
    typical = {u: float(np.median(np.bincount((times - times.min()) // u))) for u in (HOUR_US, DAY_US)}
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
