"""What fuse() remembers of each principal: running sums, open cases, examples. Bounded; eviction never clears guilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import State

VERSION: Final = 1
MICRO: Final = 1_000_000  # sums are kept in millionths of a nat
NEVER: Final = -(1 << 62)


@dataclass
class Case:
    """A principal with an open incident. Times are event times; `queries` counts since opening."""

    opened_us: int
    onset_us: int
    before: int  # queries from onset to opening
    queries: int = 0
    flagged: int = 0
    last_us: int = 0
    quiet: bool = False


@dataclass
class Ledger:
    """Running sums of all remembered principals: row = principal, column = bet."""

    ids: list[str]
    columns: list[str]  # "detector/signal/bet"
    sums: NDArray[np.int64]
    onset_us: NDArray[np.int64]  # per bet: first event after the sum was last at zero
    count: NDArray[np.int64]  # per bet: events since then
    last_us: NDArray[np.int64]
    cases: dict[str, Case] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    clock_us: int = NEVER
    dropped: int = 0  # principals with evidence that memory had no room for

    @classmethod
    def load(cls, state: State | None) -> Ledger:
        if state is None or state.version != VERSION:
            none = np.zeros((0, 0), np.int64)
            return cls([], [], none, none.copy(), none.copy(), np.zeros(0, np.int64))
        m, a = state.meta, state.arrays
        return cls(
            list(m["ids"]), list(m["columns"]), np.array(a["sums"]), np.array(a["onset_us"]), np.array(a["count"]),
            np.array(a["last_us"]), {p: Case(**c) for p, c in m["cases"].items()},
            {p: list(e) for p, e in m["examples"].items()}, m["clock_us"], m["dropped"],
        )  # fmt: skip

    def save(self) -> State:
        cases = {p: vars(c) for p, c in sorted(self.cases.items())}
        meta = {
            "ids": self.ids, "columns": self.columns, "cases": cases, "examples": dict(sorted(self.examples.items())),
            "clock_us": self.clock_us, "dropped": self.dropped,
        }  # fmt: skip
        arrays = {"sums": self.sums, "onset_us": self.onset_us, "count": self.count, "last_us": self.last_us}
        return State("fuse", VERSION, "", meta, arrays)

    def place(self, names: Sequence[str], columns: Sequence[str]) -> NDArray[np.int64]:
        """Rows of these principals, new ones with nothing against them; new columns start at zero for everybody."""
        fresh = [c for c in columns if c not in set(self.columns)]
        known = {p: i for i, p in enumerate(self.ids)}
        added = [p for p in names if p not in known]
        self.ids += added
        self.columns += fresh
        shape = ((0, len(added)), (0, len(fresh)))
        self.sums, self.onset_us, self.count = (np.pad(x, shape) for x in (self.sums, self.onset_us, self.count))
        self.last_us = np.pad(self.last_us, (0, len(added)))
        known.update({p: len(known) + i for i, p in enumerate(added)})
        return np.array([known[p] for p in names], dtype=np.int64)

    def acquit(self, principal: str) -> None:
        """The incident is over: the evidence starts afresh."""
        del self.cases[principal]
        self.examples.pop(principal, None)
        self.sums[self.ids.index(principal)] = 0

    def forget(self, limit: int) -> None:
        """Principals with nothing against them weigh nothing and are dropped when room is short, oldest first.

        Only beyond that are the weakest of those with evidence dropped, and counted.
        """
        extra = len(self.ids) - limit
        if extra <= 0:
            return
        weight = self.sums.max(axis=1, initial=0)
        open_case = np.array([p in self.cases for p in self.ids])
        order = np.lexsort([self.last_us, np.maximum(weight, 0), open_case])
        gone = order[: extra + limit // 10]
        self.dropped += int(np.sum((weight[gone] > 0)[:extra]))
        gone = np.concatenate([gone[:extra], gone[extra:][weight[gone[extra:]] <= 0]])
        keep = np.ones(len(self.ids), dtype=bool)
        keep[gone] = False
        for i in gone.tolist():
            self.examples.pop(self.ids[i], None)
        self.ids = [p for p, k in zip(self.ids, keep.tolist(), strict=True) if k]
        self.sums, self.onset_us, self.count, self.last_us = (
            x[keep] for x in (self.sums, self.onset_us, self.count, self.last_us)
        )
