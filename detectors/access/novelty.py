"""Principals that show up in ways new to them: other credentials, networks, model versions, returned fields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from detectors.access import absences
from detectors.access.absences import Absences
from detectors.access.company import Company
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window, own_state
from detectors.floods import Flood, Rule
from detectors.habits import NEVER, Bets, Bools, Habits, Ints, Settled, Stretch, Turn, encoded, excuses
from detectors.peers import Beside, groups
from detectors.wanted import wanted
from monitor.model import Family, network

VERSION: Final = 4
KINDS: Final = ("credential", "network", "version", "returned")
COLUMNS: Final = {"credential": "credential_id", "network": "source_ip", "version": "model_version"}
KEPT: Final = 14  # values remembered of each kind
LEARNT: Final = 2  # new values learnt in one hour: a flood of them must not become normal at once
NEWCOMERS: Final = Rule("access", "new principals", floor=50)
EXPLAINED: Final[Mapping[str, frozenset[str]]] = {"load_test": frozenset(KINDS)}


@dataclass(frozen=True)
class Access:
    """Per principal: credentials, networks, model versions and returned fields that it has never used, hour after hour.

    Idea: a stolen or shared key, a rented proxy net, or a client that tries older versions shows as values that are new
    to the principal. One new value is a rotated key or a moved job and pages nobody; several hours in a row that each
    bring another one are no habit. A principal that comes back after a long silence learns nothing for a week: what is
    unknown of it stays unknown, so its whole new life counts. Nor does a principal learn while it is suspected of an attack.
    What it wants to be told counts likewise (`returned`, with parameters that ask for logprobs, logit_bias or
    explanations: detectors.wanted): who only ever got labels and now gets scores is one hour of news, no alarm by itself,
    but said in the incident of a suspect.

    Math: each active hour is one trial per kind of value; it fires at its first event with a value outside the last 14
    that the principal used (at most two new ones are learnt an hour). e-values r/rho and (1-r)/(1-rho) for r of 0.3
    and 0.9, with rho the largest of 2 %, the principal's own share of hours that fired, and twice the share among all
    principals in the last 24 h without one principal an hour: a proxy or version that everybody moves to is no anomaly.
    fuse() runs a CUSUM of each per principal and averages them (detectors.decide). A fixed rule beside it (one
    TrafficAnomaly of the model): an hour that brings more than ten times as many new principals as any before, and 500.

    Assumptions: given its past, an hour of a principal fires with probability rho or less. Addresses count by network
    (/24, /48), also where pseudonyms are stored. Principals are bet on from `min_hours` active hours and `min_days` on;
    before that, and in a young log, nothing is anomalous, unless the directory puts them beside three settled principals
    of one group, or without a group of one kind: then news is what is new to them and to these, with rho of 5 % and what
    these bring of it or more; else beside all settled principals, if there are five, with rho of 20 %. The incident is a warning.

    False alarms: at most one per `FuseSettings.level` events over all principals under that assumption. At least five
    hours that fire within about a day are needed; measured on honest clients of every kind: docs/detectors.md.

    Parameters: min_hours, min_days: past that a principal needs; dormant_days: silence after which nothing is learnt
    for a week, if it is four times the principal's longest; max_principals: remembered at once (in a
    flood an eighth more), 450 bytes each.

    Reference: Shin, Ramdas and Rinaldo 2023 (e-detectors).

    >>> Access().min_days
    7
    """

    name: ClassVar[str] = "access"
    family: ClassVar[Family] = Family.ACCESS
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    min_hours: int = 48
    min_days: int = 7
    dormant_days: int = 30
    max_principals: int = 50_000

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Nothing is taken from the reference: only the log knows who came from where. Never refused."""
        meta = {"min_hours": self.min_hours, "min_days": self.min_days, "dormant_days": self.dormant_days}
        return Calibration(self.name, VERSION, reference_hash, meta)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Evidence at the events that begin an hour of a principal or bring something new; detections only of floods."""
        own = own_state(state, cal, VERSION)
        habits = Habits.load(
            own, KINDS, (1,) * len(KINDS), Settled(self.min_hours, (self.min_days,)),
            {
                "known": (np.uint32, (len(KINDS), KEPT)), "cursor": (np.int64, (len(KINDS),)),
                "fresh": (np.uint32, (len(KINDS), LEARNT)), "longest": (np.int64, ()), "held": (np.int64, ()),
                "group": (np.uint32, ()), **absences.arrays(),
            },
        )  # fmt: skip
        newcomers = Flood.load(NEWCOMERS, own.arrays["newcomers"] if own is not None else None)
        absent = Absences(*own.arrays["absences"].tolist()) if own is not None else Absences()
        rows = window.rows(["event_time", "principal", "quality", *COLUMNS.values(), "returned", "extra"])
        stretch = Stretch.of(rows, habits.clock)
        if not len(stretch.at):
            return Measured(self._state(habits, newcomers, absent, Company.load(own), cal))
        seen = {kind: encoded(rows, COLUMNS[kind]) for kind in COLUMNS} | {"returned": wanted(rows)}
        values = [_hashed(kind, *seen[kind])[stretch.at] for kind in KINDS]
        silent, group = excuses(window, stretch.names, KINDS, EXPLAINED), groups(window, stretch.names)
        peers = Company.load(own)
        bets, said, suspects = Bets(KINDS), list[Detection](), stretch.among(feedback.suspects)
        read: dict[int, dict[str, Any]] = {}
        for hour, span, places in habits.follow(stretch, self.max_principals):
            who, first = np.unique(stretch.who[span], return_index=True)
            new = np.sort(first[habits.seen[places[who]] == NEVER])
            peers.follow(habits, hour)
            said += absent.follow(habits, hour)
            habits.more["group"][places[who]] = group[who]
            said += newcomers.meet(window.model, hour, stretch.time_us[span][new], self.min_days)
            rows_of = places[who]
            back, told = absent.back(habits, rows_of, hour, habits.trusted(rows_of, suspects[who]))
            said += told
            read |= {span.start + int(first[i]): {"absence": dict(d.evidence)} for i, d in zip(back, told, strict=True)}
            mine = [v[span] for v in values]
            self._hour(habits, hour, span.start, stretch.who[span], places, mine, silent, bets, suspects, peers)
        code, words = seen["returned"]
        for place, why in bets.details.items():
            if "new_returned" in why:
                why["new_returned"] |= {"fields": words[code[stretch.at[place]]]}
                read.setdefault(place, {})["new_returned"] = why["new_returned"]
        evidence = bets.evidence(self.name, self.family, stretch, read)
        return Measured(self._state(habits, newcomers, absent, peers, cal), said, evidence)

    def _state(self, habits: Habits, newcomers: Flood, absent: Absences, peers: Company, cal: Calibration) -> State:
        kept = habits.save(self.name, VERSION, cal.hash)
        more = {"newcomers": newcomers.save(), "absences": absent.save(), **peers.save()}
        return replace(kept, arrays={**kept.arrays, **more})

    def _hour(
        self,
        habits: Habits,
        hour: int,
        start: int,
        who: Ints,
        places: Ints,
        values: Sequence[NDArray[np.uint32]],
        silent: Any,
        bets: Bets,
        suspects: NDArray[np.bool_],
        peers: Company,
    ) -> None:
        """The events of one hour. `start`: place of the first in the stretch."""
        active, first, member = np.unique(who, return_index=True, return_inverse=True)
        rows = places[active]
        self._close(habits, hour, rows, suspects[active])
        turn = habits.arrive(hour, rows, suspects[active], habits.more["held"][rows] < hour)
        turn, young, beside = peers.beside(habits, turn)
        excused = silent(active)
        bets.begin(turn, start + first, excused)
        for k in range(len(KINDS)):
            self._novel(habits, turn, k, start, member, values[k], excused[:, k], bets, young, beside, peers)

    def _close(self, habits: Habits, hour: int, rows: Ints, suspect: NDArray[np.bool_]) -> None:
        """What an earlier hour brought becomes known, unless the principal has only just come back from a long silence or
        is suspected of an attack.
        """
        more, seen = habits.more, habits.seen[rows]
        ended = (seen != hour) & (seen >= 0)
        over, trusted = rows[ended], habits.trusted(rows, suspect)[ended]
        gap = hour - habits.seen[over]
        learns = over[(more["held"][over] <= habits.seen[over]) & trusted]
        for j in range(LEARNT):
            for k in range(len(KINDS)):
                new = learns[more["fresh"][learns, k, j] != 0]
                more["known"][new, k, more["cursor"][new, k] % KEPT] = more["fresh"][new, k, j]
                more["cursor"][new, k] += 1
        more["fresh"][over] = 0
        long = (gap >= 24 * self.dormant_days) & (gap >= 4 * more["longest"][over])
        more["held"][over] = np.where(long, hour + 24 * 7, more["held"][over])
        more["longest"][over] = np.where(trusted, np.maximum(more["longest"][over], gap), more["longest"][over])

    def _novel(
        self,
        habits: Habits,
        turn: Turn,
        k: int,
        start: int,
        member: Ints,
        values: NDArray[np.uint32],
        excused: NDArray[np.bool_],
        bets: Bets,
        young: Bools,
        beside: Beside,
        peers: Company,
    ) -> None:
        """Values of one kind that a principal has not used in an earlier hour, nor a peer of one without a past."""
        held = habits.more["known"][turn.rows, k][member]
        some = np.flatnonzero((values != 0) & ~(held == values[:, None]).any(axis=1))
        if not len(some):
            return
        pair, first = np.unique((member[some] << 32) | values[some].astype(np.int64), return_index=True)
        order = np.argsort(first, kind="stable")
        pair, at = pair[order], some[first[order]]
        who, value = pair >> 32, (pair & 0xFFFFFFFF).astype(np.uint32)
        rows = turn.rows[who]
        news = (habits.more["known"][rows, k] != 0).any(axis=1)  # what comes in its first hour is where it lives
        news[young[who]] &= ~peers.know(habits, rows[young[who]], k, value[young[who]])
        which, earliest = np.unique(who[news], return_index=True)
        where = dict(zip(which.tolist(), at[news][earliest].tolist(), strict=True))
        for i in habits.fire(turn, which, k).tolist():
            if not excused[i]:
                row = int(turn.rows[i])
                used = int((habits.more["known"][row, k] != 0).sum())
                silence = {"dormant": True} if habits.more["held"][row] >= turn.hour else {}
                whom = beside.said(i) if young[i] else {}
                bets.hit(turn, i, k, start + where[i], {f"new_{KINDS[k]}": {"known": used, **silence, **whom}})
        fresh = habits.more["fresh"]
        apart = ~(fresh[rows, k] == value[:, None]).any(axis=1)
        rows, value = rows[apart], value[apart]
        order = np.argsort(rows, kind="stable")
        rows, value = rows[order], value[order]
        begin = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]) if len(rows) else np.zeros(0, np.int64)
        rank = np.arange(len(rows)) - np.repeat(begin, np.diff(np.r_[begin, len(rows)]))
        slot = rank + (fresh[rows, k] != 0).sum(axis=1)
        fits = slot < LEARNT
        fresh[rows[fits], k, slot[fits]] = value[fits]


def _hashed(kind: str, code: Ints, words: Sequence[str]) -> NDArray[np.uint32]:
    """The values of a kind as 32-bit hashes, 0 for missing; addresses by their network."""
    return np.array([*(_hash(kind, w) for w in words), 0], dtype=np.uint32)[code]


@lru_cache(maxsize=65_536)  # the same few come again and again, and reading an address is slow
def _hash(kind: str, word: str) -> int:
    text = network(word) if kind == "network" else word
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") | 1
