"""Whether a row could be real: joint plausibility of its values, learnt from reference rows.

Made-up rows can have perfect margins and still combine what never comes together. Two views of the coded row
(detectors.signals.Encoder): how well every pair of values goes together (log ratio of their joint share to the product of
their shares, summed over the most dependent pairs), and the Mahalanobis distance of its normal scores: of numbers by
their rank among reference values, down to the last in a thousand, and of categories by how rare they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from detectors.signals import LEVELS, MISSING, OTHER, Codes
from detectors.stats import Floats

COARSE: Final = 8  # levels of a number in a pair
WORDS: Final = 14  # categories of their own in a pair; then other, then missing
SIDE: Final = 16  # places of a value in a pair's table
PAIRS: Final = 160  # most dependent pairs that are kept
PRIOR: Final = 10.0  # rows of independence added to every pair's table
CLIP: Final = 3.0  # nats that one pair may say
SHRINK: Final = 0.05  # of the correlations
LEARN_ROWS: Final = 8_000
FIRST_STEP: Final = 128  # the largest power of two up to the number of SCORES
BLOCK: Final = 256  # rows that are looked at together
SCORES: Final = np.linspace(-3.3, 3.3, 133)  # normal scores whose reference quantiles are kept


@dataclass(frozen=True)
class Joint:
    """place (features, codes): value's place in the pair tables; pairs (k, 2); ratio (k, SIDE * SIDE) log ratios;
    knots (numeric, SCORES): the reference value at each normal score; rarity (categories, codes): score of a category;
    precision (features, features): inverse correlation of the scores.
    """

    place: NDArray[np.uint8]
    pairs: NDArray[np.int64]
    ratio: NDArray[np.float32]
    knots: Floats
    rarity: NDArray[np.float32]
    precision: NDArray[np.float32]

    @classmethod
    def fit(cls, codes: Codes, numbers: Floats, pairs: NDArray[np.int64] | None = None) -> Joint:
        """From reference rows as codes (n, features) and their numbers (n, numeric), which come first among the features.

        pairs: those to keep instead of the most dependent ones.
        """
        numeric = numbers.shape[1]
        place = _places(codes, numeric)
        low = place[np.arange(codes.shape[1])[None, :], codes].astype(np.int64)
        tables, gain, found = [], [], []
        shares = [np.bincount(low[:, f], minlength=SIDE) / len(low) for f in range(low.shape[1])]
        for a, b in combinations(range(codes.shape[1]), 2) if pairs is None else pairs.tolist():
            alone = np.outer(shares[a], shares[b]).ravel()
            joint = np.bincount(low[:, a] * SIDE + low[:, b], minlength=SIDE * SIDE).astype(np.float64)
            smooth = (joint + PRIOR * alone) / (len(low) + PRIOR)
            ratio = np.log(np.maximum(smooth, 1e-12) / np.maximum(alone, 1e-9))
            used = int((joint > 0).sum())
            gain.append(float((joint / len(low)) @ ratio) - used / (2 * len(low)))  # mutual information above chance
            said = np.clip(np.where(alone > 0, ratio, -CLIP), -CLIP, CLIP).reshape(SIDE, SIDE)
            said[SIDE - 1, :] = said[:, SIDE - 1] = 0.0  # what is missing combines with everything
            tables.append(said.ravel())
            found.append((a, b))
        best = list(range(len(found)))
        if pairs is None:
            best = [i for i in np.argsort(-np.array(gain), kind="stable")[:PAIRS].tolist() if gain[i] > 0]
        pairs = np.array([found[i] for i in best], dtype=np.int64).reshape(-1, 2)
        ratio = np.array([tables[i] for i in best], dtype=np.float32).reshape(-1, SIDE * SIDE)
        knots, rarity = _knots(numbers), _rarity(codes[:, numeric:])
        features = codes.shape[1]
        unscaled = cls(place, pairs, ratio, knots, rarity, np.eye(features, dtype=np.float32))
        z = unscaled.scores(codes, numbers).astype(np.float64)
        moment = (1 - SHRINK) * (z.T @ z / max(1, len(z))) + SHRINK * np.eye(features)
        return replace(unscaled, precision=np.linalg.inv(moment).astype(np.float32))

    def scores(self, codes: Codes, numbers: Floats) -> NDArray[np.float32]:
        """(n, features): normal scores of ranks among reference values, 0 for missing. Ties take the middle of their ranks."""
        numeric = len(self.knots)
        z = np.zeros(codes.shape, dtype=np.float32)
        _rank(np.ascontiguousarray(numbers), self.knots, z)
        for j, known in enumerate(self.rarity):
            z[:, numeric + j] = known[codes[:, numeric + j]]
        return z

    def strangeness(self, codes: Codes, numbers: Floats) -> NDArray[np.float32]:
        """(n, 2): minus the summed log ratios per pair, and the Mahalanobis distance without the field that adds most (a
        client with another unit in one field is no attacker); larger is stranger.
        """
        n, features = codes.shape
        together = np.zeros(n, dtype=np.float32)
        _combine(np.ascontiguousarray(codes), self.place, self.pairs, self.ratio, together)
        z = self.scores(codes, numbers)
        pulled = z @ self.precision
        alone = (pulled**2 / np.diag(self.precision)).max(
            axis=1, initial=0.0
        )  # what is gone without the strangest field
        far = np.einsum("ij,ij->i", pulled, z) - alone
        return np.stack([together / max(1, len(self.pairs)), far / max(1, features)], axis=1).astype(np.float32)

    def pack(self) -> dict[str, NDArray[Any]]:
        """Arrays for a calibration."""
        return {
            "joint_place": self.place,
            "joint_pairs": self.pairs,
            "joint_ratio": self.ratio,
            "joint_knots": self.knots,
            "joint_rarity": self.rarity,
            "joint_precision": self.precision,
        }

    @classmethod
    def unpack(cls, a: Mapping[str, NDArray[Any]]) -> Joint:
        """The inverse of `pack`."""
        return cls(
            *(np.asarray(a[f"joint_{part}"]) for part in ("place", "pairs", "ratio", "knots", "rarity", "precision"))
        )


@numba.njit(cache=True)
def _rank(numbers: Any, knots: Any, z: Any) -> None:
    """Write the normal score of each finite number: the middle of those whose knots it equals, or lies between."""
    top = len(SCORES) - 1
    for i in range(len(numbers)):
        for j in range(len(knots)):
            x, known = numbers[i, j], knots[j]
            if not np.isfinite(x):
                continue
            low, step = 0, FIRST_STEP
            while step:  # how many knots lie below; NumPy's own search costs twice as much here
                at = low + step
                low = at if at <= top + 1 and known[at - 1] < x else low
                step >>= 1
            high = low
            while high <= top and known[high] == x:
                high += 1
            z[i, j] = (SCORES[min(low, top)] + SCORES[max(high - 1, 0)]) / 2


@numba.njit(cache=True)
def _combine(codes: Any, place: Any, pairs: Any, ratio: Any, together: Any) -> None:
    """Subtract what every pair of values says of each row; rows in blocks, that a pair's table stays in cache."""
    low = np.empty((codes.shape[1], BLOCK), np.int64)
    for first in range(0, len(codes), BLOCK):
        size = min(BLOCK, len(codes) - first)
        for f in range(codes.shape[1]):
            for k in range(size):
                low[f, k] = place[f, codes[first + k, f]]
        for p in range(len(pairs)):
            a, b, said = low[pairs[p, 0]], low[pairs[p, 1]], ratio[p]
            for k in range(size):
                together[first + k] -= said[a[k] * SIDE + b[k]]


def crossed(codes: Codes, numbers: Floats, pairs: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Strangeness of each reference row under what the other half of the rows teaches: what fresh rows would get.

    pairs: those of the whole reference. A half that chooses its own could choose others, or none, and a level that is
    read off it would say nothing about fresh rows; with pairs that were chosen with the row at hand it looks less strange
    than a fresh one. So the stranger of the two counts.
    """
    order = rng.permutation(len(codes))
    out = np.zeros((len(codes), 2), dtype=np.float32)
    halves = order[: len(codes) // 2], order[len(codes) // 2 :]
    for learn, judge in (halves, halves[::-1]):
        for given in (None, pairs):
            taught = Joint.fit(codes[learn[:LEARN_ROWS]], numbers[learn[:LEARN_ROWS]], given)
            found = taught.strangeness(codes[judge], numbers[judge])
            out[judge] = found if given is None else np.maximum(out[judge], found)
    return out


def _places(codes: Codes, numeric: int) -> NDArray[np.uint8]:
    """A coarse place for every code: COARSE steps of equal mass for numbers, the frequent categories as they are."""
    place = np.zeros((codes.shape[1], MISSING + 1), dtype=np.uint8)
    for f in range(codes.shape[1]):
        mass = np.bincount(codes[:, f], minlength=MISSING + 1)[:LEVELS].astype(np.float64)
        if f < numeric:
            middle = (np.cumsum(mass) - mass / 2) / max(1.0, mass.sum())
            place[f, :LEVELS] = np.minimum((middle * COARSE).astype(np.int64), COARSE - 1)
        else:
            place[f, :LEVELS] = np.minimum(np.arange(LEVELS), WORDS)
        place[f, OTHER], place[f, MISSING] = WORDS, SIDE - 1
    return place


def _knots(numbers: Floats) -> Floats:
    """(numeric, SCORES): the value of each number at every normal score."""
    out = np.zeros((numbers.shape[1], len(SCORES)))
    for j, x in enumerate(numbers.T):
        known = x[np.isfinite(x)]
        if len(known):
            out[j] = np.quantile(known, ndtr(SCORES), method="inverted_cdf")
    return out


def _rarity(codes: Codes) -> NDArray[np.float32]:
    """(categories, codes): the normal score of how rare a category is, larger for rarer ones; 0 for missing."""
    score = np.zeros((codes.shape[1], MISSING + 1), dtype=np.float32)
    for f in range(codes.shape[1]):
        mass = np.bincount(codes[:, f], minlength=MISSING + 1)[: OTHER + 1].astype(np.float64)
        order = np.argsort(mass, kind="stable")
        rarer = np.zeros(len(mass))
        rarer[order] = np.cumsum(mass[order]) - mass[order] / 2
        score[f, : OTHER + 1] = -ndtri(np.clip((rarer + 0.5) / (mass.sum() + 1), ndtr(SCORES[0]), 1 - ndtr(SCORES[0])))
    return score
