"""What a reference lacks: plain findings about rows before they are called normal.

The checks are simple and their limits are stated here, because people read them before they approve: `fail` means that
nothing can be calibrated, `warn` that something will be judged badly, `note` what to know. None of them changes a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import stats
from detectors.binned import frequent, stands_for
from detectors.conformal import MIN_HISTORY
from detectors.profile import Bins
from detectors.season import DAYS, HOURS_DAYS, KINDS_DAYS, WEEK_DAYS, Calendar, days_known
from detectors.stats import Floats
from monitor.model import HOUR_US

FEW_ROWS: Final = 1_000  # below this the bins of a number rest on fewer than 50 rows each
STATED_WINDOWS: Final = 336  # hourly windows from which the stated delays hold
MANY_ROWS: Final = 5_000_000  # held in memory while it is calibrated
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


def check(rows: pa.Table, bins: Bins, calendar: Calendar = Calendar(), window_us: int = HOUR_US) -> list[Finding]:
    """Findings about a reference, the worst first: size, times and season, dead features, odd values, odd rows.

    >>> rows = pa.table({"event_time": [0] * 4, "feature:x": [1.0] * 4})
    >>> [(f.code, f.feature) for f in check(rows, Bins.fit(rows, ["x"], []))]
    [('few_rows', None), ('no_times', None), ('one_value', 'x'), ('no_answers', None)]
    """
    if rows.num_rows == 0:
        return [Finding("fail", "empty", "it has no rows", "give a file or a time that holds events")]
    found = [*_size(rows), *_times(rows, calendar, window_us)]
    for f in bins.features:
        if f.column.startswith("feature:"):
            found += _feature(f.name, f.kind, rows[f.column], stands_for(rows))
    found += [*_answers(bins), *_rows(rows, bins), *_halves(rows, bins)]
    return sorted(found, key=lambda f: -LEVELS.index(f.level))


def _size(rows: pa.Table) -> Iterator[Finding]:
    n = rows.num_rows
    if n < FEW_ROWS:
        yield Finding(
            "warn", "few_rows", f"{n:,} rows: quantiles and rare values rest on too few", f"give {FEW_ROWS:,} or more"
        )
    if n > MANY_ROWS:
        text = f"{n:,} rows are held in memory whenever a detector is calibrated"
        yield Finding("note", "many_rows", text, "a shorter time says as much, if it covers the season")


def _times(rows: pa.Table, calendar: Calendar, window_us: int) -> Iterator[Finding]:
    times = np.sort(np.asarray(rows["event_time"]))
    if times[-1] == 0:
        text = "its rows have no times: they say which values are normal, not how much hours differ"
        yield Finding("warn", "no_times", text, f"give event_time, or wait for {MIN_HISTORY} live windows")
        return
    days = days_known(times)
    windows = len(np.unique(times // window_us))
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
    _, weekday, _ = calendar.local(np.unique(times // HOUR_US) * HOUR_US)
    absent = [DAYS[d] for d in range(7) if d not in set(weekday.tolist())]
    if absent and days >= HOURS_DAYS:
        yield Finding("warn", "days_missing", f"no events on {', '.join(absent)}", "is the log complete?")
    span = int(times[-1] // window_us - times[0] // window_us) + 1
    if span > windows and span - windows > 0.2 * span:
        text = f"{span - windows:,} of {span:,} windows hold no event"
        yield Finding("note", "gaps", text, "longer windows suit a model that is seldom asked")


def _feature(name: str, kind: str, column: pa.ChunkedArray, events: Floats) -> Iterator[Finding]:
    n, missing = len(column), column.null_count
    absent = float(events @ np.asarray(column.is_null())) / float(events.sum())
    values = column.drop_null()
    if missing == n:
        yield Finding("warn", "always_missing", "it is always missing", "drop it, or mend where it comes from", name)
        return
    if absent > MISSING_SHARE:
        yield Finding("note", "mostly_missing", f"it is missing in {absent:.0%} of rows", "", name)
    distinct = pc.count_distinct(values).as_py()
    if distinct == 1:
        yield Finding(
            "warn",
            "one_value",
            "it has one value only: nothing can be learnt about it",
            "drop it, or take a time in which it varies",
            name,
        )
    elif kind == "number":
        yield from _number(name, np.asarray(values, dtype=np.float64), events[np.asarray(column.is_valid())])
    elif distinct > ID_SHARE * len(values) and len(values) >= 100:
        yield Finding(
            "warn",
            "identifier",
            f"{distinct:,} different values in {len(values):,} rows: it looks like an identifier",
            "drop it from the features",
            name,
        )


def _number(name: str, x: NDArray[np.float64], events: Floats) -> Iterator[Finding]:
    x, events = x[np.isfinite(x)], events[np.isfinite(x)]
    if len(x) < 100:
        return
    low, high = np.quantile(x, [0.01, 0.99])
    width = high - low
    if width > 0:
        odd = int(((x < low - OUTLIER_SPREADS * width) | (x > high + OUTLIER_SPREADS * width)).sum())
        if odd:
            text = f"{odd:,} rows lie more than {OUTLIER_SPREADS:g} times the usual width away (smallest {x.min():.6g}, largest {x.max():.6g})"
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


def _rows(rows: pa.Table, bins: Bins) -> Iterator[Finding]:
    """Copies, and one caller that makes most of it."""
    inputs = [f.column for f in bins.features if not f.is_output]
    if len(inputs) > 1:
        copies = rows.num_rows - rows.select(inputs).group_by(inputs).aggregate([]).num_rows
        if copies > DUPLICATE_SHARE * rows.num_rows:
            text = f"{copies / rows.num_rows:.0%} of rows repeat another row exactly"
            yield Finding("note", "duplicates", text, "retries or load tests? They make rare values look usual")
    if "principal" in rows.column_names:
        busiest = frequent(rows, "principal")
        if len(rows["principal"].drop_null()) > 100 and len(busiest) > 1:
            top = busiest[0][1] / sum(n for _, n in busiest)
            if top > CALLER_SHARE:
                text = f"one caller sent {top:.0%} of the rows: its habits become what is normal"
                yield Finding("warn", "one_caller", text, "leave out batch jobs and load tests")


def _halves(rows: pa.Table, bins: Bins) -> Iterator[Finding]:
    """A reference that itself moves: its first half against its second."""
    times = np.asarray(rows["event_time"])
    half = rows.num_rows // 2
    if half < FEW_ROWS or times.max() == 0:
        return
    order = pa.array(np.argsort(times, kind="stable"))
    a, b = (bins.count(rows.take(part)) for part in (order.slice(0, half), order.slice(half)))
    for i, f in enumerate(bins.features):
        start, stop = int(bins.offsets[i]), int(bins.offsets[i + 1])
        moved = stats.psi(a.counts[start:stop], b.counts[start:stop])
        if moved > MOVED_PSI:
            text = f"its second half differs from its first (PSI {moved:.2f}): the reference itself moves"
            yield Finding(
                "warn", "moves", text, "choose a time after the change, or one that covers whole seasons", f.name
            )


def worst(findings: Sequence[Finding]) -> str | None:
    """The worst level of these findings; None for none."""
    return max((f.level for f in findings), key=LEVELS.index, default=None)
