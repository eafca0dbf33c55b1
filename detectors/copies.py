"""How good a copy of a model the answers given so far would allow: such a copy is trained, and asked about the reference.

A forest (detectors.forest) is trained on a sample of what a caller was answered and compared with the model on rows of
the reference, whose answers are known. Learning curves of the same forest on the reference say what as many usual rows
are worth, and what more rows add. Copies from few rows depend on luck: most of all on how even the answers are among them,
which is known, and then on the forest's own draws, which are other ones for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from detectors import forest
from detectors.base import Arrays
from detectors.signals import Codes
from detectors.stats import Floats

TREES: Final = 60
ASKED: Final = 1_024  # reference rows that a copy is asked about, at most
ENOUGH: Final = 30  # of them that a caller must not have sent itself
FIELDS: Final = 64  # fields that are kept, those with most to say about the answer
UNLIKE: Final = 0.01  # chance of answers of a reference sample to be called unlike the reference's
CATEGORIES: Final = 32  # per field that copies tell apart, the most frequent
READ: Final = 4_096  # values of the curve that are kept at hand
FOLDS: Final = 3  # of the reference; copies of the learning curve are trained on all but one, and asked about that one
SMALLEST: Final = 16  # rows of the smallest copy of the learning curve
LAST: Final = 4  # points at its end that continue it
PARTS: Final = ("kept", "field", "value", "asked", "answer", "weight", "hash", "grid", "missed", "lean")


@dataclass(frozen=True)
class Copies:
    """What the reference teaches about copies of its model; plain arrays.

    kept: the fields used. field, value: the columns of a forest (detectors.forest). asked (fields, rows), answer, weight,
    hash: reference rows with what the model answered, about as many of each answer; weight says how many rows each stands
    for. grid: rows of the copies of the learning
    curve; missed: logarithm of 1 - kappa of each; lean: what kappa gains by evenness of the answers (least squares).
    """

    kept: NDArray[np.int64]
    field: NDArray[np.int64]
    value: NDArray[np.int64]
    asked: NDArray[np.uint8]
    answer: NDArray[np.uint8]
    weight: Floats
    hash: NDArray[np.uint64]
    grid: Floats
    missed: Floats
    lean: Floats

    @classmethod
    def learn(
        cls, codes: Codes, numeric: int, label: NDArray[np.int64], hashes: NDArray[np.uint64], rng: np.random.Generator
    ) -> Copies:  # fmt: skip
        """Rows to ask about, and copies of growing size trained on all but one of the FOLDS, and asked about that one.

        Rows must be distinct; the first `numeric` fields are numbers.
        """
        kept = _telling(codes, numeric, label)
        field, value = _columns(codes[:, kept], kept < numeric)
        order = rng.permutation(len(codes))
        asked, weight = _even(label, order)
        learnt = cls(
            kept, field, value, np.ascontiguousarray(codes[asked][:, kept].T),
            label[asked].astype(np.uint8), weight, hashes[asked], np.zeros(0), np.zeros(0), np.zeros(0),
        )  # fmt: skip
        part = np.empty(len(codes), np.int64)
        part[order] = np.arange(len(codes)) % FOLDS
        part[asked] = np.arange(len(asked)) % FOLDS
        known = [order[part[order] != k] for k in range(FOLDS)]
        most = min(len(k) for k in known)
        grid = [SMALLEST * 2**i for i in range(int(np.log2(most / SMALLEST)) + 1)]
        rows, answers = learnt.rows(codes), label.astype(np.uint8)
        kappas, leans = [], []
        for n in grid:
            made = []
            for i in range(_repeats(n)):
                some = rng.permutation(known[i % FOLDS])[:n]
                apart = np.where(part[asked] == i % FOLDS, weight, 0.0)
                made.append((_evenness(answers[some]), learnt._copied(rows[some], answers[some], apart, i)))
            kappas.append(np.mean([k for _, k in made]))
            leans.append(_slope(*np.array(made).T))
        return replace(
            learnt, grid=np.array(grid, float), missed=_falling(grid, np.array(kappas)), lean=np.array(leans)
        )

    @classmethod
    def unpack(cls, arrays: Arrays) -> Copies:
        """From the arrays of a calibration."""
        return cls(**{name: np.asarray(arrays[name]) for name in PARTS})

    def pack(self) -> Mapping[str, NDArray[Any]]:
        """As arrays of a calibration."""
        return {name: getattr(self, name) for name in PARTS}

    def rows(self, codes: Codes) -> Codes:
        """Rows as copies take them: kept fields."""
        return codes if len(self.kept) == codes.shape[1] else codes[:, self.kept]

    def trained(self, rows: Codes, label: NDArray[np.uint8], sent: NDArray[np.uint64], copies: int = 1) -> float | None:
        """Agreement (Cohen's kappa) with the model of copies trained on these rows and answers, each asked about its share.

        sent: hashes of the rows, in order; no copy is asked about them. None: too few others are left.
        """
        weight = self.weight
        if len(sent):
            place = np.minimum(np.searchsorted(sent, self.hash), len(sent) - 1)
            weight = np.where(sent[place] == self.hash, 0.0, weight)
            if np.count_nonzero(weight) < ENOUGH:
                return None
        return self._copied(rows, label, weight, int(np.bitwise_xor.reduce(sent)) if len(sent) else 0, copies)

    def _copied(self, rows: Codes, label: NDArray[np.uint8], weight: Floats, seed: int, copies: int = 1) -> float:
        """Agreement on the asked rows that weigh something. Rows of one answer lie side by side, so shares are alike."""
        some = np.flatnonzero(weight)
        classes = int(max(self.answer.max(), label.max())) + 1
        given, flat = np.empty((len(some), classes), np.float32), np.ascontiguousarray(rows.T)
        for i in range(copies):
            asked = np.ascontiguousarray(self.asked[:, some[i::copies]])
            own = (seed + i) % 2**62
            given[i::copies] = forest.votes(flat, label, self.field, self.value, asked, classes, TREES, own)
        return float(_agreement(given, self.answer[some], weight[some]))

    def unlike(self, label: NDArray[np.uint8]) -> bool:
        """Whether these answers come in other shares than the reference's (chi-squared)."""
        share = self._shares
        have = np.bincount(label, minlength=len(share))
        expected = share * len(label)
        off = float(((have[: len(share)] - expected) ** 2 / np.maximum(expected, 0.5)).sum())
        off += float((have[len(share) :] ** 2).sum()) / 0.5  # answers that the reference lacks
        return off > self._far

    def usual(self, n: float) -> float:
        """Kappa of a copy trained on so many rows like the reference's; beyond them the curve goes on as a power law."""
        if n not in self._read:
            if len(self._read) >= READ:
                self._read.clear()
            x, (at, slope) = np.log(max(n, 1.0)), self._curve
            self._read[n] = float(1 - np.exp(np.interp(x, at, self.missed) + slope * max(x - at[-1], 0.0)))
        return self._read[n]

    def likely(self, n: float, label: NDArray[np.uint8]) -> float:
        """The same for a caller of whom a sample of answers is known: how even they are moves kappa.

        Of n rows only the sample is known; the others are taken to be as even as the reference.
        """
        share = self._shares
        more = (_evenness(label) - (1 - float(share @ share))) * len(label) / max(n, len(label))
        lean = float(np.interp(np.log(max(n, 1.0)), self._curve[0], self.lean))
        return float(np.clip(self.usual(n) + lean * more, 0.0, 1.0))

    @cached_property
    def _shares(self) -> Floats:
        """Of each answer in the reference."""
        return np.asarray(np.bincount(self.answer, weights=self.weight) / self.weight.sum(), dtype=np.float64)

    @cached_property
    def _far(self) -> float:
        """Chi-squared from which on answers are unlike the reference's."""
        return float(chdtri(max(1, len(self._shares) - 1), UNLIKE))

    @cached_property
    def _read(self) -> dict[float, float]:
        """What the curve has said: readings come at the same few numbers of rows."""
        return {}

    @cached_property
    def _curve(self) -> tuple[Floats, float]:
        """Logarithms of the grid, and the slope that continues the curve."""
        at = np.log(self.grid)
        return at, 0.0 if len(at) < 2 else min(0.0, float(np.polyfit(at[-LAST:], self.missed[-LAST:], 1)[0]))


def ahead(kappa: float, usual: float) -> float:
    """How far a copy is ahead of usual ones, as a share of what these miss; behind them: in kappa, below 0.

    >>> ahead(0.75, 0.5), ahead(0.25, 0.5)
    (0.5, -0.25)
    """
    return (kappa - usual) / (1 - usual) if kappa > usual else kappa - usual


def onward(lead: float, usual: float) -> float:
    """Kappa of a copy so far ahead of usual ones, when these have become so good.

    More rows bring as much as they bring to usual copies, and less to one that misses less. What a copy behind them misses
    besides, more rows of the same kind hardly mend.
    """
    return usual + lead * (1 - usual if lead > 0 else 1.0)


@numba.njit(cache=True)
def _agreement(given: Any, answer: Any, weight: Any) -> float:
    """Cohen's kappa of the most voted classes with the answers, rows weighed; 0 when chance explains everything."""
    said, true, right = np.zeros(given.shape[1]), np.zeros(given.shape[1]), 0.0
    for i in range(len(answer)):
        guess = given[i].argmax()
        said[guess] += weight[i]
        true[answer[i]] += weight[i]
        right += weight[i] * (guess == answer[i])
    whole = weight.sum()
    chance = (said * true).sum() / (whole * whole)
    return (right / whole - chance) / (1 - chance) if chance < 1 - 1e-9 else 0.0


def _telling(codes: Codes, numeric: int, label: NDArray[np.int64]) -> NDArray[np.int64]:
    """The FIELDS fields whose codes say most about the answer (least Gini impurity within a code), in order."""
    purity = []
    for j in range(codes.shape[1]):
        own = codes[:, j] // (4 if j < numeric else 1)  # so fine that every row has its own code says nothing
        table = np.zeros((int(own.max()) + 1, int(label.max()) + 1))
        np.add.at(table, (own, label), 1)
        purity.append(float(((table**2).sum(axis=1) / np.maximum(table.sum(axis=1), 1)).sum()))
    return np.sort(np.argsort(-np.array(purity), kind="stable")[:FIELDS])


def _columns(codes: Codes, number: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A forest's columns: one per number, one per frequent category (codes of categories go by frequency)."""
    pairs = [
        (j, v)
        for j in range(codes.shape[1])
        for v in ([-1] if number[j] else [v for v in np.unique(codes[:, j]).tolist() if v < CATEGORIES])
    ]
    return np.array([j for j, _ in pairs], np.int64), np.array([v for _, v in pairs], np.int64)


def _even(label: NDArray[np.int64], some: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """At most ASKED of the rows `some`, in their order about as many of each label, and how many each stands for."""
    have = np.bincount(label[some])
    quota = np.zeros(len(have), np.int64)
    for k in np.argsort(have, kind="stable").tolist():  # what rare answers leave goes to the frequent ones
        behind = int(np.count_nonzero(have[have > 0])) - int(np.count_nonzero(quota))
        quota[k] = min(int(have[k]), (ASKED - int(quota.sum())) // max(1, behind))
    rows = np.concatenate([some[label[some] == k][:q] for k, q in enumerate(quota.tolist())])
    return rows, (have / np.maximum(quota, 1))[label[rows]]


def _evenness(label: NDArray[np.uint8]) -> float:
    """1 less the sum of squared shares of the answers: the chance that two of them differ."""
    share = np.bincount(label) / len(label)
    return 1 - float(share @ share)


def _slope(x: Floats, y: Floats) -> float:
    """Least squares of y on x, less what chance makes of it (positive-part shrinkage)."""
    x, y = x - x.mean(), y - y.mean()
    if len(x) < 4 or not (x @ x > 1e-12 and y @ y > 1e-12):
        return 0.0
    slope = float(x @ y / (x @ x))
    noise = float(((y - slope * x) ** 2).sum() / (len(x) - 2) / (x @ x))
    return slope * max(0.0, 1 - noise / slope**2) if slope else 0.0


def _repeats(n: int) -> int:
    """Small copies differ much from each other."""
    return int(np.clip(16_384 // n, 6, 64))


def _falling(grid: list[int], kappas: Floats) -> Floats:
    """Logarithm of what copies miss, never rising with their rows (averaged where it does, weighed by repeats)."""
    from scipy.optimize import isotonic_regression  # noqa: PLC0415  # slow to import, needed once a reference

    curve = isotonic_regression(kappas, weights=[_repeats(n) for n in grid]).x
    return np.asarray(np.log(np.maximum(1 - curve, 1e-3)), dtype=np.float64)
