"""How good a copy could be trained on the answers given: the truth that an exposure gauge has to predict.

The truth is a random forest trained on the rows that a client sent and the classes it was told, against the victim on
real rows that the client did not send (Cohen's kappa, so that a copy which only knows the base rate scores nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.actors import Stream
from benchmarks.attacks.judge import Log, Watch
from benchmarks.attacks.split import Split
from benchmarks.attacks.traffic import Scene, principals, together
from benchmarks.traffic.victim import dense

SIZES: Final = (100, 300, 1_000)
HELD_OUT: Final = 2_000
WORDS: Final = (
    "natural/0,natural/3,natural/4,what_if/0,segment/0,unmasked/knockoff_random,smote,in-distribution/,jbda/0"
)

Gauge = Callable[[Watch, Log], Mapping[str, float]]
"""Predicted kappa per principal at the end of a log, as the gauge of the detectors shows it."""


@dataclass(frozen=True)
class Copy:
    """One stream cut after n queries: kappa of the best copy, and what the gauge predicted (None: no gauge, refused)."""

    data: str
    actor: str
    n: int
    kappa: float
    predicted: float | None = None


def kappa(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Cohen's kappa of two labellings; 0 when chance explains everything.

    >>> kappa(np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1])), kappa(np.array([0, 0, 0, 0]), np.array([0, 1, 0, 1]))
    (1.0, 0.0)
    """
    k = int(max(a.max(), b.max())) + 1
    pa, pb = np.bincount(a, minlength=k) / len(a), np.bincount(b, minlength=k) / len(b)
    chance = float(pa @ pb)
    return 0.0 if chance >= 1 else float((np.mean(a == b) - chance) / (1 - chance))


def true_kappa(made: Scene, stream: Stream, n: int, rng: np.random.Generator) -> float:
    """Train the copy and ask it about rows that the client did not send."""
    from sklearn.ensemble import RandomForestClassifier

    v = made.victim
    prepare = dense(v.columns, made.reference.rows)
    told = np.argmax(stream.scores[:n], axis=1)
    sent = {r.tobytes() for r in stream.rows[:n]}
    picks = rng.permutation(len(v.pool))[: 2 * HELD_OUT]
    fresh = np.array([r for r in v.pool[picks] if r.tobytes() not in sent])[:HELD_OUT]
    answers = np.argmax(v.answer(fresh), axis=1)
    copy = RandomForestClassifier(60, min_samples_leaf=2, random_state=0).fit(prepare(stream.rows[:n]), told)
    return kappa(np.asarray(copy.predict(prepare(fresh)), dtype=np.int64), answers)


def copies(
    split: Split, made: Scene, watching: Watch | None = None, gauge: Gauge | None = None, sizes: Sequence[int] = SIZES
) -> Iterator[Copy]:
    """Every stream of one principal, cut at every size. A copy is compared when both the stream is as long."""
    for s in made.streams:
        if s.actor.principals > 1:
            continue
        for n in (n for n in sizes if n <= len(s.rows)):
            rng = np.random.default_rng([split.seed, 3, n])
            part = Stream(s.actor, s.rows[:n], s.scores[:n], s.attack[:n], s.who[:n])
            said = None
            if gauge is not None and watching is not None:
                said = gauge(watching, together(split, made, [part])[0]).get(principals(s.actor)[0])
            yield Copy(made.data, s.actor.name, n, round(true_kappa(made, part, n, rng), 3), said)


def table(found: Sequence[Copy]) -> str:
    """Per data set: how far predictions are from the truth, and the truth itself."""
    lines = [
        "| data set | streams | kappa of copies after 100 / 300 / 1,000 natural queries | largest error | within .1 |",
        "|---|---|---|---|---|",
    ]
    for data in dict.fromkeys(c.data for c in found):
        mine = [c for c in found if c.data == data]
        usual = [[c.kappa for c in mine if c.n == n and c.actor.startswith("natural/")] for n in SIZES]
        shown = " / ".join(f"{np.mean(k):.2f}" if k else "-" for k in usual)
        errors = [abs(c.predicted - c.kappa) for c in mine if c.predicted is not None]
        worst = f"{max(errors):.2f}" if errors else "-"
        share = f"{sum(e <= 0.1 for e in errors)} of {len(errors)}" if errors else "no gauge"
        lines.append(f"| {data} | {len(mine)} | {shown} | {worst} | {share} |")
    return "\n".join(lines)
