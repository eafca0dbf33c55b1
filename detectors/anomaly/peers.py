"""What callers of one kind leave of the tolerated rates to those of their kind who are new."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.anomaly.own import Shares
from detectors.base import Caller

FEWEST: Final = 3  # settled peers without which nobody is compared with them
EACH: Final = 64  # settled peers of a kind that are remembered, those that closed a block last
KINDS: Final = 1_000  # kinds remembered


@dataclass
class Peers:
    """Per kind the settled callers with the place in own.SHARES that their own past leaves them, per signal.

    A kind is what the directory declares of a caller: kind, group and profile; without a kind there are no peers. A caller
    counts while no incident is open against it. Strange queries of peers only raise what is tolerated, up to the reference's
    rates, so a crowd of attackers gains nothing over being alone.
    """

    known: dict[str, dict[str, list[int]]]

    @classmethod
    def load(cls, meta: Mapping[str, Any] | None) -> Peers:
        """From what `save` made, or empty."""
        return cls({k: {p: list(s) for p, s in of} for k, of in meta["peers"]} if meta is not None else {})

    def save(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"peers": [[kind, [[p, s] for p, s in of.items()]] for kind, of in self.known.items()]}

    def drop(self, suspects: Iterable[str]) -> None:
        """Callers under suspicion are no peers."""
        for name in suspects:
            for of in self.known.values():
                of.pop(name, None)

    def limit(
        self, names: Sequence[str], who: NDArray[np.int64], own: Shares, declared: Mapping[str, Caller], suspects: frozenset[str]
    ) -> NDArray[np.uint8]:  # fmt: skip
        r"""The places in own.SHARES that rows in log order are judged by: a new caller's own, or where that is larger the one
        of the least strict of its settled peers, as they were before the row. `who` indexes names.

        >>> told = Shares(np.zeros((1, 1), np.uint8), np.array([True]), np.array([False]), np.zeros((1, 1), np.uint8))
        >>> peers = Peers({"service\x1f\x1f": {"a": [4], "b": [2], "c": [3]}})
        >>> peers.limit(["new"], np.array([0]), told, {"new": Caller(kind="service")}, frozenset()).tolist()
        [[2]]
        """
        kinds = [_kind(declared[n]) if n in declared else "" for n in names]
        if not any(kinds):
            return own.share
        share = own.share.copy()
        has_kind = np.array([bool(k) for k in kinds], dtype=bool)[who]
        young = np.flatnonzero(own.young & has_kind)
        closed = np.flatnonzero(own.closed & has_kind)
        place = {k: i for i, k in enumerate(dict.fromkeys(kinds))}
        kind_of = np.array([place[k] for k in kinds], dtype=np.int64)[who]
        labels, first = list(place), 0
        for last in [*closed.tolist(), len(who)]:
            part = young[(young >= first) & (young <= last)]
            for kind in np.unique(kind_of[part]).tolist():
                of = self.known.get(labels[kind], {})
                if len(of) >= FEWEST:
                    rows = part[kind_of[part] == kind]
                    share[rows] = np.maximum(share[rows], np.array(list(of.values()), np.uint8).min(axis=0))
            if last < len(who) and (name := names[int(who[last])]) not in suspects:
                self._note(kinds[int(who[last])], name, own.after[last].tolist())
            first = last + 1
        return share

    def _note(self, kind: str, name: str, places: list[int]) -> None:
        of = self.known.pop(kind, {})
        of.pop(name, None)
        of[name] = places
        for gone in list(of)[:-EACH]:
            del of[gone]
        self.known[kind] = of
        for least in list(self.known)[:-KINDS]:
            del self.known[least]


def _kind(caller: Caller) -> str:
    """What is declared of a caller, "" where nothing tells who its peers are."""
    return f"{caller.kind}\x1f{caller.group}\x1f{caller.profile}" if caller.kind else ""
