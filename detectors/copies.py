"""How good a copy of a model the answers given so far would allow: such a copy is trained, and asked about the reference.

A forest (detectors.forest) is trained on a sample of what a caller was answered and compared with the model on rows of
the reference, whose answers are known. Learning curves of the same forest on the reference say what as many usual rows
are worth, and what more rows add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from detectors import forest
from detectors.base import Arrays
from detectors.signals import MISSING, Codes
from detectors.stats import Floats

TREES: Final = 60
ASKED: Final = 1_024  # reference rows that a copy is asked about, at most
ENOUGH: Final = 30  # of them that a caller must not have sent itself
FIELDS: Final = 64  # fields that are kept, those with most to say about the answer
UNLIKE: Final = 0.01  # chance of answers of a reference sample to be called unlike the reference's
CATEGORIES: Final = 32  # per field that copies tell apart, the most frequent
FEW: Final = 300  # rows of a small reference that are set apart at most, half of it; of a larger one a third
SMALLEST: Final = 16  # rows of the smallest copy of the learning curve
LAST: Final = 4  # points at its end that continue it
PARTS: Final = ("kept", "middle", "field", "value", "asked", "answer", "weight", "hash", "grid", "missed")


@dataclass(frozen=True)
class Copies:
    """What the reference teaches about copies of its model; plain arrays.

    kept: the fields used; middle: per kept field the code that stands for a missing number. field, value: the columns of
    a forest (detectors.forest). asked (fields, rows), answer, weight, hash: reference rows with what the model answered,
    about as many of each answer; weight says how many rows each stands for. grid: rows of the copies of the learning
    curve; missed: logarithm of 1 - kappa of each.
    """

    kept: NDArray[np.int64]
    middle: NDArray[np.uint8]
    field: NDArray[np.int64]
    value: NDArray[np.int64]
    asked: NDArray[np.uint8]
    answer: NDArray[np.uint8]
    weight: Floats
    hash: NDArray[np.uint64]
    grid: Floats
    missed: Floats

    @classmethod
    def learn(
        cls, codes: Codes, numeric: int, label: NDArray[np.int64], hashes: NDArray[np.uint64], rng: np.random.Generator
    ) -> Copies:  # fmt: skip
        """Rows to ask about, set apart, and copies of growing size trained on the others.

        Rows must be distinct; the first `numeric` fields are numbers.
        """
        kept = _telling(codes, label)
        middle = np.array([_middle(codes[:, j]) if j < numeric else MISSING for j in kept], np.uint8)
        field, value = _columns(codes[:, kept], kept < numeric)
        order = rng.permutation(len(codes))
        apart = max(len(order) // 3, min(len(order) // 2, FEW))
        asked, weight = _even(label, order[:apart])
        learnt = cls(
            kept, middle, field, value, np.ascontiguousarray(_filled(codes[asked][:, kept], middle).T),
            label[asked].astype(np.uint8), weight, hashes[asked], np.zeros(0), np.zeros(0),
        )  # fmt: skip
        known = order[apart:]
        grid = [SMALLEST * 2**i for i in range(int(np.log2(len(known) / SMALLEST)) + 1)]
        rows, answers, nobody = learnt.rows(codes), label.astype(np.uint8), np.zeros(0, np.uint64)
        kappas = []
        for n in grid:
            some = [rng.permutation(known)[:n] for _ in range(_repeats(n))]
            kappas.append(np.mean([learnt.trained(rows[i], answers[i], nobody) for i in some]))
        return replace(learnt, grid=np.array(grid, float), missed=_falling(grid, np.array(kappas)))

    @classmethod
    def unpack(cls, arrays: Arrays) -> Copies:
        """From the arrays of a calibration."""
        return cls(**{name: np.asarray(arrays[name]) for name in PARTS})

    def pack(self) -> Mapping[str, NDArray[Any]]:
        """As arrays of a calibration."""
        return {name: getattr(self, name) for name in PARTS}

    def rows(self, codes: Codes) -> Codes:
        """Rows as copies take them: kept fields, missing numbers filled."""
        return _filled(codes[:, self.kept], self.middle)

    def trained(self, rows: Codes, label: NDArray[np.uint8], sent: NDArray[np.uint64]) -> float | None:
        """Agreement (Cohen's kappa) with the model of a copy trained on these rows and answers.

        sent: hashes of the rows, in order; the copy is not asked about them. None: too few others are left.
        """
        weight = self.weight
        if len(sent):
            place = np.minimum(np.searchsorted(sent, self.hash), len(sent) - 1)
            weight = np.where(sent[place] == self.hash, 0.0, weight)
            if np.count_nonzero(weight) < ENOUGH:
                return None
        classes = int(max(self.answer.max(), label.max())) + 1
        given = forest.votes(np.ascontiguousarray(rows.T), label, self.field, self.value, self.asked, classes, TREES)
        return float(_agreement(given, self.answer, weight))

    def unlike(self, label: NDArray[np.uint8]) -> bool:
        """Whether these answers come in other shares than the reference's (chi-squared)."""
        share = np.bincount(self.answer, weights=self.weight)
        most = max(len(share), int(label.max()) + 1)
        expected = np.pad(share / share.sum(), (0, most - len(share))) * len(label)
        off = (np.bincount(label, minlength=most) - expected) ** 2 / np.maximum(expected, 0.5)
        return bool(chdtrc(max(1, len(share) - 1), off.sum()) < UNLIKE)

    def usual(self, n: float) -> float:
        """Kappa of a copy trained on so many rows like the reference's; beyond them the curve goes on as a power law."""
        x, (at, slope) = np.log(max(n, 1.0)), self._curve
        return float(1 - np.exp(np.interp(x, at, self.missed) + slope * max(x - at[-1], 0.0)))

    @cached_property
    def _curve(self) -> tuple[Floats, float]:
        """Logarithms of the grid, and the slope that continues the curve."""
        at = np.log(self.grid)
        return at, 0.0 if len(at) < 2 else min(0.0, float(np.polyfit(at[-LAST:], self.missed[-LAST:], 1)[0]))


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


def _telling(codes: Codes, label: NDArray[np.int64]) -> NDArray[np.int64]:
    """The FIELDS fields whose codes say most about the answer (least Gini impurity within a code), in order."""
    purity = []
    for j in range(codes.shape[1]):
        table = np.zeros((int(codes[:, j].max()) + 1, int(label.max()) + 1))
        np.add.at(table, (codes[:, j], label), 1)
        purity.append(float(((table**2).sum(axis=1) / np.maximum(table.sum(axis=1), 1)).sum()))
    return np.sort(np.argsort(-np.array(purity), kind="stable")[:FIELDS])


def _middle(codes: NDArray[np.uint8]) -> int:
    known = codes[codes != MISSING]
    return int(np.median(known)) if len(known) else MISSING


def _filled(codes: Codes, middle: NDArray[np.uint8]) -> Codes:
    return np.where(codes == MISSING, middle, codes)


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


def _repeats(n: int) -> int:
    """Small copies differ much from each other."""
    return int(np.clip(8_192 // n, 4, 32))


def _falling(grid: list[int], kappas: Floats) -> Floats:
    """Logarithm of what copies miss, never rising with their rows (averaged where it does, weighed by repeats)."""
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415  # slow to import, needed once a reference

    x = np.log(grid)
    curve = IsotonicRegression().fit(x, kappas, sample_weight=[_repeats(n) for n in grid]).predict(x)
    return np.asarray(np.log(np.maximum(1 - curve, 1e-3)), dtype=np.float64)
