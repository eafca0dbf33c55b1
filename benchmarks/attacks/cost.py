"""What per-principal detection costs: events per second and core, bytes per active principal, memory under a flood.

`python -m benchmarks.attacks.cost [--rows N] [--flood N]`. Seconds are of CPU, on one thread.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.attacks.judge import STRETCH, Court, Log, Watch, judge, table, watch
from benchmarks.attacks.split import DESIGN
from benchmarks.attacks.traffic import START_US, Scene, scene
from benchmarks.traffic.victim import Matrix
from monitor.model import SECOND_US
from monitor.service.known import Known
from monitor.service.windows import Stretch

DATA: Final = "flights"
LONG: Final = 60_000
CALLERS: Final = 200
HOSTILE: Final = {"natural": 0, "mixed": CALLERS // 10, "attack": CALLERS}  # of them
STEP: Final = 0.05  # standard deviations by which an attacker moves
CROWD: Final = 2_000  # active principals whose state is weighed
FLOOD: Final = 1_000_000
BLOCK: Final = 30_000


@dataclass(frozen=True)
class Cost:
    """events_per_s, parts: natural rows, known rows marked, all detectors and fuse(); parts one by one. state_bytes: by
    principals seen so far. kinds: events a second by kind of traffic; decoded_per_s: the same events out of JSON, no more.
    """

    features: int
    events_per_s: float
    parts: dict[str, float]
    bytes_per_principal: float
    state_bytes: dict[int, int]
    peak_mb: dict[int, float]
    kinds: dict[str, float] = field(default_factory=dict)
    decoded_per_s: float = 0.0


def cost(flood: int = FLOOD, long: int = LONG) -> Cost:
    """Measure on the widest large design victim."""
    made = scene(DESIGN, DATA, "nobody")
    watching, rng = watch(made.reference, training=True), np.random.default_rng(5)
    with threadpool_limits(1):
        for hostile in HOSTILE.values():  # compiles what is compiled, the parts that only long traffic reaches too
            judge(watching, _traffic(made, long // 2, hostile, rng))
        spent = {kind: _spent(watching, _traffic(made, long, hostile, rng)) for kind, hostile in HOSTILE.items()}
        rows = made.victim.pool[rng.choice(len(made.victim.pool), long)]
        crowd = judge(watching, _log(made, rows, np.arange(long) % CROWD, CROWD))
        size = sum(len(s.to_bytes()) for s in crowd.states.values())
        states, peaks = _flood(made, watching, flood, rng)
    parts = {name: long / s for name, s in spent["natural"].items() if s}
    kinds = {kind: long / sum(seconds.values()) for kind, seconds in spent.items()}
    return Cost(
        len(made.victim.columns), kinds["natural"], parts, size / CROWD, states, peaks, kinds, _decoded_per_s(made, rows)
    )  # fmt: skip


def _spent(watching: Watch, log: Log) -> dict[str, float]:
    """Seconds by part, the marking of known rows among them."""
    plain = table(log)
    began = time.process_time()
    Known(watching.training).mark(plain)
    marked = time.process_time() - began
    return {"known rows": marked, **judge(watching, log).seconds}


def _traffic(made: Scene, n: int, hostile: int, rng: np.random.Generator) -> Log:
    """Rows of CALLERS callers, the first `hostile` of which send small steps from one row or values drawn one by one."""
    pool, who = made.victim.pool, rng.integers(CALLERS, size=n)
    rows = pool[rng.choice(len(pool), n)].copy()
    number = np.array([not c.categories for c in made.victim.columns])
    steps = pool[rng.choice(len(pool), CALLERS)][who]
    steps[:, number] += STEP * rng.normal(size=(n, int(number.sum()))) * np.nanstd(pool[:5_000, number], axis=0)
    drawn = np.stack([pool[rng.choice(len(pool), n), j] for j in range(pool.shape[1])], axis=1)
    bad = who < hostile
    rows[bad] = np.where((who % 2 == 0)[:, None], steps, drawn)[bad]
    return _log(made, rows, who, CALLERS)


def _decoded_per_s(made: Scene, rows: Matrix) -> float:
    """Events a second of reading them as JSON and nothing else: the least that any monitor does."""
    names = [c.name for c in made.victim.columns]
    some = [
        msgspec.json.encode({"principal": "c1", "features": dict(zip(names, r, strict=True))}) for r in rows.tolist()
    ]
    decode = msgspec.json.Decoder(dict[str, object]).decode
    began = time.process_time()
    for line in some:
        decode(line)
    return len(some) / (time.process_time() - began)


def _log(made: Scene, rows: Matrix, who: NDArray[np.int64], count: int) -> Log:
    v = made.victim
    when = START_US + np.arange(len(rows)) * SECOND_US // 10
    return Log(
        v,
        rows,
        np.round(v.answer(rows), 6),
        when,
        np.asarray(who, dtype=np.int64),
        tuple(f"c{i}" for i in range(count)),
    )


def _flood(
    made: Scene, watching: Watch, flood: int, rng: np.random.Generator
) -> tuple[dict[int, int], dict[int, float]]:
    """That many principals with three rows each, every one of them new: sizes of all state on the way."""
    rows = made.victim.pool[rng.choice(len(made.victim.pool), BLOCK)]
    base, each = _log(made, rows, np.arange(BLOCK) // 3, BLOCK // 3), BLOCK // 3
    whole, court = table(base), Court(watching)
    sizes: dict[int, int] = {}
    peaks: dict[int, float] = {}
    blocks = -(-flood // each)
    for k in range(blocks):
        when = base.time_us + k * BLOCK * SECOND_US // 10
        names = pa.array([f"f{k}-{i}" for i in range(each)], pa.string()).take(pa.array(base.who))
        block = whole.set_column(0, "event_time", pa.array(when)).set_column(1, "principal", names)
        for first in range(0, BLOCK, STRETCH):
            part = when[first : first + STRETCH]
            court.hear(Stretch(made.victim.name, int(part[0]), int(part[-1]), block.slice(first, STRETCH)))
        if k + 1 in {-(-blocks * i // 5) for i in range(1, 6)}:
            sizes[(k + 1) * each] = sum(len(s.to_bytes()) for s in court.states.values())
            peaks[(k + 1) * each] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return sizes, peaks


def text(c: Cost) -> str:
    """Lines for people."""
    parts = ", ".join(f"{n} {v:,.0f}" for n, v in c.parts.items())
    kinds = ", ".join(f"{n} {v:,.0f} ({v / c.decoded_per_s:.2f})" for n, v in c.kinds.items())
    return "\n".join(
        [
            f"cost ({c.features} features): {c.events_per_s:,.0f} events/s per core ({parts})",
            f"by traffic, and against reading the same events as JSON ({c.decoded_per_s:,.0f}/s): {kinds}",
            f"state per active principal: {c.bytes_per_principal / 1000:,.1f} kB with {CROWD:,} principals",
            "flood, principals -> state: " + ", ".join(f"{n:,}: {b / 1e6:,.0f} MB" for n, b in c.state_bytes.items()),
            "flood, principals -> peak memory: " + ", ".join(f"{n:,}: {b:,.0f} MB" for n, b in c.peak_mb.items()),
        ]
    )


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.attacks.cost", description=__doc__)
    p.add_argument("--rows", type=int, default=LONG, help="events of each kind of traffic")
    p.add_argument("--flood", type=int, default=FLOOD, help="principals of the flood")
    args = p.parse_args()
    began = time.process_time()
    print(text(cost(args.flood, args.rows)))
    print(f"{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
