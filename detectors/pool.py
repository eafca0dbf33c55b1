"""Recent rows of all callers together: who sends small steps from somebody else's rows shares one search with him.

Rows meet by locality-sensitive hashing: a few random groups of fields, each coarsely coded and hashed to a slot that holds
the newest row; rows that share a slot are compared exactly. Records that many callers send are exact repeats or differ in
a field or two, and never count. A row whose values were sent before the other one came is no step from it: whoever varies a
record that others send again accuses nobody. Results depend only on the order of the log.

Reference: Li et al. 2022 (Blacklight) for looking over all accounts; Indyk and Motwani 1998 for the hashing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.beside import SPREAD, pair
from detectors.honest import MARGIN, REACH
from detectors.search import FEW, Rows, Scale, what_if_fields

ROWS: Final = 2048  # newest rows that are kept
SLOTS: Final = 4096
GROUPS: Final = 8
GROUP_BITS: Final = 11.0  # what the fields of a group say together: rows that share a slot by chance are few
SIGHTS: Final = 1 << 13  # values of whole rows whose first sight is remembered
WAYS: Final = 8  # places for one of them
KEPT: Final = ("codes", "marks", "numbers", "owner", "slots", "sight", "since")


class Ring(NamedTuple):
    """The newest rows of all callers; owner: place in a table of names; slots (GROUPS, SLOTS): newest row per slot or -1;
    sight, since (SIGHTS): tag of a whole row, and how many rows had been taken when it was first seen.
    """

    codes: NDArray[np.uint8]
    marks: NDArray[np.uint16]
    numbers: NDArray[np.float32]
    owner: NDArray[np.int64]
    slots: NDArray[np.int16]
    sight: NDArray[np.uint32]
    since: NDArray[np.int64]


@dataclass
class Pool:
    """Ring, names of its owners, and how many rows it has ever taken."""

    ring: Ring
    names: list[str]
    taken: int = 0

    @classmethod
    def load(
        cls, meta: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]], features: int, numeric: int
    ) -> Pool:
        """From what `save` made, or empty."""
        if meta is None or "pool" not in meta:
            ring = Ring(
                np.zeros((ROWS, features), np.uint8), np.zeros((ROWS, features), np.uint16), np.zeros((ROWS, numeric), np.float32),
                np.full(ROWS, -1, np.int64), np.full((GROUPS, SLOTS), -1, np.int16),
                np.zeros(SIGHTS, np.uint32), np.zeros(SIGHTS, np.int64),
            )  # fmt: skip
            return cls(ring, [])
        ring = Ring._make(np.array(arrays[f"pool_{k}"]) for k in KEPT)
        return cls(ring, list(meta["pool"]["names"]), int(meta["pool"]["taken"]))

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """As JSON-ready values and arrays; names that own no row any more are dropped."""
        present, owner = np.unique(self.ring.owner, return_inverse=True)
        names = [self.names[k] for k in present.tolist() if k >= 0]
        ring = self.ring._replace(owner=owner - (present[0] < 0 if len(present) else 0))
        return (
            {"pool": {"names": names, "taken": self.taken}},
            {f"pool_{k}": getattr(ring, k) for k in KEPT},
        )

    def meet(
        self, names: Sequence[str], rows: Rows, fresh: NDArray[np.bool_], groups: NDArray[np.int64],
        place: NDArray[np.uint8], scale: Scale, bits: float,
    ) -> list[str | None]:  # fmt: skip
        """For every row the other caller whose row it is a small step from, or None. `rows.who` indexes `names`."""
        known = {name: k for k, name in enumerate(self.names)}
        owner = np.array([known.setdefault(n, len(known)) for n in names], dtype=np.int64)
        self.names = list(known)
        other = np.full(len(rows.who), -1, np.int64)
        best = np.zeros(len(rows.who), np.float32)
        self.taken = _gather(
            rows, owner[rows.who], fresh, self.ring, groups, place, scale, bits, self.taken, other, best
        )
        return [None if k < 0 else self.names[k] for k in other.tolist()]


def field_groups(table: NDArray[np.float32], codes: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int64]:
    """(GROUPS, fields): random groups of fields that say GROUP_BITS together, -1 where a group is shorter."""
    features = codes.shape[1]
    says = np.minimum(
        table[np.arange(features)[None, :], codes, codes].mean(axis=0), 3.0
    )  # coarse: eight levels a field
    out = np.full((GROUPS, features), -1, dtype=np.int64)
    for g in range(GROUPS):
        order = rng.permutation(features)
        size = int(np.searchsorted(np.cumsum(says[order]), GROUP_BITS)) + 1
        out[g, : min(size, features)] = order[:size]
    return out


def threshold(
    rows: Rows, groups: NDArray[np.int64], place: NDArray[np.uint8], scale: Scale, reach: float, rho: float
) -> float | None:
    """Bits that at most half of the tolerated share of reference rows reach, each sent by a caller of its own; None: too many."""
    n = len(rows.who)
    apart = (np.arange(1, n + 1, dtype=np.uint64) << np.uint64(32)) | np.arange(n, dtype=np.uint64)
    rows = rows._replace(hashes=apart)  # each row as if never seen before: only such rows are ever flagged
    pool = Pool.load(None, {}, rows.codes.shape[1], rows.numbers.shape[1])
    best, other = np.zeros(n, np.float32), np.full(n, -1, np.int64)
    _gather(rows, np.arange(n), np.ones(n, bool), pool.ring, groups, place, scale, 0.0, 0, other, best)
    level = float(np.quantile(best, 1 - rho / 2)) if n else 0.0
    level += 2 * MARGIN * (reach - level)
    return level if level <= REACH * reach else None


@numba.njit(cache=True)
def _slot(codes: Any, group: Any, place: Any) -> int:
    h = np.uint64(1469598103934665603)
    for f in group:
        if f < 0:
            break
        h = (h ^ np.uint64(place[f, codes[f]] + 31 * f)) * np.uint64(1099511628211)
    h ^= h >> np.uint64(29)
    return int(h % np.uint64(SLOTS))


@numba.njit(cache=True)
def _first_sight(ring: Any, row: Any, taken: int) -> int:
    """How many rows had been taken when these values were first seen, as far as is remembered; else now."""
    first, tag = int(row % np.uint64(SIGHTS // WAYS)) * WAYS, np.uint32(row >> np.uint64(32))
    for at in range(first, first + WAYS):
        if ring.sight[at] == tag:
            return int(ring.since[at])
    at = first + taken % WAYS
    for empty in range(first, first + WAYS):
        if ring.sight[empty] == 0:
            at = empty
            break
    ring.sight[at], ring.since[at] = tag, taken
    return taken


@numba.njit(cache=True)
def _gather(
    rows: Any, owner: Any, fresh: Any, ring: Any, groups: Any, place: Any, scale: Any, least: float, taken: int, other: Any, best: Any
) -> int:  # fmt: skip
    """Find for each fresh row the nearest small step from somebody else's row, then take the row in."""
    few = what_if_fields(rows.codes.shape[1])
    seen = np.full(ROWS, -1, np.int64)  # the row that each was last compared with
    for i in range(len(owner)):
        if not fresh[i]:
            continue
        at, since = taken % ROWS, _first_sight(ring, rows.hashes[i], taken)
        for g in range(GROUPS):
            s = _slot(rows.codes[i], groups[g], place)
            j = ring.slots[g, s]
            ring.slots[g, s] = at
            if j < 0 or j == at or seen[j] == i or ring.owner[j] < 0 or ring.owner[j] == owner[i]:
                continue
            seen[j] = i
            if since < taken - (at - j) % ROWS:
                continue  # it was there before
            differ, bits, moved, mean, spread = pair(
                rows.codes[i], rows.marks[i], rows.numbers[i], ring.codes[j], ring.marks[j], ring.numbers[j], scale
            )
            if differ > few and differ > FEW and moved >= mean + SPREAD * spread and bits >= least and bits > best[i]:
                best[i], other[i] = bits, ring.owner[j]
        ring.codes[at], ring.marks[at], ring.numbers[at], ring.owner[at] = (
            rows.codes[i],
            rows.marks[i],
            rows.numbers[i],
            owner[i],
        )
        taken += 1
    return taken
