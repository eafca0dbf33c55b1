"""Attacks as the rows that the attacker sends: classics written here, and those of `toolbox`.

Every attack really runs against the victim's model through an Oracle that stops it after n queries. The attacker works
in the unit cube (he knows each feature's range) and can only send what the API takes. `mode` and `noise` say how he
hides (benchmarks.traffic.oracle).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.traffic import toolbox
from benchmarks.traffic.oracle import Oracle, Spent
from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator


def line_search(oracle: Oracle, rng: Rng) -> None:
    """Lowd and Meek 2005, Tramèr et al. 2016: bisect between rows of two classes to points on the boundary."""
    targets = oracle.targets(rng)
    a: NDArray[Any]
    b: NDArray[Any]
    while True:
        a, b = next(targets), next(targets)
        classes = oracle.labels(np.concatenate([a, b]))
        for _ in range(20 if classes[0] != classes[1] else 0):
            middle = (a + b) / 2
            same = oracle.labels(middle)[0] == classes[0]
            a, b = (middle, b) if same else (a, middle)


def adaptive_retraining(oracle: Oracle, rng: Rng) -> None:
    """Tramèr et al. 2016, section 6.3: retrain a copy on the answers and ask where it is least sure. Starts at random."""
    from sklearn.linear_model import LogisticRegression

    asked: NDArray[Any] = rng.random((20, oracle.d)).astype(np.float32)
    answers = oracle.labels(asked)
    while True:
        candidates = rng.random((1000, oracle.d)).astype(np.float32)
        if len(set(answers.tolist())) > 1:
            sure = LogisticRegression(max_iter=200).fit(asked, answers).predict_proba(candidates).max(axis=1)
            candidates = candidates[np.argsort(sure, kind="stable")]
        fresh = candidates[:20]
        answers = np.concatenate([answers, oracle.labels(fresh)])
        asked = np.concatenate([asked, fresh])


def jbda(oracle: Oracle, rng: Rng) -> None:
    """Papernot et al. 2017: grow a set of rows by steps along the substitute's gradient, here a logistic regression's."""
    from sklearn.linear_model import LogisticRegression

    targets = oracle.targets(rng)
    rows = np.concatenate([next(targets) for _ in range(20)])
    answers = oracle.labels(rows)
    while True:
        step = 0.1
        if len(set(answers.tolist())) > 1:
            substitute = LogisticRegression(max_iter=200).fit(rows, answers)
            gradient = substitute.coef_[np.minimum(answers, len(substitute.coef_) - 1)]
        else:
            gradient = rng.normal(size=rows.shape)
        fresh = np.clip(rows + step * np.sign(gradient) * rng.choice([-1.0, 1.0], (len(rows), 1)), 0, 1)
        answers = np.concatenate([answers, oracle.labels(fresh)])
        rows = np.concatenate([rows, fresh.astype(np.float32)])


def inversion(oracle: Oracle, rng: Rng) -> None:
    """Fredrikson et al. 2015 as a black box: climb the confidence of one class by small changes, restart when stuck."""
    while True:
        goal = int(rng.integers(len(oracle.victim.classes)))
        best, best_score, stuck = rng.random((1, oracle.d)), -1.0, 0
        while stuck < 60:
            change = np.where(rng.random((1, oracle.d)) < 0.2, rng.normal(0, 0.15, (1, oracle.d)), 0)
            trial = np.clip(best + change, 0, 1)
            score = float(oracle.predict(trial)[0, goal])
            best, best_score, stuck = (trial, score, 0) if score > best_score else (best, best_score, stuck + 1)


def noise_membership(oracle: Oracle, rng: Rng) -> None:
    """Choquette-Choo et al. 2021: how steady is the answer to noisy copies of a suspected training row?"""
    v = oracle.victim
    rows = np.where(np.isnan(v.training), np.nanmedian(v.training, axis=0), v.training)
    spread = np.nanstd(oracle.unit(rows), axis=0)
    copies = int(rng.integers(15, 60))
    for i in rng.permutation(len(rows)):
        x = oracle.unit(rows[i : i + 1])
        noise = rng.normal(0, 0.2, (copies, oracle.d)) * spread
        oracle.predict(np.clip(np.concatenate([x, x + noise]), 0, 1))


def smote(oracle: Oracle, rng: Rng) -> None:
    """Extraction with made-up rows that look real: points between a real row and one of its neighbours."""
    cases = oracle.unit(oracle.victim.complete()[rng.permutation(len(oracle.victim.pool))[:2000]])
    while True:
        i = int(rng.integers(len(cases)))
        near = np.argsort(((cases - cases[i]) ** 2).sum(axis=1), kind="stable")[1:6]
        to = cases[int(rng.choice(near))]
        words = np.array([bool(c.categories) for c in oracle.victim.columns])
        share = rng.random(oracle.d) if rng.random() < 0.5 else np.full(oracle.d, rng.random())
        made = cases[i] + share * (to - cases[i])
        made[words] = np.where(rng.random(int(words.sum())) < 0.5, cases[i][words], to[words])
        oracle.predict(made[None, :])


def columns(oracle: Oracle, rng: Rng) -> None:
    """Extraction with rows that draw every column by itself from values that occur: whoever knows what each field may
    hold, but not what goes together.
    """
    known = oracle.unit(oracle.victim.complete())
    while True:
        oracle.predict(np.stack([rng.choice(known[:, j], 20) for j in range(oracle.d)], axis=1))


ATTACKS: Final[dict[str, Callable[[Oracle, Rng], None]]] = {
    "hop_skip_jump": toolbox.evasion(toolbox.hop_skip_jump),
    "boundary": toolbox.evasion(toolbox.boundary),
    "zoo": toolbox.evasion(toolbox.zoo),
    "label_only_membership": toolbox.label_only_membership,
    "rule_based_membership": toolbox.rule_based_membership,
    "attribute_inference": toolbox.attribute_inference,
    "knockoff_random": toolbox.extraction("knockoff", own_rows=False),
    "knockoff_real": toolbox.extraction("knockoff", own_rows=True),
    "copycat": toolbox.extraction("copycat", own_rows=False),
    "line_search": line_search,
    "adaptive_retraining": adaptive_retraining,
    "jbda": jbda,
    "inversion": inversion,
    "noise_membership": noise_membership,
    "smote": smote,
    "columns": columns,
}


def attack(victim: Victim, kind: str, n: int, rng: Rng, *, mode: str = "free", noise: float = 0.0) -> Matrix:
    """The first n rows that an attack of this kind sends; it starts again should it end before."""
    oracle = Oracle(victim, n, mode=mode, noise=noise, rng=rng)
    with contextlib.suppress(Spent):
        while oracle.left:
            ATTACKS[kind](oracle, rng)
    return oracle.sent()
