"""Principals that use a model far beyond what they ever did, by the hour, the day and the month: calls, cost, errors, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.abuse import creep, horizons
from detectors.abuse.horizons import FLOORS, amount, level
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window, own_state
from detectors.floods import Flood, Rule
from detectors.habits import DAY, NEVER, Bets, Bools, Habits, Ints, Settled, Stretch, Turn, clocked, encoded, excuses
from detectors.peers import Beside, Peers, groups
from detectors.wanted import asked
from monitor.model import HOUR_US, Family

VERSION: Final = 5
AMOUNTS: Final = ("calls", "tokens", "busy_us", "errors", "scores")  # summed by principal and hour
SIGNALS: Final = (*AMOUNTS, "odd_hours", "day", "month", "flood")
ODD: Final = len(AMOUNTS)
LARGEST_DAY: Final = ODD + 1
USUAL_DAY: Final = ODD + 2
FLOOD: Final = ODD + 3
FLOODS: Final = [0, 1]  # amounts that count in a flood: not those that an outage makes large
FAR: Final = 20.0  # times the largest hour
MONTH: Final = 31  # days until which a principal's flood must also be above every other's largest hour: monthly jobs
RUSH: Final = 2  # principals of whom a flood is told in one hour: where more come at once, something happened to all
RARE: Final = 1e-12  # rho of the first flood, with which one hour is enough up to about 2,000 events a second,
AGAIN: Final = 0.5  # and of further ones, or where several had one lately
TRAFFIC: Final = Rule("abuse", "all calls", floor=200)
WEEK: Final = 168
FAILED: Final = frozenset(("error", "rejected", "timeout"))
RICH: Final = frozenset(("scores", "topk", "logprobs"))
EXPLAINED: Final[Mapping[str, frozenset[str]]] = {
    "load_test": frozenset(SIGNALS),
    "batch": frozenset({"odd_hours"}),
    "retries": frozenset({"calls", "errors"}),
    "what_if": frozenset({"odd_hours"}),
    "explainer": frozenset({"calls", "tokens", "busy_us", "scores", "odd_hours", "flood"}),
}
COLUMNS: Final = ("status", "http_status", "returned", "tokens_in", "tokens_out", "latency_ms", "extra")


@dataclass(frozen=True)
class Abuse:
    """Per principal: hours and days that hold several times what they ever held, or usually do, odd hours, and floods.

    Idea: copying a model by volume, running up its cost, probing it with refused calls, or harvesting scores shows as
    hours that are larger than everything before, or, done slowly, as days that are. Batch clients burst, so nothing is
    compared with an average: an hour fires when its calls, tokens, seconds of work, failed calls or answers with scores
    (also asked for by logprobs and logit_bias) exceed `surge` times the largest hour of the principal's past. *odd_hours*
    fires once a day when an hour holds `surge` times what the same hour of the week and its neighbours, on that day or the
    days around it, ever held. *day* fires when any of these amounts exceeds 1.5 times that of the largest day, as known a
    week or two ago; *month* when it exceeds 1.5 times what three in four of the 56 days held that ended two weeks ago
    (detectors.abuse.horizons): not one strange day, but many of them within a month. *flood* fires when an hour holds twenty
    times the calls or tokens of the largest hour; such an hour is enough by itself. Beside it a fixed rule tells of the
    calls of all (detectors.floods): an hour of more than ten times any before, and 2,000, is a TrafficAnomaly. Another, since all
    these pasts follow the caller, tells of those whose five newest weeks each hold 1.5 times what their first eight usually
    held, or more, and whose peers have not grown alike (detectors.abuse.creep).

    Math: if hours are exchangeable the next one is the largest of n + 1 with probability 1 / (n + 1) or less, whatever
    their distribution, and beyond `surge` times the largest more rarely. Each active hour (for odd hours and days: day; for
    months also days without a call) is one trial per signal with e-values r/rho and (1-r)/(1-rho) for r of 0.3 and 0.9;
    rho is the largest of 2 %, (1 + fired) / (1 + trials) of the principal, and twice the share among all principals in the
    last 24 h (for days 48) without one principal, so an outage or a rush of customers accuses nobody. What is largest is
    learnt a day (of days: a week) later and at most as `surge` (1.5) times the old, so a surge is not usual by its second
    hour. fuse() adds up (detectors.decide). The rho of a first flood is no rate that a past of hours could show: it is 1e-12 by
    decision, a fixed rule told as evidence. Of further ones it is 1/2, and so where two or more fell into one of the last 24 h;
    in one hour the first two principals are told.

    Assumptions: given its past, an hour or day of a principal fires with probability rho or less. Principals are bet on
    from `min_hours` active hours and `min_days` on, their days from 28 and 56 days on. What they do before that is what is
    usual for them, unless the directory puts them beside three settled principals of one group, or without a group of one
    kind: then the largest hours and days of these are the measure, with rho of 5 % and what fires among these or more; else
    those of all settled principals, if there are five, with rho of 20 %. The incident is a warning. What callers do while they are suspected of an attack is not learnt, nor what they did the
    day before.

    False alarms: at most one per `FuseSettings.level` events over all principals under that assumption. At least five
    hours within about a day, or six days within about a week, must fire; an honest step to twice as much, if it stays,
    may alarm. Floods come on top, once per principal as a rule: if its hours have a Pareto tail of index a, the n-th is one
    with probability 20^-a / n, which makes 20^-a ln(n / 48) up to it, 0.01 in a year around the clock for a of 2. Measured on honest clients of every kind: docs/detectors.md. Growth to less than 1.5
    times the first weeks is invisible; budgets on distinct rows see it.

    Parameters: surge: how many times the largest hour; min_hours, min_days: past that a principal needs;
    max_principals: remembered at once (in a flood an eighth more), 1,100 bytes each.

    Reference: Vovk, Gammerman and Shafer 2005 (ranks of exchangeable values); Shin, Ramdas and
    Rinaldo 2023 (e-detectors).

    >>> Abuse().surge
    4.0
    """

    name: ClassVar[str] = "abuse"
    family: ClassVar[Family] = Family.ABUSE
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

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
        """Evidence at the events that begin an hour of a principal or pass a limit; detections only of floods and creeping."""
        own = own_state(state, cal, VERSION)
        habits = self._known(own)
        rows = window.rows(["event_time", "principal", "quality", *COLUMNS])
        stretch = Stretch.of(rows, habits.clock)
        silent = excuses(window, stretch.names, SIGNALS, EXPLAINED)
        traffic = Flood.load(TRAFFIC, own.arrays["traffic"] if own is not None else None)
        said = self._traffic(traffic, window.model, rows, habits.clock, silent)
        habits.clock = stretch.clock
        amounts, group, bets = _amounts(rows)[stretch.at], groups(window, stretch.names), Bets(SIGNALS)
        peers, suspects = Peers.load(own, 2 * len(AMOUNTS), len(SIGNALS)), stretch.among(feedback.suspects)
        creep.heed(habits, feedback)
        for hour, span, places in habits.follow(stretch, self.max_principals):
            if hour // WEEK != peers.hour // WEEK:
                said += creep.follow(habits, hour, feedback, AMOUNTS)
            peers.follow(habits, hour, ("top", "peak"))
            active, first, member = np.unique(stretch.who[span], return_index=True, return_inverse=True)
            mine, suspect = places[active], suspects[active]
            habits.more["group"][mine] = group[active]
            self._close(habits, hour, mine, suspect)
            turn = habits.arrive(hour, mine, suspect)
            excused, usual = silent(active), _Usual.of(habits, turn, peers)
            habits.more["spared"][mine] = excused[:, : len(AMOUNTS)]
            turn, excused[:, ODD] = usual.turn, excused[:, ODD] | usual.young[:, 0]
            bets.begin(turn, span.start + first, excused)
            self._count(habits, usual, excused, amounts[span], member, span.start, bets)
        evidence = bets.evidence(self.name, self.family, stretch)
        kept = habits.save(self.name, VERSION, cal.hash)
        arrays = {**kept.arrays, **peers.save(), "traffic": traffic.save()}
        return Measured(replace(kept, arrays=arrays), said, evidence)

    def _traffic(
        self, flood: Flood, model: str, rows: pa.Table, clock: int, silent: Callable[[Ints], Bools]
    ) -> list[Detection]:
        """Floods of all calls together, without those of callers that may flood the model."""
        times, high = clocked(rows, clock)
        who, names = encoded(rows, "principal")
        may = np.r_[silent(np.arange(len(names)))[:, FLOOD], False]
        counted = np.flatnonzero((high > NEVER) & ~may[who])
        hour = high[counted] // HOUR_US
        cuts = np.flatnonzero(hour[1:] != hour[:-1]) + 1
        parts = np.split(counted, cuts) if len(counted) else []
        return [d for p in parts for d in flood.meet(model, int(high[p[0]] // HOUR_US), times[p], self.min_days)]

    def _known(self, state: State | None) -> Habits:
        n, hours = len(AMOUNTS), len(AMOUNTS) + 1
        wide = (np.int64, (n,))
        days = (self.min_days,) * hours
        return Habits.load(
            state, SIGNALS, (*[1] * n, DAY, DAY, DAY, 1),
            Settled(self.min_hours, (*days, horizons.LARGEST_DAYS, horizons.USUAL_DAYS, self.min_days), (*[0] * hours, 0, horizons.LARGEST_DAYS, 0)),
            {
                "group": (np.uint32, ()), "now": wide, "today": wide, "before": wide, "top": wide,
                "week": (np.uint8, (WEEK,)), **horizons.arrays(n), **creep.arrays(n),
            },
            silent=("month",),
        )  # fmt: skip

    def _count(
        self, habits: Habits, usual: _Usual, excused: Bools, amounts: Ints, member: Ints, start: int, bets: Bets
    ) -> None:
        """Events of one hour: add up, and see who passes a limit. `start`: place of the first in the stretch."""
        turn, more, rows = usual.turn, habits.more, usual.turn.rows
        added = [np.bincount(member, amounts[:, a], len(rows)) for a in range(amounts.shape[1])]
        new = np.rint(np.stack(added, axis=1)).astype(np.int64)
        hour, day = more["now"][rows], more["day"][rows]
        more["now"][rows], more["day"][rows] = hour + new, day + new
        watched = np.where(habits.settled.watch, habits.settled.watch, habits.settled.days)
        known = usual.young | (habits.age(rows, turn.hour)[:, None] >= watched)  # what the young do is usual for them
        for test in self._tests(habits, usual, excused, hour, day):
            signal, columns, limits = test.signal, test.columns, test.limits
            passed = ((test.before + new)[:, columns] > limits[:, columns]) & known[:, [signal]]
            earlier, hits = habits.told(turn.hour, signal), []
            for i in habits.fire(turn, np.flatnonzero(passed.any(axis=1)), signal).tolist():
                mine = np.flatnonzero(member == i)
                over = [columns[j] for j in np.flatnonzero(passed[i]).tolist()]
                beyond = np.cumsum(amounts[mine][:, over], axis=0) + test.before[i, over] > limits[i, over]
                k = int(np.argmax(beyond.any(axis=1)))
                hits.append((int(mine[k]), i, [a for a, b in zip(over, beyond[k], strict=True) if b]))
            for place, i, first in sorted(hits):
                earlier += int(turn.counted[i, signal])
                rush = signal == FLOOD and turn.counted[i, signal] and earlier > RUSH
                if not excused[i, signal] and not rush:
                    largest = float(test.largest[i, first[0]])
                    why = {"limit": round(float(limits[i, first[0]])), "largest": round(largest)}
                    bets.hit(turn, i, signal, start + place, {SIGNALS[signal]: why | usual.said(signal, i, first)})

    def _tests(self, habits: Habits, usual: _Usual, excused: Bools, hour: Ints, day: Ints) -> list[_Test]:
        """What is looked at in the hour and the day of the turn's principals, as they stand."""
        turn, more, rows, n = usual.turn, habits.more, usual.turn.rows, len(AMOUNTS)
        spared = np.where(excused[:, :n], np.inf, 0.0)  # amounts that a profile explains make no day and no flood
        near = np.maximum(amount(_nearby(more["week"][rows], turn.hour)), FLOORS[0])[:, None]
        week = np.repeat(near, n, axis=1)
        new = (habits.age(rows, turn.hour) < MONTH)[:, None]
        far = np.maximum(FAR * usual.top, np.where(new, usual.others, 0))
        peak, held = (np.maximum(x, FLOORS) for x in (usual.peak, more["usual"][rows]))
        return [
            *(_Test(a, [a], hour, self.surge * usual.top, usual.top) for a in range(n)),
            _Test(ODD, [0], hour, self.surge * week, week),
            _Test(LARGEST_DAY, [*range(n)], day, horizons.limits(peak) + spared, peak),
            _Test(USUAL_DAY, [*range(n)], day, horizons.limits(held) + spared, held),
            _Test(FLOOD, FLOODS, hour, far + spared, usual.top),
        ]

    def _close(self, habits: Habits, hour: int, rows: Ints, suspect: NDArray[np.bool_]) -> None:
        """What the latest hour of a principal held enters its past: its hour of the week at once, the largest at day's end.

        Nothing of it does under suspicion, nor what a suspect's days before have yet to say.
        """
        more, seen = habits.more, habits.seen[rows]
        ended = (seen != hour) & (seen != NEVER)
        over, learns = rows[ended], rows[ended & habits.trusted(rows, suspect)]
        last = habits.seen[over]
        cell = habits.seen[learns] % WEEK
        more["week"][learns, cell] = np.maximum(more["week"][learns, cell], level(more["now"][learns, 0]))
        more["today"][learns] = np.maximum(more["today"][learns], more["now"][learns])
        more["now"][over] = 0
        horizons.close(habits, hour, rows, suspect)
        doubtful = rows[suspect]
        more["today"][doubtful] = more["before"][doubtful] = 0
        # A day's largest hour is learnt when the next day is over: no surge becomes usual within a day.
        done = over[last // DAY != hour // DAY]
        young = habits.seen[done] - habits.born[done] < DAY * self.min_days
        cap = np.where(young[:, None], np.iinfo(np.int64).max, self.surge * np.maximum(more["top"][done], FLOORS))
        more["top"][done] = np.maximum(more["top"][done], np.minimum(more["before"][done], cap).astype(np.int64))
        more["before"][done] = more["today"][done]
        more["today"][done] = 0


@dataclass(frozen=True)
class _Test:
    """What principals have done in a period so far, and its limits: (principals, AMOUNTS), of which `columns` count."""

    signal: int
    columns: list[int]
    before: Ints
    limits: NDArray[np.float64]
    largest: NDArray[np.float64]


@dataclass(frozen=True)
class _Usual:
    """What principals of a turn are compared with. young: signals of those that have no past of their own but peers."""

    turn: Turn
    beside: Beside
    young: Bools  # (principals, signals)
    top: NDArray[np.float64]
    peak: Ints
    others: Ints  # the largest hour of any

    @classmethod
    def of(cls, habits: Habits, turn: Turn, peers: Peers) -> _Usual:
        """By their own past, else by that of their peers; the turn with those bet on and what is tolerated of them."""
        beside = peers.beside(habits, turn)
        young = beside.found[:, None] & ~turn.settled
        young[beside.all & turn.settled[:, 0]] = False  # its own hours say more than days of strangers
        young[:, [ODD, USUAL_DAY]] = False
        n, rho, theirs = len(AMOUNTS), np.where(young, beside.rho, turn.rho), beside.tops
        first = (habits.hits[turn.rows, FLOOD] == 0) & (turn.crowd[FLOOD] == 0)
        rho[:, FLOOD] = np.where(first, RARE, AGAIN)
        bet = replace(turn, settled=turn.settled | young, rho=rho)
        top = np.where(young[:, :n], theirs[:, :n], habits.more["top"][turn.rows])
        peak = np.where(young[:, [LARGEST_DAY]], theirs[:, n:], habits.more["peak"][turn.rows])
        return cls(bet, beside, young, np.maximum(top, FLOORS), peak, peers.largest[:n])

    def said(self, signal: int, i: int, over: Sequence[int]) -> dict[str, Any]:
        """What the evidence says beside the limit."""
        amounts = {"amounts": [AMOUNTS[a] for a in over]} if signal in (LARGEST_DAY, USUAL_DAY, FLOOD) else {}
        return amounts | (self.beside.said(i) if self.young[i, signal] else {})


def _nearby(week: NDArray[np.uint8], hour: int) -> NDArray[np.uint8]:
    """The largest level around this hour of the week, on its day and the days beside it."""
    cells = [(hour + DAY * day + step) % WEEK for day in (-1, 0, 1) for step in (-1, 0, 1)]
    return np.asarray(week[:, cells].max(axis=1), dtype=np.uint8)


def _amounts(rows: pa.Table) -> Ints:
    """(events, AMOUNTS), whole numbers."""
    n = rows.num_rows
    tokens = _whole(rows, "tokens_in", 1) + _whole(rows, "tokens_out", 1)
    failed = _among(rows, "status", FAILED) | (_whole(rows, "http_status", 1) >= 400)
    rich = _among(rows, "returned", RICH) | asked(rows).any(axis=1)
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


__all__: Sequence[str] = ("Abuse",)
