"""False alarms and delays of the drift engine: `python -m benchmarks.drift_null [--out FILE] [PART ...]`.

A part is one measurement (`PARTS`, below); what FILE holds already is not measured again, and FILE is replaced whole after
each part, so a run that was stopped goes on where it was. The streams are those of benchmarks.drift_streams; 720 checks
are 30 days of hours. Seeds from 1000 on are for judging and were never looked at while the engine was designed, which
used seeds below 100 of the same streams.
The baseline that tests compare with stands in benchmarks/drift_null.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from scipy.stats import chi2

from benchmarks.drift_streams import (
    BROKEN,
    FULL_HOUR,
    ROWS,
    Counted,
    Rows,
    flights,
    hourly,
    lasting,
    moved,
    shifted,
    shuffled,
    synthetic,
    windows,
)
from detectors import decide
from detectors.base import Detection, Feedback
from detectors.drift.marginals import Marginals
from detectors.profile import Bins
from monitor.model import Alert, Decision, Event, Severity, Subject, Verdict

CHECKS: Final = 720  # 30 days of hourly windows
RATE: Final = 1 / (30 * 86400)
LIMIT: Final = 40  # checks after which a change counts as not found
RUNS: Final = 15
BREAKS: Final = 3.0  # times stranger than any window of the history: the lane outside the budget
Found = Iterator[tuple[int, Detection, list[Decision]]]


def judged(reference: Sequence[Counted], later: Iterable[Counted]) -> Found:
    """Judge windows against a reference, one after the other as a tick does: (check, drift detection, decisions).

    DistributionBreak comes as a decision too.
    """
    detector = Marginals(breaks=BREAKS)
    calibration = detector.calibrate(reference, "bench")
    length_us = reference[0].end_us - reference[0].start_us
    settings = decide.BudgetSettings.derive(RATE, [length_us])
    state, running, feedback = None, None, Feedback()
    open_alerts: dict[tuple[Event, Subject], Alert] = {}
    for i, window in enumerate(later):
        measured = detector.measure(calibration, state, window, feedback)
        decided = decide.budget(
            running, measured.detections, tuple(open_alerts.values()), settings, "bench", window.end_us
        )
        state, running, feedback = measured.state, decided.state, decided.feedback
        for d in decided.decisions:
            if d.firing:
                open_alerts[d.event, d.subject] = incident(d)
            else:
                open_alerts.pop((d.event, d.subject), None)
        broken = [_broke(d) for d in measured.detections if d.event is Event.DISTRIBUTION_BREAK]
        yield i + 1, measured.detections[0], [*decided.decisions, *broken]


def _broke(d: Detection) -> Decision:
    """A one-window break as a decision; firing when it alarms."""
    return Decision(
        model="bench", event=d.event, family=d.family, subject=d.subject, firing=d.verdict is Verdict.ALARM,
        time_us=d.window_us[1], window_us=d.window_us, detector=d.detector, evidence=d.evidence,
    )  # fmt: skip


def incident(d: Decision) -> Alert:
    """The open alert that a firing decision makes."""
    return Alert(
        alert_id=f"{d.event}/{d.subject.id}", environment="bench", customer=None, model=d.model, event=d.event, subject=d.subject,
        family=d.family, severity=d.severity or Severity.MINOR, open=True, seq=1, opened_us=d.time_us, updated_us=d.time_us,
        cleared_us=None, detector=d.detector, statistic=d.statistic, threshold=d.threshold, p_value=d.p_value, log_e=d.log_e,
        n=d.n, window_us=d.window_us, techniques=(), text="", evidence=d.evidence,
    )  # fmt: skip


def named(d: Decision) -> list[str]:
    """Features that a decision names."""
    return [f["name"] for f in d.evidence.get("features", ())]


def transitions(found: Found) -> tuple[list[int], list[int], int]:
    """Checks at which drift incidents opened, checks at which they ended, and how many windows broke."""
    live: set[tuple[Event, Subject]] = set()
    opened, ended, broke = [], [], 0
    for check, _, decisions in found:
        for d in decisions:
            if d.event is Event.DISTRIBUTION_BREAK:
                broke += d.firing
            elif d.firing and (d.event, d.subject) not in live:
                live.add((d.event, d.subject))
                opened.append(check)
            elif not d.firing:
                live.discard((d.event, d.subject))
                ended.append(check)
    return opened, ended, broke


def run(table: pa.Table, rows: Rows, history: int) -> Found:
    """The first `history` windows are the reference, the others are judged."""
    reference = table.slice(0, history * ROWS)
    bins = Bins.fit(reference, rows.numeric, rows.categorical)
    return judged(list(windows(bins, reference)), windows(bins, table.slice(history * ROWS), history))


def rate(alarms: int, checks: int, per: int = CHECKS) -> dict[str, float]:
    """Alarms per `per` checks (30 days) with the exact Poisson upper 95 % bound."""
    upper = float(chi2.ppf(0.95, 2 * (alarms + 1)) / 2)
    return {
        "windows": checks,
        "alarms": alarms,
        f"per_{per}": alarms / checks * per,
        "upper_95": upper / checks * per,
    }


def null(rows: Rows, kind: str, history: int, least: int, seed: int) -> dict[str, float]:
    """False alarms per 720 checks over at least `least` windows, and one-window breaks."""
    alarms = checks = breaks = i = 0
    while checks < least:
        table = shuffled(rows, kind, np.random.default_rng([seed, i]))
        opened, _, broke = transitions(run(table, rows, history))
        alarms, breaks, i = alarms + len(opened), breaks + broke, i + 1
        checks += table.num_rows // ROWS - history
    return {**rate(alarms, checks), "breaks": breaks, "breaks_per_720": breaks / checks * CHECKS}


def null_hourly(rows: Rows, kind: str, hours: int, least: int, seed: int) -> dict[str, float]:
    """False alarms on true windows of so many hours; only those with rows enough to be judged count as checks."""
    alarms = checks = i = 0
    while checks < least:
        known, later = hourly(rows, kind, np.random.default_rng([seed, i]), hours=hours)
        alarms, i = alarms + len(transitions(judged(known, later))[0]), i + 1
        checks += sum(w.n >= FULL_HOUR for w in later)
    return rate(alarms, checks, CHECKS // hours)


def null_lasting(runs: int, seed: int) -> dict[str, float]:
    """False alarms on made-up hours whose levels wander for hours to a week."""
    alarms = checks = 0
    for i in range(runs):
        known, later = lasting(np.random.default_rng([seed, i]))
        alarms += len(transitions(judged(known, later))[0])
        checks += sum(w.n >= FULL_HOUR for w in later)
    return rate(alarms, checks)


def _stream(rows: Rows, kind: str, wanted: int, rng: np.random.Generator) -> pa.Table:
    """At least `wanted` windows: one shuffle after the other."""
    table = shuffled(rows, kind, rng)
    while table.num_rows < wanted * ROWS:
        table = pa.concat_tables([table, shuffled(rows, kind, rng)], promote_options="default").unify_dictionaries()
    return table.slice(0, wanted * ROWS)


def first_named(found: Found, feature: str) -> tuple[float, float]:
    """Checks until an incident, and until a one-window break, names the feature; inf where none does."""
    drift = broke = np.inf
    for check, _, decisions in found:
        for d in decisions:
            if d.firing and feature in named(d):
                if d.event is Event.DISTRIBUTION_BREAK:
                    broke = min(broke, check)
                else:
                    drift = min(drift, check)
        if np.isfinite(drift):
            break
    return float(drift), float(broke)


def delays(
    rows: Rows, kind: str, history: int, shifts: Sequence[tuple[str, float]], runs: int, seed: int
) -> dict[str, Any]:
    """Median checks from onset to the incident, and to the one-window break, that names the feature."""
    taken: dict[str, list[tuple[float, float]]] = {f"{f} {s}": [] for f, s in shifts}
    for i in range(runs):
        table = _stream(rows, kind, history + LIMIT, np.random.default_rng([seed, i]))
        reference, later = table.slice(0, history * ROWS), table.slice(history * ROWS)
        bins = Bins.fit(reference, rows.numeric, rows.categorical)
        known = list(windows(bins, reference))
        for feature, size in shifts:
            found = judged(known, windows(bins, shifted(later, feature, size), history))
            taken[f"{feature} {size}"].append(first_named(found, feature))
    return {
        name: {"runs": runs, "drift": median(d for d, _ in pairs), "break": median(b for _, b in pairs)}
        for name, pairs in taken.items()
    }


def delays_hourly(
    rows: Rows, kind: str, hours: int, shifts: Sequence[tuple[str, float]], runs: int, seed: int, limit: int
) -> dict[str, Any]:
    """The same on true windows of so many hours, in windows that are judged; `limit` of them at most."""
    taken: dict[str, list[float]] = {f"{f} {s}": [] for f, s in shifts}
    for i in range(runs):
        for feature, size in shifts:
            known, later = hourly(rows, kind, np.random.default_rng([seed, i]), hours=hours, onset=(feature, size))
            full = [w for w in later if w.n >= FULL_HOUR][:limit]
            taken[f"{feature} {size}"].append(first_named(judged(known, full), feature)[0])
    return {name: {"runs": runs, "drift": median(found)} for name, found in taken.items()}


def endless(rows: Rows, kind: str, shifts: Sequence[tuple[str, float]], runs: int, seed: int) -> dict[str, Any]:
    """Transitions of drift incidents in 400 windows of a shift that never ends, most of all runs."""
    worst: dict[str, int] = {f"{f} {s}": 0 for f, s in shifts}
    for i in range(runs):
        table = _stream(rows, kind, 500, np.random.default_rng([seed, i]))
        for feature, size in shifts:
            reference, later = table.slice(0, 100 * ROWS), table.slice(100 * ROWS)
            bins = Bins.fit(reference, rows.numeric, rows.categorical)
            found = judged(list(windows(bins, reference)), windows(bins, shifted(later, feature, size), 100))
            opened, ended, _ = transitions(found)
            worst[f"{feature} {size}"] = max(worst[f"{feature} {size}"], len(opened) + len(ended))
    return {name: {"runs": runs, "most_transitions": n} for name, n in worst.items()}


def ended(rows: Rows, kind: str, features: Sequence[str], runs: int, seed: int, history: int = 100) -> dict[str, Any]:
    """Median checks until the incident clears after a shift of 1.7 between-window sd ends, ten windows after its alarm."""
    taken: dict[str, list[float]] = {f: [] for f in features}
    for i in range(runs):
        table = _stream(rows, kind, history + 200, np.random.default_rng([seed, i]))
        reference, later = table.slice(0, history * ROWS), table.slice(history * ROWS)
        bins = Bins.fit(reference, rows.numeric, rows.categorical)
        known = list(windows(bins, reference))
        for feature in features:
            column = reference[f"feature:{feature}"].to_numpy()[: history * ROWS].reshape(history, ROWS)
            by = 1.7 * float(np.nanmean(column, axis=1).std())
            usual, odd = (list(windows(bins, t, history)) for t in (later, moved(later, feature, by)))
            taken[feature].append(_cleared(known, usual, odd))
    return {
        f: {"runs": runs, "found": sum(c is not None for c in t), "cleared": median(c for c in t if c is not None)}
        for f, t in ((f, [None if np.isnan(c) else c for c in found]) for f, found in taken.items())
    }


def _cleared(known: Sequence[Counted], usual: Sequence[Counted], odd: Sequence[Counted]) -> float:
    """Checks from the end of the shift to the end of its incident: inf when it stays open, NaN when none came."""
    over = len(usual)

    def life() -> Iterator[Counted]:
        for i in range(len(usual)):
            yield odd[i] if i < over else usual[i]

    for check, _, decisions in judged(known, life()):
        for d in decisions:
            if d.event is not Event.DISTRIBUTION_BREAK:
                if d.firing and over == len(usual):
                    over = check + 10
                elif not d.firing and check > over:
                    return float(check - over)
    return np.inf if over < len(usual) else np.nan


def smallest(
    rows: Rows, kind: str, features: Sequence[str], runs: int, seed: int, history: int = 100
) -> dict[str, Any]:
    """What the page says a lasting shift must be to show within 24 windows, and after how many it then did (median)."""
    told: dict[str, list[float]] = {f: [] for f in features}
    taken: dict[str, list[float]] = {f: [] for f in features}
    for i in range(runs):
        table = _stream(rows, kind, history + 2 * LIMIT, np.random.default_rng([seed, i]))
        reference, later = table.slice(0, history * ROWS), table.slice(history * ROWS)
        bins = Bins.fit(reference, rows.numeric, rows.categorical)
        known = list(windows(bins, reference))
        _, shown, _ = next(judged(known, windows(bins, later, history)))
        for f in shown.evidence["features"]:
            if f["name"] in features and f.get("smallest") is not None:
                told[f["name"]].append(f["smallest"])
                found = judged(known, windows(bins, moved(later, f["name"], f["smallest"]), history))
                taken[f["name"]].append(first_named(found, f["name"])[0])
    spread = {f: float(np.nanstd(rows.table[f"feature:{f}"].to_numpy())) for f in features}
    return {
        f: {"told": len(told[f]), "sd": (median(told[f]) or np.nan) / spread[f], "drift": median(taken[f])}
        for f in features
    }


def median(values: Iterable[float]) -> float | None:
    """None where more than half found nothing, or there is nothing."""
    found = list(values)
    middle = float(np.median(found)) if found else np.inf
    return middle if np.isfinite(middle) else None


@functools.cache
def _flights() -> Rows:
    return flights()


NUMBERS: Final = [(f, s) for f in ("distance", "dep_delay", "seats", "temp", "humid") for s in (0.1, 0.25, 0.5)]
MIXES: Final = [(f, s) for f in ("carrier", "origin") for s in (0.05, 0.1)]
BROKEN_UP: Final = [(f, BROKEN) for f in ("humid", "distance", "seats", "wind_gust")]
STEADY: Final = [("distance", 0.25), ("carrier", 0.1)]
PARTS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "null/synthetic": lambda: null(synthetic(500_000, np.random.default_rng(1000)), "iid", 100, 7200, 1001),
    "null/iid": lambda: null(_flights(), "iid", 100, 7200, 1002),
    "null/block": lambda: null(_flights(), "block", 100, 7200, 1003),
    "delay_iid_336": lambda: delays(_flights(), "iid", 336, NUMBERS + MIXES + BROKEN_UP, RUNS, 1004),
    "delay_block_100": lambda: delays(_flights(), "block", 100, NUMBERS + MIXES + BROKEN_UP, RUNS, 1005),
    "delay_iid_100": lambda: delays(_flights(), "iid", 100, STEADY, RUNS, 1006),
    "endless/iid": lambda: endless(_flights(), "iid", [("distance", 0.25)], 2, 1007),
    "endless/block": lambda: endless(_flights(), "block", [("distance", 0.25), ("temp", 1.35)], 2, 1008),
    "ended/iid": lambda: ended(_flights(), "iid", ("distance", "temp", "dep_delay"), 9, 1009),
    "ended/block": lambda: ended(_flights(), "block", ("distance", "temp", "dep_delay"), 9, 1010),
    "smallest/block": lambda: smallest(_flights(), "block", ("distance", "seats", "dep_delay", "temp", "humid"), 9, 1011),
    "hours/rows": lambda: null_hourly(_flights(), "rows", 1, 3600, 1012),
    "hours/days": lambda: null_hourly(_flights(), "days", 1, 3600, 1013),
    "hours/weeks": lambda: null_hourly(_flights(), "weeks", 1, 3600, 1014),
    "hours/lasting": lambda: null_lasting(2, 1018),
    "hours_delay/weeks": lambda: delays_hourly(_flights(), "weeks", 1, [*STEADY, ("seats", 0.5)], 5, 1015, 240),
    "day/weeks": lambda: null_hourly(_flights(), "weeks", 24, 7200, 1016),
    "day_delay/weeks": lambda: delays_hourly(_flights(), "weeks", 24, [*STEADY, ("seats", 0.5)], 9, 1017, 40),
}  # fmt: skip


def measure(
    names: Sequence[str], out: Path | None, parts: Mapping[str, Callable[[], dict[str, Any]]] = PARTS
) -> dict[str, Any]:
    """The named parts, those that `out` holds already left as they are."""
    known: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else {}
    for name in names:
        if name in known:
            continue
        start = time.process_time()
        known[name] = {**parts[name](), "cpu_s": round(time.process_time() - start, 1)}
        if out:
            draft = out.with_suffix(f".{os.getpid()}.part")
            known = {**(json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}), name: known[name]}
            draft.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            draft.replace(out)
    return {name: known[name] for name in names}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift_null", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--out", type=Path, help="JSON file that keeps each part")
    args = parser.parse_args()
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    sys.stdout.write(json.dumps(measure(args.parts or list(PARTS), args.out), indent=1) + "\n")


if __name__ == "__main__":
    main()
