"""`python -m benchmarks.attacks --split design|judging [--only TEXT] [--data NAME] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.attacks import report
from benchmarks.attacks.judge import judge, watch
from benchmarks.attacks.score import Outcome, outcomes
from benchmarks.attacks.split import SPLITS
from benchmarks.attacks.traffic import scene, together


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    p.add_argument("--split", choices=sorted(SPLITS), default="design")
    p.add_argument("--only", default="", metavar="TEXT", help="actors whose group or name contains it")
    p.add_argument("--data", action="append", default=[], help="only these data sets")
    p.add_argument("--json", type=Path, help="write every actor's outcome here")
    p.add_argument("--make", action="store_true", help="only make the traffic")
    p.add_argument("--alone", action="store_true", help="a log per actor instead of one per victim")
    return p.parse_args()


def main() -> int:
    args = _arguments()
    split = SPLITS[args.split]
    found: list[Outcome] = []
    speed: dict[str, list[tuple[int, float]]] = {}
    for name in args.data or split.victims:
        began = time.perf_counter()
        made = scene(split, name, args.only)
        if args.make:
            print(f"{name}: {len(made.streams)} actors, {time.perf_counter() - began:.0f} s", file=sys.stderr)
            continue
        loaded = time.perf_counter()
        watching = watch(made.reference)
        for group in [[s] for s in made.streams] if args.alone else [list(made.streams)]:
            log, of = together(split, made, group)
            judged = judge(watching, log)
            found += outcomes(name, log, of, group, judged)
            for part, seconds in judged.seconds.items():
                speed.setdefault(part, []).append((log.n, seconds))
        print(
            f"{name}: {len(made.streams)} actors; load {loaded - began:.1f} s, calibrate {watching.seconds:.1f} s, "
            f"all {time.perf_counter() - began:.1f} s; refused: {dict(watching.refused) or 'nothing'}",
            file=sys.stderr,
        )
    if args.json:
        args.json.write_text(json.dumps([o.row() for o in found], indent=0), encoding="utf-8")
    if found:
        print(report.table(found))
        print(report.speed(speed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
