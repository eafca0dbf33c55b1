"""Data sets that come inside PyPI wheels, and a real model trained on each on the spot."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.traffic.data import DATA

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One feature. `categories` empty: a number. `integer`: real rows only hold whole numbers (whoever sends others shows)."""

    name: str
    categories: tuple[str, ...] = ()
    integer: bool = False


@dataclass(frozen=True)
class Victim:
    """A model under watch and the real rows it may be asked about.

    pool: (n, d) float64, categories as codes, NaN = missing; none of these rows trained the model.
    training: the rows that did, for membership attacks. low, high: range of each column of the pool.
    """

    name: str
    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    pool: Matrix
    labels: NDArray[np.int64]
    training: Matrix
    training_labels: NDArray[np.int64]
    model: Any = field(repr=False)
    low: Matrix
    high: Matrix

    def answer(self, rows: Matrix) -> Matrix:
        """Class probabilities (n, classes) for rows as they arrive; codes outside the vocabulary are not possible."""
        return np.asarray(self.model.predict_proba(self.sent(rows)), dtype=np.float64)

    def sent(self, rows: Matrix) -> Matrix:
        """Rows as JSON can carry them: a category is one of the known words, a number is what it is."""
        rows = np.array(rows, dtype=np.float64, ndmin=2)
        for j, column in enumerate(self.columns):
            if column.categories:
                rows[:, j] = np.clip(np.round(rows[:, j]), 0, len(column.categories) - 1)
        return rows

    def valid(self, rows: Matrix) -> Matrix:
        """What a careful attacker sends: as many decimals as real rows have, nothing outside the seen range."""
        rows = self.sent(rows)
        for j, places in enumerate(self.decimals):
            if places is not None:
                rows[:, j] = np.round(rows[:, j], places)
        return np.clip(rows, self.low, self.high)

    @functools.cached_property
    def decimals(self) -> tuple[int | None, ...]:
        """Decimals that (nearly) all real values of a column keep to; None: more than six."""
        out: list[int | None] = []
        for column, known in zip(self.columns, self.occurring, strict=True):
            fits = (k for k in range(7) if np.mean(np.isclose(known, np.round(known, k), rtol=0, atol=1e-9)) > 0.995)
            out.append(0 if column.categories or column.integer else next(fits, None))
        return tuple(out)

    def complete(self) -> Matrix:
        """The pool's rows with gaps filled by the column's median: where an attacker starts from."""
        return self._filled

    @functools.cached_property
    def _filled(self) -> Matrix:
        return np.where(np.isnan(self.pool), np.nanmedian(self.pool, axis=0), self.pool)

    @functools.cached_property
    def occurring(self) -> list[Matrix]:
        """Per column the values that real rows have, sorted."""
        return [np.unique(self.pool[~np.isnan(self.pool[:, j]), j]) for j in range(len(self.columns))]


def _encode(table: pa.Table, names: tuple[str, ...]) -> tuple[Matrix, tuple[Column, ...]]:
    rows = np.empty((table.num_rows, len(names)))
    columns = []
    for j, name in enumerate(names):
        values = table[name].combine_chunks()
        if pa.types.is_string(values.type):
            words = tuple(sorted(set(values.drop_null().to_pylist())))
            codes = pc.index_in(values, pa.array(words))
            rows[:, j] = pc.cast(codes, pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
            columns.append(Column(name, words))
        else:
            rows[:, j] = pc.cast(values, pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
            known = rows[:, j][~np.isnan(rows[:, j])]
            columns.append(Column(name, integer=bool(np.all(known == np.round(known)))))
    return rows, tuple(columns)


def dense(columns: tuple[Column, ...], training: Matrix) -> Callable[[Matrix], Matrix]:
    """Rows as models without a notion of categories or gaps take them: filled, scaled, one column per frequent code."""
    numbers = [j for j, c in enumerate(columns) if not c.categories]
    middle = np.nan_to_num(np.nanmedian(training[:, numbers], axis=0))
    filled = np.where(np.isnan(training[:, numbers]), middle, training[:, numbers])
    mean, spread = filled.mean(axis=0), filled.std(axis=0) + 1e-9
    codes: list[tuple[int, Matrix]] = []
    for j in (j for j, c in enumerate(columns) if c.categories):
        found, counts = np.unique(training[~np.isnan(training[:, j]), j], return_counts=True)
        codes.append((j, found[np.argsort(-counts)[:30]]))

    def apply(rows: Matrix) -> Matrix:
        x = rows[:, numbers]
        x = np.clip((np.where(np.isnan(x), middle, x) - mean) / spread, -20, 20)
        return np.concatenate([x, *[rows[:, j, None] == known[None, :] for j, known in codes]], axis=1)

    return apply


@dataclass(frozen=True)
class _Prepared:
    """A model behind the preparation of its rows."""

    prepare: Callable[[Matrix], Matrix]
    model: Any

    def predict_proba(self, rows: Matrix) -> Matrix:
        return np.asarray(self.model.predict_proba(self.prepare(rows)), dtype=np.float64)


@dataclass(frozen=True)
class _Trees:
    """A forest's answers without the threads that scikit-learn starts for every single row."""

    trees: list[Any]

    def predict_proba(self, rows: Matrix) -> Matrix:
        x = rows.astype(np.float32)
        return np.asarray(sum(t.tree_.predict(x) for t in self.trees) / len(self.trees), dtype=np.float64)


FAMILIES: Final = ("boosting", "logistic", "forest", "mlp", "tree", "extra", "bayes", "neighbours")


def _train(family: str, columns: tuple[Column, ...], rows: Matrix, labels: NDArray[np.int64], seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.tree import DecisionTreeClassifier

    if family == "boosting":
        few = [j for j, c in enumerate(columns) if 0 < len(c.categories) <= 255]
        return HistGradientBoostingClassifier(max_iter=40, categorical_features=few or None, random_state=seed).fit(
            rows, labels
        )
    made = {
        "logistic": LogisticRegression(max_iter=500),
        "forest": RandomForestClassifier(30, min_samples_leaf=3, random_state=seed),
        "mlp": MLPClassifier((32, 16), max_iter=60, early_stopping=True, random_state=seed),
        "tree": DecisionTreeClassifier(min_samples_leaf=20, random_state=seed),
        "extra": ExtraTreesClassifier(30, min_samples_leaf=3, random_state=seed),
        "bayes": GaussianNB(var_smoothing=1e-3),
        "neighbours": KNeighborsClassifier(25, weights="distance"),
    }[family]
    prepare = dense(columns, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network that has not converged is a model all the same
        model = made.fit(prepare(rows), labels)
    return _Prepared(prepare, _Trees(model.estimators_) if family in ("forest", "extra") else model)


@functools.cache
def victim(name: str, seed: int = 0, training_rows: int = 20_000, family: str = "boosting") -> Victim:
    """The named data set split in two parts without overlap: one trains the model, the other is what clients ask about.

    family: one of FAMILIES. Small sets (wine, breast_cancer, digits) repeat their rows in long
    logs; only large ones (flights, car_loan, card_offer, diamonds) have rows enough for each to be sent once.
    """
    data = DATA[name]()
    rows, columns = _encode(data.table, data.features)
    words = data.table["label"].combine_chunks()
    classes = tuple(sorted(set(words.to_pylist())))
    labels = pc.index_in(words, pa.array(classes)).to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = min(training_rows, len(rows) // 2)
    learn, ask = order[:cut], order[cut:]
    model = _train(family, columns, rows[learn], labels[learn], seed)
    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    return Victim(data.name, columns, classes, rows[ask], labels[ask], rows[learn], labels[learn], model, low, high)
