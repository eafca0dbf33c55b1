"""Each principal's last training records and trials, and the comparison of one with the other, compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.base import State
from detectors.beside import SPREAD, pair
from detectors.search import Scale, what_if_fields
from detectors.signals import Frame

EVERY: Final = 1 << 12  # rows of the log after which whoever is too many is forgotten
SHOWN: Final = 64  # training records from which on, whenever they double, the gauge is shown


class Tried(NamedTuple):
    """Per row: trial (a new row that is no training record, of a principal that sent some), near (a small step from one of
    them, of more fields than a what-if changes), its bits and differing fields, like (bits of the record that it resembles
    most, near or not), records (training records sent so far) and added (whether this row is a new one).
    """

    trial: NDArray[np.bool_]
    near: NDArray[np.bool_]
    bits: NDArray[np.float32]
    differs: NDArray[np.int64]
    like: NDArray[np.float32]
    records: NDArray[np.int64]
    added: NDArray[np.bool_]

    def told(self) -> list[int]:
        """Rows at which the number of training records has doubled, from SHOWN on."""
        power = (self.records & (self.records - 1)) == 0
        return [int(i) for i in np.flatnonzero(self.added & power & (self.records >= SHOWN))]


class Rings(NamedTuple):
    """Per principal (P) the last M distinct training records, and hashes of the last M trials.

    codes, marks: (P, M, features); numbers: (P, M, numeric); records, trials: hashes (P, M); sent, tried: how many so far.
    """

    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]
    records: NDArray[np.uint64]
    trials: NDArray[np.uint64]
    sent: NDArray[np.int64]
    tried: NDArray[np.int64]


@numba.njit(cache=True)
def _holds(ring: Any, used: int, x: Any) -> bool:
    return bool(np.any(ring[:used] == x))  # a ring that is full is all used


@numba.njit(cache=True)
def _follow(place: Any, training: Any, codes: Any, marks: Any, numbers: Any, hashes: Any, rings: Any, scale: Any, out: Any) -> None:  # fmt: skip
    few, room = what_if_fields(codes.shape[1]), rings.records.shape[1]
    for i in range(len(place)):
        p = place[i]
        if training[i]:
            if not _holds(rings.records[p], rings.sent[p], hashes[i]):
                k = rings.sent[p] % room
                rings.codes[p, k], rings.marks[p, k], rings.numbers[p, k] = codes[i], marks[i], numbers[i]
                rings.records[p, k] = hashes[i]
                rings.sent[p] += 1
                out.added[i] = True
        elif rings.sent[p] > 0 and not _holds(rings.trials[p], rings.tried[p], hashes[i]):
            rings.trials[p, rings.tried[p] % room] = hashes[i]
            rings.tried[p] += 1
            out.trial[i] = True
            what_if = False
            for j in range(min(rings.sent[p], room)):
                differ, bits, moved, mean, spread = pair(
                    codes[i], marks[i], numbers[i], rings.codes[p, j], rings.marks[p, j], rings.numbers[p, j], scale
                )
                what_if = what_if or differ <= few
                out.like[i] = max(out.like[i], bits)
                if moved >= mean + SPREAD * spread and bits > out.bits[i]:
                    out.bits[i], out.differs[i] = bits, differ
            out.near[i] = out.bits[i] >= scale.bits and not what_if
        out.records[i] = rings.sent[p]


@dataclass
class Records:
    """The rings of all principals that have sent training records. `seen` counts rows of the log; bounded by `forget`."""

    ids: list[str]
    seen: NDArray[np.int64]
    rings: Rings
    rows: int = 0

    @classmethod
    def load(cls, state: State | None, features: int, numeric: int, memory: int) -> Records:
        """From a state, or nobody known."""
        if state is None:
            return cls([], np.zeros(0, np.int64), _blank(0, memory, features, numeric))
        a = state.arrays
        rings = Rings._make(np.array(a[name]) for name in Rings._fields)  # copies: the state stays as it was
        return cls(list(state.meta["ids"]), np.array(a["seen"]), rings, int(state.meta["rows"]))

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        """As plain arrays."""
        arrays = {"seen": self.seen, **self.rings._asdict()}
        return State(detector, version, calibration_hash, {"ids": self.ids, "rows": self.rows}, arrays)

    def next(
        self, who: NDArray[np.int64], names: Sequence[str], training: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], bool]]:
        """The next rows of the log (`who` indexes `names`) up to each after which `forget` may drop somebody.

        Of them those that matter, sent by principals that have sent training records or do so among them, and whether the
        last of them all is such a row.
        """
        n, first = len(who), 0
        while first < n:
            end = min(n, first + EVERY - (self.rows + first) % EVERY)
            known = set(self.ids)
            concerned = np.array([p in known for p in names], dtype=bool)
            concerned[who[first:end][training[first:end]]] = True
            yield first + np.flatnonzero(concerned[who[first:end]]), (self.rows + end) % EVERY == 0
            first = end

    def meet(
        self, names: Sequence[str], training: NDArray[np.bool_], codes: NDArray[np.uint8], frame: Frame, scale: Scale,
        row: NDArray[np.int64],
    ) -> Tried:  # fmt: skip
        """Rows in log order, each with its sender's name and its place among the next: compare and remember."""
        places = {p: i for i, p in enumerate(self.ids)}
        place = np.array([places.setdefault(n, len(places)) for n in names], dtype=np.int64)
        more = _blank(len(places) - len(self.ids), self.rings.records.shape[1], codes.shape[1], frame.numbers.shape[1])
        self.rings = Rings._make(np.concatenate([a, b]) for a, b in zip(self.rings, more, strict=True))
        self.seen = np.pad(self.seen, (0, len(places) - len(self.ids)))
        self.ids = list(places)
        n = len(place)
        out = Tried(
            np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.float32), np.zeros(n, np.int64), np.zeros(n, np.float32),
            np.zeros(n, np.int64), np.zeros(n, bool),
        )  # fmt: skip
        with np.errstate(over="ignore"):
            numbers = frame.numbers.astype(np.float32)
        _follow(place, training, codes, frame.marks(), numbers, frame.whole(), self.rings, scale, out)
        np.maximum.at(self.seen, place, self.rows + row)
        return out

    def forget(self, max_bytes: int) -> None:
        """Drop whoever was silent longest when memory is short."""
        each = sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in self.rings) + 150
        if len(self.ids) * each <= max_bytes:
            return
        keep = np.sort(np.argsort(-self.seen, kind="stable")[: int(max_bytes * 0.9) // each])
        self.ids, self.seen = [self.ids[k] for k in keep.tolist()], self.seen[keep]
        self.rings = Rings._make(a[keep] for a in self.rings)


def _blank(n: int, memory: int, features: int, numeric: int) -> Rings:
    return Rings(
        np.zeros((n, memory, features), np.uint8), np.zeros((n, memory, features), np.uint16),
        np.zeros((n, memory, numeric), np.float32), np.zeros((n, memory), np.uint64), np.zeros((n, memory), np.uint64),
        np.zeros(n, np.int64), np.zeros(n, np.int64),
    )  # fmt: skip
