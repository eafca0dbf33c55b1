"""Attacks by the adversarial-robustness-toolbox (ART) and classics, as the rows that the attacker sends.

Every attack really runs against the victim's model through a logging wrapper that stops it after n queries. The attacker
works in the unit cube (he knows each feature's range) and can only send what the API takes: known categories, and
numbers. Attacks named `*_valid` also round whole numbers and stay in the range of real rows, which hides them from
schema checks.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator


class _Spent(Exception):
    """The attacker's budget of queries is used up."""


class Oracle:
    """The victim as the attacker sees it: unit-cube rows in, probabilities out; records what was sent."""

    def __init__(self, victim: Victim, budget: int, *, valid: bool = False) -> None:
        self.victim, self.budget, self._valid = victim, budget, valid
        self._span = np.where(victim.high > victim.low, victim.high - victim.low, 1.0)
        self._sent: list[Matrix] = []
        self._n = 0

    def predict(self, unit: NDArray[Any]) -> Matrix:
        """Answer; past the budget, raise after the last row that still fits."""
        rows = self.victim.low + np.asarray(unit, dtype=np.float64).reshape(len(unit), -1) * self._span
        rows = self.victim.valid(rows) if self._valid else self.victim.sent(rows)
        room = self.budget - self._n
        self._sent.append(rows[:room])
        self._n += len(rows[:room])
        if len(rows) > room or (room == 0):
            raise _Spent
        return self.victim.answer(rows)

    def unit(self, rows: Matrix) -> NDArray[np.float32]:
        """Real rows in the attacker's coordinates."""
        return ((rows - self.victim.low) / self._span).astype(np.float32)

    def sent(self) -> Matrix:
        """All rows sent so far."""
        return np.concatenate(self._sent) if self._sent else np.empty((0, len(self.victim.columns)))

    def targets(self, rng: Rng) -> Iterator[NDArray[np.float32]]:
        """One real case after the other, as an array of one row."""
        cases = self.victim.complete()
        while True:
            yield self.unit(cases[rng.integers(len(cases), size=1)])


@contextlib.contextmanager
def _toolbox(rng: Rng) -> Iterator[None]:
    """ART draws from numpy's global generator and from unseeded ones: seed them from ours, put all back afterwards."""
    before, unseeded = np.random.get_state(), np.random.RandomState  # noqa: NPY002 -- the toolbox knows no other

    class Seeded(np.random.RandomState):
        def __init__(self, seed: Any = None) -> None:
            super().__init__(int(rng.integers(2**31)) if seed is None else seed)

    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
    np.random.RandomState = Seeded  # type: ignore[misc]
    try:
        with warnings.catch_warnings(), contextlib.suppress(_Spent):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.RandomState = unseeded  # type: ignore[misc]
        np.random.set_state(before)  # noqa: NPY002


def _classifier(oracle: Oracle) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.estimators.classification import BlackBoxClassifier
    shape, classes = (len(oracle.victim.columns),), len(oracle.victim.classes)
    return BlackBoxClassifier(oracle.predict, shape, classes, clip_values=(0.0, 1.0))


def _evasion(make: Callable[[Any], Any]) -> Callable[[Victim, int, Rng], Matrix]:
    """One target after the other until the budget is spent."""

    def run(victim: Victim, n: int, rng: Rng, *, valid: bool = False) -> Matrix:
        oracle = Oracle(victim, n, valid=valid)
        with _toolbox(rng):
            tool = make(_classifier(oracle))
            for x in oracle.targets(rng):
                tool.generate(x=x)
        return oracle.sent()

    return run


def _hop_skip_jump(classifier: Any) -> Any:
    from art.attacks.evasion import HopSkipJump

    return HopSkipJump(classifier, max_iter=5, max_eval=100, init_eval=10, init_size=100, verbose=False)


def _boundary(classifier: Any) -> Any:
    from art.attacks.evasion import BoundaryAttack

    return BoundaryAttack(
        classifier, targeted=False, max_iter=40, num_trial=10, sample_size=10, init_size=100, verbose=False
    )


def _zoo(classifier: Any) -> Any:
    from art.attacks.evasion import ZooAttack

    return ZooAttack(
        classifier, use_resize=False, use_importance=False, nb_parallel=1, max_iter=40, variable_h=0.05, verbose=False
    )


def label_only_membership(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Choquette-Choo et al. 2021, Li and Zhang 2021: how far is a training row from the boundary? Labels only."""
    oracle = Oracle(victim, n)
    rows = np.where(np.isnan(victim.training), np.nanmedian(victim.training, axis=0), victim.training)
    with _toolbox(rng):
        from art.attacks.inference.membership_inference import LabelOnlyDecisionBoundary

        tool = LabelOnlyDecisionBoundary(_classifier(oracle), distance_threshold_tau=0.1)
        for i in rng.permutation(len(rows)):
            x, y = oracle.unit(rows[i : i + 1]), victim.training_labels[i : i + 1]
            tool.infer(x, y, max_iter=3, max_eval=50, init_eval=10, init_size=100, verbose=False)
    return oracle.sent()


def extract(victim: Victim, n: int, rng: Rng, *, tool: str = "knockoff", own_rows: bool = False) -> tuple[Matrix, Any]:
    """Model theft by ART's KnockoffNets or CopycatCNN: the queries, and the stolen copy (answers `predict(unit rows)`).

    own_rows: the attacker has real rows (published work shows that no test on the queries sees him); else he asks
    about rows drawn evenly from the ranges of the features.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.extraction import CopycatCNN, KnockoffNets
        from art.estimators.classification.scikitlearn import ScikitlearnRandomForestClassifier
    from sklearn.ensemble import RandomForestClassifier

    class Thief(ScikitlearnRandomForestClassifier):  # type: ignore[misc]
        """ART hands neural-network arguments to every copy; a forest has no use for them."""

        def fit(self, x: Any, y: Any, **_: Any) -> None:
            super().fit(x, y)

    oracle = Oracle(victim, n)
    d = len(victim.columns)
    asked = oracle.unit(victim.complete()[rng.choice(len(victim.pool), n, replace=n > len(victim.pool))])
    if not own_rows:
        asked = rng.random((n, d)).astype(np.float32)
    forest = RandomForestClassifier(60, min_samples_leaf=2, random_state=int(rng.integers(2**31)))
    # The toolbox refuses an untrained copy, so the thief starts from two made-up answers.
    forest.fit(asked[: len(victim.classes)], np.arange(len(victim.classes)))
    thief = Thief(forest, clip_values=(0.0, 1.0))
    with _toolbox(rng):
        kind = {"knockoff": KnockoffNets, "copycat": CopycatCNN}[tool]
        options = {"sampling_strategy": "random", "verbose": False} if tool == "knockoff" else {}
        theft = kind(_classifier(oracle), batch_size_fit=n, batch_size_query=64, nb_epochs=1, nb_stolen=n, **options)
        thief = theft.extract(asked, thieved_classifier=thief)
    return oracle.sent(), thief


def _extraction(tool: str, own_rows: bool) -> Callable[[Victim, int, Rng], Matrix]:
    def run(victim: Victim, n: int, rng: Rng) -> Matrix:
        return extract(victim, n, rng, tool=tool, own_rows=own_rows)[0]

    return run


def line_search(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Lowd and Meek 2005, Tramèr et al. 2016: bisect between rows of two classes to points on the boundary."""
    oracle = Oracle(victim, n)
    targets = oracle.targets(rng)
    a: NDArray[Any]
    b: NDArray[Any]
    with contextlib.suppress(_Spent):
        while True:
            a, b = next(targets), next(targets)
            classes = oracle.predict(np.concatenate([a, b])).argmax(axis=1)
            for _ in range(20 if classes[0] != classes[1] else 0):
                middle = (a + b) / 2
                same = oracle.predict(middle).argmax(axis=1)[0] == classes[0]
                a, b = (middle, b) if same else (a, middle)
    return oracle.sent()


def jbda(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Papernot et al. 2017: grow a set of rows by steps along the substitute's gradient, here a logistic regression's."""
    from sklearn.linear_model import LogisticRegression

    oracle = Oracle(victim, n)
    targets = oracle.targets(rng)
    rows = np.concatenate([next(targets) for _ in range(20)])
    with contextlib.suppress(_Spent):
        answers = oracle.predict(rows).argmax(axis=1)
        while True:
            step = 0.1
            if len(set(answers.tolist())) > 1:
                substitute = LogisticRegression(max_iter=200).fit(rows, answers)
                gradient = substitute.coef_[np.minimum(answers, len(substitute.coef_) - 1)]
            else:
                gradient = rng.normal(size=rows.shape)
            fresh = np.clip(rows + step * np.sign(gradient) * rng.choice([-1.0, 1.0], (len(rows), 1)), 0, 1)
            answers = np.concatenate([answers, oracle.predict(fresh).argmax(axis=1)])
            rows = np.concatenate([rows, fresh.astype(np.float32)])
    return oracle.sent()


def inversion(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Fredrikson et al. 2015 as a black box: climb the confidence of one class by small changes, restart when stuck."""
    oracle = Oracle(victim, n)
    d = len(victim.columns)
    with contextlib.suppress(_Spent):
        while True:
            goal = int(rng.integers(len(victim.classes)))
            best, best_score, stuck = rng.random((1, d)), -1.0, 0
            while stuck < 60:
                change = np.where(rng.random((1, d)) < 0.2, rng.normal(0, 0.15, (1, d)), 0)
                trial = np.clip(best + change, 0, 1)
                score = float(oracle.predict(trial)[0, goal])
                best, best_score, stuck = (trial, score, 0) if score > best_score else (best, best_score, stuck + 1)
    return oracle.sent()


_hsj = _evasion(_hop_skip_jump)

ATTACKS: Final[dict[str, Callable[[Victim, int, Rng], Matrix]]] = {
    "hop_skip_jump": _hsj,
    "hop_skip_jump_valid": lambda victim, n, rng: _hsj(victim, n, rng, valid=True),  # type: ignore[call-arg]
    "boundary": _evasion(_boundary),
    "zoo": _evasion(_zoo),
    "label_only_membership": label_only_membership,
    "knockoff_random": _extraction("knockoff", own_rows=False),
    "knockoff_real": _extraction("knockoff", own_rows=True),
    "copycat": _extraction("copycat", own_rows=False),
    "line_search": line_search,
    "jbda": jbda,
    "inversion": inversion,
}


def attack(victim: Victim, kind: str, n: int, rng: Rng) -> Matrix:
    """The first n rows that an attack of this kind sends."""
    return ATTACKS[kind](victim, n, rng)
