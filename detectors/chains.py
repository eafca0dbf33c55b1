"""Each principal's last distinct rows, kept between stretches of the log: what detectors.search compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors import search
from detectors.base import State
from detectors.search import Memory, Met, Places, Rows, Scale

_TYPES: Final[dict[str, Any]] = {
    "codes": np.uint8, "marks": np.uint16, "numbers": np.float32, "hashes": np.uint64, "used": np.int64, "worth": np.uint8, "fields": np.uint64,
    "invalid": np.uint64, "star": np.uint64, "stars": np.int32, "chain": np.uint64, "label": np.int32, "score": np.float32,
}  # fmt: skip
EACH: Final = ("length", "count", "seen", "centre", "samples", "signs")  # arrays of Chains with a row per principal


@dataclass
class Chains:
    """Rows of all principals one after the other (Memory), and per principal: rows kept, events so far, when last seen, and
    whose noisy copies it sends (search.Places).

    `seen` counts rows of the log. Bounded by `forget`; evidence is kept by fuse(), not here.
    """

    memory: int
    ids: list[str]
    length: NDArray[np.int64]
    count: NDArray[np.int64]
    seen: NDArray[np.int64]
    centre: NDArray[np.uint64]
    samples: NDArray[np.int64]
    signs: NDArray[np.int16]  # (principals, numeric)
    kept: Memory
    rows: int = 0

    @classmethod
    def load(cls, state: State | None, features: int, numeric: int, memory: int) -> Chains:
        """From a state, or nobody known."""
        if state is None:
            none = np.zeros(0, np.int64)
            signs = np.zeros((0, numeric), np.int16)
            return cls(memory, [], none, none, none, none.astype(np.uint64), none, signs, blank(0, features, numeric))
        a = state.arrays
        kept = Memory(*(np.asarray(a[k]) for k in Memory._fields))
        each = (np.asarray(a[k]) for k in EACH)
        return cls(memory, list(state.meta["ids"]), *each, kept, int(state.meta["rows"]))

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        """As plain arrays."""
        arrays = {**{k: getattr(self, k) for k in EACH}, **self.kept._asdict()}
        return State(detector, version, calibration_hash, {"ids": self.ids, "rows": self.rows}, arrays)

    def meet(self, names: Sequence[str], rows: Rows, scale: Scale) -> Met:
        """Compare each row with its principal's earlier ones and remember it. `rows.who` indexes `names`."""
        met = unmet(len(rows.who))
        present, who = np.unique(rows.who, return_inverse=True)
        place = {p: i for i, p in enumerate(self.ids)}
        home = np.array([place.setdefault(names[k], len(place)) for k in present.tolist()], dtype=np.int64)
        old = np.where(home < len(self.length), np.pad(self.length, (0, len(place) - len(self.length)))[home], 0)
        new = np.bincount(who, minlength=len(present))
        room = np.minimum(old + new, self.memory)
        start = np.cumsum(room) - room
        grown = len(place) - len(self.count)
        counts, centre, samples = (np.pad(x, (0, grown))[home] for x in (self.count, self.centre, self.samples))
        signs = np.pad(self.signs, ((0, grown), (0, 0)))[home]
        places = Places(start, room, old.copy(), counts, centre, samples, signs)
        work = blank(int(room.sum()), rows.codes.shape[1], rows.numbers.shape[1])
        source, target = (
            _spans(np.cumsum(self.length) - self.length, home, old),
            _spans(start, np.arange(len(old)), old),
        )
        for name in Memory._fields:
            getattr(work, name)[target] = getattr(self.kept, name)[source]
        search.follow(rows._replace(who=who.astype(np.int64)), work, places, scale, met)
        self._keep(list(place), home, work, places)
        np.maximum.at(self.seen, home[who], self.rows + np.arange(len(who)))
        self.rows += len(who)
        return met

    def _keep(self, ids: list[str], home: NDArray[np.int64], work: Memory, places: Places) -> None:
        """Put the rows of the principals of a stretch in the place of their old ones."""
        untouched = np.ones(len(self.ids), dtype=bool)
        untouched[home[home < len(self.ids)]] = False
        stay = np.repeat(untouched, self.length)
        used = _spans(places.start, np.arange(len(home)), places.length)
        others = np.flatnonzero(untouched)
        owner = np.concatenate([np.repeat(others, self.length[others]), np.repeat(home, places.length)])
        order = np.argsort(owner, kind="stable")
        self.kept = Memory._make(
            np.concatenate([getattr(self.kept, name)[stay], getattr(work, name)[used]])[order]
            for name in Memory._fields
        )
        grown = len(ids) - len(self.ids)
        self.ids = ids
        for name in EACH:
            x = getattr(self, name)
            setattr(self, name, np.pad(x, ((0, grown), *((0, 0),) * (x.ndim - 1))))
        self.length[home], self.count[home] = places.length, places.seen
        self.centre[home], self.samples[home], self.signs[home] = places.centre, places.samples, places.signs

    def forget(self, max_bytes: int) -> None:
        """Drop the rows of whoever was silent longest when memory is short."""
        each = sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in self.kept)
        size = self.length * each + 150 + self.signs.itemsize * self.signs.shape[1]
        if size.sum() <= max_bytes:
            return
        order = np.argsort(-self.seen, kind="stable")
        keep = np.zeros(len(self.ids), dtype=bool)
        keep[order[np.cumsum(size[order]) <= max_bytes * 0.9]] = True
        self.kept = Memory._make(a[np.repeat(keep, self.length)] for a in self.kept)
        self.ids = [p for p, k in zip(self.ids, keep.tolist(), strict=True) if k]
        for name in EACH:
            setattr(self, name, getattr(self, name)[keep])


def unmet(n: int) -> Met:
    """Room for what is found out about n rows."""
    types = {**dict.fromkeys(Met._fields, np.bool_), "excused": np.uint8, "differs": np.int16, "moved": np.int16}
    types |= dict.fromkeys(("bits", "third", "other", "step", "gain"), np.float32)
    met = Met._make(np.zeros(n, types[k]) for k in Met._fields)
    met.fresh[:], met.gain[:] = True, np.nan
    return met


def blank(n: int, features: int, numeric: int) -> Memory:
    width = {"codes": (features,), "marks": (features,), "numbers": (numeric,)}
    return Memory._make(np.zeros((n, *width.get(k, ())), dtype=t) for k, t in _TYPES.items())


def _spans(start: NDArray[np.int64], which: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indexes start[w], start[w] + 1, ... (length of them) for every w in `which`, one span after the other."""
    some = np.flatnonzero(length)
    total = int(length.sum())
    if not total:
        return np.zeros(0, dtype=np.int64)
    ends = np.cumsum(length[some])
    return np.arange(total) - np.repeat(ends - length[some], length[some]) + np.repeat(start[which[some]], length[some])
