"""Each principal's last distinct rows, kept between stretches of the log: what detectors.search compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors import search
from detectors.aged import Ids, Part, grown, spans
from detectors.base import State
from detectors.search import Memory, Met, Places, Rows, Scale

_TYPES: Final[dict[str, Any]] = {
    "codes": np.uint8, "marks": np.uint16, "numbers": np.float32, "hashes": np.uint64, "used": np.int64, "worth": np.uint8, "fields": np.uint64,
    "invalid": np.uint64, "star": np.uint64, "stars": np.int32, "label": np.int32, "score": np.float32,
}  # fmt: skip


@dataclass
class Chains:
    """Rows of all principals one after the other (Memory), and per principal: rows kept, events so far, when last seen.

    `seen` counts rows of the log; old: principals not heard of late (detectors.aged). Bounded by `forget`; evidence is
    kept by fuse(), not here.
    """

    memory: int
    ids: list[str]
    length: NDArray[np.int64]
    count: NDArray[np.int64]
    seen: NDArray[np.int64]
    kept: Memory
    old: Part
    rows: int = 0

    @classmethod
    def load(cls, state: State | None, features: int, numeric: int, memory: int) -> Chains:
        """From a state, or nobody known."""
        if state is None:
            return cls(memory, [], *_nobody(features, numeric))
        a = state.arrays
        kept = Memory(*(np.asarray(a[k]) for k in Memory._fields))
        length, count, seen = (np.asarray(a[k]) for k in ("length", "count", "seen"))
        *_, none = _nobody(features, numeric)
        old = Part.load(state.meta["old_ids"], a, none)
        return cls(memory, list(state.meta["ids"]), length, count, seen, kept, old, int(state.meta["rows"]))

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        """As plain arrays."""
        old_ids, old = self.old.save()
        arrays = {"length": self.length, "count": self.count, "seen": self.seen, **self.kept._asdict(), **old}
        meta = {"ids": self.ids, "old_ids": old_ids, "rows": self.rows}
        return State(detector, version, calibration_hash, meta, arrays)

    def meet(self, names: Sequence[str], rows: Rows, scale: Scale) -> Met:
        """Compare each row with its principal's earlier ones and remember it. `rows.who` indexes `names`."""
        met = unmet(len(rows.who))
        present, who = np.unique(rows.who, return_inverse=True)
        self._recall([names[k] for k in present.tolist()])
        place = {p: i for i, p in enumerate(self.ids)}
        home = np.array([place.setdefault(names[k], len(place)) for k in present.tolist()], dtype=np.int64)
        old = np.where(home < len(self.length), np.pad(self.length, (0, len(place) - len(self.length)))[home], 0)
        new = np.bincount(who, minlength=len(present))
        room = np.minimum(old + new, self.memory)
        start = np.cumsum(room) - room
        counts = np.pad(self.count, (0, len(place) - len(self.count)))
        places = Places(start, room, old.copy(), counts[home])
        work = blank(int(room.sum()), rows.codes.shape[1], rows.numbers.shape[1])
        source, target = (
            spans(np.cumsum(self.length) - self.length, home, old),
            spans(start, np.arange(len(old)), old),
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
        used = spans(places.start, np.arange(len(home)), places.length)
        others = np.flatnonzero(untouched)
        owner = np.concatenate([np.repeat(others, self.length[others]), np.repeat(home, places.length)])
        order = np.argsort(owner, kind="stable")
        self.kept = Memory._make(
            np.concatenate([getattr(self.kept, name)[stay], getattr(work, name)[used]])[order]
            for name in Memory._fields
        )
        grown = len(ids) - len(self.ids)
        self.ids = ids
        self.length, self.count, self.seen = (np.pad(x, (0, grown)) for x in (self.length, self.count, self.seen))
        self.length[home], self.count[home] = places.length, places.seen

    def _recall(self, names: Sequence[str]) -> None:
        """Old principals that are heard again."""
        known = set(self.ids)
        back = self.old.take(self.old.find(n for n in names if n not in known))
        if back.ids:
            self._set(self._young().plus(back))

    def _young(self) -> Part:
        return Part(Ids(self.ids), {"count": self.count, "seen": self.seen}, self.length, self.kept._asdict())

    def _set(self, young: Part) -> None:
        self.ids, self.length, self.kept = list(young.ids), young.length, Memory(**young.rows)
        self.count, self.seen = young.each["count"], young.each["seen"]

    def forget(self, max_bytes: int) -> None:
        """Put the silent with the silent; drop the rows of whoever was silent longest when memory is short."""
        each = sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in self.kept)
        full = (self.length.sum() + self.old.length.sum()) * each + 150 * (
            len(self.ids) + len(self.old.ids)
        ) > max_bytes
        if not full and not grown(len(self.ids), len(self.old.ids)):
            return
        both = self.old.plus(self._young())
        size = both.length * each + 150
        if size.sum() > max_bytes:
            order = np.argsort(-both.each["seen"], kind="stable")
            both = both.take(np.sort(order[np.cumsum(size[order]) <= max_bytes * 0.9]))
        self.old = both
        self._set(both.take(np.zeros(0, np.int64)))


def _nobody(
    features: int, numeric: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Memory, Part]:
    none, kept = np.zeros(0, np.int64), blank(0, features, numeric)
    return none, none, none, kept, Part(Ids(), {"count": none, "seen": none}, none, kept._asdict())


def unmet(n: int) -> Met:
    """Room for what is found out about n rows."""
    no = np.zeros(n, bool)
    return Met(
        np.ones(n, bool), no, no.copy(), no.copy(), no.copy(), np.zeros(n, np.uint8), np.zeros(n, np.float32),
        np.zeros(n, np.int16), no.copy(), np.full(n, np.nan, np.float32), no.copy(),
    )  # fmt: skip


def blank(n: int, features: int, numeric: int) -> Memory:
    width = {"codes": (features,), "marks": (features,), "numbers": (numeric,)}
    return Memory._make(np.zeros((n, *width.get(k, ())), dtype=t) for k, t in _TYPES.items())
