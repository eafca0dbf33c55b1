"""Drift of n rows against n rows, 25 columns: Lanner's engine against Evidently's DataDriftPreset, in CPU seconds.

The rows are real flights, drawn with replacement; both sides get the same tables in memory and do all the work a user
asks for: reference and current rows in, a measure per column out. Lanner is measured from raw columns (bins fitted on
the reference, its rows profiled as 60 windows and calibrated, the current rows counted and judged) and from profiles of
720 hours and a calibration that are stored already. Memory is the peak above the loaded tables.
`python -m benchmarks.drift` prints the ratios; each measurement runs in its own Python process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.drift_streams import Counted
from benchmarks.measure import Result, cpu, measured, median, peak_rss_bytes, reset_peak_rss, rss_bytes
from detectors.base import Calibration
from detectors.drift.marginals import Marginals
from detectors.profile import Bins, Profile, merged
from monitor.model import HOUR_US

SIZES = (100_000, 1_000_000)
GOAL = 40.0  # times less CPU than the preset with its HTML
GOAL_PROFILES_S = 0.05
GOAL_MB = 50.0
HOURS = 720
HISTORY = 60  # windows of the reference: enough to judge


def rows(n: int, seed: int) -> pa.Table:
    """n real flights with 25 columns (20 numbers, 5 categories), drawn with replacement."""
    from benchmarks.traffic import victim

    v = victim("flights")
    picked = v.pool[np.random.default_rng(seed).integers(len(v.pool), size=n)]
    columns: dict[str, pa.Array] = {}
    for j, column in enumerate(v.columns):
        absent = np.isnan(picked[:, j])
        if column.categories:
            codes = pa.array(np.where(absent, 0, picked[:, j]).astype(np.int32), mask=absent)
            columns[f"feature:{column.name}"] = pa.array(column.categories).take(codes)
        else:
            columns[f"feature:{column.name}"] = pa.array(picked[:, j], mask=absent)
    return pa.table(columns)


def _names(table: pa.Table, kind: bool) -> list[str]:
    return [f.name.removeprefix("feature:") for f in table.schema if pa.types.is_string(f.type) == kind]


def _windows(bins: Bins, table: pa.Table, parts: int, start_us: int) -> list[Counted]:
    """The table as so many hours."""
    edges = np.linspace(0, table.num_rows, parts + 1).astype(int).tolist()
    return [
        Counted(start_us + i * HOUR_US, start_us + (i + 1) * HOUR_US, p)
        for i, p in enumerate(bins.counts(table, edges))
    ]


def _lanner_raw(reference: pa.Table, current: pa.Table) -> dict[str, float]:
    """Everything from columns on: bins, the reference's windows and calibration, the current rows as one window, judged."""
    with cpu() as clock:
        bins = Bins.fit(reference, _names(reference, False), _names(reference, True))
        known = _windows(bins, reference, HISTORY, 0)
        (now,) = _windows(bins, current, 1, HISTORY * HOUR_US)
        detector = Marginals()
        detector.measure(detector.calibrate(known, "bench"), None, now)
    return {"cpu_s": clock.seconds}


def _lanner_profiles(reference: pa.Table, current: pa.Table) -> dict[str, float]:
    """What is left when windows were profiled and the reference was calibrated as they came, as they are in service."""
    bins = Bins.fit(reference, _names(reference, False), _names(reference, True))
    calibration = Marginals().calibrate(_windows(bins, reference, HISTORY, 0), "bench").to_bytes()
    hours = [w.counts.to_bytes() for w in _windows(bins, current, HOURS, HISTORY * HOUR_US)]
    with cpu() as clock:
        now = merged(Profile.from_bytes(raw) for raw in hours)
        assert now is not None
        window = Counted(HISTORY * HOUR_US, (HISTORY + 1) * HOUR_US, now)
        Marginals().measure(Calibration.from_bytes(calibration), None, window)
    return {"cpu_s": clock.seconds}


def _evidently(reference: pa.Table, current: pa.Table, *, html: bool) -> dict[str, float]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    plain = [
        t.rename_columns([n.removeprefix("feature:") for n in t.column_names]).to_pandas() for t in (reference, current)
    ]
    kinds = DataDefinition(numerical_columns=_names(reference, False), categorical_columns=_names(reference, True))
    with cpu() as clock, tempfile.TemporaryDirectory() as folder:
        past, now = (Dataset.from_pandas(frame, data_definition=kinds) for frame in plain)
        snapshot = Report([DataDriftPreset()]).run(current_data=now, reference_data=past)
        if html:
            snapshot.save_html(str(Path(folder) / "report.html"))
        else:
            snapshot.dict()
    return {"cpu_s": clock.seconds}


CONTENDERS: dict[str, Callable[[pa.Table, pa.Table], dict[str, Any]]] = {
    "lanner-raw": _lanner_raw,
    "lanner-profiles": _lanner_profiles,
    "evidently-html": lambda r, c: _evidently(r, c, html=True),
    "evidently": lambda r, c: _evidently(r, c, html=False),
}


def _child(who: str, n: int) -> dict[str, Any]:
    reference, current = rows(n, 1), rows(n, 2)
    CONTENDERS[who](reference.slice(0, 1000), current.slice(0, 1000))  # imports and caches are not what is compared
    reset_peak_rss()
    before = rss_bytes()
    answer = CONTENDERS[who](reference, current)
    return {**answer, "grown_mb": (peak_rss_bytes() - before) / 1e6}


def results(sizes: Sequence[int] = SIZES, repeats: int = 3) -> list[Result]:
    """Interleaved repeats, medians, one line per size and way of working, and memory at the largest size."""
    out = []
    for n in sizes:
        taken: dict[str, list[dict[str, float]]] = {who: [] for who in CONTENDERS}
        for _ in range(repeats if n <= 100_000 else 1):
            for who in CONTENDERS:
                taken[who].append(measured("benchmarks.drift", "--child", who, "--rows", n))
        cost = {who: median([m["cpu_s"] for m in found]) for who, found in taken.items()}
        for mine, label in (("lanner-raw", "raw columns"), ("lanner-profiles", f"{HOURS} stored profiles")):
            for peer, how in (("evidently-html", "with HTML"), ("evidently", "without HTML")):
                ratio, first = cost[peer] / cost[mine], peer == "evidently-html"
                stored = first and mine == "lanner-profiles"
                goal = f"< {GOAL_PROFILES_S} s" if stored else f">= {GOAL:.0f}" if first else ""
                met = cost[mine] < GOAL_PROFILES_S if stored else ratio >= GOAL if first else None
                theirs = f"Evidently DataDriftPreset {how} {cost[peer]:.3g} s"
                what = f"drift, {n:,} x 25 vs {n:,}, from {label}"
                out.append(Result(what, f"{cost[mine]:.3g} s", theirs, ratio, "x less CPU", goal, met))
        grown = {who: median([m["grown_mb"] for m in found]) for who, found in taken.items()}
        mine_mb, their_mb = grown["lanner-raw"], grown["evidently-html"]
        what, goal = f"memory above the data, {n:,} vs {n:,} from raw columns", f"<= {GOAL_MB:.0f} MB"
        theirs = f"Evidently DataDriftPreset with HTML {their_mb:,.0f} MB"
        out.append(Result(what, f"{mine_mb:.0f} MB", theirs, their_mb / mine_mb, "x less", goal, mine_mb <= GOAL_MB))
    return out


def main() -> None:
    """Measure and print, or (with --child) do one piece of work and report on it."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    p.add_argument("--child", choices=CONTENDERS)
    p.add_argument("--rows", type=int, action="append")
    p.add_argument("--repeats", type=int, default=3)
    args = p.parse_args()
    if args.child:
        print(json.dumps(_child(args.child, args.rows[0])))
        return
    from benchmarks.measure import machine, table

    print(machine(), table(results(args.rows or SIZES, args.repeats)), sep="\n\n")


if __name__ == "__main__":
    main()
