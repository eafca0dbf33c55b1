"""How often `abuse` tells of honest clients that their use has crept up, and how soon it tells of one that doubles it slowly:
`python -m benchmarks.creeping [--split design|judging] [--out FILE]`.

The clients are those of benchmarks.usage. Those of its kind *growth* really grow; whether that was told of is reported apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.attacks.score import exact
from benchmarks.usage import BESIDE, DAYS, HONEST, SPLITS, USERS, Counts, Rng, Split, run

BEGINS: Final = 60  # day on which use begins to grow, or up to two weeks later
WEEKS: Final = (4, 8, 12)  # in which it doubles, and then stays
AT_ONCE: Final = 4  # clients that double in one run
TOGETHER: Final = 12  # clients of a log in which all double alike


def doubled(counts: Counts, rng: Rng, onset: int, weeks: int) -> Counts:
    """Twice as much after so many weeks, at the same rate every day, and then as much."""
    part = np.clip((np.arange(DAYS) - onset) / (7 * weeks), 0, 1)
    return np.asarray(rng.poisson(counts * (2**part)[:, None]), dtype=np.int64)


def honest(split: Split, each: int) -> dict[str, Any]:
    """Who is told of among honest clients, by kind, in runs of all kinds together."""
    rng = np.random.default_rng([split.seed, 4])
    told: dict[str, list[int]] = {kind: [] for kind in HONEST}
    for part in range(0, each, 10):
        clients = {
            f"{k}-{part + i}": make(rng, split) for k, make in HONEST.items() for i in range(min(10, each - part))
        }
        for name, day in run(clients, rng).crept.items():
            told[name.rpartition("-")[0]].append(round(day))
    others = sum(len(days) for kind, days in told.items() if kind != "growth")
    of = each * (len(HONEST) - 1)
    return {
        "each": each, "days": DAYS, "told": {kind: len(days) for kind, days in told.items()},
        "but_growth": others, "of": of, "interval": _interval(others, of),
    }  # fmt: skip


def slow(split: Split, each: int, weeks: int) -> dict[str, Any]:
    """Who is told of among clients that double their use beside honest ones, and whom the other signals alarm about."""
    rng = np.random.default_rng([split.seed, 5, weeks])
    found: dict[str, list[float]] = {kind: [] for kind in USERS}
    alarmed, before = 0, 0
    left = [kind for kind in USERS for _ in range(each)]
    while left:
        some = {f"{kind}-bad-{len(left) - i}": kind for i, kind in enumerate(left[:AT_ONCE])}
        left = left[AT_ONCE:]
        onset = BEGINS + int(rng.integers(14))
        clients = {f"h{i}": HONEST[USERS[i % len(USERS)]](rng, split) for i in range(BESIDE)}
        clients |= {n: doubled(HONEST[kind](rng, split), rng, onset, weeks) for n, kind in some.items()}
        seen = run(clients, rng)
        for n, kind in some.items():
            day = seen.crept.get(n, np.inf) - onset
            before += day < 0
            alarmed += seen.alarms.get(n, -1.0) >= onset
            found[kind].append(day if day >= 0 else np.inf)
    days = np.array([d for each_kind in found.values() for d in each_kind])
    known = days[np.isfinite(days)]
    return {
        "of": len(days), "told": len(known), "interval": _interval(len(known), len(days)),
        "median_days": round(float(np.median(known)), 1) if len(known) else None, "before": before, "other_signals": alarmed,
        "by_kind": {kind: int(np.isfinite(some_days).sum()) for kind, some_days in found.items()},
    }  # fmt: skip


def together(split: Split, logs: int) -> dict[str, Any]:
    """Who is told of where all clients of a log double their use in the same eight weeks."""
    rng = np.random.default_rng([split.seed, 6])
    told = 0
    for _ in range(logs):
        kinds = [USERS[i % len(USERS)] for i in range(TOGETHER)]
        clients = {f"c{i}": doubled(HONEST[kind](rng, split), rng, BEGINS, 8) for i, kind in enumerate(kinds)}
        told += len(run(clients, rng).crept)
    return {"of": logs * TOGETHER, "told": told, "interval": _interval(told, logs * TOGETHER)}


def _interval(k: int, n: int) -> list[float]:
    return [round(x, 4) for x in exact(k, n)]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The rows of the tables of docs/detectors.md."""
    told = found["honest"]
    made = [f"| {kind.replace('_', ' ')} | {n} of {told['each']} |" for kind, n in told["told"].items()]
    for weeks, x in found["slow"].items():
        each = x["of"] // len(x["by_kind"])
        kinds = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in x["by_kind"].items())
        days = "–" if x["median_days"] is None else f"{x['median_days']}"
        made.append(
            f"| {weeks} weeks | {x['told']} of {x['of']} | {days} | {x['other_signals']} | {kinds}, of {each} each |"
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.creeping", description=__doc__.partition(":\n")[0])
    parser.add_argument("--split", choices=sorted(SPLITS), default="design")
    parser.add_argument("--each", type=int, default=40, help="honest clients of a kind")
    parser.add_argument("--hostile", type=int, default=4, help="clients of a kind that double, per pace")
    parser.add_argument("--logs", type=int, default=5, help="logs in which all double alike")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    split = SPLITS[args.split]
    found = {
        "split": args.split, "honest": honest(split, args.each),
        "slow": {str(w): slow(split, args.hostile, w) for w in WEEKS}, "together": together(split, args.logs),
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
