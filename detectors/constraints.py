"""What every row of a reference keeps to: ranges, precision of numbers, known codes. Learnt, never written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.signals import Frame
from detectors.stats import Floats

CODED: Final = 32  # a whole number with at most so many different values is a code, not an amount
DECIMALS: Final = 4  # finest precision that is looked for
FLOAT32: Final = 2e-7  # relative error of a value that has been a float32 on its way: no breach of precision
WIDENINGS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
FREE: Final = -1  # no precision was found
MANY: Final = 3


@dataclass(frozen=True)
class Constraints:
    """Learnt rules. low, high, decimals (FREE: none), coded: per number; words: known values per category, None: any."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    low: Floats
    high: Floats
    decimals: NDArray[np.int64]
    coded: NDArray[np.bool_]
    words: tuple[frozenset[str] | None, ...]

    @classmethod
    def fit(cls, frame: Frame, widening: float) -> Constraints:
        """Rules that all rows of the frame keep; ranges widened by `widening` times the way from median to end."""
        d = len(frame.numeric)
        low, high = np.full(d, -np.inf), np.full(d, np.inf)
        decimals, coded = np.full(d, FREE), np.zeros(d, dtype=bool)
        for j in range(d):
            x = frame.numbers[:, j]
            x = x[np.isfinite(x)]
            if not len(x):
                continue
            middle = float(np.median(x))
            if np.isfinite(widening):
                low[j], high[j] = x.min() - widening * (middle - x.min()), x.max() + widening * (x.max() - middle)
            decimals[j] = next((k for k in range(DECIMALS + 1) if not _off_grid(x, k).any()), FREE)
            coded[j] = decimals[j] == 0 and len(np.unique(x)) <= CODED
        words = tuple(
            frozenset(v[i] for i in np.unique(w[w >= 0]).tolist())
            for v, w in zip(frame.vocabulary, frame.words.T, strict=True)
        )
        return cls(frame.numeric, frame.categorical, low, high, decimals, coded, words)

    def breaches(self, frame: Frame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
        """(rule, feature, which rows break it) for every rule: "range", "code", "precision", "unseen"."""
        for j, name in enumerate(self.numeric):
            x = frame.numbers[:, j]
            yield "range", name, (x < self.low[j]) | (x > self.high[j])
            if self.decimals[j] != FREE:
                yield ("code" if self.coded[j] else "precision"), name, _off_grid(x, int(self.decimals[j]))
        for j, name in enumerate(self.categorical):
            known = self.words[j]
            if known is not None:
                strange = np.array([*(w not in known for w in frame.vocabulary[j]), False])  # place -1: missing
                yield "unseen", name, strange[frame.words[:, j]]

    def broken(self, frame: Frame) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """In how many fields each row breaks rules, and in which, as bits (of 64 fields; beyond that they share bits).

        All too fine amounts count as one, as two when most are affected: a client that sends cents where others send
        whole numbers breaks one rule; noise on every number breaks two.
        """
        count, fields = np.zeros(frame.n, dtype=np.int64), np.zeros(frame.n, dtype=np.uint64)
        fine = np.zeros(frame.n, dtype=np.int64)
        hard = np.zeros(frame.n, dtype=bool)  # the field at hand is out of its range: its precision counts no more
        place = {name: np.uint64(1 << (i % 64)) for i, name in enumerate((*self.numeric, *self.categorical))}
        for rule, name, mask in self.breaches(frame):
            fields[mask] |= place[name]
            if rule == "range":
                hard = mask
            if rule == "precision":
                fine += mask & ~hard
            elif rule == "code":
                count += mask & ~hard
            else:
                count += mask
        amounts = int(np.sum((self.decimals != FREE) & ~self.coded))
        return count + (fine > 0) + (fine >= max(MANY, (amounts + 1) // 2)), fields

    def pack(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready values and arrays for a calibration."""
        words = [None if w is None else sorted(w) for w in self.words]
        meta = {"numeric": list(self.numeric), "categorical": list(self.categorical), "words": words}
        return meta, {"low": self.low, "high": self.high, "decimals": self.decimals, "coded": self.coded}

    @classmethod
    def unpack(cls, meta: dict[str, Any], a: dict[str, NDArray[Any]]) -> Constraints:
        """The inverse of `pack`."""
        words = tuple(None if w is None else frozenset(w) for w in meta["words"])
        return cls(
            tuple(meta["numeric"]), tuple(meta["categorical"]), a["low"], a["high"], a["decimals"], a["coded"], words
        )


def learn(frame: Frame, rho: float, rng: np.random.Generator) -> Constraints | None:
    """Constraints that fresh rows of the reference, and of each of its segments, break at most as often as tolerated.

    Rules are learnt on one half and tried on the other: categories that keep bringing new values are left free, ranges
    are widened until at most rho / 2 of the rows break two rules, in every quarter of every number and in every common
    category too. None when even the widest ranges break that often. The final rules come from all rows.
    """
    order = rng.permutation(frame.n)
    one, other = frame.take(order[: frame.n // 2]), frame.take(order[frame.n // 2 :])
    for widening in (*WIDENINGS, np.inf):
        tried = _settled(Constraints.fit(one, widening), other, rho)
        if _worst_share(tried.broken(other)[0] >= 2, other) <= rho / 2:
            full = Constraints.fit(frame, widening)
            words = tuple(w if t is not None else None for w, t in zip(full.words, tried.words, strict=True))
            return replace(full, words=words, decimals=np.where(tried.decimals == full.decimals, full.decimals, FREE))
    return None


def _settled(rules: Constraints, fresh: Frame, rho: float) -> Constraints:
    """Without the word lists and precisions that fresh rows break more often than tolerated."""
    words, decimals = list(rules.words), rules.decimals.copy()
    for rule, name, mask in rules.breaches(fresh):
        if mask.mean() > rho:
            if rule == "unseen":
                words[rules.categorical.index(name)] = None
            elif rule in ("code", "precision"):
                decimals[rules.numeric.index(name)] = FREE
    return replace(rules, words=tuple(words), decimals=decimals)


def _worst_share(flag: NDArray[np.bool_], frame: Frame) -> float:
    """Largest share of flagged rows over all rows, the outer quarters of each number, and each common category."""
    worst = float(flag.mean()) if len(flag) else 0.0
    for x in frame.numbers.T:
        known = np.isfinite(x)
        if known.sum() >= 400:
            low, high = np.quantile(x[known], [0.25, 0.75])
            worst = max(worst, float(flag[known & (x <= low)].mean()), float(flag[known & (x >= high)].mean()))
    for w in frame.words.T:
        for value in np.flatnonzero(np.bincount(w[w >= 0]) >= 100).tolist():
            worst = max(worst, float(flag[w == value].mean()))
    return worst


def _off_grid(x: Floats, decimals: int) -> NDArray[np.bool_]:
    """Values that have more decimals than `decimals`, beyond what float32 does to a value. NaN never."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x * 10.0**decimals
        return np.asarray(np.abs(scaled - np.round(scaled)) > FLOAT32 * np.abs(scaled) + 1e-9, dtype=bool)
