"""Distinct rows of many callers in little memory: per caller the rows with the smallest hashes.

Hashes of distinct rows are uniform, so the k smallest of them are a fair sample of all distinct rows, and how small the
largest of them is tells how many there are: exactly up to k, within 1 / sqrt(k) beyond (Bar-Yossef et al. 2002). Which
rows are kept depends neither on order nor on repeats nor on where the log is cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.aged import Ids, Part, grown
from detectors.base import Arrays

KEPT: Final = 512  # rows per caller
FIRST: Final = 16.0  # distinct rows of the first reading,
SHOWN_ROWS: Final = 64  # and of the first that anybody without a budget is told
PER_DOUBLING: Final = 4  # readings until they have doubled
OLD: Final = -1  # row number of what was kept before
OVERHEAD: Final = 150  # bytes per caller beside the rows
SAVED: Final = 1 << 18  # rows of the log that can be saved up
EACH: Final = ("read", "seen", "told", "ahead")


class Sample(NamedTuple):
    """Distinct rows, those of one caller side by side, by hash. label, codes (rows, fields): as detectors.copies has them."""

    hash: NDArray[np.uint64]
    label: NDArray[np.uint8]
    codes: NDArray[np.uint8]

    def take(self, rows: Any) -> Sample:
        """Some of the rows."""
        return Sample(*(x[rows] for x in self))


class Reading(NamedTuple):
    """A caller that reached so many distinct rows with one row of the stretch, and its sample at that moment."""

    key: str
    row: int
    distinct: int
    step: int  # of the readings; -1: a number asked for
    sample: Sample


def steps(distinct: float) -> int:
    """How many readings lie at or below so many distinct rows.

    >>> steps(15), steps(16), steps(32)
    (0, 1, 5)
    """
    return 0 if distinct < FIRST else int(np.floor(np.log2(distinct / FIRST) * PER_DOUBLING + 1e-9)) + 1


def rows_at(step: int) -> int:
    """Distinct rows of a reading, counted from 0.

    >>> rows_at(0), rows_at(4)
    (16, 32)
    """
    return int(np.ceil(FIRST * 2 ** (step / PER_DOUBLING) - 1e-9))


@dataclass
class Distinct:
    """Samples of all callers one after the other; per caller: rows kept, readings taken, when last seen, alarms told, and
    ahead (of copies from as many usual rows, when last measured: detectors.copies; 0 before).

    old: callers not heard of late (detectors.aged). rows: of the log so far; spent: rows of the log that have been spent.
    """

    ids: list[str]
    length: NDArray[np.int64]
    read: NDArray[np.int64]
    seen: NDArray[np.int64]
    told: NDArray[np.int64]
    ahead: NDArray[np.float64]
    kept: Sample
    old: Part
    rows: int = 0
    spent: int = -SAVED

    @classmethod
    def load(cls, meta: Mapping[str, Any] | None, arrays: Arrays, fields: int) -> Distinct:
        """From what `save` made, or nobody."""
        none = np.zeros(0, np.int64)
        empty = Sample(np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros((0, fields), np.uint8))
        each = {**dict.fromkeys(EACH, none), "ahead": np.zeros(0)}
        nobody = Part(Ids(), each, none, empty._asdict())
        if meta is None:
            return cls([], none, none, none, none, np.zeros(0), empty, nobody)
        length, read, seen, told, ahead = (np.array(arrays[k]) for k in ("length", *EACH))
        kept = Sample(*(np.asarray(arrays[k]) for k in Sample._fields))
        old, rows, spent = Part.load(meta["old_ids"], arrays, nobody), int(meta["rows"]), int(meta["spent"])
        return cls(list(meta["ids"]), length, read, seen, told, ahead, kept, old, rows, spent)

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """As JSON-ready values and plain arrays."""
        old_ids, old = self.old.save()
        arrays = {k: getattr(self, k) for k in ("length", *EACH)} | self.kept._asdict() | old
        return {"ids": self.ids, "old_ids": old_ids, "rows": self.rows, "spent": self.spent}, arrays

    def recall(self, keys: Sequence[str]) -> None:
        """Old callers that are heard again; to be called before anything is asked of them."""
        known = set(self.ids)
        back = self.old.take(self.old.find(k for k in keys if k not in known))
        if back.ids:
            self._set(self._young().plus(back))

    def _young(self) -> Part:
        return Part(Ids(self.ids), {k: getattr(self, k) for k in EACH}, self.length, self.kept._asdict())

    def _set(self, young: Part) -> None:
        self.ids, self.length, self.kept = list(young.ids), young.length, Sample(**young.rows)
        self.read, self.seen, self.told, self.ahead = (young.each[k].copy() for k in EACH)

    def limits(self, keys: Sequence[str]) -> NDArray[np.uint64]:
        """Per caller the hash from which on a row cannot enter its sample."""
        place = {k: i for i, k in enumerate(self.ids)}
        ends = np.cumsum(self.length)
        out = np.full(len(keys), np.iinfo(np.uint64).max, np.uint64)
        for j, key in enumerate(keys):
            i = place.get(key)
            if i is not None and self.length[i] >= KEPT:
                out[j] = self.kept.hash[ends[i] - 1]
        return out

    def add(
        self,
        keys: Sequence[str],
        last: NDArray[np.int64],
        who: NDArray[np.int64],
        row: NDArray[np.int64],
        new: Sample,
        asked: Mapping[str, int],
        dense: frozenset[str],
    ) -> list[Reading]:
        """Take in rows (`who` indexes `keys`, in log order) and return what they bring about. last: each key's last row.

        asked: callers with a number of distinct rows to be told of; dense: callers read PER_DOUBLING times per doubling
        instead of once.
        """
        place = {k: i for i, k in enumerate(self.ids)}
        home = np.array([place.setdefault(k, len(place)) for k in keys], np.int64)
        grown = len(place) - len(self.ids)
        self.ids = list(place)
        self.length, self.read, self.seen, self.told = (
            np.pad(x, (0, grown)) for x in (self.length, self.read, self.seen, self.told)
        )
        self.ahead = np.pad(self.ahead, (0, grown))
        touched = np.zeros(len(self.ids), dtype=bool)
        touched[home] = True
        owner = np.repeat(np.arange(len(self.ids)), self.length)
        old = touched[owner]
        newly = np.lexsort([row, new.hash, home[who]])
        rows = Sample(*(np.concatenate([a, b]) for a, b in zip(self.kept, new, strict=True)))
        at = np.concatenate([np.flatnonzero(old), len(owner) + newly])
        mine = np.concatenate([owner[old], home[who][newly]])
        order = _merged(mine, rows.hash[at], len(mine) - len(newly))
        mine, at = mine[order], at[order]
        when = np.concatenate([np.full(len(owner), OLD, np.int64), row])[at]
        found = self._readings(mine, when, rows, at, asked, dense)
        begin = np.flatnonzero(np.diff(mine, prepend=-1))
        keep = np.arange(len(mine)) - np.repeat(begin, np.diff(begin, append=len(mine))) < KEPT
        owners = np.concatenate([owner[~old], mine[keep]])
        sides = np.concatenate([np.flatnonzero(~old), at[keep]])[np.argsort(owners, kind="stable")]
        self.kept, self.length = rows.take(sides), np.bincount(owners, minlength=len(self.ids)).astype(np.int64)
        self.seen[home] = self.rows + last + 1
        return found

    def _readings(
        self, mine: NDArray[np.int64], when: NDArray[np.int64], rows: Sample, at: NDArray[np.int64],
        asked: Mapping[str, int], dense: frozenset[str],
    ) -> list[Reading]:  # fmt: skip
        """Every number of distinct rows that a caller has reached for the first time. at: place in `rows` of each row."""
        callers, begin, size = np.unique(mine, return_index=True, return_counts=True)
        hashes = rows.hash[at]
        out: list[Reading] = []
        for c, b, n in zip(callers.tolist(), begin.tolist(), size.tolist(), strict=True):
            key, wanted = self.ids[c], asked.get(self.ids[c])
            if n < FIRST and (wanted is None or n < wanted):
                continue
            times, own = when[b : b + n], hashes[b : b + n]
            order, first = np.sort(times), _first(times)
            if first is None:
                continue
            reached = [(rows_at(s), s) for s in range(int(self.read[c]), steps(_count(own)))]
            if wanted is not None and not self.told[c] & 1:
                reached.append((wanted, -1))
            for distinct, s in reached:
                row = _moment(own, times, order, first, distinct)
                if row is None:
                    continue
                self.read[c] = max(int(self.read[c]), s + 1)
                if s < 0 or (s % PER_DOUBLING == 0 and distinct >= SHOWN_ROWS) or key in dense:
                    until = at[b + np.flatnonzero(times <= row)[:KEPT]]
                    out.append(Reading(key, row, distinct, s, rows.take(until)))
        return sorted(out, key=lambda r: (r.row, r.key, r.step))

    def pays(self, row: int, price: int, *, leaves: int, always: bool) -> bool:
        """Whether so many rows of the log can be spent at a row of the stretch, and spend them.

        Every row of the log is one to spend, SAVED at most are saved up. leaves: so many must be left; always: at any rate.
        """
        now = self.rows + row
        spent = max(self.spent, now - SAVED) + price
        if not always and spent > now - leaves:
            return False
        self.spent = min(spent, now)
        return True

    def settle(self) -> None:
        """Put the silent with the silent, so that others cost nothing while they are."""
        if grown(len(self.ids), len(self.old.ids)):
            self._part(self.old.plus(self._young()))

    def forget(self, max_bytes: int) -> None:
        """When memory is short, drop whoever has shown least, then who was silent longest."""
        each = sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in self.kept)
        twice = self.old.find(self.ids)
        rows = int(self.length.sum() + self.old.length.sum() - self.old.length[twice].sum())
        if rows * each + (len(self.ids) + len(self.old.ids) - len(twice)) * OVERHEAD > max_bytes:
            both = self.old.plus(self._young())
            size = both.length * each + OVERHEAD
            rank = np.empty(len(both.ids), np.int64)
            rank[sorted(range(len(both.ids)), key=both.ids.__getitem__)] = np.arange(len(both.ids))
            order = np.lexsort([rank, -both.each["seen"], -both.each["read"]])
            self._part(both.take(np.sort(order[np.cumsum(size[order]) <= max_bytes * 0.9])))

    def _part(self, all_of_them: Part) -> None:
        self.old = all_of_them
        self._set(all_of_them.take(np.zeros(0, np.int64)))


@numba.njit(cache=True)
def _merged(mine: Any, hashes: Any, second: int) -> Any:
    """Places of rows by caller and hash, each row of a caller once, its first; before and from `second` on they are sorted."""
    out, n, i, j = np.empty(len(mine), np.int64), 0, 0, second
    for _ in range(len(mine)):
        if j == len(mine) or (i < second and (mine[i], hashes[i]) <= (mine[j], hashes[j])):
            at = i
            i += 1
        else:
            at = j
            j += 1
        if n == 0 or mine[at] != mine[out[n - 1]] or hashes[at] != hashes[out[n - 1]]:
            out[n] = at
            n += 1
    return out[:n]


def _bound(distinct: int) -> np.uint64:
    """The hash below which KEPT of so many distinct rows are expected."""
    return np.uint64(min(int((KEPT - 1) / distinct * 2.0**64), 2**64 - 1))


def _count(hashes: NDArray[np.uint64]) -> float:
    """Distinct rows behind the smallest hashes, sorted."""
    if len(hashes) <= KEPT:
        return float(len(hashes))
    return max(float(KEPT), (KEPT - 1) / (float(hashes[KEPT - 1]) / 2.0**64))


def _first(when: NDArray[np.int64]) -> int | None:
    """The first row of the stretch that is new."""
    fresh = when[when > OLD]
    return int(fresh.min()) if len(fresh) else None


def _moment(
    hashes: NDArray[np.uint64], when: NDArray[np.int64], order: NDArray[np.int64], first: int, distinct: int
) -> int | None:
    """The row with which so many distinct rows were reached, or the first that shows it; None: not yet.

    order: `when`, sorted; first: the first row that is new.
    """
    if distinct > KEPT:
        order = np.sort(when[hashes <= _bound(distinct)])
    need = min(distinct, KEPT)
    return max(int(order[need - 1]), first) if len(order) >= need else None
