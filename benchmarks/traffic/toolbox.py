"""Attacks by the adversarial-robustness-toolbox (ART), run against an Oracle until its budget is spent."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.traffic.oracle import Oracle, Spent
from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator
Run = Callable[[Oracle, Rng], None]


@contextlib.contextmanager
def toolbox(rng: Rng) -> Iterator[None]:
    """ART draws from numpy's global generator and from unseeded ones: seed them from ours, put all back afterwards."""
    before, unseeded = np.random.get_state(), np.random.RandomState  # noqa: NPY002 -- the toolbox knows no other

    class Seeded(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(int(rng.integers(2**31)) if seed is None else seed)

    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
    np.random.RandomState = Seeded  # type: ignore[misc]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.RandomState = unseeded  # type: ignore[misc]
        np.random.set_state(before)  # noqa: NPY002


def _classifier(oracle: Oracle) -> Any:
    from art.estimators.classification import BlackBoxClassifier

    shape, classes = (oracle.d,), len(oracle.victim.classes)
    return BlackBoxClassifier(oracle.predict, shape, classes, clip_values=(0.0, 1.0))


def evasion(make: Callable[[Any], Any]) -> Run:
    """One target after the other."""

    def run(oracle: Oracle, rng: Rng) -> None:
        with toolbox(rng):
            tool = make(_classifier(oracle))
            for x in oracle.targets(rng):
                tool.generate(x=x)

    return run


def hop_skip_jump(classifier: Any) -> Any:
    from art.attacks.evasion import HopSkipJump

    return HopSkipJump(classifier, max_iter=5, max_eval=100, init_eval=10, init_size=100, verbose=False)


def boundary(classifier: Any) -> Any:
    from art.attacks.evasion import BoundaryAttack

    return BoundaryAttack(
        classifier, targeted=False, max_iter=40, num_trial=10, sample_size=10, init_size=100, verbose=False
    )


def zoo(classifier: Any) -> Any:
    from art.attacks.evasion import ZooAttack

    return ZooAttack(
        classifier, use_resize=False, use_importance=False, nb_parallel=1, max_iter=40, variable_h=0.05, verbose=False
    )


def label_only_membership(oracle: Oracle, rng: Rng) -> None:
    """Choquette-Choo et al. 2021, Li and Zhang 2021: how far is a training row from the boundary? Labels only."""
    v = oracle.victim
    rows = np.where(np.isnan(v.training), np.nanmedian(v.training, axis=0), v.training)
    with toolbox(rng):
        from art.attacks.inference.membership_inference import LabelOnlyDecisionBoundary

        tool = LabelOnlyDecisionBoundary(_classifier(oracle), distance_threshold_tau=0.1)
        for i in rng.permutation(len(rows)):
            x, y = oracle.unit(rows[i : i + 1]), v.training_labels[i : i + 1]
            tool.infer(x, y, max_iter=3, max_eval=50, init_eval=10, init_size=100, verbose=False)


def rule_based_membership(oracle: Oracle, rng: Rng) -> None:
    """Yeom et al. 2018 (ART's MembershipInferenceBlackBoxRuleBased): one query per suspected training row."""
    v = oracle.victim
    with toolbox(rng):
        from art.attacks.inference.membership_inference import MembershipInferenceBlackBoxRuleBased

        picks = rng.permutation(len(v.training))[: oracle.budget + 1]
        rows = np.where(np.isnan(v.training), np.nanmedian(v.training, axis=0), v.training)[picks]
        MembershipInferenceBlackBoxRuleBased(_classifier(oracle)).infer(oracle.unit(rows), v.training_labels[picks])


def attribute_inference(oracle: Oracle, rng: Rng) -> None:
    """Fredrikson et al. 2014 as a black box: every value of one unknown field is tried for case after case.

    ART's AttributeInferenceBlackBox trains on rows the attacker has and asks the victim once per row, which no log can
    tell from ordinary use; this is the older search, which does show.
    """
    field = int(rng.integers(oracle.d))
    known = oracle.victim.occurring[field]
    for x in oracle.targets(rng):
        values = rng.choice(known, min(len(known), 20), replace=False)
        trial = np.repeat(x, len(values), axis=0)
        low, high = oracle.victim.low[field], oracle.victim.high[field]
        trial[:, field] = (values - low) / (high - low if high > low else 1.0)
        oracle.predict(trial)


def steal(oracle: Oracle, rng: Rng, *, tool: str = "knockoff", own_rows: bool = False) -> Any:
    """Model theft by ART's KnockoffNets or CopycatCNN; returns the stolen copy (answers `predict(unit rows)`).

    own_rows: the attacker has real rows (published work shows that no test on the queries sees him); else he asks
    about rows drawn evenly from the ranges of the features.
    """
    v, n = oracle.victim, oracle.budget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.extraction import CopycatCNN, KnockoffNets
        from art.estimators.classification.scikitlearn import ScikitlearnRandomForestClassifier
    from sklearn.ensemble import RandomForestClassifier

    class Thief(ScikitlearnRandomForestClassifier):  # type: ignore[misc]
        """ART hands neural-network arguments to every copy; a forest has no use for them."""

        def fit(self, x: Any, y: Any, **_: Any) -> None:
            super().fit(x, y)

    asked = oracle.unit(v.complete()[rng.choice(len(v.pool), n, replace=n > len(v.pool))])
    if not own_rows:
        asked = rng.random((n, oracle.d)).astype(np.float32)
    forest = RandomForestClassifier(60, min_samples_leaf=2, random_state=int(rng.integers(2**31)))
    # The toolbox refuses an untrained copy, so the thief starts from two made-up answers.
    forest.fit(asked[: len(v.classes)], np.arange(len(v.classes)))
    thief = Thief(forest, clip_values=(0.0, 1.0))
    with toolbox(rng):
        kind = {"knockoff": KnockoffNets, "copycat": CopycatCNN}[tool]
        options = {"sampling_strategy": "random", "verbose": False} if tool == "knockoff" else {}
        theft = kind(_classifier(oracle), batch_size_fit=n, batch_size_query=64, nb_epochs=1, nb_stolen=n, **options)
        return theft.extract(asked, thieved_classifier=thief)


def extraction(tool: str, own_rows: bool) -> Run:
    def run(oracle: Oracle, rng: Rng) -> None:
        try:
            steal(oracle, rng, tool=tool, own_rows=own_rows)
        except ValueError:  # all answers were one class, so no copy can be trained; the queries were sent all the same
            if oracle.left:
                raise

    return run


def extract(victim: Victim, n: int, rng: Rng, *, tool: str = "knockoff", own_rows: bool = False) -> tuple[Matrix, Any]:
    """The n queries of a theft and the stolen copy."""
    oracle = Oracle(victim, n)
    with contextlib.suppress(Spent):
        copy = steal(oracle, rng, tool=tool, own_rows=own_rows)
    return oracle.sent(), copy
