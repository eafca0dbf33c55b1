"""Evidence of callers whom a fact ties (one credential, address, network or declared group), added up as if they were one.

Who spreads a search over many names keeps each far below an alarm. Under the names' tie their evidence adds up: a CUSUM per
tie over the same e-values as its callers' own, valid as long as each of them keeps to what it is tolerated, however many
they are; so honest crowds behind one gateway dilute a pool and never fill it. Two things keep a pool from saying what one
caller says already: nobody's events count after FLAGS of them were flagged, which is too few for an alarm, and it takes
MEMBERS such callers. A pool without evidence is forgotten at once, so it begins with a flagged event.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors import stats
from monitor.model import HOUR_US

FLAGS: Final = 3  # flagged events of one caller that count in a pool
MEMBERS: Final = 3  # callers that it takes
OFTEN: Final = 0.1  # share of a caller's events that are flagged when it belongs to them, with two flags or more;
ONCE: Final = 1 / 3  # and with one: a single flag among others is what honest neighbours have
COST: Final = math.log(80.0)  # nats on top of a caller's level: the four kinds of tie take a twentieth of its budget
OVER_US: Final = 7 * 24 * HOUR_US  # without a flagged event
MOST: Final = 4_096  # pools remembered, those flagged last
MICRO: Final = 1_000_000


@dataclass(frozen=True)
class Pooled:
    """A pool that reaches the level with an event. tie: what its callers have in common; callers: those that speak for it,
    in order; sums: per bet, log_e: of all bets; began_us: its first flagged event; events, flagged: counted since.
    """

    tie: str
    callers: tuple[str, ...]
    sums: NDArray[np.int64]
    log_e: float
    began_us: int
    events: int
    flagged: int


@dataclass
class Pool:
    """One tie with evidence. sums: per bet, in millionths of a nat; callers: events and flagged ones that counted, of each."""

    sums: NDArray[np.int64]
    began_us: int
    last_us: int
    callers: dict[str, tuple[int, int]]


class _Live(NamedTuple):
    """Pools that a piece of the log may touch, as arrays. turn: how often each began anew; many: callers with flagged
    events that count; of: per pair of pool and caller
    the turn that its counts belong to.
    """

    sums: NDArray[np.int64]
    alive: NDArray[np.bool_]
    began_us: NDArray[np.int64]
    last_us: NDArray[np.int64]
    turn: NDArray[np.int64]
    many: NDArray[np.int64]
    of: NDArray[np.int64]
    events: NDArray[np.int64]
    flagged: NDArray[np.int64]


@dataclass
class Pools:
    """Ties with evidence, in order of their last flagged event."""

    known: dict[str, Pool]

    @classmethod
    def load(cls, meta: Sequence[Any]) -> Pools:
        """From what `save` made."""
        return cls(
            {
                tie: Pool(np.array(sums, np.int64), began_us, last_us, {p: (n, k) for p, n, k in callers})
                for tie, sums, began_us, last_us, callers in meta
            }
        )

    def save(self) -> list[Any]:
        """As JSON-ready values."""
        return [
            [tie, p.sums.tolist(), p.began_us, p.last_us, [[c, *n] for c, n in p.callers.items()]]
            for tie, p in self.known.items()
        ]

    def acquit(self, members: Sequence[str]) -> None:
        """Whatever spoke against these callers together is over."""
        self.known = {t: p for t, p in self.known.items() if p.callers.keys().isdisjoint(members)}

    def flagged(self) -> set[str]:
        """Callers of whom flagged events count."""
        return {p for pool in self.known.values() for p, (_, k) in pool.callers.items() if k}

    def forget(self) -> None:
        """Keep those flagged last."""
        for tie in sorted(self.known, key=lambda t: (self.known[t].last_us, t))[:-MOST]:
            del self.known[tie]

    def follow(
        self, ties: Sequence[str], tied: NDArray[np.int32], callers: Sequence[str], who: NDArray[np.int64], x: NDArray[np.int64],
        flag: NDArray[np.bool_], clock_us: NDArray[np.int64], level: float,
    ) -> dict[int, list[Pooled]]:  # fmt: skip
        """Go on by a piece of the log; the pools that reach the level (nats, of one caller) with an event, by its place.

        tied (events, kinds): places of each event's ties in `ties`, -1 for none; who: places in `callers`; x: e-values (events,
        bets), millionths. Only ties with evidence, or of an event that is flagged, are looked at.
        """
        busy = np.zeros(len(ties) + 1, dtype=bool)
        busy[tied[flag].ravel()] = True
        busy[[k for k, t in enumerate(ties) if t in self.known]] = True
        busy[-1] = False
        rows = np.flatnonzero(busy[tied].any(axis=1))
        if not len(rows):
            return {}
        mine = np.where(busy[tied[rows]], tied[rows], -1)
        keys, pair = np.unique(mine.astype(np.int64) * len(callers) + who[rows, None], return_inverse=True)
        pair = pair.reshape(mine.shape)
        live = self._live(ties, [(int(k) // len(callers), callers[int(k) % len(callers)]) for k in keys], x.shape[1])
        found: dict[int, list[Pooled]] = {}
        at, need = 0, level + COST
        while (at := _go(live, mine, pair, x[rows], flag[rows], clock_us[rows], round(need * MICRO), at)) >= 0:
            i, p = int(rows[at // mine.shape[1]]), int(mine.flat[at])
            at += 1
            if (log_e := _log_e(live.sums[p])) >= need:
                members = self._members(live, p, keys, ties, callers)
                speaking = [c for c, (n, k) in members.items() if k >= ONCE * n or (k > 1 and k >= OFTEN * n)]
                if len(speaking) >= MEMBERS:
                    events, flagged = (sum(n[j] for n in members.values()) for j in (0, 1))
                    found.setdefault(i, []).append(
                        Pooled(ties[p].split(":")[0], tuple(sorted(speaking)), live.sums[p].copy(), log_e, int(live.began_us[p]), events, flagged)
                    )  # fmt: skip
        for p in np.flatnonzero(busy[:-1]).tolist():
            if live.alive[p]:
                members = self._members(live, p, keys, ties, callers)
                self.known[ties[p]] = Pool(live.sums[p].copy(), int(live.began_us[p]), int(live.last_us[p]), members)
            else:
                self.known.pop(ties[p], None)
        return found

    def _live(self, ties: Sequence[str], pairs: Sequence[tuple[int, str]], bets: int) -> _Live:
        n, m = len(ties), len(pairs)
        live = _Live(
            np.zeros((n, bets), np.int64), np.zeros(n, dtype=bool), *(np.zeros(n, np.int64) for _ in range(4)),
            *(np.zeros(m, np.int64) for _ in range(3)),
        )  # fmt: skip
        for p, tie in enumerate(ties):
            if (pool := self.known.get(tie)) is not None:
                live.sums[p, : len(pool.sums)] = pool.sums
                live.alive[p], live.began_us[p], live.last_us[p] = True, pool.began_us, pool.last_us
                live.many[p] = sum(k > 0 for _, k in pool.callers.values())
        for q, (p, caller) in enumerate(pairs):
            if p >= 0 and (pool := self.known.get(ties[p])) is not None:
                live.events[q], live.flagged[q] = pool.callers.get(caller, (0, 0))
        return live

    def _members(
        self, live: _Live, p: int, keys: NDArray[np.int64], ties: Sequence[str], callers: Sequence[str]
    ) -> dict[str, tuple[int, int]]:
        """The callers of a live pool, those of earlier pieces included unless it began anew."""
        old = self.known.get(ties[p]) if live.turn[p] == 0 else None
        members = dict(old.callers) if old is not None else {}
        first, last = np.searchsorted(keys, [p * len(callers), (p + 1) * len(callers)])
        for q in range(int(first), int(last)):
            if live.of[q] == live.turn[p] and live.events[q]:
                members[callers[int(keys[q]) % len(callers)]] = int(live.events[q]), int(live.flagged[q])
        return members


@numba.njit(cache=True)
def _go(live: Any, mine: Any, pair: Any, x: Any, flag: Any, clock_us: Any, need: int, at: int) -> int:
    """Follow the events from place `at` (event times kinds of tie) to the next flagged one whose pool may reach the level."""
    kinds, bets = mine.shape[1], x.shape[1]
    for k in range(at, mine.shape[0] * kinds):
        i, p, q = k // kinds, mine[k // kinds, k % kinds], pair[k // kinds, k % kinds]
        if p < 0:
            continue
        if live.alive[p] and clock_us[i] >= live.last_us[p] + OVER_US:
            live.alive[p] = False
        if not live.alive[p]:
            if not flag[i]:
                continue
            live.sums[p, :] = 0
            live.alive[p], live.began_us[p], live.last_us[p] = True, clock_us[i], clock_us[i]
            live.turn[p] += 1
            live.many[p] = 0
        if live.of[q] != live.turn[p]:
            live.of[q], live.events[q], live.flagged[q] = live.turn[p], 0, 0
        if live.flagged[q] >= FLAGS:
            continue
        live.events[q] += 1
        most = 0
        for c in range(bets):
            live.sums[p, c] = max(live.sums[p, c], 0) + x[i, c]
            most = max(most, live.sums[p, c])
        if flag[i]:
            live.many[p] += live.flagged[q] == 0
            live.flagged[q] += 1
            live.last_us[p] = clock_us[i]
        if most <= 0:
            live.alive[p] = False
        elif flag[i] and most >= need and live.many[p] >= MEMBERS:
            return k
    return -1


def _log_e(sums: NDArray[np.int64]) -> float:
    """Log of the mean over all bets of the running e-values."""
    return stats.log_sum_exp(np.maximum(sums, 0) / MICRO) - math.log(len(sums))
