"""What every row of a reference keeps to: ranges, steps of numbers, known codes, rules across fields. Learnt, never written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.honest import calm
from detectors.relations import Relations, Rule, value
from detectors.signals import Frame
from detectors.stats import Floats

CODED: Final = 32  # a whole number with at most so many different values is a code, not an amount
DECIMALS: Final = 4  # finest precision that is looked for
FLOAT32: Final = 2e-7  # relative error of a value that has been a float32 on its way: no breach of precision
WIDENINGS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
FREE: Final = -1  # no precision was found
MANY: Final = 3
LEAST, UP_TO = 2, 5  # broken rules with which a row may be torn
CHANGED: Final = (0.02, 0.05, 0.1)  # shares of the fields of an honest book that are replaced
BOOKS: Final = 4  # simulated books of each share,
PAGES: Final = 1_500  # with so many rows
BY_CHANCE: Final = 20.0  # nats: as many different numbers are all multiples of a step by chance once in e**20 tries


class Breach(NamedTuple):
    """A rule and the rows that break it. kind: "range", "code", "precision", "step", "unseen" or "relation"."""

    kind: str
    fields: tuple[int, ...]
    rows: NDArray[np.bool_]
    relation: Rule | None = None


class Broken(NamedTuple):
    """Per row: fields that break rules of their own (`single`, and which, as bits: `fields`), and whether they and the broken
    rules across other fields are more than an honest client has at a time (`torn`).
    """

    single: NDArray[np.int64]
    fields: NDArray[np.uint64]
    torn: NDArray[np.bool_]


@dataclass(frozen=True)
class Constraints:
    """Learnt rules. low, high, decimals (FREE: none), coded: per number; step, offset: all values are `offset` more than a
    multiple of `step`, in units of the last decimal (1, 0: nothing more than that); words: known values per category, None:
    any; relations: rules across fields; torn: broken rules, those across fields included, that no honest row has.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    low: Floats
    high: Floats
    decimals: NDArray[np.int64]
    coded: NDArray[np.bool_]
    step: NDArray[np.int64]
    offset: NDArray[np.int64]
    words: tuple[frozenset[str] | None, ...]
    relations: Relations
    torn: int = LEAST

    @classmethod
    def fit(cls, frame: Frame, widening: float) -> Constraints:
        """Rules of single fields that all rows keep; ranges widened by `widening` times the way from median to end."""
        d = len(frame.numeric)
        low, high = np.full(d, -np.inf), np.full(d, np.inf)
        decimals, coded = np.full(d, FREE), np.zeros(d, dtype=bool)
        step, offset = np.ones(d, np.int64), np.zeros(d, np.int64)
        for j in range(d):
            x = frame.numbers[:, j]
            x = x[np.isfinite(x)]
            if not len(x):
                continue
            middle = float(np.median(x))
            if np.isfinite(widening):
                low[j], high[j] = x.min() - widening * (middle - x.min()), x.max() + widening * (x.max() - middle)
            decimals[j] = next((k for k in range(DECIMALS + 1) if not _off_grid(x, k).any()), FREE)
            step[j], offset[j] = _step(x, int(decimals[j]))
            coded[j] = decimals[j] == 0 and step[j] == 1 and len(np.unique(x)) <= CODED
        words = tuple(
            frozenset(v[i] for i in np.unique(w[w >= 0]).tolist())
            for v, w in zip(frame.vocabulary, frame.words.T, strict=True)
        )
        across = Relations.none(frame.numeric, frame.categorical)
        return cls(frame.numeric, frame.categorical, low, high, decimals, coded, step, offset, words, across)

    @property
    def unit(self) -> Floats:
        """The last decimal of each number, 0 where none was found."""
        return np.where(self.decimals == FREE, 0.0, 10.0 ** -np.maximum(self.decimals, 0))

    def breaches(self, frame: Frame) -> Iterator[Breach]:
        """Every rule, those of single fields first, and which rows break it."""
        for j in range(len(self.numeric)):
            x = frame.numbers[:, j]
            yield Breach("range", (j,), (x < self.low[j]) | (x > self.high[j]))
            if self.decimals[j] != FREE:
                kind = "code" if self.coded[j] else "precision" if self.step[j] == 1 else "step"
                yield Breach(kind, (j,), _off_grid(x, int(self.decimals[j]), int(self.step[j]), int(self.offset[j])))
        for j in range(len(self.categorical)):
            known = self.words[j]
            if known is not None:
                strange = np.array([*(w not in known for w in frame.vocabulary[j]), False])  # place -1: missing
                yield Breach("unseen", (len(self.numeric) + j,), strange[frame.words[:, j]])
        for rule, rows in self.relations.breaches(frame):
            yield Breach("relation", rule.fields, rows, rule)

    def say(self, b: Breach, frame: Frame, i: int) -> str:
        """Why row i breaks the rule, in words with the values."""
        if b.relation is not None:
            return self.relations.say(b.relation, frame, i)
        (j,) = b.fields
        name, shown = (*self.numeric, *self.categorical)[j], value(frame, j, i)
        if b.kind == "range":
            return f"{name} = {shown}: outside {self.low[j]:.6g} to {self.high[j]:.6g}"
        if b.kind == "step":
            unit = 10.0 ** -float(self.decimals[j])
            more = f"{self.offset[j] * unit:.6g} more than " if self.offset[j] else ""
            return f"{name} = {shown}: not {more}a multiple of {self.step[j] * unit:.6g}"
        if b.kind == "precision":
            return f"{name} = {shown}: more than {int(self.decimals[j])} decimals"
        return f"{name} = {shown}: {'a code has no decimals' if b.kind == 'code' else 'not among the values of the reference'}"

    def broken(self, frame: Frame) -> Broken:
        """How many rules each row breaks, and in which fields, as bits (of 64 fields; beyond that they share bits).

        All too fine amounts count as one, as two when most are affected: a client that sends cents where others send
        whole numbers breaks one rule; noise on every number breaks two. A rule across fields counts only where none of its
        fields is blamed already: one wrong field, say in another unit, breaks every rule that it is in. So at least as many
        fields must be wrong as there are rules counted.
        """
        count, fields = np.zeros(frame.n, dtype=np.int64), np.zeros(frame.n, dtype=np.uint64)
        fine = np.zeros(frame.n, dtype=np.int64)
        hard = np.zeros(frame.n, dtype=bool)  # the field at hand is out of its range: its precision counts no more
        amounts = int(np.sum((self.decimals != FREE) & ~self.coded))
        across, blamed = np.zeros(frame.n, dtype=np.int64), fields
        for kind, places, rows, _ in self.breaches(frame):
            bits = np.bitwise_or.reduce([np.uint64(1 << (f % 64)) for f in places])
            if kind == "relation":
                blamed = blamed.copy() if blamed is fields else blamed
                more = rows & ((blamed & bits) == 0)
                blamed[more] |= bits
                across += more
                continue
            fields[rows] |= bits
            if kind == "range":
                hard = rows
            if kind in ("precision", "step"):
                fine += rows & ~hard
            elif kind == "code":
                count += rows & ~hard
            else:
                count += rows
        count = count + (fine > 0) + (fine >= max(MANY, (amounts + 1) // 2))
        return Broken(count, fields, (across > 0) & (count + across >= self.torn))

    def pack(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-ready values and arrays for a calibration."""
        words = [None if w is None else sorted(w) for w in self.words]
        meta = {
            "numeric": list(self.numeric), "categorical": list(self.categorical), "words": words, "relations": self.relations.pack(), "torn": self.torn,
        }  # fmt: skip
        return meta, {k: getattr(self, k) for k in ("low", "high", "decimals", "coded", "step", "offset")}

    @classmethod
    def unpack(cls, meta: dict[str, Any], a: dict[str, NDArray[Any]]) -> Constraints:
        """The inverse of `pack`."""
        words = tuple(None if w is None else frozenset(w) for w in meta["words"])
        numeric, categorical = tuple(meta["numeric"]), tuple(meta["categorical"])
        return cls(
            numeric, categorical, a["low"], a["high"], a["decimals"], a["coded"], a["step"], a["offset"], words,
            Relations.unpack(numeric, categorical, meta["relations"]), meta["torn"],
        )  # fmt: skip


def learn(frame: Frame, rho: float, rng: np.random.Generator) -> Constraints | None:
    """Constraints that fresh rows of the reference, and of each of its segments, break at most as often as tolerated.

    Rules are learnt on one half and tried on the other: categories that keep bringing new values are left free, ranges
    are widened until at most rho / 2 of the rows break two rules, in every quarter of every number and in every common
    category too. None when even the widest ranges break that often. Steps and rules across fields stay only where no
    row of the other half breaks them. The final rules come from all rows. How many rules a torn row breaks is what keeps
    simulated honest clients well below an alarm, who score a book again in which some fields were replaced.
    """
    order = rng.permutation(frame.n)
    one, other = frame.take(order[: frame.n // 2]), frame.take(order[frame.n // 2 :])
    apart = rng.spawn(1)[0]
    across = Relations.fit(one, Constraints.fit(one, np.inf).unit, apart).kept_by(other)
    books = [_replaced(other, share, apart) for share in CHANGED * BOOKS]
    for widening in (*WIDENINGS, np.inf):
        tried = _settled(replace(Constraints.fit(one, widening), relations=across), other, rho)
        if _worst_share(tried.broken(other).single >= 2, other) <= rho / 2:
            tried = _bounded(tried, books, rho)
            full = Constraints.fit(frame, widening)
            words = tuple(w if t is not None else None for w, t in zip(full.words, tried.words, strict=True))
            same = tried.decimals == full.decimals
            steps = same & (tried.step == full.step) & (tried.offset == full.offset)
            return replace(
                full, words=words, decimals=np.where(same, full.decimals, FREE), step=np.where(steps, full.step, 1),
                offset=np.where(steps, full.offset, 0), relations=tried.relations, torn=tried.torn,
            )  # fmt: skip
    return None


def _bounded(rules: Constraints, books: list[Frame], rho: float) -> Constraints:
    """With the fewest broken rules that keep these honest clients well below an alarm; else without rules across fields."""
    for torn in range(LEAST, UP_TO + 1):
        tried = replace(rules, torn=torn)
        if calm([tried.broken(book).torn for book in books], rho):
            return tried
    return replace(rules, relations=Relations.none(rules.numeric, rules.categorical))


def _replaced(frame: Frame, share: float, rng: np.random.Generator) -> Frame:
    """Rows of which so large a share of the fields holds what other rows have there."""
    one, other = (frame.take(rng.integers(frame.n, size=PAGES)) for _ in range(2))
    numbers = np.where(rng.random(one.numbers.shape) < share, other.numbers, one.numbers)
    words = np.where(rng.random(one.words.shape) < share, other.words, one.words)
    return replace(one, numbers=numbers, words=words)


def _settled(rules: Constraints, fresh: Frame, rho: float) -> Constraints:
    """Without the word lists and precisions that fresh rows break more often than tolerated, and the steps that any does."""
    words, decimals, step, offset = list(rules.words), rules.decimals.copy(), rules.step.copy(), rules.offset.copy()
    for kind, (j, *_), rows, _ in rules.breaches(fresh):
        if kind == "step" and rows.any():
            step[j], offset[j] = 1, 0
        elif rows.mean() > rho and kind == "unseen":
            words[j - len(rules.numeric)] = None
    rules = replace(rules, words=tuple(words), step=step, offset=offset)
    for kind, (j, *_), rows, _ in rules.breaches(fresh):
        if rows.mean() > rho and kind in ("code", "precision"):
            decimals[j] = FREE
    return replace(rules, decimals=decimals)


def _worst_share(flag: NDArray[np.bool_], frame: Frame) -> float:
    """Largest share of flagged rows over all rows, the outer quarters of each number, and each common category."""
    worst = float(flag.mean()) if len(flag) else 0.0
    for x in frame.numbers.T:
        known = np.isfinite(x)
        if known.sum() >= 400:
            low, high = np.quantile(x[known], [0.25, 0.75])
            worst = max(worst, float(flag[known & (x <= low)].mean()), float(flag[known & (x >= high)].mean()))
    for w in frame.words.T:
        for word in np.flatnonzero(np.bincount(w[w >= 0]) >= 100).tolist():
            worst = max(worst, float(flag[w == word].mean()))
    return worst


def _step(x: Floats, decimals: int) -> tuple[int, int]:
    """The largest step, and the offset, of which all values are multiples, in units of the last decimal; (1, 0): none.

    Of m different numbers, all are multiples of the step g by chance with probability g to the minus (m - 1).

    >>> _step(np.arange(12) * 0.25 + 0.05, 2)
    (25, 5)
    >>> _step(np.array([0.0, 7.0, 14.0]), 0)
    (1, 0)
    """
    if decimals == FREE or not np.abs(x).max() * 10.0**decimals < 2**52:
        return 1, 0
    values = np.unique(np.round(x * 10.0**decimals).astype(np.int64))
    step = int(np.gcd.reduce(np.diff(values))) if len(values) > 1 else 1
    return (step, int(values[0] % step)) if step > 1 and (len(values) - 1) * np.log(step) >= BY_CHANCE else (1, 0)


def _off_grid(x: Floats, decimals: int, step: int = 1, offset: int = 0) -> NDArray[np.bool_]:
    """Values off the multiples of a step in units of the last decimal, beyond what float32 does to a value. NaN never."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x * 10.0**decimals
        room = FLOAT32 * np.abs(scaled) + 1e-9
        if step > 1:
            scaled, room = (scaled - offset) / step, room / step
        return np.asarray(np.abs(scaled - np.round(scaled)) > room, dtype=bool)
