"""Drift of n rows against n rows, 25 columns: Lanner's engine against Evidently's DataDriftPreset, in CPU seconds.

The rows are real flights, drawn with replacement; both sides get the same tables in memory and do all the work a user
asks for: reference and current rows in, a measure per column out. Lanner is measured from raw columns (bins fitted on
the reference, both sides counted) and from profiles of 720 hours that ingest has stored already.
`python -m benchmarks.drift` prints the ratios; each measurement runs in its own Python process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import Result, cpu, measured, median, peak_rss_bytes, reset_peak_rss, rss_bytes

SIZES = (100_000, 1_000_000)
GOAL = 40.0  # times less CPU than the preset with its HTML
HOURS = 720


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


def _lanner_raw(reference: pa.Table, current: pa.Table) -> dict[str, float]:
    from detectors.profile import Bins, compare

    with cpu() as clock:
        bins = Bins.fit(reference, _names(reference, False), _names(reference, True))
        compare(bins, bins.count(reference), bins.count(current))
    return {"cpu_s": clock.seconds}


def _lanner_profiles(reference: pa.Table, current: pa.Table) -> dict[str, float]:
    from detectors.profile import Bins, Profile, compare, merged

    bins = Bins.fit(reference, _names(reference, False), _names(reference, True))
    past = bins.count(reference).to_bytes()
    cuts = np.linspace(0, current.num_rows, HOURS + 1).astype(int)
    hours = [bins.count(current.slice(a, b - a)).to_bytes() for a, b in pairwise(cuts)]
    with cpu() as clock:
        now = merged(Profile.from_bytes(raw) for raw in hours)
        assert now is not None
        compare(bins, Profile.from_bytes(past), now)
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
    """Interleaved repeats, medians, one line per size and way of working."""
    out = []
    for n in sizes:
        taken: dict[str, list[float]] = {who: [] for who in CONTENDERS}
        for _ in range(repeats if n <= 100_000 else 1):
            for who in CONTENDERS:
                taken[who].append(measured("benchmarks.drift", "--child", who, "--rows", n)["cpu_s"])
        cost = {who: median(seconds) for who, seconds in taken.items()}
        for mine, label in (("lanner-raw", "raw columns"), ("lanner-profiles", f"{HOURS} stored profiles")):
            for peer, how in (("evidently-html", "with HTML"), ("evidently", "without HTML")):
                ratio = cost[peer] / cost[mine]
                goal = f">= {GOAL:.0f}" if peer == "evidently-html" else ""
                out.append(
                    Result(
                        f"drift, {n:,} x 25 vs {n:,}, from {label}",
                        f"{cost[mine]:.3g} s",
                        f"Evidently DataDriftPreset {how} {cost[peer]:.3g} s",
                        ratio,
                        "x less CPU",
                        goal,
                        ratio >= GOAL if goal else None,
                    )
                )
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
