"""Whether a row could be real: joint plausibility of its values, learnt from reference rows.

Made-up rows can have perfect margins and still combine what never comes together. Two views of the coded row
(detectors.signals.Encoder): how well every pair of values goes together (log ratio of their joint share to the product of
their shares, summed over the most dependent pairs), and the Mahalanobis distance of the normal scores of its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detectors.signals import LEVELS, MISSING, OTHER, Codes

COARSE: Final = 8  # levels of a number in a pair
WORDS: Final = 14  # categories of their own in a pair; then other, then missing
SIDE: Final = 16  # places of a value in a pair's table
PAIRS: Final = 160  # most dependent pairs that are kept
PRIOR: Final = 10.0  # rows of independence added to every pair's table
CLIP: Final = 3.0  # nats that one pair may say
SHRINK: Final = 0.05  # of the correlations
LEARN_ROWS: Final = 8_000


@dataclass(frozen=True)
class Joint:
    """place (features, codes): value's place in the pair tables; pairs (k, 2); ratio (k, SIDE * SIDE) log ratios;
    score (numeric, codes): normal score of a code; precision (numeric, numeric): inverse correlation of the scores.
    """

    place: NDArray[np.uint8]
    pairs: NDArray[np.int64]
    ratio: NDArray[np.float32]
    score: NDArray[np.float32]
    precision: NDArray[np.float32]

    @classmethod
    def fit(cls, codes: Codes, numeric: int) -> Joint:
        """From reference rows as codes (n, features), the first `numeric` of them numbers."""
        place = _places(codes, numeric)
        low = place[np.arange(codes.shape[1])[None, :], codes].astype(np.int64)
        tables, gain, found = [], [], []
        shares = [np.bincount(low[:, f], minlength=SIDE) / len(low) for f in range(low.shape[1])]
        for a, b in combinations(range(codes.shape[1]), 2):
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
        best = [i for i in np.argsort(-np.array(gain), kind="stable")[:PAIRS].tolist() if gain[i] > 0]
        pairs = np.array([found[i] for i in best], dtype=np.int64).reshape(-1, 2)
        ratio = np.array([tables[i] for i in best], dtype=np.float32).reshape(-1, SIDE * SIDE)
        score = _normal_scores(codes[:, :numeric])
        z = score[np.arange(numeric)[None, :], codes[:, :numeric]]
        moment = z.T.astype(np.float64) @ z / max(1, len(z)) if numeric else np.zeros((0, 0))
        moment = (1 - SHRINK) * moment + SHRINK * np.eye(numeric)
        return cls(place, pairs, ratio, score, np.linalg.inv(moment).astype(np.float32))

    def strangeness(self, codes: Codes) -> NDArray[np.float32]:
        """(n, 2): minus the summed log ratios per pair, and the Mahalanobis distance; larger is stranger."""
        n, features = codes.shape
        low = self.place[np.arange(features)[None, :], codes].T.astype(np.int64)
        together = np.zeros(n, dtype=np.float32)
        for (a, b), ratio in zip(self.pairs.tolist(), self.ratio, strict=True):
            together -= ratio[low[a] * SIDE + low[b]]
        numeric = len(self.score)
        z = self.score[np.arange(numeric)[None, :], codes[:, :numeric]]
        far = np.einsum("ij,ij->i", z @ self.precision, z) if numeric else np.zeros(n, dtype=np.float32)
        return np.stack([together / max(1, len(self.pairs)), far / max(1, numeric)], axis=1).astype(np.float32)

    def pack(self) -> dict[str, NDArray[Any]]:
        """Arrays for a calibration."""
        return {
            "joint_place": self.place,
            "joint_pairs": self.pairs,
            "joint_ratio": self.ratio,
            "joint_score": self.score,
            "joint_precision": self.precision,
        }

    @classmethod
    def unpack(cls, a: Mapping[str, NDArray[Any]]) -> Joint:
        """The inverse of `pack`."""
        return cls(*(np.asarray(a[f"joint_{part}"]) for part in ("place", "pairs", "ratio", "score", "precision")))


def crossed(codes: Codes, numeric: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Strangeness of each reference row under what the other half of the rows teaches: what fresh rows would get."""
    order = rng.permutation(len(codes))
    out = np.zeros((len(codes), 2), dtype=np.float32)
    halves = order[: len(codes) // 2], order[len(codes) // 2 :]
    for learn, judge in (halves, halves[::-1]):
        out[judge] = Joint.fit(codes[learn[:LEARN_ROWS]], numeric).strangeness(codes[judge])
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


def _normal_scores(codes: Codes) -> NDArray[np.float32]:
    """(numeric, codes): normal quantile of each code's mid-rank, 0 for missing."""
    score = np.zeros((codes.shape[1], MISSING + 1), dtype=np.float32)
    for f in range(codes.shape[1]):
        mass = np.bincount(codes[:, f], minlength=MISSING + 1)[:LEVELS].astype(np.float64)
        middle = (np.cumsum(mass) - mass / 2 + 0.5) / (mass.sum() + 1)
        score[f, :LEVELS] = ndtri(np.clip(middle, 1e-4, 1 - 1e-4))
    return score
