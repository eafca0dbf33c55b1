"""Chains of near-duplicates: each principal's last distinct rows, and whether a new row continues one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors import signals
from detectors.base import State
from detectors.signals import BLOCK, Codes, Frame, Marks
from detectors.stats import Floats

FEW: Final = 2  # fields that a what-if changes at a time
WANDERED: Final = 5  # fields in which a chain has moved when small steps no longer count as what-if
FOLLOWED: Final = 5  # near rows that far away that it takes
CALM: Final = 7.0  # nats that nine in ten simulated honest clients may reach: half of what an alarm takes
WORST: Final = 11.0  # and every one of them: an alarm takes 14.5
MARGIN: Final = 0.15  # of the way from what honest clients need to the bits of a repeated row
REACH: Final = 0.92  # largest part of a repeated row's bits that a threshold may ask for
SEQUENCE: Final = 1500  # rows per simulated client
SEQUENCES: Final = 12  # simulated clients of each sorted kind


@dataclass(frozen=True)
class Met:
    """Per row of a stretch: fresh (not an exact repeat), near (continues a chain), what_if (one or two fields from an
    earlier row), the bits of the nearest resemblance and in how many fields it differs (0 where nothing was near).
    """

    fresh: NDArray[np.bool_]
    near: NDArray[np.bool_]
    what_if: NDArray[np.bool_]
    bits: Floats
    differs: NDArray[np.int64]


@dataclass
class Chains:
    """The last `memory` distinct rows of each principal, one after the other: codes and marks (R, F), hashes (R,).

    length (P,): rows of each principal; seen (P,): when it last sent something, counted in rows of the log.
    """

    memory: int
    ids: list[str]
    length: NDArray[np.int64]
    seen: NDArray[np.int64]
    codes: Codes
    marks: Marks
    hashes: NDArray[np.uint64]
    rows: int = 0

    @classmethod
    def load(cls, state: State | None, features: int, memory: int) -> Chains:
        """From a state, or nobody known."""
        if state is None:
            none = np.zeros(0, np.int64)
            shape = (0, features)
            return cls(
                memory,
                [],
                none,
                none.copy(),
                np.zeros(shape, np.uint8),
                np.zeros(shape, np.uint16),
                np.zeros(0, np.uint64),
            )
        a = state.arrays
        length, seen, codes, marks, hashes = (np.asarray(a[k]) for k in _PARTS)
        return cls(memory, list(state.meta["ids"]), length, seen, codes, marks, hashes, int(state.meta["rows"]))

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        """As plain arrays."""
        return State(
            detector,
            version,
            calibration_hash,
            {"ids": self.ids, "rows": self.rows},
            {k: getattr(self, k) for k in _PARTS},
        )

    def meet(
        self,
        names: Sequence[str],
        who: NDArray[np.int64],
        codes: Codes,
        marks: Marks,
        hashes: NDArray[np.uint64],
        table: NDArray[np.float32],
        bits: float,
        suspect: NDArray[np.bool_],
    ) -> Met:
        """Compare each row with its principal's earlier ones and remember it. `suspect`: rows whose nearest is wanted."""
        n = len(who)
        met = Met(np.ones(n, bool), np.zeros(n, bool), np.zeros(n, bool), np.zeros(n), np.zeros(n, np.int64))
        place = {p: i for i, p in enumerate(self.ids)}
        ends = np.cumsum(self.length)
        order = np.argsort(who, kind="stable")
        first = np.flatnonzero(np.r_[True, who[order][1:] != who[order][:-1]])
        home = np.empty(n, dtype=np.int64)
        for a, b in zip(first.tolist(), [*first[1:].tolist(), n], strict=True):
            rows = order[a:b]
            p = place.setdefault(names[int(who[rows[0]])], len(place))
            home[rows] = p
            old = slice(int(ends[p] - self.length[p]), int(ends[p])) if p < len(self.length) else slice(0, 0)
            if old.stop == old.start and len(rows) == 1:
                continue
            new = rows[_first_time(self.hashes[old].tolist(), hashes[rows].tolist(), self.memory)]
            met.fresh[np.setdiff1d(rows, new, assume_unique=True)] = False
            pool_c, pool_m = (
                np.concatenate([self.codes[old], codes[new]]),
                np.concatenate([self.marks[old], marks[new]]),
            )
            for part in _blocks(pool_c, pool_m, len(new), self.memory, table, bits, suspect[new]):
                at = new[part.start : part.start + len(part.near)]
                met.near[at], met.what_if[at], met.bits[at], met.differs[at] = (
                    part.near,
                    part.what_if,
                    part.bits,
                    part.differs,
                )
        self._remember(place, home, codes, marks, hashes, met.fresh)
        return met

    def _remember(
        self,
        place: dict[str, int],
        home: NDArray[np.int64],
        codes: Codes,
        marks: Marks,
        hashes: NDArray[np.uint64],
        fresh: NDArray[np.bool_],
    ) -> None:
        """Append the fresh rows and keep the last `memory` of each principal."""
        self.ids = list(place)
        grown = len(place) - len(self.length)
        owner = np.concatenate([np.repeat(np.arange(len(self.length)), self.length), home[fresh]])
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        size = np.bincount(owner, minlength=len(place))
        from_end = np.cumsum(size)[owner] - np.arange(len(owner))
        keep = order[from_end <= self.memory]
        self.codes = np.concatenate([self.codes, codes[fresh]])[keep]
        self.marks = np.concatenate([self.marks, marks[fresh]])[keep]
        self.hashes = np.concatenate([self.hashes, hashes[fresh]])[keep]
        self.length = np.minimum(size, self.memory)
        self.seen = np.pad(self.seen, (0, grown))
        np.maximum.at(self.seen, home, self.rows + np.arange(len(home)))
        self.rows += len(home)

    def forget(self, max_bytes: int) -> None:
        """Drop the rows of whoever was silent longest when memory is short. Evidence is kept by fuse(), not here."""
        each = self.codes.shape[1] * 3 + 8
        size = self.length * each + 150
        if size.sum() <= max_bytes:
            return
        order = np.argsort(-self.seen, kind="stable")
        keep = np.zeros(len(self.ids), dtype=bool)
        keep[order[np.cumsum(size[order]) <= max_bytes * 0.9]] = True
        rows = np.repeat(keep, self.length)
        self.ids = [p for p, k in zip(self.ids, keep.tolist(), strict=True) if k]
        self.codes, self.marks, self.hashes = self.codes[rows], self.marks[rows], self.hashes[rows]
        self.length, self.seen = self.length[keep], self.seen[keep]


_PARTS: Final = ("length", "seen", "codes", "marks", "hashes")


def _first_time(known: list[int], hashes: list[int], memory: int) -> list[int]:
    """Places of the hashes that are not among the last `memory` distinct ones before them."""
    recent = dict.fromkeys(known)
    fresh = []
    for i, h in enumerate(hashes):
        if h not in recent:
            fresh.append(i)
            recent[h] = None
            if len(recent) > memory:
                del recent[next(iter(recent))]
    return fresh


@dataclass(frozen=True)
class _Part:
    start: int
    near: NDArray[np.bool_]
    what_if: NDArray[np.bool_]
    bits: Floats
    differs: NDArray[np.int64]


def _blocks(
    codes: Codes,
    marks: Marks,
    new: int,
    memory: int,
    table: NDArray[np.float32],
    bits: float,
    suspect: NDArray[np.bool_],
) -> Iterator[_Part]:
    """The last `new` rows against up to `memory` rows before each, block by block; blocks without a find are left out."""
    known = len(codes) - new
    for start in range(0, new, BLOCK):
        stop = min(start + BLOCK, new)
        low, high = max(0, known + start - memory), known + stop - 1
        if high <= low:
            continue
        found = signals.resemblance(table, codes[known + start : known + stop], codes[low:high])
        i, j = np.arange(known + start, known + stop)[:, None], np.arange(low, high)[None, :]
        before = (j < i) & (j >= i - memory)
        hit = before & (found >= bits)
        interesting = np.flatnonzero(hit.any(axis=1) | (suspect[start:stop] & before.any(axis=1)))
        if not len(interesting):
            continue
        k = stop - start
        part = _Part(start, np.zeros(k, bool), np.zeros(k, bool), np.zeros(k), np.zeros(k, np.int64))
        fields = signals.differing(marks[known + start : known + stop][interesting], marks[low:high])
        fields = np.where(before[interesting], fields, np.int16(32000))
        hit, found = hit[interesting], found[interesting]
        close = fields.min(axis=1) <= FEW
        wandered = (hit & (fields >= WANDERED)).sum(axis=1) >= FOLLOWED
        part.near[interesting] = hit.any(axis=1) & (~close | wandered)
        part.what_if[interesting] = close & ~wandered
        best = np.argmax(np.where(hit, found, -1.0), axis=1)
        any_hit = hit.any(axis=1)
        rows = np.arange(len(interesting))
        part.bits[interesting] = np.where(any_hit, found[rows, best], 0.0)
        part.differs[interesting] = np.where(any_hit, fields[rows, best], 0)
        yield part


@dataclass(frozen=True)
class Found:
    """A threshold in bits, or why there is none. benign: what simulated honest clients need; reach: bits of a repeat."""

    bits: float | None
    benign: float
    reach: float
    refused: str | None = None


def near_threshold(
    frame: Frame,
    codes: Codes,
    table: NDArray[np.float32],
    callers: NDArray[np.int64],
    memory: int,
    rho: float,
    rng: np.random.Generator,
) -> Found:
    """The smallest number of bits for which simulated honest clients stay well below an alarm, plus a margin.

    Refused when that is more than REACH of the bits that a row shares with its own repeat: then an attacker's small
    steps cannot be told from rows that are alike anyway (few features, or coarse ones).
    """
    if codes.shape[1] <= FEW + 1:
        return Found(None, 0.0, 0.0, f"{codes.shape[1]} features are too few: a step in {FEW} of them is a what-if")
    features = np.arange(codes.shape[1])[None, :]
    reach = float(np.quantile(table[features, codes, codes].sum(axis=1), 0.5))
    marks, hashes = frame.marks(), frame.whole()
    best = [
        _nearest(codes[rows], marks[rows], hashes[rows], memory, table)
        for rows in honest(frame, codes, callers, rng)
        if len(rows) >= 30
    ]
    benign = 0.0
    for bits in np.linspace(0, reach, 81)[1:].tolist():
        reached = np.array([_evidence(b >= bits, rho) for b in best])
        if np.quantile(reached, 0.9) <= CALM and reached.max() <= WORST:
            benign = bits
            break
    else:
        benign = reach
    threshold = benign + MARGIN * (reach - benign)
    if threshold > REACH * reach or reach <= 0:
        return Found(
            None,
            benign,
            reach,
            f"honest rows resemble each other by {benign:.0f} of {reach:.0f} bits: no threshold tells steps apart",
        )
    return Found(threshold, benign, reach)


def honest(
    frame: Frame, codes: Codes, callers: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Row numbers that honest clients might send one after the other, made from the reference."""
    n = len(codes)
    every = np.arange(n)
    for start in range(0, min(n, 3 * SEQUENCE), SEQUENCE):  # as it came
        yield every[start : start + SEQUENCE]
    sizes = np.bincount(callers[callers >= 0]) if (callers >= 0).any() else np.zeros(0, np.int64)
    for p in np.argsort(-sizes, kind="stable")[:SEQUENCES].tolist():  # its own clients
        yield np.flatnonzero(callers == p)[:SEQUENCE]
    yield rng.permutation(n)[:SEQUENCE]
    features = codes.shape[1]
    for keys in (1, 3):  # batches sorted by one or three features, taken whole and thinned
        for _ in range(SEQUENCES):
            chosen = rng.choice(features, min(keys, features), replace=False)
            some = rng.permutation(n)[: max(SEQUENCE, n // 2)] if rng.random() < 0.5 else rng.permutation(n)
            order = some[np.lexsort([codes[some, f] for f in chosen])]
            start = int(rng.integers(max(1, len(order) - SEQUENCE + 1)))
            yield order[start : start + SEQUENCE]
    for _ in range(SEQUENCES):  # one segment only
        f = int(rng.integers(features))
        code = int(codes[rng.integers(n), f])
        inside = np.flatnonzero(np.abs(codes[:, f].astype(int) - code) <= (0 if f >= len(frame.numeric) else 8))
        yield rng.permutation(inside)[:SEQUENCE]


def _nearest(codes: Codes, marks: Marks, hashes: NDArray[np.uint64], memory: int, table: NDArray[np.float32]) -> Floats:
    """Largest bits of each distinct row against the rows before it that differ in more than FEW fields."""
    fresh = np.array(_first_time([], hashes.tolist(), memory), dtype=np.int64)
    codes, marks = codes[fresh], marks[fresh]
    out = np.zeros(len(fresh))
    for start in range(0, len(fresh), BLOCK):
        stop = min(start + BLOCK, len(fresh))
        low = max(0, start - memory)
        found = signals.resemblance(table, codes[start:stop], codes[low:stop])
        i, j = np.arange(start, stop)[:, None], np.arange(low, stop)[None, :]
        allowed = (j < i) & (j >= i - memory) & (signals.differing(marks[start:stop], marks[low:stop]) > FEW)
        out[start:stop] = np.where(allowed, found, 0.0).max(axis=1)
    return out


def _evidence(flag: NDArray[np.bool_], rho: float) -> float:
    """Highest mixture of CUSUM e-values that a client with these flags would reach, in nats."""
    total = np.cumsum(signals.bernoulli_bets(flag, rho), axis=0)
    low = np.minimum.accumulate(np.concatenate([np.zeros((1, total.shape[1])), total[:-1]]), axis=0)
    running = np.maximum(total - np.minimum(low, 0.0), 0.0)
    return float(np.log(np.exp(np.minimum(running, 700.0)).mean(axis=1)).max(initial=0.0))
