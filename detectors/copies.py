"""How good a copy of a model the answers given so far would allow: learning curves, read leaf by leaf.

A small decision tree cuts the input space where the model's answers change. How often a copy (a random forest) trained
on n answers is wrong in each of its leaves is measured once, on the reference. A client's rows fill leaves faster or
slower than reference rows do, and where it has none its copy guesses: both show in the counts per leaf and answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.base import Arrays
from detectors.signals import Codes
from detectors.stats import Floats

LEAVES: Final = 16
TREES: Final = 20
SMALLEST: Final = 50  # rows of the smallest copy trained
STEP: Final = 3.0  # each next one has so many times the rows
HELD_OUT: Final = 2_000  # reference rows that copies are judged on, at most
BLOCKS: Final = 4  # groups of fields in which rows are told apart
SIZES: Final = (16, 32, 64, 128, 256, 512)  # numbers of rows for which usual variety is known
SMOOTHING: Final = 4.0  # held-out rows that a leaf borrows from all leaves
FIELDS: Final = ("feature", "cut", "left", "right", "place", "inside", "grid", "wrong", "share", "block", "variety")


@dataclass(frozen=True)
class Copies:
    """What the reference teaches about copies of its model; plain arrays.

    feature, cut, left, right: the tree's nodes (feature -1: a leaf); place: leaf number per node. inside (nodes,
    leaves): which leaves lie below a node. grid: rows of the copies trained; wrong (grid, leaves): share of held-out rows
    on which a copy disagreed. share (leaves, classes): where reference rows and their answers lie. block: group of each
    field; variety (SIZES, BLOCKS): distinct parts in so many reference rows.
    """

    feature: NDArray[np.int16]
    cut: NDArray[np.float32]
    left: NDArray[np.int16]
    right: NDArray[np.int16]
    place: NDArray[np.int16]
    inside: NDArray[np.bool_]
    grid: Floats
    wrong: Floats
    share: Floats
    block: NDArray[np.int16]
    variety: Floats

    @classmethod
    def learn(cls, codes: Codes, label: NDArray[np.int64], classes: int, rng: np.random.Generator) -> Copies:
        """Train copies of growing size on part of the reference and judge them on the rest. Rows must be distinct."""
        from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  # slow to import, needed once a reference
        from sklearn.tree import DecisionTreeClassifier  # noqa: PLC0415

        x = codes.astype(np.float32)
        order = rng.permutation(len(x))
        judged = order[: min(len(x) // 3, HELD_OUT)]
        known = order[len(judged) :]
        least = max(5, len(known) // 100)
        tree = DecisionTreeClassifier(max_leaf_nodes=LEAVES, min_samples_leaf=least, random_state=0)
        nodes = tree.fit(x[known], label[known]).tree_
        feature = np.where(nodes.children_left < 0, -1, nodes.feature).astype(np.int16)
        left, right = nodes.children_left.astype(np.int16), nodes.children_right.astype(np.int16)
        ends = np.flatnonzero(feature < 0)
        place = np.full(len(feature), -1, np.int16)
        place[ends] = np.arange(len(ends))
        leaf = place[nodes.apply(x)].astype(np.int64)
        held = np.bincount(leaf[judged], minlength=len(ends))
        grid, wrong = _sizes(len(known)), []
        for n in grid:
            repeats = max(1, min(12, round(600 / n)))  # small copies differ much from each other
            missed = np.zeros(len(ends))
            for r in range(repeats):
                some = rng.permutation(known)[:n]
                copy = RandomForestClassifier(TREES, random_state=r, n_jobs=1).fit(x[some], label[some])
                bad = copy.predict(x[judged]) != label[judged]
                missed += np.bincount(leaf[judged], weights=bad.astype(float), minlength=len(ends)) / repeats
            overall = missed.sum() / len(judged)
            wrong.append((missed + SMOOTHING * overall) / (held + SMOOTHING))
        share = np.zeros((len(ends), classes))
        np.add.at(share, (leaf, label), 1 / len(x))
        block = _blocks(codes)
        return cls(
            feature, nodes.threshold.astype(np.float32), left, right, place, _inside(left, right, place),
            np.array(grid, float), np.array(wrong), share, block, _variety(parts(codes, block)[order]),
        )  # fmt: skip

    @classmethod
    def unpack(cls, arrays: Arrays) -> Copies:
        """From the arrays of a calibration."""
        return cls(**{name: np.asarray(arrays[name]) for name in FIELDS})

    def pack(self) -> Mapping[str, NDArray[Any]]:
        """As arrays of a calibration."""
        return {name: getattr(self, name) for name in FIELDS}

    def leaves(self, codes: Codes) -> NDArray[np.uint8]:
        """The leaf of each row."""
        node = np.zeros(len(codes), np.int64)
        rows = np.arange(len(codes))
        for _ in range(len(self.feature)):
            asked = self.feature[node]
            if not np.any(asked >= 0):
                break
            below = codes[rows, np.maximum(asked, 0)] <= self.cut[node]
            node = np.where(asked < 0, node, np.where(below, self.left[node], self.right[node]))
        return self.place[node].astype(np.uint8)

    def novel(self, marks: NDArray[np.uint16]) -> float:
        """How much of a sample's rows is new rather than small changes of each other: 1 for rows as in the reference.

        Rows are cut into parts; who varies a few fields of one row repeats most parts. marks: (rows, BLOCKS).
        """
        n = len(marks)
        usual = np.array([np.interp(n, SIZES, self.variety[:, b]) for b in range(marks.shape[1])])
        if n > SIZES[-1]:
            usual = self.variety[-1] * n / SIZES[-1]
        share = np.sort(_distinct(np.ascontiguousarray(marks)) / np.maximum(usual, 1))
        middle = (share[(len(share) - 1) // 2] + share[len(share) // 2]) / 2
        return float(min(max(middle, 1 / n), 1.0))

    def kappa(self, leaf: NDArray[np.uint8], label: NDArray[np.uint8], n: float) -> float:
        """Expected agreement (Cohen's kappa) with the model of a copy trained on n rows, of which these are a sample."""
        return float(_kappa(leaf, label, float(n), self.share, self.inside, *self._curve))

    @cached_property
    def _curve(self) -> tuple[Floats, Floats, float]:
        """Logarithms of the grid and of what copies miss in each leaf, and the slope that continues them as a power law."""
        at, curve = np.log(self.grid), np.log(np.maximum(self.wrong, 1e-4))
        if len(at) < 2:
            return at, curve, 0.0
        total = np.log(np.maximum(self.wrong @ self.share.sum(axis=1), 1e-4))
        return at, curve, min(0.0, float((total[-1] - total[-2]) / (at[-1] - at[-2])))


@numba.njit(cache=True)
def _distinct(marks: Any) -> Any:
    """How many different values each column has."""
    seen, found = np.zeros(1 << 16, np.uint8), np.zeros(marks.shape[1], np.int64)
    for b in range(marks.shape[1]):
        for i in range(len(marks)):
            if seen[marks[i, b]] != b + 1:
                seen[marks[i, b]] = b + 1
                found[b] += 1
    return found


@numba.njit(cache=True)
def _kappa(leaf: Any, label: Any, n: float, share: Any, inside: Any, at: Any, curve: Any, slope: float) -> float:
    """Kappa from where the sample's rows lie and what was answered there."""
    leaves, classes = share.shape
    own = np.zeros((leaves, classes))
    for i in range(len(leaf)):
        if label[i] < classes:
            own[leaf[i], label[i]] += 1.0
    has, weight = own.sum(axis=1), share.sum(axis=1)
    rows, missed, chance = has.sum(), 0.0, 0.0
    if rows == 0:
        return 0.0
    said, overall = np.zeros(classes), share.sum(axis=0)
    for k in range(leaves):
        if has[k]:  # the error of a copy with as many rows here as n reference rows bring; a power law beyond the grid
            x = np.log(max(has[k] / rows * n / max(weight[k], 1e-9), 1.0))
            wrong = np.exp(np.interp(x, at, curve[:, k]) + slope * max(x - at[-1], 0.0))
            said += share[k]
        else:
            guess = _guess(own, inside, k)
            wrong = 1 - share[k, guess] / max(weight[k], 1e-9)
            said[guess] += weight[k]
        missed += weight[k] * wrong
    for c in range(classes):
        chance += said[c] * overall[c]
    return min(max(1 - missed / (1 - chance), 0.0), 1.0) if chance < 1 - 1e-9 else 0.0


@numba.njit(cache=True)
def _guess(own: Any, inside: Any, leaf: int) -> int:
    """What a copy says where it knows nothing: the usual answer of the nearest node above (the root first) that has rows."""
    near = np.zeros(own.shape[1])
    for node in range(len(inside) - 1, -1, -1):
        if inside[node, leaf]:
            near[:] = 0.0
            for k in range(len(own)):
                if inside[node, k]:
                    near += own[k]
            if near.any():
                return int(near.argmax())
    return 0


def parts(codes: Codes, block: NDArray[np.int16]) -> NDArray[np.uint16]:
    """16 bits per group of fields, (rows, BLOCKS): equal where all codes of the group are."""
    odd = (2 * np.arange(codes.shape[1], dtype=np.uint64) + 3) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * odd
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    out = np.zeros((len(codes), int(block.max()) + 1), np.uint16)
    for b in range(out.shape[1]):
        out[:, b] = (mixed[:, block == b].sum(axis=1, dtype=np.uint64) >> np.uint64(48)).astype(np.uint16)
    return out


def _sizes(rows: int) -> list[int]:
    """Sizes of the copies to train: SMALLEST, times STEP each, and all rows."""
    sizes = [SMALLEST]
    while sizes[-1] * STEP <= rows:
        sizes.append(round(sizes[-1] * STEP))
    return sizes if sizes[-1] * 1.3 > rows else [*sizes, rows]


def _inside(left: NDArray[np.int16], right: NDArray[np.int16], place: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Which leaves lie below each node; children come after their parent."""
    inside = np.zeros((len(place), int(place.max()) + 1), dtype=bool)
    for node in range(len(place) - 1, -1, -1):
        if place[node] >= 0:
            inside[node, place[node]] = True
        else:
            inside[node] = inside[left[node]] | inside[right[node]]
    return inside


def _blocks(codes: Codes) -> NDArray[np.int16]:
    """Fields in groups of about equal variety."""
    kinds = np.array([len(np.unique(codes[:, j])) for j in range(codes.shape[1])])
    block = np.zeros(codes.shape[1], np.int16)
    block[np.argsort(-kinds, kind="stable")] = np.arange(codes.shape[1]) % min(BLOCKS, codes.shape[1])
    return block


def _variety(marks: NDArray[np.uint16]) -> Floats:
    """Distinct parts among the first rows, per size and group."""
    return np.array(
        [[len(np.unique(marks[:n, b])) * n / min(n, len(marks)) for b in range(marks.shape[1])] for n in SIZES]
    )
