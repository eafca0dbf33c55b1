"""Streams from the cache, or made now; and all of a victim's streams as one log."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.attacks import actors as acting
from benchmarks.attacks.actors import Actor, Stream
from benchmarks.attacks.judge import Log
from benchmarks.attacks.split import Split
from benchmarks.traffic.data import CACHE
from benchmarks.traffic.victim import Matrix, Victim, victim
from detectors.base import Caller
from monitor.model import HOUR_US, SECOND_US

TRAINING_ROWS: Final = 3_000  # a few thousand train the model; the rest is what clients ask about
FEW: Final = {
    "breast_cancer": 140,
    "digits": 450,
    "credit": 1_500,
    "caravan": 2_000,
    "churn": 2_000,
    "phone": 1_500,
    "pension": 2_500,
}  # small sets
REFERENCE_ROWS: Final = 4_000
START_US: Final = 1_767_571_200_000_000  # Monday 2026-01-05


def _code(*names: str) -> str:
    """What modules of benchmarks.traffic do, read at import: layout and comments do not count."""
    folder = Path(__file__).parents[1] / "traffic"
    trees = [ast.dump(ast.parse((folder / f"{n}.py").read_text(encoding="utf-8"))) for n in names]
    return sha256("".join(trees).encode()).hexdigest()[:12]


CODE: Final = {
    True: _code("data", "victim", "ranges", "attacks", "oracle", "toolbox"),
    False: _code("data", "victim", "ranges", "benign", "explain"),
}
MAKERS: Final = {
    node.name: ast.dump(node)
    for node in ast.parse(Path(acting.__file__).read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
}


@dataclass(frozen=True)
class Scene:
    """A victim whose pool holds no row of the reference, the reference itself, and everybody's streams."""

    data: str
    victim: Victim
    reference: Log
    streams: tuple[Stream, ...]


def scene(split: Split, name: str, only: str = "", cache: Path = CACHE / "attacks") -> Scene:
    """Victim, reference and the streams of all actors whose group or name holds one of the words of `only`."""
    whole = victim(name, seed=split.seed, training_rows=FEW.get(name, TRAINING_ROWS), family=split.victims[name])
    rng = np.random.default_rng([split.seed, 1])
    order = rng.permutation(len(whole.pool))
    cut = min(REFERENCE_ROWS, len(order) // 2)
    apart = replace(whole, pool=whole.pool[order[cut:]], labels=whole.labels[order[cut:]])
    words = only.split(",")
    chosen = [a for a in acting.actors(split, name) if any(w in f"{a.group} {a.name}" for w in words)]
    # Attackers ask row by row: more threads only wait for each other. Their copies need not converge.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        streams = _cached(split, name, apart, chosen, cache)
    return Scene(name, apart, _reference(apart, whole.pool[order[:cut]], rng), streams)


def _reference(v: Victim, rows: Matrix, rng: np.random.Generator) -> Log:
    """Two weeks of honest use by 20 callers of very different size."""
    share = 1.0 / np.arange(1, 21)
    who = rng.choice(20, len(rows), p=share / share.sum())
    when = START_US - 14 * 24 * HOUR_US + np.sort(rng.integers(0, 14 * 24 * HOUR_US, len(rows)))
    return Log(v, rows, np.round(v.answer(rows), 6), when, who, tuple(f"usual-{i:02d}" for i in range(20)))


def _key(split: Split, name: str, actor: Actor) -> str:
    """Everything that the actor's rows depend on, hashed."""
    sizes = (FEW.get(name, TRAINING_ROWS), REFERENCE_ROWS, acting.ATTACK_ROWS, acting.BENIGN_ROWS)
    maker = MAKERS[actor.make.__qualname__.split(".")[0]]
    parts = (
        split.seed,
        split.victims[name],
        sorted(split.ranges.items()),
        sizes,
        CODE[actor.hostile],
        maker,
        actor.name,
    )
    return sha256(repr(parts).encode()).hexdigest()[:20]


def _cached(split: Split, name: str, v: Victim, chosen: Sequence[Actor], cache: Path) -> tuple[Stream, ...]:
    """One file per actor, named after the code and the parameters that made it."""
    folder = cache / split.name / name
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, actor in enumerate(chosen):
        path = folder / f"{_key(split, name, actor)}.npz"
        if path.exists():
            with np.load(path) as z:
                rows, scores, hostile = z["rows"], z["scores"], z["attack"]
            who = np.arange(len(rows), dtype=np.int64) % actor.principals
            out.append(Stream(actor, rows, scores, hostile, who))
            continue
        if sys.stderr.isatty():
            print(f"\r{split.name} {name}: {i + 1} of {len(chosen)} {actor.name:50}", end="", file=sys.stderr)
        made = acting.stream(split, name, v, actor)
        with path.with_suffix(".part").open("wb") as f:
            np.savez_compressed(f, rows=made.rows, scores=made.scores, attack=made.attack)
        path.with_suffix(".part").rename(path)
        out.append(made)
    return tuple(out)


def _times(stream: Stream, split: Split, rng: np.random.Generator) -> NDArray[np.int64]:
    """When the actor sends. Everybody starts within the first day; fast: a gap within split.ranges["gap_s"]."""
    n, pace = len(stream.rows), stream.actor.pace
    start = START_US + int(rng.integers(8 * HOUR_US, 20 * HOUR_US))
    low, high = split.ranges["gap_s"]
    if pace == "slow":
        return START_US + np.sort(rng.integers(0, 30 * 24 * HOUR_US, n))
    if pace == "steady":
        return start + np.arange(n) * 60 * SECOND_US
    if pace == "nightly":  # 300 rows a night from two o'clock on, one a second
        night, place = np.divmod(np.arange(n), 300)
        times: NDArray[np.int64] = START_US + 2 * HOUR_US + night * 24 * HOUR_US + place * SECOND_US
        return times
    if pace == "human":  # eight working hours a day for five days
        work = np.sort(rng.random(n)) * 5
        day, hour = np.floor(work), (work % 1) * 8 + 9
        return np.asarray(START_US + ((day * 24 + hour) * HOUR_US), dtype=np.int64)
    gaps = rng.exponential(low + (high - low) * rng.random(), n)
    return np.asarray(start + np.cumsum(gaps) * SECOND_US, dtype=np.int64)


def together(split: Split, made: Scene, streams: Sequence[Stream] | None = None) -> tuple[Log, NDArray[np.int64]]:
    """The streams as one log in order of time, and for every event the index of its stream."""
    streams = made.streams if streams is None else streams
    names: list[str] = []
    declared: dict[str, Caller] = {}
    who, when = [], []
    for s in streams:
        rng = np.random.default_rng([split.seed, 2, crc32(f"{made.data}/{s.actor.name}".encode())])
        who.append(s.who + len(names))
        when.append(_times(s, split, rng))
        mine = principals(s.actor)
        names += mine
        if s.actor.declared is not None:
            declared |= dict.fromkeys(mine, s.actor.declared)
    at = np.concatenate(when)
    order = np.argsort(at, kind="stable")
    of = np.repeat(np.arange(len(streams)), [len(s.rows) for s in streams])
    log = Log(
        made.victim, np.concatenate([s.rows for s in streams])[order], np.concatenate([s.scores for s in streams])[order],
        at[order], np.concatenate(who)[order], tuple(names), declared,
    )  # fmt: skip
    return log, of[order]


def principals(actor: Actor) -> list[str]:
    """Ids as the log shows them; they say nothing about the actor's kind to a detector that reads only equality."""
    if actor.principals == 1:
        return [actor.name]
    return [f"{actor.name}#{i}" for i in range(actor.principals)]
