"""What a reference lacks: plain findings about rows before they are called normal.

The checks are simple and their limits are stated here, because people read them before they approve: `fail` means that
nothing can be calibrated, `warn` that something will be judged badly, `note` what to know. None of them changes a row.
Rows are read in passes over a few columns and never held: of more than SAMPLE_ROWS evenly spaced ones say how numbers are
spread, and more than 65,536 distinct values or rows are counted within 0.4 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors import stats
from detectors.binned import NUMBER, floats, stands_for
from detectors.conformal import MIN_HISTORY
from detectors.profile import Bins
from detectors.season import DAYS, HOURS_DAYS, KINDS_DAYS, WEEK_DAYS, Calendar, days_known
from detectors.signals import Frame
from detectors.streamed import Distinct, Streamed
from monitor.model import HOUR_US

FEW_ROWS: Final = 1_000  # below this the bins of a number rest on fewer than 50 rows each
STATED_WINDOWS: Final = 336  # hourly windows from which the stated delays hold
SAMPLE_ROWS: Final = 200_000  # of a longer reference that say how its numbers are spread
OUTLIER_SPREADS: Final = 50.0  # widths of the middle 98 % beyond them
SENTINEL_SHARE: Final = 0.01  # a value at the very end, alone, held by this share of rows
SENTINEL_GAP: Final = 3.0  # widths of the middle 90 % between it and its neighbour
ID_SHARE: Final = 0.5  # distinct values per row of a category
DUPLICATE_SHARE: Final = 0.05
CALLER_SHARE: Final = 0.5
MISSING_SHARE: Final = 0.5
MOVED_PSI: Final = 0.1  # between the two halves; chance gives some 0.04 for halves of FEW_ROWS rows
LEVELS: Final = ("note", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """One thing to know. `feature`: the one it is about; `fix`: what to do."""

    level: Literal["note", "warn", "fail"]
    code: str
    text: str
    fix: str = ""
    feature: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(
    rows: pa.Table | Streamed, bins: Bins, calendar: Calendar = Calendar(), window_us: int = HOUR_US
) -> list[Finding]:
    """Findings about a reference, the worst first: size, times and season, dead features, odd values, odd rows.

    >>> rows = pa.table({"event_time": [0] * 4, "feature:x": [1.0] * 4})
    >>> [(f.code, f.feature) for f in check(rows, Bins.fit(rows, ["x"], []))]
    [('few_rows', None), ('no_times', None), ('one_value', 'x'), ('no_answers', None)]
    """
    rows = Streamed.of(rows)
    if rows.num_rows == 0:
        return [Finding("fail", "empty", "it has no rows", "give a file or a time that holds events")]
    found = [*_size(rows), *_times(rows, calendar, window_us)]
    for f in bins.features:
        if f.column.startswith("feature:"):
            found += _feature(f.name, f.kind, rows)
    found += [*_answers(bins), *_rows(rows, bins), *_halves(rows, bins)]
    return sorted(found, key=lambda f: -LEVELS.index(f.level))


def _size(rows: Streamed) -> Iterator[Finding]:
    n = rows.num_rows
    if n < FEW_ROWS:
        yield Finding(
            "warn", "few_rows", f"{n:,} rows: quantiles and rare values rest on too few", f"give {FEW_ROWS:,} or more"
        )


def _times(rows: Streamed, calendar: Calendar, window_us: int) -> Iterator[Finding]:
    if rows.span()[1] == 0:
        text = "its rows have no times: they say which values are normal, not how much hours differ"
        yield Finding("warn", "no_times", text, f"give event_time, or wait for {MIN_HISTORY} live windows")
        return
    starts = _distinct(times // window_us for times in rows.times())
    ends = np.concatenate(
        [_ends(rows, np.minimum), _ends(rows, np.maximum)]
    )  # of every hour: all that longer gaps need
    days, windows = days_known(ends), len(starts)
    if windows < STATED_WINDOWS:
        level: Literal["note", "warn"] = "warn" if windows < MIN_HISTORY else "note"
        text = f"{windows} windows with events: alarms need {MIN_HISTORY} of history, stated delays {STATED_WINDOWS}"
        yield Finding(level, "short", text, "live windows add to it; or take a longer time")
    for needed, what in (
        (HOURS_DAYS, "hours of the day"),
        (KINDS_DAYS, "workdays and days off"),
        (WEEK_DAYS, "every hour of the week"),
    ):
        if days < needed:
            text = f"{days:.1f} days: a season of {what} is learnt from {needed} on"
            fix = "live windows add to it" if needed == WEEK_DAYS else "take a longer time"  # of hours 30 days are kept
            yield Finding("warn" if needed == HOURS_DAYS else "note", "season", text, fix)
            break
    _, weekday, _ = calendar.local(np.unique(ends // HOUR_US) * HOUR_US)
    absent = [DAYS[d] for d in range(7) if d not in set(weekday.tolist())]
    if absent and days >= HOURS_DAYS:
        yield Finding("warn", "days_missing", f"no events on {', '.join(absent)}", "is the log complete?")
    span = int(starts[-1] - starts[0]) + 1
    if span > windows and span - windows > 0.2 * span:
        text = f"{span - windows:,} of {span:,} windows hold no event"
        yield Finding("note", "gaps", text, "longer windows suit a model that is seldom asked")


def _distinct(parts: Iterator[NDArray[np.int64]]) -> NDArray[np.int64]:
    found = np.zeros(0, dtype=np.int64)
    for part in parts:
        found = np.union1d(found, part)
    return found


def _ends(rows: Streamed, end: np.ufunc) -> NDArray[np.int64]:
    """The first or the last event time of each hour."""
    found: dict[int, int] = {}
    for times in rows.times():
        hours, place = np.unique(times // HOUR_US, return_inverse=True)
        own = times[np.unique(place, return_index=True)[1]]
        end.at(own, place, times)
        for hour, t in zip(hours.tolist(), own.tolist(), strict=True):
            found[hour] = int(end(found.get(hour, t), t))
    return np.array(list(found.values()), dtype=np.int64)


def _feature(name: str, kind: str, rows: Streamed) -> Iterator[Finding]:
    column = f"feature:{name}"
    missing, absent, events, distinct = 0, 0.0, 0.0, Distinct()
    for table in rows.tables(column, "sampling_fraction"):
        none, weight = np.asarray(table[column].is_null()), stands_for(table)
        missing, absent, events = missing + int(none.sum()), absent + float(weight @ none), events + float(weight.sum())
        frame = Frame.of(table, *(([name], []) if kind == NUMBER else ([], [name])))
        distinct.add(frame.hashes[~none, 0])
    n, different = rows.num_rows - missing, distinct.count()
    if not n:
        yield Finding("warn", "always_missing", "it is always missing", "drop it, or mend where it comes from", name)
        return
    if absent > MISSING_SHARE * events:
        yield Finding("note", "mostly_missing", f"it is missing in {absent / events:.0%} of rows", "", name)
    if different == 1:
        yield Finding(
            "warn",
            "one_value",
            "it has one value only: nothing can be learnt about it",
            "drop it, or take a time in which it varies",
            name,
        )
    elif kind == NUMBER:
        yield from _number(name, rows)
    elif different > ID_SHARE * n and n >= 100:
        yield Finding(
            "warn",
            "identifier",
            f"{different:,} different values in {n:,} rows: it looks like an identifier",
            "drop it from the features",
            name,
        )


def _number(name: str, rows: Streamed) -> Iterator[Finding]:
    column = f"feature:{name}"
    some = rows.sample(SAMPLE_ROWS, [column, "sampling_fraction"])
    x, events = floats(some, column), stands_for(some)
    x, events = x[np.isfinite(x)], events[np.isfinite(x)]
    if len(x) < 100:
        return
    low, high = np.quantile(x, [0.01, 0.99])
    width = high - low
    if width > 0:
        odd, smallest, largest = 0, np.inf, -np.inf
        for table in rows.tables(column):
            y = floats(table, column)
            y = y[np.isfinite(y)]
            odd += int(((y < low - OUTLIER_SPREADS * width) | (y > high + OUTLIER_SPREADS * width)).sum())
            smallest, largest = y.min(initial=smallest), y.max(initial=largest)
        if odd:
            text = f"{odd:,} rows lie more than {OUTLIER_SPREADS:g} times the usual width away (smallest {smallest:.6g}, largest {largest:.6g})"
            yield Finding("warn", "outliers", text, "take them out, if they are wrong units or defaults", name)
    values, place = np.unique(x, return_inverse=True)
    share = np.bincount(place, weights=events) / events.sum()
    for end, neighbour in ((0, 1), (-1, -2)):
        if len(values) > 2 and share[end] >= SENTINEL_SHARE:
            inner = x[x != values[end]]
            spread = np.quantile(inner, 0.95) - np.quantile(inner, 0.05)
            if spread > 0 and abs(values[end] - values[neighbour]) > SENTINEL_GAP * spread:
                text = f"{values[end]:g} stands far from all others in {share[end]:.1%} of rows: a default for a missing value?"
                yield Finding("warn", "default_value", text, "log it as missing", name)


def _answers(bins: Bins) -> Iterator[Finding]:
    if not any(f.is_output for f in bins.features):
        yield Finding("note", "no_answers", "it has no predictions or scores: drift of the answers is not watched")


def _rows(rows: Streamed, bins: Bins) -> Iterator[Finding]:
    """Copies, and one caller that makes most of it."""
    own = [f for f in bins.features if f.column.startswith("feature:")]
    if len(own) > 1:
        names = [f.name for f in own if f.kind == NUMBER], [f.name for f in own if f.kind != NUMBER]
        distinct = Distinct()
        for table in rows.tables(*(f.column for f in own)):
            distinct.add(Frame.of(table, *names).whole())
        copies = rows.num_rows - distinct.count()
        if copies > DUPLICATE_SHARE * rows.num_rows:
            text = f"{copies / rows.num_rows:.0%} of rows repeat another row exactly"
            yield Finding("note", "duplicates", text, "retries or load tests? They make rare values look usual")
    busiest = rows.words("principal", stands_for)
    named = sum(len(t) - t["principal"].null_count for t in rows.tables("principal") if "principal" in t.column_names)
    if named > 100 and len(busiest) > 1:
        top = max(busiest.values()) / sum(busiest.values())
        if top > CALLER_SHARE:
            text = f"one caller sent {top:.0%} of the rows: its habits become what is normal"
            yield Finding("warn", "one_caller", text, "leave out batch jobs and load tests")


def _halves(rows: Streamed, bins: Bins) -> Iterator[Finding]:
    """A reference that itself moves: its first half against its second."""
    half = rows.num_rows // 2
    if half < FEW_ROWS or rows.span()[1] == 0:
        return
    middle, left = _middle(rows, half)
    a, b = bins.empty(), bins.empty()
    for table in rows.tables(*bins.columns, "event_time", "sampling_fraction"):
        times = np.asarray(table["event_time"])
        ties = np.flatnonzero(times == middle)
        first = times < middle
        first[ties[:left]] = True  # of equal times those that stand first
        left -= min(left, len(ties))
        a, b = a.merge(bins.count(table.filter(pa.array(first)))), b.merge(bins.count(table.filter(pa.array(~first))))
    for i, f in enumerate(bins.features):
        start, stop = int(bins.offsets[i]), int(bins.offsets[i + 1])
        moved = stats.psi(a.counts[start:stop], b.counts[start:stop])
        if moved > MOVED_PSI:
            text = f"its second half differs from its first (PSI {moved:.2f}): the reference itself moves"
            yield Finding(
                "warn", "moves", text, "choose a time after the change, or one that covers whole seasons", f.name
            )


def _middle(rows: Streamed, half: int) -> tuple[int, int]:
    """The time at which the second half of the rows begins, and how many of the rows of that time are in the first."""
    counts: dict[int, int] = {}
    for times in rows.times():
        for hour, n in zip(*(x.tolist() for x in np.unique(times // HOUR_US, return_counts=True)), strict=True):
            counts[hour] = counts.get(hour, 0) + n
    hours = sorted(counts)
    before = np.cumsum([0, *(counts[h] for h in hours)])
    i = int(np.searchsorted(before, half, side="right")) - 1
    within = np.sort(np.concatenate([times[times // HOUR_US == hours[i]] for times in rows.times()]))
    middle = int(within[half - before[i]])
    return middle, half - int(before[i]) - int(np.searchsorted(within, middle))


def worst(findings: Sequence[Finding]) -> str | None:
    """The worst level of these findings; None for none."""
    return max((f.level for f in findings), key=LEVELS.index, default=None)
