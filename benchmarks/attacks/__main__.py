"""`python -m benchmarks.attacks --split design|seen|judging [--only TEXT] [--data NAME] [--json FILE]`, or `--all`, or `--cost`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.attacks import exposure, report
from benchmarks.attacks.baselines import Baselines
from benchmarks.attacks.judge import judge, watch
from benchmarks.attacks.publishing import publish, recost
from benchmarks.attacks.score import Outcome, outcomes
from benchmarks.attacks.split import SPLITS, Split
from benchmarks.attacks.traffic import Scene, scene, together

ROOT: Final = Path(__file__).parents[2]
Speed = dict[str, list[tuple[int, float]]]


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    p.add_argument("--split", choices=sorted(SPLITS), default="design")
    p.add_argument("--only", default="", metavar="TEXT", help="actors whose group or name contains it")
    p.add_argument("--data", action="append", default=[], help="only these data sets")
    p.add_argument("--json", type=Path, help="write every actor's outcome here")
    p.add_argument("--make", action="store_true", help="only make the traffic")
    p.add_argument("--alone", action="store_true", help="a log per actor instead of one per victim")
    p.add_argument("--baselines", action="store_true", help="PRADA and window MMD on the same traffic")
    p.add_argument("--exposure", action="store_true", help="only the exposure gauge against the truth")
    p.add_argument("--cost", action="store_true", help="only what detection costs; written into docs/attacks.md")
    p.add_argument("--all", action="store_true", help="all splits, baselines and cost; write docs/attacks.md")
    return p.parse_args()


def one(split: Split, made: Scene, speed: Speed, *, alone: bool = False, baselines: bool = False) -> list[Outcome]:
    """All actors of one victim through the detectors."""
    watching, found = watch(made.reference, training=True), []
    for group in [[s] for s in made.streams] if alone else [list(made.streams)]:
        log, of = together(split, made, group)
        judged = judge(watching, log)
        found += outcomes(made.data, log, of, group, judged)
        for part, seconds in judged.seconds.items():
            speed.setdefault(part, []).append((log.n, seconds))
    if baselines:
        other = Baselines.fit(made.reference, split.seed)
        found = [replace(o, baselines=other.alarms(s)) for o, s in zip(found, made.streams, strict=True)]
    for name, why in watching.refused.items():
        print(f"{made.data}: {name} refused: {why}", file=sys.stderr)
    return found


def run(split: Split, args: argparse.Namespace, speed: Speed) -> list[Outcome]:
    """Every victim of a split, one after the other."""
    found: list[Outcome] = []
    for name in args.data or split.victims:
        began = time.perf_counter()
        made = scene(split, name, args.only)
        loaded = time.perf_counter()
        if made.streams and not args.make:
            found += one(split, made, speed, alone=args.alone, baselines=args.baselines or args.all)
        seconds = f"traffic {loaded - began:.1f} s, all {time.perf_counter() - began:.1f} s"
        print(f"{split.name} {name}: {len(made.streams)} actors, {seconds}", file=sys.stderr)
    return found


def gauge(split: Split, data: Sequence[str]) -> list[exposure.Reading]:
    """What the exposure gauge says of some clients of every victim, and what copies are worth."""
    return [r for name in data or split.victims for r in exposure.readings(split, scene(split, name, exposure.WORDS))]


def main() -> int:
    args = _arguments()
    if args.exposure:
        print(exposure.markdown(gauge(SPLITS[args.split], args.data)))
        return 0
    if args.cost:
        return recost(ROOT)
    if args.all:
        gauges = {s.name: gauge(s, args.data) for s in SPLITS.values()}
        return publish(ROOT, {s.name: run(s, args, {}) for s in SPLITS.values()}, gauges)
    speed: Speed = {}
    found = run(SPLITS[args.split], args, speed)
    if args.json:
        args.json.write_text(json.dumps([o.row() for o in found], indent=0), encoding="utf-8")
    if found:
        print(report.text(found))
        print(f"\nspeed: {report.speed(speed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
