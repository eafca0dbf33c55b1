"""Evidence about principals, added up event by event: one AttackSuspected per principal.

Every per-principal detector brings e-values of a few bets per event. Per principal and bet runs the CUSUM e-detector
S_t = max(S_{t-1}, 0) + log e_t: honest history is forgotten at zero, so it never hides a new attack. The evidence is
the mean of exp(S) over all bets of all detectors, valid however they depend on each other. An alarm at level L comes at
most once in L events on average over all principals together, as long as each detector's flags stay below the rate it
tolerates. Sums are whole numbers (millionths of a nat), so results never depend on where stretches are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors import stats
from detectors.base import Evidence, Feedback, State
from detectors.decide.made import Decided
from detectors.decide.principals import MICRO, Case, Ledger
from monitor.model import HOUR_US, Alert, Decision, Event, Family, Subject, finite, rfc3339

QUIET_US: Final = 24 * HOUR_US
CLEAR_US: Final = 7 * 24 * HOUR_US
EXAMPLES: Final = 5  # newest flagged events kept per principal with evidence
BUSY_PER_S: Final = 1_000_000 / (30 * 86400)  # a million events in 30 days


@dataclass(frozen=True)
class FuseSettings:
    """level: events between false alarms, over all principals of a model. max_principals: remembered at once."""

    level: float
    max_principals: int = 200_000

    @classmethod
    def derive(cls, rate_per_s: float, events_per_s: float = 0.0) -> FuseSettings:
        """The level that keeps `rate_per_s` false alarms at the model's pace, or at a million events in 30 days if that is more.

        >>> round(FuseSettings.derive(1 / (30 * 86400)).level)
        1000000
        """
        return cls(max(1000.0, max(BUSY_PER_S, events_per_s) / rate_per_s))


@dataclass(frozen=True)
class _Events:
    """All detectors' evidence of a stretch side by side, rows in log order. `who` indexes the ledger."""

    who: NDArray[np.int64]
    row: NDArray[np.int64]
    time_us: NDArray[np.int64]
    log_e: NDArray[np.int64]  # (events, columns of the ledger), millionths
    flag: NDArray[np.bool_]
    family: dict[int, Family]  # by ledger column
    details: dict[int, dict[str, Any]]
    clock_us: NDArray[np.int64]  # latest event time so far


def fuse(
    state: State | None,
    evidence: Sequence[Evidence],
    open: Sequence[Alert],
    settings: FuseSettings,
    model: str,
) -> Decided:
    """Decide over one stretch of the log.

    `open` are the alerts open just before, including those that earlier calls opened: a principal whose incident is
    gone from it was judged by a person, and its evidence starts afresh. Decisions are dated to the event that crossed
    the level; further ones come when the queries since opening reach a power of two, after 24 h without new evidence
    (evidence.quiet, until the next flag) and after 7 days (the end). Feedback names the suspects.
    """
    ledger = Ledger.load(state)
    alive = {a.subject.id for a in open if a.event is Event.ATTACK_SUSPECTED and a.subject.kind == "principal"}
    for p in [p for p in ledger.cases if p not in alive]:
        ledger.acquit(p)
    events = _side_by_side(ledger, evidence)
    decisions: list[Decision] = []
    if events is not None:
        decisions = _run(ledger, events, settings, model)
        ledger.clock_us = int(events.clock_us[-1])
        ledger.forget(settings.max_principals)
    return Decided(ledger.save(), decisions, Feedback(suspects=frozenset(ledger.cases)))


def _side_by_side(ledger: Ledger, evidence: Sequence[Evidence]) -> _Events | None:
    given = [e for e in evidence if len(e.row)]
    if not given:
        return None
    names = sorted({e.principals[i] for e in given for i in np.unique(e.code).tolist()})
    columns = [[f"{e.detector}/{c}" for c in e.columns or [str(i) for i in range(e.log_e.shape[1])]] for e in given]
    places = dict(zip(names, ledger.place(names, [c for cs in columns for c in cs]).tolist(), strict=True))
    row = np.unique(np.concatenate([e.row for e in given]))
    who, time_us = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64)
    log_e, flag = np.zeros((len(row), len(ledger.columns)), np.int64), np.zeros(len(row), dtype=bool)
    family: dict[int, Family] = {}
    details: dict[int, dict[str, Any]] = {}
    for e, own in zip(given, columns, strict=True):
        at = np.searchsorted(row, e.row)
        lookup = np.array([places.get(p, -1) for p in e.principals], dtype=np.int64)
        who[at], time_us[at] = lookup[e.code], e.time_us
        mine = [ledger.columns.index(c) for c in own]
        log_e[at[:, None], np.array(mine)[None, :]] = np.rint(e.log_e * MICRO).astype(np.int64)
        flag[at] |= e.flag
        family.update(dict.fromkeys(mine, e.family))
        for r, why in e.details.items():
            details.setdefault(int(r), {}).update(why)
    clock = np.maximum.accumulate(np.maximum(time_us, ledger.clock_us))
    return _Events(who, row, time_us, log_e, flag, family, details, clock)


def _run(ledger: Ledger, ev: _Events, settings: FuseSettings, model: str) -> list[Decision]:
    """Running sums of every principal at once, then a walk over those few that are or come under suspicion."""
    order = np.argsort(ev.who, kind="stable")
    who, x = ev.who[order], ev.log_e[order]
    first = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
    segment = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(who)]))
    sums, since = _cusum(x, first, segment, ledger.sums[who[first]])
    time_us = ev.time_us[order]
    onset = np.where(since >= 0, time_us[np.maximum(since, 0)], ledger.onset_us[who])
    index = np.arange(len(who))[:, None]
    count = np.where(since >= 0, index - since + 1, ledger.count[who] + (index - first[segment][:, None]) + 1)
    decisions: list[Decision] = []
    ends = np.r_[first[1:], len(who)] - 1
    slow = np.zeros(len(first), dtype=bool)  # principals whose events are walked through one by one
    np.logical_or.at(slow, segment, ev.flag[order])
    slow |= np.array([ledger.ids[i] in ledger.cases or ledger.ids[i] in ledger.examples for i in who[first].tolist()])
    for g in np.flatnonzero(slow).tolist():
        span = slice(int(first[g]), int(ends[g]) + 1)
        walk = _Walk(
            ledger,
            ev,
            settings,
            model,
            ledger.ids[int(who[first[g]])],
            order[span],
            sums[span],
            onset[span],
            count[span],
        )
        decisions += walk.decisions()
    last = who[ends]
    ledger.sums[last], ledger.onset_us[last], ledger.count[last] = sums[ends], onset[ends], count[ends]
    ledger.last_us[last] = np.maximum(ledger.last_us[last], time_us[ends])
    for p in sorted(ledger.cases):
        sums_now = ledger.sums[ledger.ids.index(p)]
        decisions += _expire(ledger, p, int(ev.clock_us[-1]), model, _parts(ledger.columns, sums_now))
    return sorted(decisions, key=lambda d: (d.time_us, d.subject.id))


def _cusum(
    x: NDArray[np.int64], first: NDArray[np.int64], segment: NDArray[np.int64], start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """S_t = max(S_{t-1}, 0) + x_t within each segment, and the row from which S has been building (-1: from before).

    >>> s, since = _cusum(np.array([[3], [-5], [2]]), np.array([0]), np.array([0, 0, 0]), np.array([[1]]))
    >>> s.ravel().tolist(), since.ravel().tolist()
    ([4, -1, 2], [-1, -1, 2])
    """
    total = np.cumsum(x, axis=0)
    base = (total - x)[first][segment]  # the sum before each segment
    held = np.maximum(start, 0)[segment]
    path = total - base + held  # as if never reset
    before = path - x
    # The lowest point at or before t, segment by segment: segments are pushed apart so that one pass does for all.
    apart = np.int64(4) * (np.abs(path).max(initial=0) + np.abs(before).max(initial=0) + 1)
    drop = segment[:, None] * apart
    low = np.minimum.accumulate(before - drop, axis=0) + drop
    sums = path - np.minimum(low, 0)
    index = np.arange(len(x))[:, None]
    resets = (before <= 0) & (before == low)  # the sum stood at or below zero just before this row
    since = np.maximum.accumulate(np.where(resets, index, -1), axis=0)
    since = np.where(since >= first[segment][:, None], since, -1)
    return sums, since


@dataclass
class _Walk:
    """One principal's events of a stretch, in order."""

    ledger: Ledger
    ev: _Events
    settings: FuseSettings
    model: str
    principal: str
    at: NDArray[np.int64]  # places in ev
    sums: NDArray[np.int64]
    onset: NDArray[np.int64]
    count: NDArray[np.int64]

    def decisions(self) -> list[Decision]:
        """Opening, powers of two of the queries since, quiet, active again, the end: each dated to its own moment."""
        made: list[Decision] = []
        limit = math.log(self.settings.level)
        top = self.sums.max(axis=1) / MICRO
        for i, place in enumerate(self.at.tolist()):
            case = self.ledger.cases.get(self.principal)
            now, flag = int(self.ev.time_us[place]), bool(self.ev.flag[place])
            if case is not None:
                parts = self.parts(i - 1) if i else _parts(self.ledger.columns, self.ledger.sums[self.ev.who[place]])
                made += _expire(self.ledger, self.principal, int(self.ev.clock_us[place]), self.model, parts)
                if self.principal not in self.ledger.cases:
                    case = None
                    self.restart(i)
                    top[i:] = self.sums[i:].max(axis=1) / MICRO
            if case is None:
                if flag and top[i] >= limit and self.log_e(i) >= limit:
                    made.append(self.open(i, now))
                elif flag:
                    self.note(place)
                elif top[i] <= 0:  # nothing is left against the principal
                    self.ledger.examples.pop(self.principal, None)
                continue
            if flag:
                self.note(place)
            case.queries += 1
            case.flagged += flag
            woken = flag and case.quiet
            if flag:
                case.quiet, case.last_us = False, max(case.last_us, now)
            if woken or case.queries & (case.queries - 1) == 0:
                made.append(
                    _decision(self.ledger, self.principal, case, self.model, now, self.parts(i), self.family(i))
                )
        return made

    def restart(self, i: int) -> None:
        """Sums start again at the i-th event; what came before it was settled."""
        x = self.ev.log_e[self.at[i:]]
        first, segment, nothing = np.zeros(1, np.int64), np.zeros(len(x), np.int64), np.zeros((1, x.shape[1]), np.int64)
        self.sums[i:], since = _cusum(x, first, segment, nothing)
        self.onset[i:] = self.ev.time_us[self.at[i:]][since]
        self.count[i:] = np.arange(len(x))[:, None] - since + 1

    def log_e(self, i: int) -> float:
        """Log of the mean over all bets of the running e-values."""
        s = np.maximum(self.sums[i], 0) / MICRO
        return stats.log_sum_exp(s) - math.log(len(s))

    def parts(self, i: int) -> dict[str, float]:
        """Log evidence by detector and signal."""
        return _parts(self.ledger.columns, self.sums[i])

    def family(self, i: int) -> Family:
        return self.ev.family.get(int(np.argmax(self.sums[i])), Family.ANOMALY)

    def open(self, i: int, now: int) -> Decision:
        lead = int(np.argmax(self.sums[i]))
        self.note(int(self.at[i]))
        case = Case(now, int(self.onset[i, lead]), int(self.count[i, lead]), last_us=now, flagged=1)
        self.ledger.cases[self.principal] = case
        made = _decision(
            self.ledger, self.principal, case, self.model, now, self.parts(i), self.family(i), self.log_e(i)
        )
        return replace(made, threshold=finite(math.log(self.settings.level)))

    def note(self, place: int) -> None:
        """Keep what a flagged event looked like."""
        why = self.ev.details.get(int(self.ev.row[place]))
        if why is not None:
            kept = self.ledger.examples.setdefault(self.principal, [])
            kept.append({"time": rfc3339(int(self.ev.time_us[place])), **why})
            del kept[:-EXAMPLES]


def _parts(columns: Sequence[str], sums: NDArray[np.int64]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for c, s in zip(columns, sums.tolist(), strict=True):
        groups.setdefault(c.rsplit("/", 1)[0], []).append(max(s, 0) / MICRO)
    parts = {g: stats.log_sum_exp(np.array(v)) - math.log(len(v)) for g, v in groups.items()}
    return dict(sorted(parts.items(), key=lambda kv: (-kv[1], kv[0])))


def _expire(ledger: Ledger, principal: str, clock_us: int, model: str, parts: Mapping[str, float]) -> list[Decision]:
    """Quiet after 24 h without new evidence, over after 7 days; dated to the moment itself, not to when it was noticed."""
    made = []
    case = ledger.cases[principal]
    if not case.quiet and clock_us >= case.last_us + QUIET_US:
        case.quiet = True
        made.append(_decision(ledger, principal, case, model, case.last_us + QUIET_US, parts, Family.ANOMALY))
    if clock_us >= case.last_us + CLEAR_US:
        over = _decision(ledger, principal, case, model, case.last_us + CLEAR_US, parts, Family.ANOMALY)
        made.append(replace(over, firing=False, evidence={**over.evidence, "reason": "no evidence for 7 days"}))
        ledger.acquit(principal)
    return made


def _decision(
    ledger: Ledger,
    principal: str,
    case: Case,
    model: str,
    time_us: int,
    parts: Mapping[str, float],
    family: Family,
    log_e: float | None = None,
) -> Decision:
    detector = next(iter(parts)).split("/", 1)[0]
    if log_e is None:  # an update says what has come together so far, weighed as at the opening: the mean over signals
        log_e = stats.log_sum_exp(np.array(list(parts.values()))) - math.log(len(parts))
    evidence = {
        "principals": [principal],
        "queries": case.before + case.queries,
        "flagged": case.flagged,
        "onset": rfc3339(case.onset_us),
        "quiet": case.quiet,
        "detectors": [{"name": n, "log_e": finite(v)} for n, v in parts.items() if v > 0],
        "examples": [dict(e) for e in ledger.examples.get(principal, ())],
    }
    return Decision(
        model=model, event=Event.ATTACK_SUSPECTED, family=family, subject=Subject("principal", principal), firing=True,
        time_us=time_us, window_us=(case.onset_us, time_us), detector=detector, statistic=finite(log_e), log_e=finite(log_e),
        n=case.before + case.queries, evidence=evidence,
    )  # fmt: skip
