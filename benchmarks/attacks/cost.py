"""What per-principal detection costs: events per second and core, bytes per active principal, memory under a flood."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.attacks.judge import Court, Log, Watch, judge, table, watch
from benchmarks.attacks.split import DESIGN
from benchmarks.attacks.traffic import START_US, Scene, scene
from benchmarks.traffic.victim import Matrix
from monitor.model import SECOND_US
from monitor.service.windows import Stretch

DATA: Final = "flights"
LONG: Final = 200_000
CROWD: Final = 2_000  # active principals whose state is weighed
FLOOD: Final = 1_000_000
BLOCK: Final = 30_000


@dataclass(frozen=True)
class Cost:
    """events_per_s: natural rows of 30 principals, all detectors and fuse(). state_bytes: by principals seen so far."""

    features: int
    events_per_s: float
    parts: dict[str, float]
    bytes_per_principal: float
    state_bytes: dict[int, int]
    peak_mb: dict[int, float]


def cost(flood: int = FLOOD) -> Cost:
    """Measure on the widest large design victim; about two minutes with the whole flood."""
    made = scene(DESIGN, DATA, "nobody")
    watching, rng = watch(made.reference), np.random.default_rng(5)
    rows = made.victim.pool[rng.choice(len(made.victim.pool), LONG)]
    judged = judge(watching, _log(made, rows, rng.integers(30, size=LONG), 30))
    seconds = sum(judged.seconds.values())
    crowd = judge(watching, _log(made, rows, np.arange(LONG) % CROWD, CROWD))
    size = sum(len(s.to_bytes()) for s in crowd.states.values())
    states, peaks = _flood(made, watching, flood, rng)
    parts = {name: LONG / s for name, s in judged.seconds.items() if s}
    return Cost(len(made.victim.columns), LONG / seconds, parts, size / CROWD, states, peaks)


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
        court.hear(Stretch(made.victim.name, int(when[0]), int(when[-1]), block))
        if k + 1 in {-(-blocks * i // 5) for i in range(1, 6)}:
            sizes[(k + 1) * each] = sum(len(s.to_bytes()) for s in court.states.values())
            peaks[(k + 1) * each] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return sizes, peaks


def text(c: Cost) -> str:
    """Lines for people."""
    parts = ", ".join(f"{n} {v:,.0f}" for n, v in c.parts.items())
    return "\n".join(
        [
            f"cost ({c.features} features): {c.events_per_s:,.0f} events/s per core ({parts})",
            f"state per active principal: {c.bytes_per_principal / 1000:,.1f} kB with {CROWD:,} principals",
            "flood, principals -> state: " + ", ".join(f"{n:,}: {b / 1e6:,.0f} MB" for n, b in c.state_bytes.items()),
            "flood, principals -> peak memory: " + ", ".join(f"{n:,}: {b:,.0f} MB" for n, b in c.peak_mb.items()),
        ]
    )


def main() -> None:
    began = time.perf_counter()
    print(text(cost()))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
