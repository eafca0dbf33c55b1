"""What per-principal detectors of habits share: the log hour by hour, each principal's own past, and bets on its hours.

An hour of the log is one trial of a principal for every signal: it fires once or not at all, however many events it
holds, so a burst is one trial and not a thousand. Time is the running maximum of event times (an event that comes late
counts in the hour that has been reached), so hours come in order and results do not depend on where the log is cut.

Nothing is learnt from hours of a caller under suspicion (Feedback.suspects), nor from the hour before it is heard again
as a suspect: there the attack began. Suspicion arises between stretches, so what an incident's stretch holds of hours
that are over by its end is learnt, and a cut in between would have kept it out. That is all that cuts can change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Evidence, State, Window
from monitor.model import HOUR_US, Family

NEVER: Final = -(1 << 31)  # an hour before all others
RATES: Final = (0.3, 0.9)  # shares of trials that fire, bet on
TOLERATED: Final = 0.02  # no principal is thought to fire less often than this
CROWD: Final = 25  # hours of which the crowd's trials are kept, the present one included

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Settled:
    """When a principal's own past is long enough to bet on: active hours, and days since it was first seen."""

    hours: int
    days: int


@dataclass
class Habits:
    """Remembered principals, one row of every array each. `more`: the arrays of the detector itself."""

    signals: tuple[str, ...]
    period: Ints  # hours that one trial of each signal lasts
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
    crowd: Ints = field(default_factory=lambda: np.zeros((0, 0), np.int64))  # (CROWD, 2 + signals): hour, trials, fired

    @classmethod
    def load(
        cls,
        state: State | None,
        signals: Sequence[str],
        period: Sequence[int],
        settled: Settled,
        more: Mapping[str, tuple[Any, tuple[int, ...]]],
    ) -> Habits:
        """From state, or with nobody in it. `more`: dtype and shape per principal of each further array."""
        n = len(signals)
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "born": (np.int64, ()), "seen": (np.int64, ()), "trials": (np.int64, (n,)), "hits": (np.int64, (n,)),
            "fired": (np.bool_, (n,)), "suspected": (np.int64, ()), **more,
        }  # fmt: skip
        if state is None:
            held = {name: np.zeros((0, *shape), kind) for name, (kind, shape) in shapes.items()}
            ids, clock, crowd = [], NEVER, np.full((CROWD, 2 + n), 0, np.int64)
            crowd[:, 0] = NEVER
        else:
            held = {name: state.arrays[name].copy() for name in shapes}
            ids, clock, crowd = list(state.meta["ids"]), int(state.meta["clock"]), state.arrays["crowd"].copy()
        own = {name: held.pop(name) for name in more}
        return cls(tuple(signals), np.array(period, np.int64), settled, ids, own, **held, clock=clock, crowd=crowd)

    def save(self, detector: str, version: int, calibration_hash: str) -> State:
        arrays = {
            "born": self.born, "seen": self.seen, "trials": self.trials, "hits": self.hits, "fired": self.fired,
            "suspected": self.suspected, "crowd": self.crowd, **self.more,
        }  # fmt: skip
        return State(detector, version, calibration_hash, {"ids": self.ids, "clock": self.clock}, arrays)

    def place(self, names: Sequence[str]) -> Ints:
        """Rows of these principals; new ones are added with nothing known."""
        known = {p: i for i, p in enumerate(self.ids)}
        added = [p for p in names if p not in known]
        known.update({p: len(known) + i for i, p in enumerate(added)})
        self.ids += added
        n = len(added)
        self.born = np.concatenate([self.born, np.full(n, NEVER)])
        self.seen = np.concatenate([self.seen, np.full(n, NEVER)])
        self.suspected = np.concatenate([self.suspected, np.full(n, NEVER)])
        self.trials, self.hits, self.fired = _longer(self.trials, n), _longer(self.hits, n), _longer(self.fired, n)
        self.more = {name: _longer(a, n) for name, a in self.more.items()}
        return np.array([known[p] for p in names], dtype=np.int64)

    def forget(self, limit: int) -> None:
        """Keep `limit` principals: those with a past of their own first, then those seen last."""
        if len(self.ids) <= limit:
            return
        order = np.lexsort([self.seen, self.settled_at(np.arange(len(self.ids)), self.clock // HOUR_US)])
        keep = np.sort(order[len(order) - limit + limit // 10 :])
        self.ids = [self.ids[i] for i in keep.tolist()]
        self.born, self.seen, self.suspected = self.born[keep], self.seen[keep], self.suspected[keep]
        self.trials, self.hits, self.fired = self.trials[keep], self.hits[keep], self.fired[keep]
        self.more = {name: a[keep] for name, a in self.more.items()}

    def settled_at(self, rows: Ints, hour: int) -> Bools:
        """Whether principals have enough of a past of their own in this hour."""
        old = hour - self.born[rows] >= 24 * self.settled.days
        return np.asarray(old & (self.trials[rows, 0] >= self.settled.hours))

    def trusted(self, rows: Ints, suspect: Bools) -> Bools:
        """Whose latest hour may be learnt from: not under suspicion now, nor then. suspect: who is now."""
        return np.asarray(~suspect & (self.suspected[rows] != self.seen[rows]))

    def arrive(self, hour: int, rows: Ints, suspect: Bools, learns: Bools | None = None) -> Turn:
        """Principals (distinct rows) show up in an hour: trials that are over are counted, new ones begin.

        suspect: who is under suspicion. `learns`: whose past hits count for what is tolerated of them; default all.
        """
        fresh = self.seen[rows] == NEVER
        new = self.seen[rows][:, None] // self.period != hour // self.period
        then = self.suspected[rows][:, None] // self.period == self.seen[rows][:, None] // self.period
        over = new & ~fresh[:, None] & ~then & ~suspect[:, None]
        counts = over & self.fired[rows] & (True if learns is None else learns[:, None])
        self.trials[rows] += over
        self.hits[rows] += counts
        self.fired[rows] &= ~new
        self.born[rows] = np.where(fresh, hour, self.born[rows])
        settled = self.settled_at(rows, hour)
        own = (1 + self.hits[rows]) / (1 + self.trials[rows])
        crowd = self._crowd(hour)
        rho = np.minimum(np.maximum(np.maximum(own, crowd), TOLERATED), 1.0)
        self._among(hour)[1] += int((settled & ~suspect & (self.seen[rows] != hour)).sum())
        self.seen[rows] = hour
        self.suspected[rows[suspect]] = hour
        return Turn(hour, rows, new, settled, rho, crowd, suspect)

    def fire(self, turn: Turn, which: Ints, signal: int) -> Ints:
        """Some principals of the turn do what a signal looks for; those of them for whom that is evidence, and news."""
        rows = turn.rows[which]
        which = which[~self.fired[rows, signal]]
        self.fired[rows, signal] = True
        told = which[turn.settled[which]]
        self._among(turn.hour)[2 + signal] += int((~turn.suspect[told]).sum())
        return told

    def _among(self, hour: int) -> Ints:
        """The crowd's counts of an hour."""
        slot: Ints = self.crowd[hour % CROWD]
        if slot[0] != hour:
            slot[:] = 0
            slot[0] = hour
        return slot

    def _crowd(self, hour: int) -> NDArray[np.float64]:
        """Twice the share of trials that fired lately, without one principal an hour: what happens to many is no habit."""
        late = self.crowd[(self.crowd[:, 0] < hour) & (self.crowd[:, 0] > hour - CROWD)]
        others = np.maximum(late[:, 2:] - 1, 0).sum(axis=0)
        return np.asarray(2 * others / max(10, int(late[:, 1].sum())), dtype=np.float64)


def _longer(a: NDArray[Any], n: int) -> NDArray[Any]:
    return np.concatenate([a, np.zeros((n, *a.shape[1:]), a.dtype)])


@dataclass(frozen=True)
class Turn:
    """Principals that are active in one hour. new: signals whose trial begins; rho: tolerated rates."""

    hour: int
    rows: Ints
    new: Bools
    settled: Bools
    rho: NDArray[np.float64]
    crowd: NDArray[np.float64]  # what happens to many lately, per signal
    suspect: Bools


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
        times = np.asarray(rows.column("event_time"), dtype=np.int64)
        high = np.maximum.accumulate(np.maximum(np.where(_ahead(rows), NEVER, times), clock)) if len(times) else times
        who, names = encoded(rows, "principal")
        at = np.flatnonzero((who >= 0) & (high > NEVER))
        return cls(names, who[at], at, times[at], high[at] // HOUR_US, int(high[-1]) if len(high) else clock)

    def among(self, suspects: frozenset[str]) -> Bools:
        """Which of the names are under suspicion."""
        return np.array([n in suspects for n in self.names], dtype=bool)

    def hours(self) -> Iterator[tuple[int, slice]]:
        """Each hour with the places of its rows."""
        edges = (
            np.flatnonzero(np.r_[True, self.hour[1:] != self.hour[:-1], True]) if len(self.hour) else np.zeros(1, int)
        )
        for a, b in pairwise(edges.tolist()):
            yield int(self.hour[a]), slice(a, b)


def encoded(rows: pa.Table, column: str) -> tuple[Ints, tuple[str, ...]]:
    """A text column as indices into its distinct values, -1 for missing ones; all missing when there is no such column."""
    if column not in rows.column_names or pa.types.is_null(rows.schema.field(column).type):
        return np.full(rows.num_rows, -1, dtype=np.int64), ()
    held = pc.dictionary_encode(rows[column].cast(pa.string()).combine_chunks())
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
        self.details: dict[int, dict[str, Any]] = {}

    def begin(self, turn: Turn, first: Ints, excused: Bools) -> None:
        """New trials of settled principals, at their first events (places in the stretch)."""
        bet = turn.new & turn.settled[:, None] & ~excused
        some = np.flatnonzero(bet.any(axis=1))
        if len(some):
            _, miss = _worth(turn.rho[some])
            worth = (miss * bet[some][:, :, None]).reshape(len(some), -1)
            self.parts.append((first[some], worth, np.zeros(len(some), dtype=bool)))

    def hit(self, turn: Turn, i: int, signal: int, place: int, why: Mapping[str, Any]) -> None:
        """The trial of one signal fires at this place of the stretch."""
        won, miss = _worth(turn.rho[i : i + 1, signal : signal + 1])
        worth = np.zeros((len(self.signals), len(RATES)))
        worth[signal] = (won - miss)[0, 0]
        self.parts.append((np.array([place]), worth.reshape(1, -1), np.ones(1, dtype=bool)))
        said = self.details.setdefault(place, {"signals": []})
        said["signals"].append(self.signals[signal])
        said.update(why)

    def evidence(self, detector: str, family: Family, stretch: Stretch) -> Evidence:
        """All of it in log order; events that neither begin nor fire a trial are left out."""
        columns = tuple(f"{s}/{r}" for s in self.signals for r in RATES)
        places = np.concatenate([p for p, _, _ in self.parts]) if self.parts else np.zeros(0, np.int64)
        at, back = np.unique(places, return_inverse=True)
        log_e, flag = np.zeros((len(at), len(columns))), np.zeros(len(at), dtype=bool)
        if self.parts:
            np.add.at(log_e, back, np.concatenate([w for _, w, _ in self.parts]))
            np.logical_or.at(flag, back, np.concatenate([f for _, _, f in self.parts]))
        return Evidence(
            detector=detector, family=family, principals=stretch.names, code=stretch.who[at].astype(np.int32),
            row=stretch.at[at], time_us=stretch.time_us[at], log_e=log_e, flag=flag,
            details={int(stretch.at[p]): why for p, why in sorted(self.details.items())}, columns=columns,
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
