"""What a walk goes over: the evidence of one stretch side by side, and the running sums of each caller in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.base import Evidence
from detectors.decide.pools import Pooled
from detectors.decide.sums import cusum
from monitor.model import Event, Family


@dataclass(frozen=True)
class Lane:
    """Evidence that makes one kind of incident. kind: of its subjects; family: of all its incidents, None: named by votes.

    share: part of the attack budget, so that all lanes together keep it.
    """

    event: Event
    kind: str
    share: float
    family: Family | None = None


@dataclass(frozen=True)
class Events:
    """All detectors' evidence of a stretch side by side, rows in log order. `who` indexes the ledger."""

    who: NDArray[np.int64]
    row: NDArray[np.int64]
    time_us: NDArray[np.int64]
    log_e: NDArray[np.int64]  # (events, columns of the ledger), millionths
    flag: NDArray[np.bool_]
    votes: NDArray[np.float64]  # (events, TECHNIQUES)
    traits: NDArray[np.uint8]  # as in detectors.base.Evidence
    alike: NDArray[np.uint8]  # as in detectors.base.Evidence
    before: NDArray[np.uint8]  # the same
    looks: NDArray[np.uint8]  # the same
    details: Sequence[Mapping[int, Mapping[str, Any]]]  # of every detector: by row, why it was flagged
    links: dict[
        int, list[tuple[str, str]]
    ]  # by row: callers that it belongs with, and the signal that says so, "" for a fact
    young: NDArray[np.bool_]  # as in detectors.base.Evidence
    clock_us: NDArray[np.int64]  # latest event time so far
    excusing: frozenset[str] = frozenset()  # detectors that know `alike`
    readings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # by row: what gauges say of its caller
    tying: Sequence[Evidence] = ()  # that which tells what callers have in common
    pooled: Mapping[int, Sequence[Pooled]] = field(default_factory=dict)  # by place: ties that reach the level with it

    def why(self, place: int) -> dict[str, Any]:
        """What all detectors say of one event."""
        row, said = int(self.row[place]), dict[str, Any]()
        for known in self.details:
            if row in known:
                said |= known[row]
        return said

    def told(self, place: int) -> bool:
        """Whether any detector says something of the event."""
        row = int(self.row[place])
        return any(row in known for known in self.details)


@dataclass
class Run:
    """One caller's events of a stretch, in order, with its running sums."""

    principal: str
    at: NDArray[np.int64]  # places in Events
    sums: NDArray[np.int64]
    onset: NDArray[np.int64]
    count: NDArray[np.int64]
    done: int = 0

    def restart(self, events: Events) -> None:
        """Sums start again at the next event; what came before it was settled."""
        i = self.done
        self.sums[max(i - 1, 0) : i] = 0
        x = events.log_e[self.at[i:]]
        if not len(x):
            return
        self.sums[i:], since = cusum(x, np.zeros(1, np.int64), np.zeros((1, x.shape[1]), np.int64))
        self.onset[i:] = events.time_us[self.at[i:]][since]
        self.count[i:] = np.arange(len(x))[:, None] - since + 1
