"""Who sends queries to a victim: every attacker in every disguise, and honest clients of every kind.

An actor's stream depends on nothing but the split, the victim and the actor's own name, so adding actors changes none
of the others. `attack` marks the rows that belong to the attack; the rest is padding or honest history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.split import Split
from benchmarks.traffic.attacks import attack
from benchmarks.traffic.benign import benign, natural
from benchmarks.traffic.ranges import share, whole
from benchmarks.traffic.victim import Matrix, Victim
from detectors.base import Caller
from monitor.model import Family

Rng = np.random.Generator

ATTACK_ROWS: Final = 1_200
BENIGN_ROWS: Final = 1_000
BUDGET: Final = 500  # distinct rows that the declared thief may ask for

# What an analyst may rightly call the attack. Several where the queries themselves are the same: label-only membership
# is a search for the boundary, and a boundary search serves theft as well as evasion.
FAMILIES: Final[dict[str, frozenset[Family]]] = {
    "hop_skip_jump": frozenset({Family.EVASION}),
    "boundary": frozenset({Family.EVASION}),
    "zoo": frozenset({Family.EVASION, Family.INVERSION}),
    "label_only_membership": frozenset({Family.MEMBERSHIP, Family.EVASION}),
    "noise_membership": frozenset({Family.MEMBERSHIP}),
    "knockoff_random": frozenset({Family.EXTRACTION}),
    "copycat": frozenset({Family.EXTRACTION}),
    "line_search": frozenset({Family.EXTRACTION, Family.EVASION}),
    "adaptive_retraining": frozenset({Family.EXTRACTION}),
    "jbda": frozenset({Family.EXTRACTION}),
    "inversion": frozenset({Family.INVERSION}),
    "attribute_inference": frozenset({Family.INVERSION}),
    "smote": frozenset({Family.EXTRACTION}),
    "columns": frozenset({Family.EXTRACTION}),
    "knockoff_real": frozenset({Family.EXTRACTION}),
    "rule_based_membership": frozenset({Family.MEMBERSHIP}),
}
UNMASKED: Final = (
    "hop_skip_jump", "boundary", "zoo", "label_only_membership", "noise_membership", "knockoff_random", "copycat",
    "line_search", "adaptive_retraining", "jbda", "inversion",
)  # fmt: skip
SEARCHES: Final = ("hop_skip_jump", "boundary", "line_search", "inversion", "jbda", "noise_membership")
HARD: Final = (
    "segment", "one_class", "sorted", "batch", "probe", "load_test", "retries", "rescored", "gaps", "drifting", "cents", "units",
)  # fmt: skip
CHANGES: Final = ("segment", "one_class", "sorted", "batch", "gaps", "drifting", "cents")  # after natural use
TOOLS: Final = ("what_if", "what_if_many", "grid", "explainer", "explainer_columns", "shap", "ice")
PROFILES: Final = {
    "what_if": "what_if", "what_if_many": "what_if", "grid": "what_if", "explainer": "explainer", "shap": "explainer",
    "ice": "explainer", "explainer_columns": "explainer", "batch": "batch", "probe": "health_probe", "load_test": "load_test", "segment": "segment",
}  # fmt: skip


@dataclass(frozen=True)
class Actor:
    """One client, or one attacker behind several principals. group: the row of the table it counts in.

    declared: what the directory of principals says about it. pace: fast, human, nightly, steady or slow (30 days).
    """

    name: str
    group: str
    kind: str
    hostile: bool
    make: Callable[[Split, Victim, Rng], tuple[Matrix, NDArray[np.bool_]]]
    principals: int = 1
    declared: Caller | None = None
    pace: str = "human"

    @property
    def families(self) -> frozenset[Family]:
        return FAMILIES.get(self.kind, frozenset())


@dataclass(frozen=True)
class Stream:
    """What an actor sent: rows, the victim's answers, which rows belong to the attack, and which principal sent each."""

    actor: Actor
    rows: Matrix
    scores: Matrix
    attack: NDArray[np.bool_]
    who: NDArray[np.int64]


def _all(rows: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
    return rows, np.ones(len(rows), dtype=bool)


def _plain(kind: str, mode: str = "free") -> Callable[[Split, Victim, Rng], Any]:
    return lambda split, v, rng: _all(attack(v, kind, ATTACK_ROWS, rng, mode=mode))


def _interleaved(kind: str, mode: str) -> Callable[[Split, Victim, Rng], Any]:
    """Several targets at once, in turns, every query within what real rows look like."""

    def make(split: Split, v: Victim, rng: Rng) -> Any:
        k = whole(split.ranges, "targets", rng)
        parts = [attack(v, kind, -(-ATTACK_ROWS // k), child, mode=mode) for child in rng.spawn(k)]
        return _all(np.stack(parts, axis=1).reshape(-1, parts[0].shape[1])[:ATTACK_ROWS])

    return make


def _noisy(kind: str) -> Callable[[Split, Victim, Rng], Any]:
    return lambda split, v, rng: _all(
        attack(v, kind, ATTACK_ROWS, rng, mode="valid", noise=share(split.ranges, "noise", rng))
    )


def _padded(kind: str, part: float) -> Callable[[Split, Victim, Rng], Any]:
    """Attack queries at random places among natural rows, `part` of all; 2,000 in all."""

    def make(split: Split, v: Victim, rng: Rng) -> Any:
        n = 2_000
        hostile = rng.random(n) < part
        hostile[0] = True
        rows = natural(v, n, rng)
        rows[hostile] = attack(v, kind, int(hostile.sum()), rng)
        return rows, hostile

    return make


def _padded_valid(kind: str, part: float) -> Callable[[Split, Victim, Rng], Any]:
    """The same with attack queries that keep to valid values."""

    def make(split: Split, v: Victim, rng: Rng) -> Any:
        n = 2_000
        hostile = rng.random(n) < part
        hostile[0] = True
        rows = natural(v, n, rng)
        rows[hostile] = attack(v, kind, int(hostile.sum()), rng, mode="valid")
        return rows, hostile

    return make


def _late(kind: str) -> Callable[[Split, Victim, Rng], Any]:
    """Honest use first, then the attack under the same name."""

    def make(split: Split, v: Victim, rng: Rng) -> Any:
        n = whole(split.ranges, "history", rng)
        rows = np.concatenate([natural(v, n, rng), attack(v, kind, 600, rng)])
        return rows, np.arange(len(rows)) >= n

    return make


def _turned(kind: str, part: float) -> Callable[[Split, Victim, Rng], Any]:
    """Long honest use, then attack queries as a share of it."""

    def make(split: Split, v: Victim, rng: Rng) -> Any:
        past = natural(v, whole(split.ranges, "past", rng), rng)
        rows, hostile = _padded(kind, part)(split, v, rng)
        return np.concatenate([past, rows]), np.concatenate([np.zeros(len(past), dtype=bool), hostile])

    return make


def _changed(kind: str) -> Callable[[Split, Victim, Rng], Any]:
    """Long honest use, then honest use of another kind."""

    def make(split: Split, v: Victim, rng: Rng) -> Any:
        past = natural(v, whole(split.ranges, "past", rng), rng)
        rows = np.concatenate([past, benign(v, kind, BENIGN_ROWS, rng, split.ranges)])
        return rows, np.zeros(len(rows), dtype=bool)

    return make


def _caller(**said: Any) -> Caller:
    return Caller(kind="service", owner="analytics", **said)


def attackers(round_: int) -> Iterator[Actor]:
    """One of every attack in every disguise; `round_` tells repetitions apart."""

    def actor(group: str, kind: str, make: Any, **options: Any) -> Actor:
        return Actor(f"{group}/{kind}/{round_}", group, kind, True, make, **({"pace": "fast"} | options))

    for kind in UNMASKED:
        yield actor("unmasked", kind, _plain(kind))
    for kind in (*SEARCHES, "label_only_membership", "zoo", "adaptive_retraining", "knockoff_random"):
        yield actor("valid", kind, _interleaved(kind, "valid"))
    for kind in SEARCHES:
        yield actor("snap", kind, _interleaved(kind, "snap"))
    for kind in ("hop_skip_jump", "line_search", "jbda", "inversion"):
        yield actor("noise", kind, _noisy(kind))
    for part in (0.2, 0.1, 0.05):
        for kind in ("hop_skip_jump", "line_search", "knockoff_random", "inversion"):
            yield actor(f"padded-{part:.0%}", kind, _padded(kind, part))
    for kind in ("hop_skip_jump", "line_search", "inversion"):
        yield actor("padded-10%-valid", kind, _padded_valid(kind, 0.1))
    for k in (5, 20):
        for kind in ("hop_skip_jump", "jbda", "copycat"):
            yield actor(f"sybil-{k}", kind, _plain(kind), principals=k)
        for kind in ("hop_skip_jump", "line_search"):
            yield actor(f"sybil-{k}-valid", kind, _interleaved(kind, "valid"), principals=k)
    for kind in ("hop_skip_jump", "inversion", "adaptive_retraining"):
        yield actor("slow-30d", kind, _plain(kind), pace="slow")
    for kind in ("hop_skip_jump", "knockoff_random", "line_search"):
        yield actor("late", kind, _late(kind))
    for part in (0.1, 0.05):
        for kind in ("hop_skip_jump", "line_search", "inversion"):
            yield actor(f"late-{part:.0%}", kind, _turned(kind, part))
    yield actor("attribute", "attribute_inference", _plain("attribute_inference", "valid"))
    yield actor("smote", "smote", _plain("smote", "valid"))
    yield actor("columns", "columns", _plain("columns", "snap"))
    yield actor("in-distribution", "knockoff_real", _plain("knockoff_real", "snap"))
    yield actor(
        "in-distribution (budget)",
        "knockoff_real",
        _plain("knockoff_real", "snap"),
        declared=_caller(distinct_rows=BUDGET),
    )
    yield actor("single-shot", "rule_based_membership", _plain("rule_based_membership", "snap"))


PACES: Final = {
    "probe": "steady",
    "load_test": "fast",
    "batch": "nightly",
    "explainer": "fast",
    "explainer_columns": "fast",
    "shap": "fast",
    "ice": "fast",
}


def _usual(kind: str) -> Callable[[Split, Victim, Rng], Any]:
    def make(split: Split, v: Victim, rng: Rng) -> Any:
        rows = benign(v, kind, BENIGN_ROWS, rng, split.ranges)
        return rows, np.zeros(len(rows), dtype=bool)

    return make


def honest(split: Split, data: str) -> Iterator[Actor]:
    """Natural principals and `split.hard` of every hard kind; the tools among them both undeclared and declared."""

    for i in range(2 * bool(split.natural.get(data))):
        generous = _caller(distinct_rows=2 * BENIGN_ROWS)
        yield Actor(f"budget-kept/{i}", "natural (budget kept)", "natural", False, _usual("natural"), declared=generous)
    for i in range(split.natural.get(data, 0)):
        yield Actor(f"natural/{i}", "natural", "natural", False, _usual("natural"))
    for kind in CHANGES:
        yield Actor(f"changed/{kind}", "changed", kind, False, _changed(kind), pace=PACES.get(kind, "human"))
    for kind in (*HARD, *TOOLS):
        for i in range(split.hard):
            one = Actor(f"{kind}/{i}", kind, kind, False, _usual(kind), pace=PACES.get(kind, "human"))
            yield one
            if kind in TOOLS:
                group = f"{kind} (declared)"
                yield replace(one, name=f"{kind}-declared/{i}", group=group, declared=_caller(profile=PROFILES[kind]))


def actors(split: Split, data: str) -> list[Actor]:
    """Everybody who calls this victim."""
    return [*[a for r in range(split.attackers) for a in attackers(r)], *honest(split, data)]


def stream(split: Split, data: str, victim: Victim, actor: Actor) -> Stream:
    """The actor's queries with the victim's answers."""
    rng = np.random.default_rng([split.seed, crc32(f"{data}/{actor.name.replace('-declared', '')}".encode())])
    rows, hostile = actor.make(split, victim, rng)
    return answered(actor, victim, rows, hostile)


def answered(actor: Actor, victim: Victim, rows: Matrix, hostile: NDArray[np.bool_]) -> Stream:
    rows = victim.sent(rows)
    scores = np.round(victim.answer(rows), 6)
    return Stream(actor, rows, scores, hostile, np.arange(len(rows), dtype=np.int64) % actor.principals)
