"""Write a log of native events: `python -m benchmarks.traffic --out FILE`.

Parts are given as NAME:ROWS or NAME:ROWS:STARTHOUR and mixed by event time, e.g. `--part natural:5000`
`--part hop_skip_jump:300:20`. `--drift KIND:FEATURE:SIZE:STARTHOUR` changes benign rows from an hour on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.traffic import (
    ATTACKS,
    BENIGN,
    DATA,
    DRIFTS,
    attack,
    benign,
    interleave,
    log,
    natural,
    poisson_times,
    reference,
    victim,
)
from monitor.model import HOUR_US, parse_time_us


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description="Native JSONL inference logs.")
    p.add_argument("--out", required=True, help="file to write; - for stdout")
    p.add_argument("--data", choices=sorted(DATA), default="flights")
    p.add_argument("--start", default="2026-01-05T00:00:00Z", help="time of the first event")
    p.add_argument("--rows", type=int, default=0, help="benign events of many clients")
    p.add_argument("--per-hour", type=float, default=1000.0, help="pace of the benign events")
    p.add_argument("--clients", type=int, default=40)
    p.add_argument(
        "--part", action="append", default=[], metavar="NAME:ROWS[:STARTHOUR]", help=", ".join([*BENIGN, *ATTACKS])
    )
    p.add_argument("--drift", metavar="KIND:FEATURE:SIZE:STARTHOUR[:ENDHOUR]", help=", ".join(DRIFTS))
    p.add_argument("--every", type=float, default=5.0, help="seconds between two queries of a part")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def _parts(args: argparse.Namespace) -> Iterator[Iterator[dict[str, Any]]]:
    v, start = victim(args.data), parse_time_us(args.start)
    every_s = 3600 / args.per_hour
    if args.rows and args.drift:
        yield _drifting(args, start, every_s)
    elif args.rows:
        yield reference(
            v, args.rows, np.random.default_rng(args.seed), start_us=start, every_s=every_s, clients=args.clients
        )
    for i, part in enumerate(args.part):
        name, rows, *hour = part.split(":")
        rng = np.random.default_rng([args.seed, i + 1])
        made = (benign if name in BENIGN else attack)(v, name, int(rows), rng)
        begin = start + int(float(hour[0]) * HOUR_US if hour else 0)
        yield log(v, made, poisson_times(len(made), begin, args.every, rng), [f"{name}-{i}"], rng)


def _drifting(args: argparse.Namespace, start: int, every_s: float) -> Iterator[dict[str, Any]]:
    v, rng = victim(args.data), np.random.default_rng(args.seed)
    kind, feature, size, first, *last = args.drift.split(":")
    when = poisson_times(args.rows, start, every_s, rng)
    rows = natural(v, args.rows, rng)
    until = float(last[0]) if last else float("inf")
    hours = (when - start) / HOUR_US
    changed = (hours >= float(first)) & (hours < until)
    rows[changed] = DRIFTS[kind](v, rows[changed], feature, float(size), rng)
    callers = [f"client-{i:02d}" for i in rng.integers(args.clients, size=args.rows)]
    return log(v, rows, when, callers, rng)


def main() -> None:
    args = _arguments()
    out = sys.stdout if args.out == "-" else Path(args.out).open("w", encoding="utf-8")  # noqa: SIM115 (stdout stays open)
    with out:
        for event in interleave(*_parts(args)):
            out.write(json.dumps(event, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
