"""What fuse() remembers of each caller in one lane: running sums, open cases, votes, examples, who belongs together.

Bounded; eviction never clears guilt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.aged import Ids, Part, grown
from detectors.base import LOOK_ALIKES, LOOKS, TECHNIQUES, UNTOLD
from detectors.decide import naming
from detectors.decide.pools import MOST as MOST_POOLS
from detectors.decide.pools import Pools
from detectors.decide.techniques import COUNTS, FIRST, said
from monitor.model import Severity

MICRO: Final = 1_000_000  # sums are kept in millionths of a nat
NEVER: Final = -(1 << 62)
MAX_LINKS: Final = 20_000  # pairs of callers whose links are counted at once
MAX_READINGS: Final = 5_000  # callers whose gauges are remembered, those read last
STEP: Final = 4_096  # events of a lane after which somebody may be forgotten; fewer where there is little room
BITS: Final = tuple(tuple(k for k in range(len(LOOKS)) if b >> k & 1) for b in range(1 << len(LOOKS)))
OFTEN, SELDOM = 64, 8  # so many strange queries of a suspect are each asked what family they make, then one in so many
WIDE: Final = ("sums", "onset_us", "count")  # with a column per bet
ARRAYS: Final = (*WIDE, "last_us")


@dataclass
class Case:
    """A subject with an open incident. Times are event times; `queries` counts since opening."""

    opened_us: int
    onset_us: int
    before: int  # queries from onset to opening
    queries: int = 0
    flagged: int = 0
    last_us: int = 0
    quiet: bool = False
    cap: Severity | None = None  # that it may not pass as yet
    tie: str = ""  # what its callers have in common, if they were found together
    young: bool = False  # all that was flagged was so beside peers
    held: bool = False  # nobody is told as yet: it is so much like a tool

    def with_(self, other: Case) -> Case:
        """Both as one."""
        return Case(
            min(self.opened_us, other.opened_us), min(self.onset_us, other.onset_us), self.before + other.before,
            self.queries + other.queries, self.flagged + other.flagged, max(self.last_us, other.last_us),
            self.quiet and other.quiet, None, self.tie or other.tie, held=self.held and other.held,
        )  # fmt: skip


@dataclass
class Votes:
    """What strange queries of a subject say. nats: per entry of TECHNIQUES, of detectors that vote; flagged: queries; alike:
    queries that look like each of LOOK_ALIKES, flagged or excused, with those just before the first strange one; queries: all
    that were counted, looks: those that look like each of LOOKS; traits: flagged ones at each level of each of TRAITS.
    """

    nats: list[float] = field(default_factory=lambda: [0.0] * len(TECHNIQUES))
    flagged: int = 0
    alike: list[int] = field(default_factory=lambda: [0] * len(LOOK_ALIKES))
    queries: int = 0
    looks: list[int] = field(default_factory=lambda: [0] * len(LOOKS))
    traits: list[int] = field(default_factory=lambda: [0] * COUNTS)

    @property
    def said(self) -> list[float]:
        """Nats per entry of TECHNIQUES, of votes and traits."""
        return [a + b for a, b in zip(self.nats, said(self.traits), strict=True)]

    @property
    def taken(self) -> Sequence[int]:
        """Queries that look like each of LOOK_ALIKES, as far as traits tell too."""
        return naming.taken(self.flagged, self.alike, naming.lead(self.said))

    @property
    def due(self) -> bool:
        """Whether another family may lead: of many queries not each is asked about."""
        return self.flagged <= OFTEN or self.flagged % SELDOM == 0

    def flag(self, nats: Sequence[float], traits: Sequence[int]) -> None:
        """One more strange query: what it votes for, and the level of each trait."""
        self.nats = [a + b for a, b in zip(self.nats, nats, strict=True)]
        self.flagged += 1
        for first, level in zip(FIRST, traits, strict=True):
            if level != UNTOLD:
                self.traits[first + level] += 1

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Votes:
        """From what was stored, also when fewer look-alikes and techniques were known."""
        alike = [*stored["alike"], *[0] * len(LOOK_ALIKES)][: len(LOOK_ALIKES)]
        nats = [*stored["nats"], *[0.0] * len(TECHNIQUES)][: len(TECHNIQUES)]
        return cls(**{**stored, "alike": alike, "nats": nats})

    @classmethod
    def after(cls, before: Sequence[int]) -> Votes:
        """Nothing strange as yet, and what looked like each of the first of LOOK_ALIKES just before."""
        return cls(alike=[*before, *[0] * (len(LOOK_ALIKES) - len(before))])

    def count(self, alike: int, looks: int) -> None:
        """One more query. alike: 1 + place in LOOK_ALIKES, or 0; looks: a bit per entry of LOOKS."""
        self.queries += 1
        if alike:
            self.alike[alike - 1] += 1
        for k in BITS[looks]:
            self.looks[k] += 1

    def plus(self, other: Votes) -> Votes:
        """Both together."""
        return Votes(
            [a + b for a, b in zip(self.nats, other.nats, strict=True)], self.flagged + other.flagged,
            [a + b for a, b in zip(self.alike, other.alike, strict=True)], self.queries + other.queries,
            [a + b for a, b in zip(self.looks, other.looks, strict=True)],
            [a + b for a, b in zip(self.traits, other.traits, strict=True)],
        )  # fmt: skip


@dataclass
class Ledger:
    """Running sums of all remembered callers: row = caller, column = bet. `groups`: cluster id -> its members.

    old: callers not heard of late (detectors.aged), with the columns that there were then.
    """

    ids: list[str]
    columns: list[str]  # "detector/signal/bet"
    sums: NDArray[np.int64]
    onset_us: NDArray[np.int64]  # per bet: first event after the sum was last at zero
    count: NDArray[np.int64]  # per bet: events since then
    last_us: NDArray[np.int64]
    old: Part
    cases: dict[str, Case] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    votes: dict[str, Votes] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)  # "a\x1fb" -> rows that tie a to b
    groups: dict[str, list[str]] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)  # the family last told of each open case
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)  # what gauges said last of a caller, by gauge
    read_us: dict[str, int] = field(default_factory=dict)  # and when
    pools: Pools = field(default_factory=lambda: Pools({}))
    clock_us: int = NEVER
    events: int = 0  # of the lane so far
    dropped: int = 0  # callers with evidence that memory had no room for
    _places: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, meta: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Ledger:
        """From what `save` made; empty without it."""
        if meta is None:
            wide, none = np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
            return cls([], [], wide, wide, wide, none, _nobody())
        sums, onset_us, count, last_us = (np.array(arrays[prefix + a]) for a in ARRAYS)
        own = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
        old = Part.load(meta["old_ids"], own, _nobody())
        ledger = cls(list(meta["ids"]), list(meta["columns"]), sums, onset_us, count, last_us, old)
        ledger.cases = {p: Case(**{**c, "cap": c["cap"] and Severity(c["cap"])}) for p, c in meta["cases"].items()}
        ledger.examples = {p: list(e) for p, e in meta["examples"].items()}
        ledger.votes = {p: Votes.of(v) for p, v in meta["votes"].items()}
        ledger.groups = {g: list(m) for g, m in meta["groups"]}
        ledger.links, ledger.named = dict(meta["links"]), dict(meta["named"])
        ledger.readings = {p: dict(r) for p, r in meta["readings"].items()}
        ledger.read_us, ledger.pools = dict(meta["read_us"]), Pools.load(meta["pools"])
        ledger.clock_us, ledger.events, ledger.dropped = meta["clock_us"], meta["events"], meta["dropped"]
        return ledger

    def save(self, prefix: str) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
        """As JSON-ready values and arrays."""
        old_ids, old = self.old.save()
        meta = {
            "ids": self.ids, "old_ids": old_ids, "columns": self.columns, "cases": {p: vars(c) for p, c in sorted(self.cases.items())},
            "examples": dict(sorted(self.examples.items())), "votes": {p: vars(v) for p, v in sorted(self.votes.items())},
            "links": [[k, n] for k, n in self.links.items()], "groups": [[g, m] for g, m in self.groups.items()],
            "named": dict(sorted(self.named.items())), "readings": dict(sorted(self.readings.items())), "read_us": dict(sorted(self.read_us.items())), "pools": self.pools.save(), "clock_us": self.clock_us, "events": self.events, "dropped": self.dropped,
        }  # fmt: skip
        return meta, {prefix + k: a for k, a in {**{a: getattr(self, a) for a in ARRAYS}, **old}.items()}

    def place(self, names: Sequence[str], columns: Sequence[str]) -> NDArray[np.int64]:
        """Rows of these callers, new ones with nothing against them; new columns start at zero for everybody."""
        self._recall(names)
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

    def members(self, subject: str) -> list[str]:
        """The callers that a subject stands for: those of a cluster, else itself."""
        return self.groups.get(subject, [subject])

    def subject_of(self) -> dict[str, str]:
        """The cluster of every caller that is in one."""
        return {p: g for g, members in self.groups.items() for p in members}

    def acquit(self, subject: str) -> None:
        """The incident is over: the evidence starts afresh, a cluster falls apart."""
        self.cases.pop(subject, None)
        self.named.pop(subject, None)
        self.votes.pop(subject, None)
        self._recall(self.members(subject))
        for p in self.members(subject):
            self.examples.pop(p, None)
            self.votes.pop(p, None)
            if p in self.ids:
                self.sums[self.ids.index(p)] = 0
        gone = set(self.groups.pop(subject, ()))
        if gone:
            self.links = {k: n for k, n in self.links.items() if not gone.intersection(k.split("\x1f"))}

    def read(self, p: str, said: Mapping[str, Any], time_us: int) -> None:
        """Remember what gauges say of a caller."""
        self.readings[p] = {**self.readings.get(p, {}), **said}
        self.read_us[p] = time_us

    def tie(self, a: str, b: str) -> int:
        """Count one more row that ties two callers; how many there are now."""
        key = "\x1f".join(sorted((a, b)))
        self.links[key] = self.links.get(key, 0) + 1
        while len(self.links) > MAX_LINKS:
            del self.links[next(iter(self.links))]
        return self.links.get(key, 0)

    def sums_of(self, p: str) -> NDArray[np.int64] | None:
        """A caller's sums as they stand; None for one that is not remembered."""
        if p in self.place_of:
            return np.asarray(self.sums[self.place_of[p]])
        place = self.old.ids.place.get(p)
        return None if place is None else self._wide(self.old.each["sums"][place])

    @property
    def place_of(self) -> Mapping[str, int]:
        """Rows of the callers of late."""
        if len(self._places) != len(self.ids):
            self._places = {p: i for i, p in enumerate(self.ids)}
        return self._places

    def _wide(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of old callers with zeros in the columns that have come since."""
        return np.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, len(self.columns) - x.shape[-1]),))

    def _recall(self, names: Sequence[str]) -> None:
        """Old callers that are heard again."""
        known = self.place_of
        back = self.old.take(self.old.find(p for p in names if p not in known))
        if back.ids:
            self.ids += back.ids
            self.sums, self.onset_us, self.count = (
                np.concatenate([getattr(self, k), self._wide(back.each[k])]) for k in WIDE
            )
            self.last_us = np.concatenate([self.last_us, back.each["last_us"]])

    @staticmethod
    def step(limit: int) -> int:
        """Events after which somebody may be forgotten: that many callers may come in between.

        >>> Ledger.step(200_000), Ledger.step(800)
        (4096, 100)
        """
        return min(max(limit // 8, 16), STEP)

    def crowded(self, limit: int, names: int, readings: int, ties: int) -> bool:
        """Whether room may become short by so many more callers, readings and ties."""
        short = len(self.ids) + len(self.old.ids) + names > limit
        return short or len(self.readings) + readings > MAX_READINGS or len(self.pools.known) + ties > MOST_POOLS

    def forget(self, limit: int) -> None:
        """Put the silent with the silent. Callers with nothing against them weigh nothing and are not kept there.

        When room is short after a multiple of `step` events, more go: the weakest of those with evidence, of equals those
        longest silent. They are counted.
        """
        due = self.events % self.step(limit) == 0
        if due:
            for p in sorted(self.readings, key=lambda p: (self.read_us[p], p))[: -MAX_READINGS or None]:
                del self.readings[p], self.read_us[p]
            self.pools.forget()
        short = due and self.crowded(limit, 0, 0, 0)
        if not short and not grown(len(self.ids), len(self.old.ids)):
            return
        young = Part(Ids(self.ids), {k: getattr(self, k) for k in ARRAYS}, np.zeros(len(self.ids), np.int64), {})
        wide = {k: self._wide(a) if a.ndim > 1 else a for k, a in self.old.each.items()}
        both = replace(self.old, each=wide).plus(young)
        open_case = np.zeros(len(both.ids), dtype=bool)
        open_case[both.find({p for subject in self.cases for p in self.members(subject)})] = True
        both = both.take(np.flatnonzero((both.each["sums"].max(axis=1, initial=0) > 0) | open_case))
        if short and len(both.ids) > limit:
            both = self._strongest(both, limit)
        self.old = both
        none = both.take(np.zeros(0, np.int64))
        self.ids = []
        self.sums, self.onset_us, self.count, self.last_us = (none.each[k] for k in ARRAYS)

    def _strongest(self, both: Part, limit: int) -> Part:
        """So many of the callers: those of open cases first, then those with the most against them."""
        held = {p for subject in self.cases for p in self.members(subject)}
        weight = both.each["sums"].max(axis=1, initial=0)
        first = sorted(
            range(len(both.ids)),
            key=lambda i: (both.ids[i] not in held, -int(weight[i]), -int(both.each["last_us"][i]), both.ids[i]),
        )
        for i in first[limit:]:
            self.examples.pop(both.ids[i], None)
            self.votes.pop(both.ids[i], None)
        self.dropped += len(first[limit:])
        return both.take(np.array(sorted(first[:limit]), dtype=np.int64))


def _nobody() -> Part:
    wide, none = np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
    return Part(Ids(), {**dict.fromkeys(WIDE, wide), "last_us": none}, none, {})
