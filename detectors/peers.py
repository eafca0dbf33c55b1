"""Principals without a past of their own beside settled ones: of the same group, or else of the same kind, or else all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import State, Window
from detectors.habits import NEVER, Bools, Habits, Ints, Turn

ENOUGH: Final = 3  # settled peers that a principal without a past is compared with
BESIDE: Final = 0.05  # tolerated of it: peers are not itself
EVERYBODY: Final = 0  # the group that all are in,
MANY: Final = 5  # settled ones of it that whoever has no peers is compared with,
AMONG: Final = 0.2  # and tolerated then: most of them have nothing to do with it


def groups(window: Window, names: Sequence[str]) -> NDArray[np.uint32]:
    """What the directory puts each name in, as a number: its group, without one its kind, 0 for neither."""
    declared = window.callers()
    out = np.zeros(len(names), np.uint32)
    for i, name in enumerate(names) if declared else ():
        if (known := declared.get(name)) is not None and (known.group or known.kind):
            said = f"group {known.group}" if known.group else f"kind {known.kind}"
            out[i] = zlib.crc32(said.encode("utf-8", "surrogatepass")) | 1
    return out


@dataclass
class Peers:
    """The settled principals of each group, and all of them, as they were when the present hour began: how many, the largest
    of what each did (`tops`), and the largest share of trials that fired of one of them (`rates`).
    """

    hour: int
    groups: NDArray[np.uint32]
    counts: Ints
    tops: Ints  # (groups, what is compared)
    rates: NDArray[np.float64]  # (groups, signals)

    @classmethod
    def load(cls, state: State | None, tops: int, signals: int) -> Peers:
        if state is None or "peer_groups" not in state.arrays:
            none = np.zeros(0, np.int64)
            return cls(NEVER, np.zeros(0, np.uint32), none, np.zeros((0, tops), np.int64), np.zeros((0, signals)))
        a = state.arrays
        return cls(int(a["peer_hour"][0]), a["peer_groups"], a["peer_counts"], a["peer_tops"], a["peer_rates"])

    def save(self) -> dict[str, NDArray[Any]]:
        return {
            "peer_hour": np.array([self.hour], np.int64), "peer_groups": self.groups, "peer_counts": self.counts,
            "peer_tops": self.tops, "peer_rates": self.rates,
        }  # fmt: skip

    def follow(self, habits: Habits, hour: int, compared: Sequence[str]) -> None:
        """A new hour begins: what the groups have done before it. compared: arrays of `habits.more` side by side."""
        if hour == self.hour:
            return
        self.hour = hour
        settled = np.flatnonzero(habits.settled_at(np.arange(len(habits.ids)), hour)[:, 0])
        group = habits.more["group"][settled]
        some = np.r_[settled, settled[group != EVERYBODY]]  # once in their group, and once among all
        both = np.r_[np.full(len(settled), EVERYBODY, group.dtype), group[group != EVERYBODY]]
        self.groups, member, self.counts = np.unique(both, return_inverse=True, return_counts=True)
        self.tops = np.zeros((len(self.groups), self.tops.shape[1]), np.int64)
        self.rates = np.zeros((len(self.groups), len(habits.signals)))
        if len(some) and compared:
            np.maximum.at(self.tops, member, np.concatenate([habits.more[c][some] for c in compared], axis=1))
        np.maximum.at(self.rates, member, (1 + habits.hits[some]) / (1 + habits.trials[some]))

    @property
    def largest(self) -> Ints:
        """Of what is compared, the largest of any settled principal."""
        whole = self.tops[:1] if len(self.groups) else np.zeros((1, self.tops.shape[1]), np.int64)
        return np.asarray(whole[0])

    def whose(self, mine: NDArray[np.uint32]) -> tuple[Bools, NDArray[np.uint32]]:
        """Beside which group principals of these groups are, and whether there is one: their own, or everybody."""
        if not len(self.groups):
            return np.zeros(len(mine), dtype=bool), mine
        place = np.minimum(np.searchsorted(self.groups, mine), len(self.groups) - 1)
        own = (mine != EVERYBODY) & (self.groups[place] == mine) & (self.counts[place] >= ENOUGH)
        return own | bool(self.counts[0] >= MANY), np.where(own, mine, np.uint32(EVERYBODY))

    def beside(self, habits: Habits, turn: Turn) -> Beside:
        """What the principals of a turn are compared with while they have no past."""
        found, whose = self.whose(habits.more["group"][turn.rows])
        tops = np.zeros((len(whose), self.tops.shape[1]), np.int64)
        rho = np.where(whose == EVERYBODY, AMONG, BESIDE)[:, None]
        rho = np.maximum(rho, turn.crowd)
        place = np.searchsorted(self.groups, whose[found])
        tops[found], rho[found] = self.tops[place], np.maximum(rho[found], self.rates[place])
        return Beside(found, whose == EVERYBODY, tops, np.minimum(rho, 1.0))


@dataclass(frozen=True)
class Beside:
    """Peers of each principal. found: it has some; all: they are everybody; tops: the largest of what each did; rho: tolerated."""

    found: Bools
    all: Bools
    tops: Ints
    rho: NDArray[np.float64]

    def said(self, i: int) -> dict[str, str]:
        """Beside whom, as evidence says it."""
        return {"beside": "all callers" if self.all[i] else "peers"}
