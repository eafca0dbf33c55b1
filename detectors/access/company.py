"""What new principals are compared with: what the settled principals of their group or kind use, or all, and how often they
change it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import State
from detectors.habits import DAY, Bools, Habits, Ints, Turn
from detectors.peers import EVERYBODY, Beside, Peers

MEMBERS: Final = 256  # settled principals of a group whose values count as known to it
YOUNG: Final = 7 * DAY  # hours since the latest event of a new principal, within which its group's values are looked up


@dataclass
class Company:
    """The peers of new principals as they were when the present hour began. values: hashes of group, kind of value and
    value, sorted.
    """

    peers: Peers
    values: NDArray[np.uint64]

    @classmethod
    def load(cls, state: State | None) -> Company:
        values = np.zeros(0, np.uint64) if state is None else state.arrays["peer_values"]
        return cls(Peers.load(state, 0, 0), values)

    def save(self) -> dict[str, NDArray[Any]]:
        return {**self.peers.save(), "peer_values": self.values}

    def follow(self, habits: Habits, hour: int) -> None:
        """A new hour begins: what groups with new principals used before it."""
        if hour == self.peers.hour:
            return
        self.peers.follow(habits, hour, ())
        group, everybody = habits.more["group"], np.arange(len(habits.ids))
        settled = habits.settled_at(everybody, hour)[:, 0]
        found, whose = self.peers.whose(group[~settled & (hour - habits.seen < YOUNG)])
        wanted = np.unique(whose[found])
        members = [np.flatnonzero(settled & ((group == g) | (g == EVERYBODY)))[:MEMBERS] for g in wanted.tolist()]
        rows = np.concatenate([np.zeros(0, np.int64), *members])
        of, known = np.repeat(wanted, [len(m) for m in members]), habits.more["known"][rows]
        keys = _keys(of[:, None, None], np.arange(known.shape[1])[None, :, None], known)
        self.values = np.unique(keys[known != 0])

    def beside(self, habits: Habits, turn: Turn) -> tuple[Turn, Bools, Beside]:
        """The turn with new principals bet on beside their peers, who these are, and beside whom."""
        beside = self.peers.beside(habits, turn)
        young = beside.found & ~turn.settled[:, 0]
        settled = turn.settled | young[:, None]
        return replace(turn, settled=settled, rho=np.where(young[:, None], beside.rho, turn.rho)), young, beside

    def know(self, habits: Habits, rows: Ints, k: int, value: NDArray[np.uint32]) -> Bools:
        """Whether peers of these principals use a value of the kind."""
        _, whose = self.peers.whose(habits.more["group"][rows])
        return np.isin(_keys(whose, np.int64(k), value), self.values)


def _keys(group: NDArray[np.uint32], k: Any, value: NDArray[np.uint32]) -> NDArray[np.uint64]:
    mixed = group.astype(np.uint64) ^ (np.asarray(k).astype(np.uint64) * np.uint64(0x9E3779B9))
    return np.asarray((mixed << np.uint64(32)) | value)
