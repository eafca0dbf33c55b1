"""How good a copy could be trained on the answers given: what the exposure gauge says against the truth.

The truth are copies trained on the rows that a client sent and the classes it was told, compared with the victim on real
rows that the client did not send (Cohen's kappa: a copy that only knows the base rate scores nothing). *forest*: random
forests, as most thieves in the literature train; *best*: the best of them, gradient boosting and logistic regression.

Where answers are rare the kappa of one forest on few rows is mostly luck: on flights two forests that differ in nothing but
their seed are more than .1 apart in a third of the readings. So the truth is the mean of FORESTS seeds on HELD_OUT rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.attacks.actors import Stream
from benchmarks.attacks.judge import STRETCH, Watch, table, watch
from benchmarks.attacks.split import Split
from benchmarks.attacks.traffic import Scene, principals, together
from benchmarks.traffic.victim import dense
from detectors.base import Detection, State
from detectors.registry import REGISTRY
from monitor.service.windows import Stretch

DETECTOR: Final = "exposure"
HELD_OUT: Final = 8_000
FORESTS: Final = 4
LEAST: Final = 100  # distinct rows from which on readings are compared
WORDS: Final = (
    "natural/0,natural/3,natural/4,what_if/0,segment/0,one_class/0,retries/0,unmasked/knockoff_random,smote,"
    "in-distribution/,unmasked/jbda,valid/jbda,unmasked/adaptive"
)


@dataclass(frozen=True)
class Reading:
    """What the gauge said after so many queries, and what copies trained on them are worth."""

    data: str
    actor: str
    queries: int
    distinct: int
    said: float
    forest: float
    best: float


def kappa(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Cohen's kappa of two labellings; 0 when chance explains everything.

    >>> kappa(np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1])), kappa(np.array([0, 0, 0, 0]), np.array([0, 1, 0, 1]))
    (1.0, 0.0)
    """
    k = int(max(a.max(), b.max())) + 1
    pa, pb = np.bincount(a, minlength=k) / len(a), np.bincount(b, minlength=k) / len(b)
    chance = float(pa @ pb)
    return 0.0 if chance >= 1 else float((np.mean(a == b) - chance) / (1 - chance))


def _copies() -> dict[str, list[Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    return {
        "forest": [RandomForestClassifier(60, min_samples_leaf=2, random_state=i) for i in range(FORESTS)],
        "boosting": [HistGradientBoostingClassifier(max_iter=30, random_state=0)],
        "logistic": [LogisticRegression(max_iter=300)],
    }


def worth(made: Scene, stream: Stream, n: int, rng: np.random.Generator) -> dict[str, float]:
    """Train copies on the first n answers of a stream and ask them about rows that the client did not send."""
    v = made.victim
    prepare = dense(v.columns, made.reference.rows)
    told = np.argmax(stream.scores[:n], axis=1)
    sent = {r.tobytes() for r in stream.rows[:n]}
    picks = rng.permutation(len(v.pool))[: 2 * HELD_OUT]
    fresh = np.array([r for r in v.pool[picks] if r.tobytes() not in sent])[:HELD_OUT]
    if len(set(told.tolist())) < 2 or not len(fresh):
        return dict.fromkeys(_copies(), 0.0)
    answers, x, ask = np.argmax(v.answer(fresh), axis=1), prepare(stream.rows[:n]), prepare(fresh)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy need not converge to be worth something
        return {
            name: float(
                np.mean([kappa(np.asarray(c.fit(x, told).predict(ask), dtype=np.int64), answers) for c in copies])
            )
            for name, copies in _copies().items()
        }


def readings(split: Split, made: Scene) -> Iterator[Reading]:
    """Every reading of the gauge over the streams of one principal each; none when there is no gauge or it refuses."""
    if DETECTOR not in REGISTRY:
        return
    watching = watch(made.reference, {DETECTOR: REGISTRY[DETECTOR]()})
    streams = [s for s in made.streams if s.actor.principals == 1]
    if not streams or DETECTOR not in watching.detectors:
        return
    log, of = together(split, made, streams)
    by = {principals(s.actor)[0]: (i, s) for i, s in enumerate(streams)}
    whole = table(log)
    for d in _gauge(watching, made.victim.name, [whole.slice(a, STRETCH) for a in range(0, log.n, STRETCH)]):
        if d.n < LEAST:
            continue
        i, s = by[d.subject.id]
        n = int(np.searchsorted(np.sort(log.time_us[of == i]), d.window_us[1], side="right"))
        found = worth(made, s, n, np.random.default_rng([split.seed, 3, n]))
        said, best = float(d.evidence["kappa"]), max(found.values())
        yield Reading(made.data, s.actor.name, n, int(d.n), round(said, 3), round(found["forest"], 3), round(best, 3))


def _gauge(watching: Watch, model: str, pieces: Sequence[Any]) -> Iterator[Detection]:
    detector, cal = watching.detectors[DETECTOR]
    state: State | None = None
    for piece in pieces:
        when = np.asarray(piece["event_time"])
        measured = detector.measure(cal, state, Stretch(model, int(when.min()), int(when.max()), piece))
        state = measured.state
        yield from (d for d in measured.detections if "kappa" in d.evidence)


def within(found: Sequence[Reading], truth: str = "forest") -> tuple[int, int]:
    """Readings at most .1 away from the truth, and all."""
    return sum(abs(r.said - getattr(r, truth)) <= 0.1 for r in found), len(found)


def markdown(found: Sequence[Reading]) -> str:
    """Per data set: how far the gauge is from the truth."""
    columns = (
        "data set", "readings", "within .1 of a forest", "mean error", "mean absolute error", "largest error",
        "within .1 of the best copy", "largest",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for data in dict.fromkeys(r.data for r in found):
        mine = [r for r in found if r.data == data]
        errors = {t: np.array([r.said - getattr(r, t) for r in mine]) for t in ("forest", "best")}
        shown = {t: max(e.tolist(), key=abs) for t, e in errors.items()}
        lines.append(
            f"| {data} | {len(mine)} | {within(mine)[0] / len(mine):.0%} | {errors['forest'].mean():+.2f} | "
            f"{np.abs(errors['forest']).mean():.3f} | {shown['forest']:+.2f} | {within(mine, 'best')[0] / len(mine):.0%} | {shown['best']:+.2f} |"
        )
    return "\n".join(lines)
