"""False alarms and delay of drift with segments and context, on a year of real flights.

Null: rows shuffled, divided by carrier and origin (segments) and by origin and hour (context). Delay: from one check to
the next flights of one airport become rare (the mix moves), and at the same time a number moves inside every airport, or
inside one carrier only. Auto: segments that nobody named, chosen by the score of a model for late arrivals: false alarms
on shuffled rows and on shuffled days, and how often and how soon a number that moves inside one carrier, airport or
destination is found, each frequent one in its turn, beside the same without segments.
Run: python -m benchmarks.drift_parts [--out FILE] [PART ...]; what FILE holds already is not measured again. What tests and
docs/detectors.md tell stands in benchmarks/drift_parts.json. Seeds below 100 of the same streams served to design.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.drift_null import Found, judged, rate, transitions
from benchmarks.drift_streams import ROWS, Rows, flights, shuffled, windows
from benchmarks.traffic.data import DATA
from detectors.binned import category_codes, floats
from detectors.parting import choose
from detectors.profile import Bins
from detectors.strata import Segment, fit_strata, frequent

PARTS: Final = ("null", "delay", "auto_iid", "auto_block", "auto_delay")
LEAST: Final = 0.02  # share of the rows that a part needs to have 20 in a window of ROWS
DIVIDING: Final = ("carrier", "origin", "dest")  # features inside whose values a number moves
SEGMENTS: Final = ("feature:carrier", "feature:origin")
CONTEXT: Final = ("feature:origin", "feature:hour")


def divided(reference: pa.Table, rows: Rows, segments: Sequence[str | Segment], context: Sequence[str]) -> Bins:
    """Bins of a reference with these parts."""
    numbers = [f"feature:{n}" for n in rows.numeric]
    strata = fit_strata(reference, segments, context, numeric=numbers)
    return replace(Bins.fit(reference, rows.numeric, rows.categorical), strata=strata)


def run(
    table: pa.Table, later: pa.Table, rows: Rows, segments: Sequence[str | Segment], context: Sequence[str]
) -> Found:
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


def _moved(table: pa.Table, by: float, value: str = "", column: str = "carrier") -> pa.Table:
    new = pc.add(table["feature:temp"], by)
    if value:
        mine = pc.equal(table[f"feature:{column}"].cast(pa.string()), value)
        new = pc.if_else(mine, new, table["feature:temp"])
    return table.set_column(table.column_names.index("feature:temp"), "feature:temp", new)


def _median(found: list[float]) -> float | None:
    middle = float(np.median(found))
    return middle if np.isfinite(middle) else None


@functools.cache
def scorer() -> Callable[[pa.Table], pa.Table]:
    """What adds the score of boosted trees, trained on half of the flights to tell late arrivals, to rows of flights."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows, data = flights(), DATA["flights"]().table
    data = data.sort_by([(c, "ascending") for c in ("month", "day", "hour", "minute")])  # as flights() orders them
    words = {c: [v for v, _ in frequent(rows.table, f"feature:{c}")][:250] for c in rows.categorical}

    def matrix(table: pa.Table) -> Any:
        numbers = [floats(table, f"feature:{n}") for n in rows.numeric]
        return np.column_stack([
            *numbers, *(category_codes(table, f"feature:{c}", words[c]).astype(float) for c in words)
        ])  # fmt: skip

    train = np.random.default_rng(3).random(rows.table.num_rows) < 0.5
    late = np.asarray(pc.equal(data["label"], "late"))
    trees = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(matrix(rows.table)[train], late[train])
    return lambda table: table.append_column("prediction_value", pa.array(trees.predict_proba(matrix(table))[:, 1]))


def chosen(reference: pa.Table, rows: Rows) -> list[Segment]:
    """The segments that `segments: auto` finds."""
    return [p.segment for p in choose(reference, rows.numeric, rows.categorical, least=LEAST)]


def auto_null(rows: Rows, kind: str, history: int, least: int, seed: int) -> dict[str, float]:
    """False alarms of model and segments together where segments are found automatically."""
    alarms = checks = i = 0
    while checks < least:
        table = scorer()(shuffled(rows, kind, np.random.default_rng([seed, i])))
        before, later = table.slice(0, history * ROWS), table.slice(history * ROWS)
        alarms += len(transitions(run(before, later, rows, chosen(before, rows), ()))[0])
        checks += later.num_rows // ROWS
        i += 1
    return rate(alarms, checks)


def auto_delays(rows: Rows, history: int, limit: int, seed: int) -> dict[str, Any]:
    """Checks until an incident opens when temp moves by 0.5 sd inside one value, each frequent one once, and the score with
    it; with segments found automatically and without. `chosen`: of so many the value itself was among the segments.
    """
    out: dict[str, Any] = {}
    for j, column in enumerate(DIVIDING):
        words = [v for v, n in frequent(rows.table, f"feature:{column}") if n >= LEAST * rows.table.num_rows]
        found: dict[str, list[float]] = {"auto": [], "none": []}
        mine = 0
        for i, word in enumerate(words):
            table = shuffled(rows, "iid", np.random.default_rng([seed, j, i])).slice(0, (history + limit) * ROWS)
            before, rest = scorer()(table.slice(0, history * ROWS)), table.slice(history * ROWS)
            later = scorer()(_moved(rest, 0.5 * pc.stddev(before["feature:temp"]).as_py(), word, column))
            segments = chosen(before, rows)
            mine += f"{column}:{word}" in [s.name for s in segments]
            for name, parts in (("auto", segments), ("none", [])):
                opened, _, _ = transitions(run(before, later, rows, parts, ()))
                found[name].append(float(opened[0]) if opened else np.inf)
        out[column] = {
            "chosen": mine, "of": len(words),
            **{k: {"median": _median(x), "opened": int(np.isfinite(x).sum())} for k, x in found.items()},
        }  # fmt: skip
    return out


def measure(part: str) -> dict[str, Any]:
    """The numbers of one part."""
    rows, start = flights(), time.process_time()
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "null": lambda: null(rows, 100, 2000, 1041),
        "delay": lambda: delays(rows, 100, 40, 5, 1042),
        "auto_iid": lambda: auto_null(rows, "iid", 100, 2000, 1043),
        "auto_block": lambda: auto_null(rows, "block", 100, 2000, 1045),
        "auto_delay": lambda: auto_delays(rows, 100, 40, 1044),
    }
    found = made[part]()
    sys.stderr.write(f"{part}: {time.process_time() - start:.0f} s of CPU\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift_parts", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    held = args.out is not None and args.out.exists()
    numbers = json.loads(args.out.read_text(encoding="utf-8")) if held else {}
    for part in args.parts:
        if part not in numbers:
            numbers[part] = measure(part)
            if args.out:
                args.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
