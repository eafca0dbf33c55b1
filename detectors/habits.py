"""What per-principal detectors of habits share: the log hour by hour, each principal's own past, and bets on its hours.

An hour of the log is one trial of a principal for every signal: it fires once or not at all, however many events it
holds, so a burst is one trial and not a thousand. Time is the running maximum of event times (an event that comes late
counts in the hour that has been reached), so hours come in order and results do not depend on where the log is cut.
Where memory is short, principals are forgotten when an hour begins and after fixed numbers of rows, not where a stretch ends.

Nothing is learnt from hours of a caller under suspicion (Feedback.suspects), nor from the hour before it is heard again
as a suspect: there the attack began. Suspicion arises between stretches, so what an incident's stretch holds of hours
that are over by its end is learnt, and a cut in between would have kept it out. That is all that cuts can change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Evidence, State, Window
from detectors.binned import given
from monitor.model import HOUR_US, Family

NEVER: Final = -(1 << 31)  # an hour before all others
RATES: Final = (0.3, 0.9)  # shares of trials that fire, bet on
TOLERATED: Final = 0.02  # no principal is thought to fire less often than this
DAY: Final = 24
CROWD: Final = 2 * DAY + 1  # hours of which the crowd's trials are kept, the present one included
SILENT: Final = 30  # periods without an event that count at most, one after the other
STEP: Final = 8  # in a flood of names, whoever is too much is forgotten after each so many-th part of the limit

NOTHING: Final[Mapping[int, Mapping[str, Any]]] = {}

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Settled:
    """When a principal's own past is long enough: active hours, and per signal days since it was first seen, from which
    on it is bet on; watch: days from which on its trials count.
    """

    hours: int
    days: tuple[int, ...]
    watch: tuple[int, ...] = (0,)


@dataclass
class Habits:
    """Remembered principals, one row of every array each. `more`: the arrays of the detector itself."""

    signals: tuple[str, ...]
    period: Ints  # hours that one trial of each signal lasts
    silent: Bools  # signals of which periods without an event are trials too
    settled: Settled
    ids: list[str]
    more: dict[str, NDArray[Any]]
    born: Ints  # hour of the first event
    seen: Ints  # hour of the latest event
    trials: Ints  # (principals, signals): trials that are over
    hits: Ints  # how many of them fired
    fired: Bools  # whether the present one has
    suspected: Ints  # hour of the latest event sent under suspicion
    clock: int = NEVER  # newest event time, microseconds
    hour: int = NEVER  # of the newest row
    rows: int = 0  # seen so far
    crowd: Ints = field(
        default_factory=lambda: np.zeros((0, 0), np.int64)
    )  # (CROWD, 1 + 2 signals): hour, trials, fired
    _places: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        state: State | None,
        signals: Sequence[str],
        period: Sequence[int],
        settled: Settled,
        more: Mapping[str, tuple[Any, tuple[int, ...]]],
        silent: Sequence[str] = (),
    ) -> Habits:
        """From state, or with nobody in it. `more`: dtype and shape per principal of each further array."""
        n = len(signals)
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "born": (np.int64, ()), "seen": (np.int64, ()), "trials": (np.int64, (n,)), "hits": (np.int64, (n,)),
            "fired": (np.bool_, (n,)), "suspected": (np.int64, ()), **more,
        }  # fmt: skip
        if state is None:
            held = {name: np.zeros((0, *shape), kind) for name, (kind, shape) in shapes.items()}
            ids, clock, hour, seen, crowd = [], NEVER, NEVER, 0, np.full((CROWD, 1 + 2 * n), 0, np.int64)
            crowd[:, 0] = NEVER
        else:
            held, meta = {name: state.arrays[name].copy() for name in shapes}, state.meta
            ids, clock, hour, seen = list(meta["ids"]), int(meta["clock"]), int(meta["hour"]), int(meta["rows"])
            crowd = state.arrays["crowd"].copy()
        own, quiet = {name: held.pop(name) for name in more}, np.array([s in silent for s in signals], dtype=bool)
        return cls(
            tuple(signals), np.array(period, np.int64), quiet, settled, ids, own, **held, clock=clock, hour=hour, rows=seen,
            crowd=crowd, _places={p: i for i, p in enumerate(ids)},
        )  # fmt: skip

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        arrays = {
            "born": self.born, "seen": self.seen, "trials": self.trials, "hits": self.hits, "fired": self.fired,
            "suspected": self.suspected, "crowd": self.crowd, **self.more,
        }  # fmt: skip
        meta = {"ids": self.ids, "clock": self.clock, "hour": self.hour, "rows": self.rows}
        return State(detector, version, calibration_hash, meta, arrays)

    def follow(self, stretch: Stretch, limit: int) -> Iterator[tuple[int, slice, Ints]]:
        """The stretch hour by hour (or less): the hour, its rows, and where each name of these is remembered.

        At most `limit` principals, and an eighth more, are remembered. The present ones are new where `seen` is NEVER.
        """
        self.clock = stretch.clock
        places = np.full(len(stretch.names), -1, np.int64)
        room = len(self.ids) + len(stretch.names) <= limit  # nobody will be forgotten on the way
        step = len(stretch.at) + 1 if room else max(1, limit // STEP)
        if room:
            places = self._place(stretch.names)
        for hour, span in stretch.pieces(self.rows, step):
            if len(self.ids) > limit and (hour != self.hour or self.rows % step == 0):
                self._forget(limit, hour)
                places[:] = -1
            active = np.unique(stretch.who[span])
            unknown = active[places[active] < 0]
            if len(unknown):
                places[unknown] = self._place([stretch.names[i] for i in unknown.tolist()])
            self.hour, self.rows = hour, self.rows + span.stop - span.start
            yield hour, span, places

    def _place(self, names: Sequence[str]) -> Ints:
        """Rows of these principals; new ones are added with nothing known."""
        known = self._places
        added = [p for p in names if p not in known]
        known.update({p: len(known) + i for i, p in enumerate(added)})
        self.ids += added
        n = len(added)
        if n:
            self.born = np.concatenate([self.born, np.full(n, NEVER)])
            self.seen = np.concatenate([self.seen, np.full(n, NEVER)])
            self.suspected = np.concatenate([self.suspected, np.full(n, NEVER)])
            self.trials, self.hits, self.fired = _longer(self.trials, n), _longer(self.hits, n), _longer(self.fired, n)
            self.more = {name: _longer(a, n) for name, a in self.more.items()}
        return np.array([known[p] for p in names], dtype=np.int64)

    def known(self, names: Iterable[str]) -> Ints:
        """Rows of those of these principals that are remembered."""
        return np.array(sorted(self._places[p] for p in names if p in self._places), dtype=np.int64)

    def _forget(self, limit: int, hour: int) -> None:
        """Keep `limit` principals, and some less: those with a past of their own first, then those seen last."""
        order = np.lexsort([self.seen, self.settled_at(np.arange(len(self.ids)), hour)[:, 0]])
        keep = np.sort(order[len(order) - limit + limit // 10 :])
        self.ids = [self.ids[i] for i in keep.tolist()]
        self._places = {p: i for i, p in enumerate(self.ids)}
        self.born, self.seen, self.suspected = self.born[keep], self.seen[keep], self.suspected[keep]
        self.trials, self.hits, self.fired = self.trials[keep], self.hits[keep], self.fired[keep]
        self.more = {name: a[keep] for name, a in self.more.items()}

    def age(self, rows: Ints, hour: int) -> Ints:
        """Whole days since principals were first seen."""
        return np.asarray((hour - self.born[rows]) // DAY)

    def settled_at(self, rows: Ints, hour: int) -> Bools:
        """Whether principals have enough of a past of their own in this hour, per signal."""
        old = self.age(rows, hour)[:, None] >= np.broadcast_to(self.settled.days, len(self.signals))
        return np.asarray(old & (self.trials[rows, :1] >= self.settled.hours))

    def trusted(self, rows: Ints, suspect: Bools) -> Bools:
        """Whose latest hour may be learnt from: not under suspicion now, nor then. suspect: who is now."""
        return np.asarray(~suspect & (self.suspected[rows] != self.seen[rows]))

    def arrive(self, hour: int, rows: Ints, suspect: Bools, learns: Bools | None = None) -> Turn:
        """Principals (distinct rows) show up in an hour: trials that are over are counted, new ones begin.

        suspect: who is under suspicion. `learns`: whose past hits count for what is tolerated of them; default all.
        """
        fresh = self.seen[rows] == NEVER
        last = self.seen[rows][:, None] // self.period
        new = last != hour // self.period
        then = self.suspected[rows][:, None] // self.period == last
        since = np.where(fresh[:, None] | ~self.silent, 0, np.clip(hour // self.period - last - 1, 0, SILENT))
        watched = self.age(rows, hour)[:, None] >= np.broadcast_to(self.settled.watch, len(self.signals))
        over = new & ~fresh[:, None] & ~then & ~suspect[:, None] & watched
        counts = over & self.fired[rows] & (True if learns is None else learns[:, None])
        self.trials[rows] += over * (1 + since)
        self.hits[rows] += counts
        self.fired[rows] &= ~new
        self.born[rows] = np.where(fresh, hour, self.born[rows])
        settled = self.settled_at(rows, hour)
        own = (1 + self.hits[rows]) / (1 + self.trials[rows])
        crowd = self._crowd(hour)
        rho = np.minimum(np.maximum(np.maximum(own, crowd), TOLERATED), 1.0)
        self._among(hour)[1 : 1 + len(self.signals)] += (settled & new & ~suspect[:, None]).sum(axis=0)
        self.seen[rows] = hour
        self.suspected[rows[suspect]] = hour
        return Turn(hour, rows, new, since, settled, rho, crowd, suspect, counted=settled & ~suspect[:, None])

    def fire(self, turn: Turn, which: Ints, signal: int) -> Ints:
        """Some principals of the turn do what a signal looks for; those of them for whom that is evidence, and news."""
        rows = turn.rows[which]
        which = which[~self.fired[rows, signal]]
        self.fired[rows, signal] = True
        told: Ints = which[turn.settled[which, signal]]
        self._among(turn.hour)[1 + len(self.signals) + signal] += int(turn.counted[told, signal].sum())
        return told

    def told(self, hour: int, signal: int) -> int:
        """How many principals that count in the crowd a signal was evidence about in this hour as yet."""
        return int(self._among(hour)[1 + len(self.signals) + signal])

    def _among(self, hour: int) -> Ints:
        """The crowd's counts of an hour."""
        slot: Ints = self.crowd[hour % CROWD]
        if slot[0] != hour:
            slot[:] = 0
            slot[0] = hour
        return slot

    def _crowd(self, hour: int) -> NDArray[np.float64]:
        """Twice the share of trials that fired lately, without those of one principal: what happens to many is no habit.

        Lately: 24 hours, for signals of a day 48. One principal fires once in a period: in every hour, or in three days.
        """
        n, ago = len(self.signals), hour - self.crowd[:, :1]
        late = np.where((ago > 0) & (ago <= np.where(self.period > 1, 2 * DAY, DAY)), self.crowd[:, 1:].reshape(-1, 2, n).swapaxes(0, 1), 0)  # fmt: skip
        trials, fired = late[0].sum(axis=0), late[1]
        others = np.where(self.period > 1, np.maximum(fired.sum(axis=0) - 3, 0), np.maximum(fired - 1, 0).sum(axis=0))
        return np.asarray(2 * others / np.maximum(10, trials), dtype=np.float64)


def _longer(a: NDArray[Any], n: int) -> NDArray[Any]:
    return np.concatenate([a, np.zeros((n, *a.shape[1:]), a.dtype)])


@dataclass(frozen=True)
class Turn:
    """Principals that are active in one hour. new: signals whose trial begins; since: trials before it that passed
    without an event; settled: who is bet on, per signal; rho: tolerated rates.
    """

    hour: int
    rows: Ints
    new: Bools
    since: Ints
    settled: Bools
    rho: NDArray[np.float64]
    crowd: NDArray[np.float64]  # what happens to many lately, per signal
    suspect: Bools
    counted: Bools  # who counts in the crowd, per signal: newcomers would cover for each other, and for others


@dataclass(frozen=True)
class Stretch:
    """The rows of a window that have a principal. who: index into names; at: row in the window; hour: log hour."""

    names: tuple[str, ...]
    who: Ints
    at: Ints
    time_us: Ints
    hour: Ints
    clock: int

    @classmethod
    def of(cls, rows: pa.Table, clock: int) -> Stretch:
        """Principals and hours of the rows, hours counted on from `clock`."""
        times, high = clocked(rows, clock)
        who, names = encoded(rows, "principal")
        at = np.flatnonzero((who >= 0) & (high > NEVER))
        return cls(names, who[at], at, times[at], high[at] // HOUR_US, int(high[-1]) if len(high) else clock)

    def among(self, suspects: frozenset[str]) -> Bools:
        """Which of the names are under suspicion."""
        return np.array([n in suspects for n in self.names], dtype=bool)

    def pieces(self, seen: int, step: int) -> Iterator[tuple[int, slice]]:
        """Each hour with the places of its rows, in two where `step` more rows of the log are over; seen: rows before."""
        if not len(self.hour):
            return
        new = np.r_[True, self.hour[1:] != self.hour[:-1], True]
        new[(-seen) % step :: step] = True
        for a, b in pairwise(np.flatnonzero(new).tolist()):
            yield int(self.hour[a]), slice(a, b)


def clocked(rows: pa.Table, clock: int) -> tuple[Ints, Ints]:
    """Event times of rows, and the time that the log has reached with each."""
    times = np.asarray(rows.column("event_time"), dtype=np.int64)
    if not len(times):
        return times, times
    return times, np.maximum.accumulate(np.maximum(np.where(_ahead(rows), NEVER, times), clock))


def encoded(rows: pa.Table, column: str) -> tuple[Ints, tuple[str, ...]]:
    """A text column as indices into its distinct values, -1 for missing ones; all missing when there is no such column."""
    if (values := given(rows, column)) is None:
        return np.full(rows.num_rows, -1, dtype=np.int64), ()
    held = pc.dictionary_encode(values.cast(pa.string()).combine_chunks())
    index = pc.fill_null(held.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return index, tuple(held.dictionary.to_pylist())


def _ahead(rows: pa.Table) -> Bools:
    """Rows whose time lies ahead of the clock: they must not move it."""
    if "quality" not in rows.column_names or rows["quality"].null_count == rows.num_rows:
        return np.zeros(rows.num_rows, dtype=bool)
    return np.array([bool(v) and "clock_skew" in v for v in rows["quality"].to_pylist()], dtype=bool)


class Bets:
    """Log e-values of trials, collected at the events that begin them and at those that make them fire.

    A trial that fires is worth r/rho, one that does not (1-r)/(1-rho), for each r in RATES above rho: an e-value while
    trials fire at a rate of rho or less whatever came before. What a trial begins with is the loss.
    """

    def __init__(self, signals: Sequence[str]) -> None:
        self.signals = tuple(signals)
        self.parts: list[tuple[Ints, NDArray[np.float64], Bools]] = []
        self.young: set[int] = set()  # places of hits of principals that have no past of their own
        self.details: dict[int, dict[str, Any]] = {}

    def begin(self, turn: Turn, first: Ints, excused: Bools) -> None:
        """New trials of settled principals, at their first events (places in the stretch)."""
        bet = turn.new & turn.settled & ~excused
        some = np.flatnonzero(bet.any(axis=1))
        if len(some):
            _, miss = _worth(turn.rho[some])
            worth = (miss * (bet * (1 + turn.since))[some][:, :, None]).reshape(len(some), -1)
            self.parts.append((first[some], worth, np.zeros(len(some), dtype=bool)))

    def hit(self, turn: Turn, i: int, signal: int, place: int, why: Mapping[str, Mapping[str, Any]]) -> None:
        """The trial of one signal fires at this place of the stretch. `why` says by what, and beside whom if not its own past."""
        won, miss = _worth(turn.rho[i : i + 1, signal : signal + 1])
        worth = np.zeros((len(self.signals), len(RATES)))
        worth[signal] = (won - miss)[0, 0]
        self.parts.append((np.array([place]), worth.reshape(1, -1), np.ones(1, dtype=bool)))
        if "beside" in next(iter(why.values())):
            self.young.add(place)
        said = self.details.setdefault(place, {"signals": []})
        said["signals"].append(self.signals[signal])
        said.update(why)

    def evidence(
        self, detector: str, family: Family, stretch: Stretch, read: Mapping[int, Mapping[str, Any]] = NOTHING
    ) -> Evidence:
        """All of it in log order; events that neither begin nor fire a trial are left out. read: by place, what a gauge
        says of the caller.
        """
        columns = tuple(f"{s}/{r}" for s in self.signals for r in RATES)
        places = np.concatenate([*(p for p, _, _ in self.parts), np.array(sorted(read), dtype=np.int64)])
        at, back = np.unique(places, return_inverse=True)
        back = back[: len(places) - len(read)]
        log_e, flag = np.zeros((len(at), len(columns))), np.zeros(len(at), dtype=bool)
        if self.parts:
            np.add.at(log_e, back, np.concatenate([w for _, w, _ in self.parts]))
            np.logical_or.at(flag, back, np.concatenate([f for _, _, f in self.parts]))
        return Evidence(
            detector=detector, family=family, principals=stretch.names, code=stretch.who[at].astype(np.int32),
            row=stretch.at[at], time_us=stretch.time_us[at], log_e=log_e, flag=flag,
            details={int(stretch.at[p]): why for p, why in sorted(self.details.items())}, columns=columns,
            young=np.isin(at, sorted(self.young)), readings={int(stretch.at[p]): said for p, said in sorted(read.items())},
        )  # fmt: skip


def _worth(rho: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log e-values of a trial that fires and of one that does not: each of rho's shape with one more axis for RATES."""
    r, p = np.array(RATES), np.minimum(rho, 0.999)[..., None]
    bets = r > p
    return np.where(bets, np.log(r / p), 0.0), np.where(bets, np.log((1 - r) / (1 - p)), 0.0)


def excuses(
    window: Window, names: Sequence[str], signals: Sequence[str], explained: Mapping[str, frozenset[str]]
) -> Callable[[Ints], Bools]:
    """By index into names: the signals that a declared profile explains."""
    declared = window.callers()
    table = np.zeros((len(names), len(signals)), dtype=bool)
    for i, name in enumerate(names) if declared else ():
        if name in declared:
            table[i] = [s in explained.get(declared[name].profile, ()) for s in signals]
    return lambda who: np.asarray(table[who])
