"""False alarms and delay of drift with segments and context, on a year of real flights.

Null: rows shuffled, divided by carrier and origin (segments) and by origin and hour (context). Delay: from one check to
the next flights of one airport become rare (the mix moves), and at the same time a number moves inside every airport, or
inside one carrier only. Run: python -m benchmarks.drift_parts [--out FILE]; what tests and docs/detectors.md tell stands in
benchmarks/drift_parts.json. Seeds below 100 of the same streams served to design.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.drift_null import Found, judged, rate, transitions
from benchmarks.drift_streams import ROWS, Rows, flights, shuffled, windows
from detectors.profile import Bins
from detectors.strata import fit_strata

SEGMENTS: Final = ("feature:carrier", "feature:origin")
CONTEXT: Final = ("feature:origin", "feature:hour")


def divided(reference: pa.Table, rows: Rows, segments: tuple[str, ...], context: tuple[str, ...]) -> Bins:
    """Bins of a reference with these parts."""
    numbers = [f"feature:{n}" for n in rows.numeric]
    strata = fit_strata(reference, segments, context, numeric=numbers)
    return replace(Bins.fit(reference, rows.numeric, rows.categorical), strata=strata)


def run(table: pa.Table, later: pa.Table, rows: Rows, segments: tuple[str, ...], context: tuple[str, ...]) -> Found:
    """Judge the windows of `later` against those of `table`."""
    bins = divided(table, rows, segments, context)
    known = list(windows(bins, table))
    return judged(known, windows(bins, later, len(known)))


def null(rows: Rows, history: int, least: int, seed: int) -> dict[str, float]:
    """False alarms of model and segments together per 720 checks over at least `least` windows."""
    alarms = checks = i = 0
    while checks < least:
        table = shuffled(rows, "iid", np.random.default_rng([seed, i]))
        cut = history * ROWS
        alarms += len(transitions(run(table.slice(0, cut), table.slice(cut), rows, SEGMENTS, CONTEXT))[0])
        checks += table.num_rows // ROWS - history
        i += 1
    return rate(alarms, checks)


def remixed(table: pa.Table, rng: np.random.Generator, count: int) -> pa.Table:
    """Rows drawn anew so that JFK has an eighth of its flights; nothing else changes."""
    rare = np.asarray(pc.equal(table["feature:origin"].cast(pa.string()), "JFK"))
    chance = np.where(rare, 0.125, 1.0)
    return table.take(pa.array(rng.choice(table.num_rows, count * ROWS, p=chance / chance.sum())))


def delays(rows: Rows, history: int, limit: int, runs: int, seed: int) -> dict[str, Any]:
    """Checks until an incident opens (median over runs; None: in under half of them within `limit`), per kind of change."""
    found: dict[str, list[float]] = {}
    for i in range(runs):
        rng = np.random.default_rng([seed, i])
        table = shuffled(rows, "iid", rng)
        before, rest = table.slice(0, history * ROWS), table.slice(history * ROWS)
        spread = pc.stddev(before["feature:temp"]).as_py()
        mixed = remixed(rest, rng, limit)
        for name, later, segments, context in (
            ("mix alone, no context", mixed, (), ()),
            ("mix alone", mixed, (), ("feature:origin",)),
            ("mix and temp by 0.5 sd", _moved(mixed, 0.5 * spread), (), ("feature:origin",)),
            ("temp by 0.5 sd", _moved(rest.slice(0, limit * ROWS), 0.5 * spread), (), ("feature:origin",)),
            ("temp by 0.5 sd of one carrier in ten", _moved(rest.slice(0, limit * ROWS), 0.5 * spread, "MQ"),
             ("feature:carrier",), ()),
        ):  # fmt: skip
            opened, _, _ = transitions(run(before, later, rows, segments, context))
            found.setdefault(name, []).append(float(opened[0]) if opened else np.inf)
    return {name: {"median": _median(x), "opened": int(np.isfinite(x).sum()), "of": runs} for name, x in found.items()}


def _moved(table: pa.Table, by: float, carrier: str = "") -> pa.Table:
    new = pc.add(table["feature:temp"], by)
    if carrier:
        new = pc.if_else(pc.equal(table["feature:carrier"].cast(pa.string()), carrier), new, table["feature:temp"])
    return table.set_column(table.column_names.index("feature:temp"), "feature:temp", new)


def _median(found: list[float]) -> float | None:
    middle = float(np.median(found))
    return middle if np.isfinite(middle) else None


def measure() -> dict[str, Any]:
    """All numbers."""
    rows = flights()
    return {"null": null(rows, 100, 2000, 1041), "delay": delays(rows, 100, 40, 5, 1042)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift_parts", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", help="write the numbers as JSON")
    args = parser.parse_args()
    start = time.process_time()
    numbers = measure()
    numbers["cpu_s"] = round(time.process_time() - start, 1)
    text = json.dumps(numbers, indent=2)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
