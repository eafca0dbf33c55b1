"""Each principal's last distinct rows, kept between stretches of the log: what detectors.search compares with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors import search
from detectors.aged import Ids, Part, grown, spans
from detectors.base import State
from detectors.search import Memory, Met, Places, Rows, Scale

_TYPES: Final[dict[str, Any]] = {
    "codes": np.uint8, "marks": np.uint16, "numbers": np.float32, "hashes": np.uint64, "used": np.int64, "worth": np.uint8, "fields": np.uint64,
    "invalid": np.uint64, "star": np.uint64, "stars": np.int32, "sloped": np.uint64, "swept": np.uint64, "chain": np.uint64, "root": np.uint64, "kids": np.uint8, "label": np.int32,
}  # fmt: skip
EACH: Final = (
    "length",
    "count",
    "seen",
    "centre",
    "samples",
    "signs",
    "doubt",
    "busy",
    "levels",
    "noise",
    "whims",
    "case",
    "past",
    "lately",
)  # arrays of Chains with a row per principal
FOLLOWED: Final = EACH[3:-2]  # those that search.follow goes on with
STEP: Final = 4_096  # rows of the log after which somebody may be forgotten; fewer where memory is small
SLACK: Final = 0.1  # of the memory, for what comes in between
FEWEST: Final = 20  # rows that a caller keeps before callers are forgotten
FADES: Final = 1_000_000  # rows of the log in which what speaks against a silent caller counts half
Speaks = Callable[[NDArray[np.int32]], NDArray[np.int64]]  # from `past`: what speaks against each caller, or 0


@dataclass
class Chains:
    """Rows of all principals one after the other (Memory), and per principal: rows kept, events so far, when last seen,
    whose noisy copies it sends (search.Places), and `past` and `lately`, what the detector keeps for itself.

    `seen` counts rows of the log; old: principals not heard of late (detectors.aged). Bounded by `forget`, which drops
    something only after fixed numbers of rows, so that it does not matter where the log is cut: `pieces` ends there.
    Evidence is kept by fuse(), not here.
    """

    memory: int
    ids: list[str]
    length: NDArray[np.int64]
    count: NDArray[np.int64]
    seen: NDArray[np.int64]
    centre: NDArray[np.uint64]
    samples: NDArray[np.int64]
    signs: NDArray[np.int16]  # (principals, numeric)
    doubt: NDArray[np.int64]
    busy: NDArray[np.float64]
    levels: NDArray[np.float32]  # (principals, 1 + 3 numeric)
    noise: NDArray[np.float32]  # (principals, 1 + 2 numeric)
    whims: NDArray[np.int64]
    case: NDArray[np.uint64]
    past: NDArray[np.int32]  # (principals, counts)
    lately: NDArray[np.float32]  # (principals, late)
    kept: Memory
    old: Part
    rows: int = 0

    @classmethod
    def load(
        cls, state: State | None, features: int, numeric: int, memory: int, counts: int = 0, late: int = 0
    ) -> Chains:
        """From a state, or nobody known. counts, late: numbers per principal in `past` and `lately`."""
        if state is None:
            return cls(memory, [], *_nobody(features, numeric, counts, late))
        a = state.arrays
        kept = Memory(*(np.asarray(a[k]) for k in Memory._fields))
        *_, none = _nobody(features, numeric, counts, late)
        old = Part.load(state.meta["old_ids"], a, none)
        each: Any = {k: np.asarray(a[k]) for k in EACH}
        return cls(memory, list(state.meta["ids"]), **each, kept=kept, old=old, rows=int(state.meta["rows"]))

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        """As plain arrays."""
        old_ids, old = self.old.save()
        arrays = {**{k: getattr(self, k) for k in EACH}, **self.kept._asdict(), **old}
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
        added = len(place) - len(self.count)
        each: Any = {name: _longer(getattr(self, name), added)[home] for name in FOLLOWED}
        places = Places(start, room, old.copy(), _longer(self.count, added)[home], **each)
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
        added = len(ids) - len(self.ids)
        self.ids = ids
        for name in EACH:
            setattr(self, name, _longer(getattr(self, name), added))
        self.length[home], self.count[home] = places.length, places.seen
        for name in FOLLOWED:
            getattr(self, name)[home] = getattr(places, name)

    def places_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Where principals of the last stretch stand in the arrays; -1 for others."""
        known = {p: i for i, p in enumerate(self.ids)}
        return np.array([known.get(n, -1) for n in names], dtype=np.int64)

    def _recall(self, names: Sequence[str]) -> None:
        """Old principals that are heard again."""
        known = set(self.ids)
        back = self.old.take(self.old.find(n for n in names if n not in known))
        if back.ids:
            self._set(self._young().plus(back))

    def _young(self) -> Part:
        each = {k: getattr(self, k) for k in EACH if k != "length"}
        return Part(Ids(self.ids), each, self.length, self.kept._asdict())

    def _set(self, young: Part) -> None:
        self.ids, self.length, self.kept = list(young.ids), young.length, Memory(**young.rows)
        for name, values in young.each.items():
            setattr(self, name, values)

    def pieces(self, rows: int, names: int, max_bytes: int) -> Iterator[slice]:
        """The next rows of the log, of so many callers, up to each row after which `forget` may drop something."""
        row, caller = self._bytes()
        step, first = self._step(max_bytes), 0
        if self._held() + rows * row + names * caller <= max_bytes * (1 - SLACK):
            step = self.rows + rows  # nothing will be dropped on the way
        while first < rows:
            last = min(first + step - self.rows % step, rows)
            yield slice(first, last)
            first = last

    def forget(self, max_bytes: int, speaks: Speaks) -> None:
        """Put the silent with the silent; where memory is short, drop what tells least (`fitted`)."""
        most = max_bytes * (1 - SLACK)
        if self._held() <= most and not grown(len(self.ids), len(self.old.ids)):
            return
        both, (row, caller) = self.old.plus(self._young()), self._bytes()
        if self.rows % self._step(max_bytes) == 0 and both.length.sum() * row + caller * len(both.ids) > most:
            against = speaks(both.each["past"]) >> np.minimum((self.rows - both.each["seen"]) // FADES, 62)
            both = fitted(both, against, row, caller, self.memory, most - SLACK * max_bytes)
        self.old = both
        self._set(both.take(np.zeros(0, np.int64)))

    def _bytes(self) -> tuple[int, int]:
        """What a row takes, and a principal without its rows."""
        row = sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in self.kept)
        wide = (self.signs, self.levels, self.noise, self.past, self.lately)
        return row, 150 + sum(a.itemsize * a.shape[1] for a in wide)

    def _held(self) -> int:
        """Bytes of all; whoever is both among the old and the young counts twice."""
        row, caller = self._bytes()
        everybody = len(self.ids) + len(self.old.ids)
        return int(self.length.sum() + self.old.length.sum()) * row + caller * everybody

    def _step(self, max_bytes: int) -> int:
        """So many rows fit into what is left free for them, whoever sends them."""
        return int(np.clip(SLACK * max_bytes / sum(self._bytes()), 16, STEP))


def fitted(part: Part, against: NDArray[np.int64], row: int, caller: int, memory: int, size: float) -> Part:
    """So much of the callers that it takes `size` bytes: the same number of rows of each, however busy it is.

    So a busy crowd does not push out who is slow. Only where FEWEST rows of each are too many are callers dropped: those
    against whom least speaks, of these who was silent longest. Rows that were of use lately stay, strange ones longer.
    """
    order = np.lexsort([-part.each["seen"], -against])
    fits = np.cumsum(np.minimum(part.length[order], FEWEST) * row + caller) <= size
    part = part.take(np.sort(order[fits]))
    at_least = np.cumsum(np.bincount(part.length, minlength=memory + 1)[::-1])[::-1]  # callers with so many rows
    room = int(np.searchsorted(np.cumsum(at_least[1:]) * row, size - caller * len(part.ids), side="right"))
    if room >= part.length.max(initial=0):
        return part
    owner = np.repeat(np.arange(len(part.ids)), part.length)
    late = part.rows["used"] + memory * (part.rows["worth"] == 0)
    order = np.lexsort([-late, owner])
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(part.length) - part.length, part.length)
    keep = np.sort(order[rank < room])
    return replace(
        part, length=np.minimum(part.length, room), rows={name: values[keep] for name, values in part.rows.items()}
    )


def _longer(x: NDArray[Any], by: int) -> NDArray[Any]:
    """With so many more principals of whom nothing is known."""
    return np.pad(x, ((0, by), *((0, 0),) * (x.ndim - 1)))


def _nobody(features: int, numeric: int, counts: int, late: int) -> tuple[Any, ...]:
    """The arrays of Chains with nobody in them."""
    none, kept = np.zeros(0, np.int64), blank(0, features, numeric)
    each = dict.fromkeys(EACH, none) | dict.fromkeys(("centre", "case"), none.astype(np.uint64))
    each["busy"] = none.astype(np.float64)
    each["signs"], each["past"] = np.zeros((0, numeric), np.int16), np.zeros((0, counts), np.int32)
    each["lately"] = np.zeros((0, late), np.float32)
    each["levels"] = np.zeros((0, 1 + 3 * numeric), np.float32)
    each["noise"] = np.zeros((0, 1 + 2 * numeric), np.float32)
    return *each.values(), kept, Part(Ids(), {k: v for k, v in each.items() if k != "length"}, none, kept._asdict())


def unmet(n: int) -> Met:
    """Room for what is found out about n rows."""
    types: dict[str, Any] = {**dict.fromkeys(Met._fields, np.bool_), "idle": np.int64}
    types |= dict.fromkeys(("excused", "parent", "siblings", "line"), np.uint8)
    types |= dict.fromkeys(("differs", "moved", "changed", "clean"), np.int16)
    types |= dict.fromkeys(("bits", "third", "other", "step", "kept"), np.float32)
    met = Met._make(np.zeros(n, types[k]) for k in Met._fields)
    met.fresh[:] = True
    return met


def blank(n: int, features: int, numeric: int) -> Memory:
    """Room for n rows; what stands there is nothing until it is written."""
    width = {"codes": (features,), "marks": (features,), "numbers": (numeric,)}
    return Memory._make(np.empty((n, *width.get(k, ())), dtype=t) for k, t in _TYPES.items())
