"""Evidence about callers, added up event by event: one incident per caller or cluster.

Every per-principal detector brings e-values of a few bets per event. Per caller and bet runs the CUSUM e-detector
S_t = max(S_{t-1}, 0) + log e_t: honest history is forgotten at zero, so it never hides a new attack. The evidence is
the mean of exp(S) over all bets of all detectors of a lane, valid however they depend on each other. An alarm at level L
comes at most once in L events on average over all callers together, as long as each detector's flags stay below the rate
it tolerates. Sums are whole numbers (millionths of a nat), so results never depend on where stretches are cut.

Callers that a fact ties (a credential, an address, a network, a declared group) are added up besides, so that a search spread
over many names is one incident (detectors.decide.pools).

A lane gathers the families that make one kind of incident: all that aims at the model itself is one AttackSuspected,
named when its queries tell what it is after; access, abuse, leakage and poisoning have incidents of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import NAMED, TECHNIQUES, TRAITS, UNTOLD, Evidence, Feedback, State
from detectors.decide.made import Decided, unsaid
from detectors.decide.naming import SURE
from detectors.decide.pools import Pooled
from detectors.decide.principals import MICRO, Ledger
from detectors.decide.stretch import Events, Lane, Run
from detectors.decide.sums import cusum
from detectors.decide.walk import CLEAR_US, QUIET_US, Walk
from monitor.model import Alert, Decision, Event, Family

VERSION: Final = 5
BUSY_PER_S: Final = 1_000_000 / (30 * 86400)  # a million events in 30 days
__all__ = ["CLEAR_US", "QUIET_US", "FuseSettings", "fuse"]

ATTACK: Final = Lane(Event.ATTACK_SUSPECTED, "principal", 0.6)
LANES: Final[Mapping[Family, Lane]] = {
    **dict.fromkeys((Family.ANOMALY, *NAMED), ATTACK),
    Family.ACCESS: Lane(Event.ACCESS_ANOMALY, "principal", 0.1, Family.ACCESS),
    Family.ABUSE: Lane(Event.ABUSE_SUSPECTED, "principal", 0.1, Family.ABUSE),
    Family.LEAKAGE: Lane(Event.DATA_LEAK_SUSPECTED, "principal", 0.05, Family.LEAKAGE),
    Family.INJECTION: Lane(Event.PROMPT_INJECTION_SUSPECTED, "principal", 0.05, Family.INJECTION),
    Family.POISONING: Lane(Event.POISONING_SUSPECTED, "labeler", 0.1, Family.POISONING),
}


@dataclass(frozen=True)
class FuseSettings:
    """level: events between false alarms, over all callers of a model and all lanes. max_principals: remembered at once."""

    level: float
    max_principals: int = 200_000

    @classmethod
    def derive(cls, rate_per_s: float, events_per_s: float = 0.0) -> FuseSettings:
        """The level that keeps `rate_per_s` false alarms at the model's pace, or at a million events in 30 days if that is more.

        >>> round(FuseSettings.derive(1 / (30 * 86400)).level)
        1000000
        """
        return cls(max(1000.0, max(BUSY_PER_S, events_per_s) / rate_per_s))


def fuse(
    state: State | None,
    evidence: Sequence[Evidence],
    open: Sequence[Alert],
    settings: FuseSettings,
    model: str,
) -> Decided:
    """Decide over one stretch of the log.

    `open` are the alerts open just before, including those that earlier calls opened: a subject whose incident is gone
    from it was judged by a person, and its evidence starts afresh. Decisions are dated to the event that crossed the
    level; further ones come when the queries since opening reach a power of two, when the family is named or changes,
    when callers turn out to belong together, after 24 h without new evidence (evidence.quiet, until the next flag) and
    after 7 days (the end). Feedback names the suspects.
    """
    known = state is not None and state.version == VERSION
    kept: Mapping[str, Any] = state.meta["lanes"] if state is not None and known else {}
    lanes = dict.fromkeys(
        [*(next(x for x in LANES.values() if x.event == e) for e in kept), *(LANES[e.family] for e in evidence)]
    )
    meta: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    decisions: list[Decision] = []
    held: list[Decision] = []
    suspects: set[str] = set()
    for lane in lanes:
        prefix = f"{lane.event.value}/"
        ledger = Ledger.load(kept.get(lane.event.value), state.arrays if state is not None else {}, prefix)
        kinds = ("cluster", lane.kind)
        alive = {a.subject.id for a in open if a.event is lane.event and a.subject.kind in kinds}
        for subject in [s for s, c in ledger.cases.items() if s not in alive and not c.held]:
            ledger.pools.acquit(ledger.members(subject))
            ledger.acquit(subject)
        if lane is ATTACK:  # what gauges of habits say of a caller belongs in its attack incident too
            _read(ledger, [e for e in evidence if LANES[e.family] is not lane])
        for piece in _pieces(ledger, [e for e in evidence if LANES[e.family] is lane], settings.max_principals):
            events = _side_by_side(ledger, piece)
            told, untold = _run(ledger, events, lane, math.log(settings.level / lane.share), model)
            decisions += told
            held += untold
            ledger.clock_us = int(events.clock_us[-1])
            ledger.events += len(events.row)
            ledger.forget(settings.max_principals)
        if lane is ATTACK:
            suspects.update(p for subject in ledger.cases for p in ledger.members(subject))
        meta[lane.event.value], own = ledger.save(prefix)
        arrays |= own
    ordered = sorted(decisions, key=lambda d: d.time_us)
    fused = State("fuse", VERSION, "", {"lanes": meta}, arrays)
    return Decided(fused, ordered, Feedback(suspects=frozenset(suspects)), [unsaid(d) for d in held])


def _read(ledger: Ledger, evidence: Sequence[Evidence]) -> None:
    for e in evidence:
        for r, said in e.readings.items():
            place = int(np.searchsorted(e.row, r))
            ledger.read(e.principals[int(e.code[place])], said, int(e.time_us[place]))


def _pieces(ledger: Ledger, evidence: Sequence[Evidence], limit: int) -> Iterator[list[Evidence]]:
    """The stretch, up to each event after which somebody may be forgotten: wherever the log is cut, it is the same ones."""
    given = [e for e in evidence if len(e.row)]
    if not given:
        return
    rows = np.unique(np.concatenate([e.row for e in given]))
    first, step = 0, Ledger.step(limit)
    names, readings = sum(len(e.principals) for e in given), sum(len(e.readings) for e in given)
    ties = sum(int(e.flag.sum()) * e.tied.shape[1] for e in given if e.tied is not None)
    if not ledger.crowded(limit, names, readings, ties):
        step = ledger.events + len(rows)  # nobody will be forgotten on the way
    while first < len(rows):
        last = min(first + step - ledger.events % step, len(rows))
        low, high = int(rows[first]), int(rows[last - 1])
        yield given if last - first == len(rows) else [p for e in given if len((p := _part(e, low, high)).row)]
        first = last


def _part(e: Evidence, low: int, high: int) -> Evidence:
    """The evidence of the rows from `low` to `high`."""
    at = (e.row >= low) & (e.row <= high)
    links = e.links
    return replace(
        e, code=e.code[at], row=e.row[at], time_us=e.time_us[at], log_e=e.log_e[at], flag=e.flag[at],
        votes=None if e.votes is None else e.votes[at], alike=None if e.alike is None else e.alike[at],
        before=None if e.before is None else e.before[at],
        looks=None if e.looks is None else e.looks[at], traits=None if e.traits is None else e.traits[at],
        tied=None if e.tied is None else e.tied[at], young=None if e.young is None else e.young[at],
        readings={r: said for r, said in e.readings.items() if low <= r <= high},
        links=None if links is None else links[(links[:, 0] >= low) & (links[:, 0] <= high)],
    )  # fmt: skip


def _side_by_side(ledger: Ledger, given: Sequence[Evidence]) -> Events:
    names = sorted({e.principals[i] for e in given for i in np.unique(e.code).tolist()})
    columns = [[f"{e.detector}/{c}" for c in e.columns or [str(i) for i in range(e.log_e.shape[1])]] for e in given]
    places = dict(zip(names, ledger.place(names, [c for cs in columns for c in cs]).tolist(), strict=True))
    row = np.unique(np.concatenate([e.row for e in given]))
    who, time_us = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64)
    log_e, flag = np.zeros((len(row), len(ledger.columns)), np.int64), np.zeros(len(row), dtype=bool)
    votes, traits = np.zeros((len(row), len(TECHNIQUES))), np.full((len(row), len(TRAITS)), UNTOLD, np.uint8)
    (alike, looks), before = np.zeros((2, len(row)), np.uint8), np.zeros((len(row), 2), np.uint8)
    young = np.zeros(len(row), dtype=bool)
    links: dict[int, list[tuple[str, str]]] = {}
    for e, own in zip(given, columns, strict=True):
        at = np.searchsorted(row, e.row)
        lookup = np.array([places.get(p, -1) for p in e.principals], dtype=np.int64)
        who[at], time_us[at] = lookup[e.code], e.time_us
        mine = np.array([ledger.columns.index(c) for c in own], dtype=np.int64)
        log_e[at[:, None], mine[None, :]] = np.rint(e.log_e * MICRO).astype(np.int64)
        flag[at] |= e.flag
        if e.votes is not None:
            votes[at] += e.votes
        elif e.traits is not None:
            traits[at] = e.traits
        elif e.family in NAMED:
            votes[at, list(TECHNIQUES.values()).index(e.family)] += SURE * e.flag
        if e.alike is not None:
            alike[at] = e.alike
        if e.before is not None:
            before[at] = e.before
        if e.looks is not None:
            looks[at] = e.looks
        if e.young is not None:
            young[at] |= e.young
        for r, other, bet in e.links.tolist() if e.links is not None else ():
            signal = own[bet - 1].rsplit("/", 1)[0] if bet else ""
            links.setdefault(int(r), []).append((e.principals[other], signal))
    clock = np.maximum.accumulate(np.maximum(time_us, ledger.clock_us))
    excusing = frozenset(e.detector for e in given if e.alike is not None)
    readings: dict[int, dict[str, Any]] = {}
    for e in given:
        for r, said in e.readings.items():
            readings.setdefault(r, {}).update(said)
    return Events(
        who, row, time_us, log_e, flag, votes, traits, alike, before, looks, [e.details for e in given], links, young, clock, excusing, readings,
        [e for e in given if e.tied is not None],
    )  # fmt: skip


def _pooled(ledger: Ledger, ev: Events, level: float) -> dict[int, list[Pooled]]:
    """What ties of callers reach the level with an event, by its place."""
    found: dict[int, list[Pooled]] = {}
    for e in ev.tying:
        at, own = np.searchsorted(ev.row, e.row), [ledger.columns.index(f"{e.detector}/{c}") for c in e.columns]
        x, who = ev.log_e[at][:, own], e.code.astype(np.int64)
        assert e.tied is not None
        for i, pools in ledger.pools.follow(
            e.ties, e.tied, e.principals, who, x, e.flag, ev.clock_us[at], level
        ).items():
            for pool in pools:
                sums = np.zeros(len(ledger.columns), np.int64)
                sums[own] = pool.sums
                found.setdefault(int(at[i]), []).append(replace(pool, sums=sums))
    return found


def _run(ledger: Ledger, ev: Events, lane: Lane, level: float, model: str) -> tuple[list[Decision], list[Decision]]:
    """Running sums of every caller at once, then a walk over those few that are or come under suspicion: what is decided,
    and what is held back.
    """
    order = np.argsort(ev.who, kind="stable")
    who, x = ev.who[order], ev.log_e[order]
    first = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
    segment = np.repeat(np.arange(len(first)), np.diff(first, append=len(who)))
    sums, since = cusum(x, first, ledger.sums[who[first]])
    time_us = ev.time_us[order]

    def begun(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Per bet when the sum at these rows began to build, and the caller's events since then."""
        own, mine = since[rows], who[rows]
        earlier = ledger.count[mine] + (rows - first[segment[rows]])[:, None] + 1
        onset = np.where(own >= 0, time_us[np.maximum(own, 0)], ledger.onset_us[mine])
        return onset, np.where(own >= 0, rows[:, None] - own + 1, earlier)

    ends = np.r_[first[1:], len(who)] - 1
    slow = np.zeros(len(first), dtype=bool)  # callers whose events are walked through one by one
    np.logical_or.at(slow, segment, ev.flag[order])
    watched = (
        {p for subject in ledger.cases for p in ledger.members(subject)} | set(ledger.examples) | set(ledger.votes)
    ) | ledger.pools.flagged()
    slow |= np.array([ledger.ids[i] in watched for i in who[first].tolist()])
    ev = replace(ev, pooled=_pooled(ledger, ev, level))
    runs = []
    for g in np.flatnonzero(slow).tolist():
        span = slice(int(first[g]), int(ends[g]) + 1)
        run = Run(ledger.ids[int(who[first[g]])], order[span], sums[span], *begun(np.arange(span.start, span.stop)))
        runs.append(run)
    walked = set(who[first[slow]].tolist())
    for r in sorted(ev.readings):  # of the others, whom nobody asks about as yet
        place = int(np.searchsorted(ev.row, r))
        if int(ev.who[place]) not in walked:
            ledger.read(ledger.ids[int(ev.who[place])], ev.readings[r], int(ev.time_us[place]))
    last, (onset, count) = who[ends], begun(ends)
    walk = Walk(ledger, ev, lane, level, model)
    decisions = walk.go(runs)
    for g, run in zip(np.flatnonzero(slow).tolist(), runs, strict=True):  # a sum that was settled began anew
        onset[g], count[g] = run.onset[-1], run.count[-1]
    ledger.sums[last], ledger.onset_us[last], ledger.count[last] = sums[ends], onset, count
    ledger.last_us[last] = np.maximum(ledger.last_us[last], time_us[ends])
    return sorted(decisions + walk.ended(), key=lambda d: (d.time_us, d.subject.id)), walk.held
