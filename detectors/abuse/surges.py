"""Principals that use a model far beyond what they ever did: calls, cost, errors, answers with scores, odd hours."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Calibration, Feedback, Measured, State, Window, own_state
from detectors.habits import NEVER, Bets, Habits, Ints, Settled, Stretch, Turn, encoded, excuses
from monitor.model import Family

VERSION: Final = 2
AMOUNTS: Final = ("calls", "tokens", "busy_us", "errors", "scores")  # summed by principal and hour
SIGNALS: Final = (*AMOUNTS, "odd_hours")
ODD: Final = len(AMOUNTS)
FLOORS: Final = (60, 20_000, 60_000_000, 20, 20)  # smaller hours of a principal count as this much
WEEK: Final = 168
DAY: Final = 24
ENOUGH: Final = 3  # settled peers that a principal without a past is compared with
BESIDE: Final = 0.05  # tolerated of it: peers are not itself
FAILED: Final = frozenset(("error", "rejected", "timeout"))
RICH: Final = frozenset(("scores", "topk", "logprobs"))
ASKED: Final = r'"(?:top_)?logprobs":(?:[1-9]|true)|"logit_bias(?:_count)?":(?:[1-9]|\{")'
EXPLAINED: Final[Mapping[str, frozenset[str]]] = {
    "load_test": frozenset(SIGNALS),
    "batch": frozenset({"odd_hours"}),
    "what_if": frozenset({"odd_hours"}),
    "explainer": frozenset({"calls", "tokens", "busy_us", "scores", "odd_hours"}),
}
COLUMNS: Final = ("status", "http_status", "returned", "tokens_in", "tokens_out", "latency_ms", "extra")


@dataclass(frozen=True)
class Abuse:
    """Per principal: hours that hold several times what any earlier hour held, and days at hours never used before.

    Idea: copying a model by volume, running up its cost, probing it with refused calls, or harvesting scores shows as
    hours that are larger than everything before, one after the other. Batch clients burst, so nothing is compared with
    an average: an hour fires when its calls, tokens, seconds of work, failed calls or answers with scores (also asked
    for by logprobs and logit_bias) exceed `surge` times the largest hour of the principal's past, and a day fires
    once when an hour holds `surge` times what the same hour of the week and its neighbours, on that day or the days
    around it, ever held.

    Math: if hours are exchangeable the next one is the largest of n + 1 with probability 1 / (n + 1) or less, whatever
    their distribution, and beyond `surge` times the largest more rarely. Each active hour (for odd hours: day) is one
    trial per signal with e-values r/rho and (1-r)/(1-rho) for r of 0.3 and 0.9; rho is the largest of 2 %,
    (1 + fired) / (1 + trials) of the principal, and twice the share among all principals in the last 24 h without one
    principal an hour, so an outage or a rush of customers accuses nobody. What is largest is learnt a day later and at
    most as `surge` times the old, so a surge is not usual by its second hour. fuse() adds up (detectors.decide).

    Assumptions: given its past, an hour of a principal fires with probability rho or less. Principals are bet on from
    `min_hours` active hours and `min_days` on. What they do before that is what is usual for them, unless the directory
    puts them beside three settled principals of one group: then the largest hours of these are the measure, with rho
    of 5 % or more. What callers do while they are suspected of an attack is not learnt, nor what they did the day before.

    False alarms: at most one per `FuseSettings.level` events over all principals under that assumption. At least five
    hours within about a day must fire; honest growth that is `surge`-fold within a day does fire. Measured on honest clients of
    every kind: docs/detectors.md. Slow growth below `surge` a day is invisible; budgets on distinct rows see it.

    Parameters: surge: how many times the largest hour; min_hours, min_days: past that a principal needs;
    max_principals: remembered at once, 500 bytes each.

    Reference: Vovk, Gammerman and Shafer 2005 (ranks of exchangeable values); Shin, Ramdas and
    Rinaldo 2023 (e-detectors).

    >>> Abuse().surge
    4.0
    """

    name: ClassVar[str] = "abuse"
    family: ClassVar[Family] = Family.ABUSE
    reads: ClassVar[str] = "log"

    surge: float = 4.0
    min_hours: int = 48
    min_days: int = 7
    max_principals: int = 50_000

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Nothing is taken from the reference, which is often a sample: its rates say nothing. Never refused."""
        meta = {"surge": self.surge, "min_hours": self.min_hours, "min_days": self.min_days}
        return Calibration(self.name, VERSION, reference_hash, meta)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Evidence at the events that begin an hour of a principal or pass a limit; no detections."""
        own = own_state(state, cal, VERSION)
        n = len(AMOUNTS)
        habits = Habits.load(
            own, SIGNALS, (*[1] * n, DAY), Settled(self.min_hours, self.min_days),
            {"group": (np.uint32, ()), "now": (np.int64, (n,)), "today": (np.int64, (n,)), "before": (np.int64, (n,)), "top": (np.int64, (n,)), "week": (np.uint8, (WEEK,))},
        )  # fmt: skip
        rows = window.rows(["event_time", "principal", "quality", *COLUMNS])
        stretch = Stretch.of(rows, habits.clock)
        if not len(stretch.at):
            return Measured(own if own is not None else habits.save(self.name, VERSION, cal.hash))
        habits.clock = stretch.clock
        places = habits.place(stretch.names)
        habits.more["group"][places] = _groups(window, stretch.names)
        amounts = _amounts(rows)[stretch.at]
        silent = excuses(window, stretch.names, SIGNALS, EXPLAINED)
        bets = Bets(SIGNALS)
        peers, suspects = Peers.load(own), stretch.among(feedback.suspects)
        for hour, span in stretch.hours():
            peers.follow(habits, hour)
            who = stretch.who[span]
            self._hour(habits, hour, span.start, who, places, amounts[span], silent, bets, peers, suspects)
        habits.forget(self.max_principals)
        evidence = bets.evidence(self.name, self.family, stretch)
        kept = habits.save(self.name, VERSION, cal.hash)
        return Measured(replace(kept, arrays={**kept.arrays, **peers.save()}), (), evidence)

    def _hour(
        self,
        habits: Habits,
        hour: int,
        start: int,
        who: Ints,
        places: Ints,
        amounts: Ints,
        silent: Any,
        bets: Bets,
        peers: Peers,
        suspects: NDArray[np.bool_],
    ) -> None:
        """The events of one hour. `start`: place of the first in the stretch."""
        active, first, member = np.unique(who, return_index=True, return_inverse=True)
        rows = places[active]
        self._close(habits, hour, rows, suspects[active])
        turn = habits.arrive(hour, rows, suspects[active])
        young, theirs = peers.beside(habits, turn)
        excused = silent(active)
        excused[young, ODD] = True
        turn = replace(
            turn, settled=turn.settled | young, rho=np.where(young[:, None], np.clip(turn.crowd, BESIDE, 1.0), turn.rho)
        )
        bets.begin(turn, start + first, excused)
        now = habits.more["now"]
        added = np.stack([np.bincount(member, amounts[:, a], len(active)) for a in range(amounts.shape[1])], axis=1)
        before = now[rows]
        now[rows] = before + np.rint(added).astype(np.int64)
        usual = np.maximum(np.where(young[:, None], theirs, habits.more["top"][rows]), FLOORS)
        near = np.maximum(_undo(_nearby(habits.more["week"][rows], hour)), FLOORS[0])
        limits = np.concatenate([self.surge * usual, self.surge * near[:, None]], axis=1)
        sums = np.concatenate([now[rows], now[rows][:, :1]], axis=1)
        past = young | (
            hour - habits.born[rows] >= DAY * self.min_days
        )  # what a young principal does is what is usual for it
        for signal in range(len(SIGNALS)):
            over = np.flatnonzero((sums[:, signal] > limits[:, signal]) & past)
            for i in habits.fire(turn, over, signal).tolist():
                if not excused[i, signal]:
                    a = 0 if signal == ODD else signal
                    mine = np.flatnonzero(member == i)
                    crossed = np.cumsum(amounts[mine, a]) + before[i, a] > limits[i, signal]
                    place = start + int(mine[int(np.argmax(crossed))])
                    why = {
                        "limit": round(float(limits[i, signal])),
                        "largest": round(float(limits[i, signal] / self.surge)),
                    }
                    bets.hit(turn, i, signal, place, {SIGNALS[signal]: why})

    def _close(self, habits: Habits, hour: int, rows: Ints, suspect: NDArray[np.bool_]) -> None:
        """What the latest hour of a principal held enters its past: its hour of the week at once, the largest at day's end.

        Nothing of it does under suspicion, nor what a suspect's days before have yet to say.
        """
        more, seen = habits.more, habits.seen[rows]
        ended = (seen != hour) & (seen != NEVER)
        over, learns = rows[ended], rows[ended & habits.trusted(rows, suspect)]
        last = habits.seen[over]
        cell = habits.seen[learns] % WEEK
        more["week"][learns, cell] = np.maximum(more["week"][learns, cell], _log(more["now"][learns, 0]))
        more["today"][learns] = np.maximum(more["today"][learns], more["now"][learns])
        more["now"][over] = 0
        doubtful = rows[suspect]
        more["today"][doubtful] = more["before"][doubtful] = 0
        # A day's largest hour is learnt when the next day is over: no surge becomes usual within a day.
        done = over[last // DAY != hour // DAY]
        young = habits.seen[done] - habits.born[done] < DAY * self.min_days
        cap = np.where(young[:, None], np.iinfo(np.int64).max, self.surge * np.maximum(more["top"][done], FLOORS))
        more["top"][done] = np.maximum(more["top"][done], np.minimum(more["before"][done], cap).astype(np.int64))
        more["before"][done] = more["today"][done]
        more["today"][done] = 0


@dataclass
class Peers:
    """The largest hours of the settled principals of each group, as they were when the present hour began."""

    hour: int
    groups: NDArray[np.uint32]
    counts: Ints
    tops: Ints  # (groups, AMOUNTS)

    @classmethod
    def load(cls, state: State | None) -> Peers:
        if state is None or "peer_groups" not in state.arrays:
            return cls(NEVER, np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros((0, len(AMOUNTS)), np.int64))
        a = state.arrays
        return cls(int(a["peer_hour"][0]), a["peer_groups"], a["peer_counts"], a["peer_tops"])

    def save(self) -> dict[str, NDArray[Any]]:
        return {
            "peer_hour": np.array([self.hour], np.int64), "peer_groups": self.groups, "peer_counts": self.counts,
            "peer_tops": self.tops,
        }  # fmt: skip

    def follow(self, habits: Habits, hour: int) -> None:
        """A new hour begins: what the groups have done before it."""
        if hour == self.hour:
            return
        self.hour = hour
        some = np.flatnonzero(habits.more["group"] != 0)
        some = some[habits.settled_at(some, hour)]
        self.groups, member, self.counts = np.unique(
            habits.more["group"][some], return_inverse=True, return_counts=True
        )
        self.tops = np.zeros((len(self.groups), len(AMOUNTS)), np.int64)
        np.maximum.at(self.tops, member, habits.more["top"][some])

    def beside(self, habits: Habits, turn: Turn) -> tuple[NDArray[np.bool_], Ints]:
        """Principals of the turn without a past of their own but with enough peers, and what is usual for these."""
        mine = habits.more["group"][turn.rows]
        theirs = np.zeros((len(mine), len(AMOUNTS)), np.int64)
        if not len(self.groups):
            return np.zeros(len(mine), dtype=bool), theirs
        place = np.minimum(np.searchsorted(self.groups, mine), len(self.groups) - 1)
        found = ~turn.settled & (mine != 0) & (self.groups[place] == mine) & (self.counts[place] >= ENOUGH)
        theirs[found] = self.tops[place[found]]
        return found, theirs


def _groups(window: Window, names: Sequence[str]) -> NDArray[np.uint32]:
    """The declared group of each name as a number, 0 for none."""
    declared = window.callers()
    out = np.zeros(len(names), np.uint32)
    for i, name in enumerate(names) if declared else ():
        if name in declared and declared[name].group:
            out[i] = zlib.crc32(declared[name].group.encode()) | 1
    return out


def _log(amount: Ints) -> NDArray[np.uint8]:
    """Quarter powers of two, rounded up, in one byte; 0 for nothing."""
    return np.where(amount > 0, 1 + np.ceil(4 * np.log2(np.maximum(amount, 1))), 0).astype(np.uint8)


def _undo(level: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(np.where(level > 0, np.exp2((level.astype(np.float64) - 1) / 4), 0.0))


def _nearby(week: NDArray[np.uint8], hour: int) -> NDArray[np.uint8]:
    """The largest level around this hour of the week, on its day and the days beside it."""
    cells = [(hour + DAY * day + step) % WEEK for day in (-1, 0, 1) for step in (-1, 0, 1)]
    return np.asarray(week[:, cells].max(axis=1), dtype=np.uint8)


def _amounts(rows: pa.Table) -> Ints:
    """(events, AMOUNTS), whole numbers."""
    n = rows.num_rows
    tokens = _whole(rows, "tokens_in", 1) + _whole(rows, "tokens_out", 1)
    failed = _among(rows, "status", FAILED) | (_whole(rows, "http_status", 1) >= 400)
    rich = _among(rows, "returned", RICH) | _asked(rows)
    return np.stack([np.ones(n, np.int64), tokens, _whole(rows, "latency_ms", 1000), failed, rich], axis=1).astype(
        np.int64
    )


def _whole(rows: pa.Table, column: str, scale: int) -> Ints:
    """A numeric column in whole units of 1 / scale, 0 where it is missing, negative or absurd."""
    if column not in rows.column_names or rows[column].null_count == rows.num_rows:
        return np.zeros(rows.num_rows, np.int64)
    x = pc.fill_null(rows[column].cast(pa.float64()), 0.0).to_numpy() * scale
    return np.where((x > 0) & (x < 2**40), np.rint(x), 0).astype(np.int64)


def _among(rows: pa.Table, column: str, words: frozenset[str]) -> NDArray[np.bool_]:
    code, known = encoded(rows, column)
    return np.array([*(w in words for w in known), False], dtype=bool)[code]


def _asked(rows: pa.Table) -> NDArray[np.bool_]:
    """Calls whose parameters ask for more than an answer."""
    if "extra" not in rows.column_names or rows["extra"].null_count == rows.num_rows:
        return np.zeros(rows.num_rows, dtype=bool)
    found = pc.match_substring_regex(rows["extra"].cast(pa.string()), ASKED)
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


__all__: Sequence[str] = ("Abuse",)
