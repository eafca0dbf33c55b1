"""One stretch of the log, event by event, over those callers that are or come under suspicion."""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors import stats
from detectors.base import LOOKS
from detectors.decide import naming
from detectors.decide.naming import Seen
from detectors.decide.pools import COST, Pooled
from detectors.decide.principals import MICRO, Case, Ledger, Votes
from detectors.decide.stretch import Events, Lane, Run
from monitor.model import HOUR_US, Decision, Family, Severity, Subject, finite, rfc3339

QUIET_US: Final = 24 * HOUR_US
CLEAR_US: Final = 7 * 24 * HOUR_US
EXAMPLES: Final = 5  # newest flagged events kept per caller with evidence
LINKED: Final = 3  # rows that tie two callers before they count as one
JOIN: Final = 0.5  # of the level that each must have reached by itself: whose records others vary is no accomplice
CLUSTERS: Final = uuid.UUID("6f2c1f0e-8f0a-5d8e-9b1c-3a5d7e9f1b2d")


@dataclass
class Walk:
    """The callers under suspicion through a stretch, in log order: each decision is dated to its own moment."""

    ledger: Ledger
    events: Events
    lane: Lane
    level: float
    model: str
    made: list[Decision] = field(default_factory=list)
    held: list[Decision] = field(default_factory=list)  # what nobody is told as yet
    noted: dict[str, list[int]] = field(default_factory=dict)  # newest flagged events of a caller, not yet examples
    runs: dict[str, Run] = field(default_factory=dict)
    turn: str = ""  # whose event is looked at

    def go(self, runs: Sequence[Run]) -> list[Decision]:
        """Opening, powers of two of the queries since, a family, quiet, active again, the end."""
        where = self.ledger.subject_of()
        self.runs = {run.principal: run for run in runs}
        turns = sorted((int(place), k) for k, run in enumerate(runs) for place in run.at.tolist())
        for place, k in turns:
            run = runs[k]
            self.turn = run.principal
            self.step(run, run.done, place, where)
            run.done += 1
        for p in list(self.noted):
            self.ledger.examples[p] = self.examples(p)
        self.noted.clear()
        return self.made

    def ended(self) -> list[Decision]:
        """What has run out by the end of the stretch; call when the ledger holds its sums."""
        self.made = []
        for subject in sorted(self.ledger.cases):
            self.expire(subject, int(self.events.clock_us[-1]))
        return self.made

    def step(self, run: Run, i: int, place: int, where: dict[str, str]) -> None:
        ledger, events = self.ledger, self.events
        p = run.principal
        now, flag = int(events.time_us[place]), bool(events.flag[place])
        if said := events.readings.get(int(events.row[place])):
            ledger.read(p, said, now)
        subject = where.get(p, p)
        if subject in ledger.cases:
            members = ledger.members(subject)
            if self.expire(subject, int(events.clock_us[place])):
                for member in members:
                    where.pop(member, None)
                    self.noted.pop(member, None)
                    if member in self.runs:
                        self.runs[member].restart(events)
                subject = p
        if flag:
            self.note(p, subject, place)
            for other, by in events.links.get(int(events.row[place]), ()):
                if other != p and ledger.tie(p, other) >= LINKED and self.guilty(p, by) and self.guilty(other, by):
                    both = where.get(p, p), where.get(other, other)
                    subject = self.unite(both, now, where, self.parts(run.sums[i]))
            for pool in events.pooled.get(place, ()):
                self.gather(pool, now, where)
                subject = where.get(p, p)
        elif subject in ledger.votes and (subject == p or subject in ledger.cases):
            ledger.votes[subject].count(int(events.alike[place]), int(events.looks[place]))
        case = ledger.cases.get(subject)
        nothing = subject == p and run.sums[i].max() <= 0  # is left against the caller
        if case is not None and case.held and nothing:
            del ledger.cases[subject]
            ledger.named.pop(subject, None)
            case = None
        if case is None:
            if flag and self.log_e(run.sums[i]) >= self.level:
                self.open(run, i, now, subject)
            elif nothing:
                ledger.examples.pop(p, None)
                ledger.votes.pop(p, None)
                self.noted.pop(p, None)
            return
        case.queries += 1
        case.flagged += flag
        news = case.queries & (case.queries - 1) == 0
        if flag:
            news |= case.quiet or self.renamed(subject)
            case.quiet, case.last_us = False, max(case.last_us, now)
            case.young &= bool(self.events.young[place])
            news |= self.lifted(subject, case, run.sums[i])
            if case.held and self.log_e(run.sums[i]) >= self.level and not self.like_a_tool(subject, run.sums[i]):
                case.held = False
                self.tell(subject, case, now, self.parts(run.sums[i]), self.log_e(run.sums[i]), finite(self.level))
                return
        if news:
            self.tell(subject, case, now, self.parts(run.sums[i]))

    @functools.cached_property
    def signals(self) -> dict[str, NDArray[np.int64]]:
        """Places of the bets of each detector and signal."""
        places: dict[str, list[int]] = {}
        for k, c in enumerate(self.ledger.columns):
            places.setdefault(c.rsplit("/", 1)[0], []).append(k)
        return {name: np.array(k) for name, k in places.items()}

    @functools.cached_property
    def alone(self) -> NDArray[np.int64]:
        """Places of bets that are certain by themselves (`certain`)."""
        own = [k for name, k in self.signals.items() if name.split("/", 1)[0] not in self.events.excusing]
        return np.concatenate(own) if own else np.zeros(0, np.int64)

    def lifted(self, subject: str, case: Case, sums: NDArray[np.int64]) -> bool:
        """Whether this flagged query lifts the bound of an incident: only such do, excuses and silence never."""
        if case.cap is None:
            return False
        said = self.ledger.votes[subject]
        may = self.lane.family is not None or sums[self.alone].max(initial=0) >= self.level * MICRO
        may = may or naming.looser(naming.bound(said.flagged, said.queries, said.alike, said.looks), case.cap)
        return may and naming.looser(self.bound(subject, self.parts(sums)), case.cap)

    def like_a_tool(self, subject: str, sums: NDArray[np.int64]) -> bool:
        """Whether it is so much like a tool that its incident is held back."""
        said = self.ledger.votes.get(subject, Votes())
        return naming.held(said.flagged, said.taken, naming.lead(said.said)) and not self.certain(self.parts(sums))

    def guilty(self, p: str, by: str) -> bool:
        """Whether there is enough against a caller by itself to count it in with others, also of the signal that ties it: among
        few possible rows some of any two strangers lie side by side.
        """
        run = self.runs.get(p)
        sums = run.sums[run.done] if run is not None and p == self.turn else self.sums(p)
        if sums is None or self.log_e(sums) < JOIN * self.level:
            return False
        return not by or self.part(sums, by) >= JOIN * self.level

    def sums(self, p: str) -> NDArray[np.int64] | None:
        """The sums of a caller after its latest event so far; None for one that is not remembered."""
        run = self.runs.get(p)
        if run is not None and run.done:
            return np.asarray(run.sums[run.done - 1])
        return self.ledger.sums_of(p)

    def gather(self, pool: Pooled, now: int, where: dict[str, str]) -> None:
        """Callers that are guilty together are one subject, with an incident."""
        parts = self.parts(pool.sums)
        subject = self.unite(sorted({where.get(p, p) for p in pool.callers}), now, where, parts)
        case = self.ledger.cases.get(subject)
        if case is None:
            case = Case(now, pool.began_us, pool.events, last_us=now, flagged=pool.flagged, tie=pool.tie, held=True)
            self.ledger.cases[subject] = case
        if case.held:
            case.held = False
            self.tell(subject, case, now, parts, pool.log_e, finite(self.level + COST))

    def unite(self, subjects: Sequence[str], now: int, where: dict[str, str], parts: Mapping[str, float]) -> str:
        """Subjects turn out to be one: the oldest cluster stays, or a new one is born now."""
        ledger = self.ledger
        if len(set(subjects)) == 1:
            return subjects[0]
        known = [g for g in ledger.groups if g in subjects]  # in order of birth
        members = sorted({p for s in subjects for p in ledger.members(s)})
        stays = known[0] if known else self.born(members[0], members[1], now)
        cases = [c for s in subjects if (c := ledger.cases.pop(s, None)) is not None]
        votes = [v for s in subjects if (v := ledger.votes.pop(s, None)) is not None]
        for gone in known[1:]:
            ledger.groups.pop(gone)
            if cases:
                self.end(gone, Case(now, now, 0, last_us=now, held=all(c.held for c in cases)), now, parts, "absorbed")
        ledger.groups[stays] = members
        where.update(dict.fromkeys(members, stays))
        if votes:
            ledger.votes[stays] = functools.reduce(Votes.plus, votes)
        if cases:
            case = functools.reduce(Case.with_, cases)
            ledger.cases[stays] = case
            self.tell(stays, case, now, parts)
        return stays

    def born(self, a: str, b: str, now: int) -> str:
        """A cluster keeps the id of its birth: model, time of the link, first two members."""
        return str(uuid.uuid5(CLUSTERS, "\x1f".join((self.model, str(now), *sorted((a, b))))))

    def log_e(self, sums: NDArray[np.int64]) -> float:
        """Log of the mean over all bets of the running e-values."""
        s = np.maximum(sums, 0) / MICRO
        return stats.log_sum_exp(s) - math.log(len(s))

    def parts(self, sums: NDArray[np.int64]) -> dict[str, float]:
        """Log evidence by detector and signal, largest first."""
        parts = {name: self.part(sums, name) for name in self.signals}
        return dict(sorted(parts.items(), key=lambda kv: (-kv[1], kv[0])))

    def part(self, sums: NDArray[np.int64], name: str) -> float:
        """Log evidence of one signal."""
        s = np.maximum(sums[self.signals[name]], 0) / MICRO
        return stats.log_sum_exp(s) - math.log(len(s))

    def standing(self, subject: str) -> dict[str, float]:
        """The evidence as it stands for a subject: that of the member with the most."""
        known = [s for p in self.ledger.members(subject) if (s := self.sums(p)) is not None]
        if not known:
            return dict.fromkeys(self.parts(np.zeros(len(self.ledger.columns), np.int64)), 0.0)
        return self.parts(max(known, key=lambda s: int(s.max(initial=0))))

    def family(self, subject: str) -> naming.Named:
        """What the subject is after. A name once told stays until another one leads."""
        if self.lane.family is not None:
            return naming.Named(self.lane.family, "", 1.0)
        votes = self.ledger.votes.get(subject, Votes())
        return replace(naming.named(votes.said, votes.flagged), family=self.leading(subject))

    def leading(self, subject: str) -> Family:
        """The family alone."""
        if self.lane.family is not None:
            return self.lane.family
        votes = self.ledger.votes.get(subject)
        found = naming.leading(votes.said, votes.flagged) if votes is not None else Family.ANOMALY
        return Family(self.ledger.named.get(subject, found.value)) if found is Family.ANOMALY else found

    def renamed(self, subject: str) -> bool:
        """Whether it is after something else than was told."""
        votes = self.ledger.votes.get(subject)
        return (votes is None or votes.due) and self.leading(subject).value != self.ledger.named.get(subject)

    def tool(self, subject: str, parts: Mapping[str, float]) -> naming.Tool | None:
        """The tool that the subject may be."""
        said = self.ledger.votes.get(subject, Votes())
        return None if self.certain(parts) else naming.tool(said.flagged, said.queries, said.taken)

    def bound(self, subject: str, parts: Mapping[str, float]) -> naming.Bound | None:
        """What its incident may not pass as yet; a caller whose past is too short to compare it with stays a warning."""
        case = self.ledger.cases.get(subject)
        if case is not None and case.young:
            return naming.Bound(Severity.WARNING, "its past is too short to compare it with")
        said = self.ledger.votes.get(subject, Votes())
        return None if self.certain(parts) else naming.bound(said.flagged, said.queries, said.taken, said.looks)

    def certain(self, parts: Mapping[str, float]) -> bool:
        """Whether there is more than how queries resemble each other: a declared budget, a canary, or another lane."""
        alone = (v for name, v in parts.items() if name.split("/", 1)[0] not in self.events.excusing)
        return self.lane.family is not None or max(alone, default=0.0) >= self.level

    def fact(self, parts: Mapping[str, float]) -> str:
        """The detector that is certain of a subject by itself, if one is."""
        certain = (n.split("/", 1)[0] for n, v in parts.items() if v >= self.level)
        return next((n for n in certain if n in naming.FACTS), "")

    def look_alike(
        self, subject: str, family: Family, parts: Mapping[str, float], evidence: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The honest use that its queries resemble most, and what tells it apart."""
        votes = self.ledger.votes.get(subject, Votes())
        records = int(dict(evidence.get("training_overlap") or {}).get("training_rows", 0))
        shares = Seen(votes.queries, votes.flagged, dict(zip(LOOKS, votes.looks, strict=True)) | {"records": records})
        return naming.look_alike(family, self.fact(parts), shares)

    def open(self, run: Run, i: int, now: int, subject: str) -> None:
        lead = int(np.argmax(run.sums[i]))
        young = bool(self.events.young[run.at[i]])
        held = self.like_a_tool(subject, run.sums[i])
        case = Case(
            now, int(run.onset[i, lead]), int(run.count[i, lead]), last_us=now, flagged=1, young=young, held=held
        )
        self.ledger.cases[subject] = case
        self.tell(subject, case, now, self.parts(run.sums[i]), self.log_e(run.sums[i]), finite(self.level))

    def note(self, p: str, subject: str, place: int) -> None:
        """Keep what a flagged event looked like and what it says about the family."""
        votes = self.ledger.votes.get(subject) or Votes.after(self.events.before[place].tolist())
        self.ledger.votes[subject] = votes
        votes.flag(self.events.votes[place].tolist(), self.events.traits[place].tolist())
        votes.count(int(self.events.alike[place]), int(self.events.looks[place]))
        if self.events.told(place):
            kept = self.noted.setdefault(p, [])
            kept.append(place)
            del kept[:-EXAMPLES]

    def examples(self, p: str) -> list[dict[str, Any]]:
        """The newest flagged events of a caller, as they are shown."""
        times, noted = self.events.time_us, self.noted.get(p, ())
        new = [{"time": rfc3339(int(times[place])), **self.events.why(place)} for place in noted]
        return [*self.ledger.examples.get(p, ()), *new][-EXAMPLES:]

    def expire(self, subject: str, clock_us: int) -> bool:
        """Quiet after 24 h without new evidence, over after 7 days; dated to the moment itself, not to when it was noticed."""
        case = self.ledger.cases[subject]
        if clock_us < case.last_us + (CLEAR_US if case.quiet else QUIET_US):
            return False
        parts = self.standing(subject)
        if not case.quiet:
            case.quiet = True
            self.tell(subject, case, case.last_us + QUIET_US, parts)
        if clock_us < case.last_us + CLEAR_US:
            return False
        self.end(subject, case, case.last_us + CLEAR_US, parts, "no evidence for 7 days")
        self.ledger.acquit(subject)
        return True

    def end(self, subject: str, case: Case, now: int, parts: Mapping[str, float], reason: str) -> None:
        if not case.held:
            self.tell(subject, case, now, parts)
            last = self.made.pop()
            self.made.append(replace(last, firing=False, evidence={**last.evidence, "reason": reason}))
        self.ledger.named.pop(subject, None)

    def tell(
        self,
        subject: str,
        case: Case,
        now: int,
        parts: Mapping[str, float],
        log_e: float | None = None,
        threshold: float | None = None,
    ) -> None:
        if log_e is None:  # what has come together so far, weighed as at the opening: the mean over signals
            log_e = stats.log_sum_exp(np.array(list(parts.values()))) - math.log(len(parts))
        named, tool = self.family(subject), self.tool(subject, parts)
        bound = self.bound(subject, parts)
        case.cap = bound and bound.severity
        ledger, members = self.ledger, self.ledger.members(subject)
        shown = [e for p in members for e in self.examples(p)]
        evidence: dict[str, Any] = {
            "principals": members,
            "queries": case.before + case.queries,
            "flagged": case.flagged,
            "onset": rfc3339(case.onset_us),
            "quiet": case.quiet,
            "detectors": [{"name": n, "log_e": finite(v)} for n, v in parts.items() if v > 0],
            "examples": [dict(e) for e in sorted(shown, key=lambda e: str(e["time"]))[-EXAMPLES:]],
        }
        evidence |= _together([ledger.readings[p] for p in members if p in ledger.readings], len(members))
        if case.tie:
            evidence["tied_by"] = case.tie
        if bound is not None:
            evidence["bounded"] = bound.why
        if self.lane.family is None:
            evidence |= {
                "confidence": named.sure,
                "technique": named.technique,
                "look_alike": self.look_alike(subject, named.family, parts, evidence) if tool is None else tool.told(),
            }
        self.ledger.named[subject] = named.family.value
        leads = [n.split("/", 1)[0] for n in parts]
        lead = next((n for n in leads if n in self.events.excusing), "") if case.held else leads[0]
        if not lead:  # the detector that a tool's queries come from is silent: nobody would show it
            return
        kind = "cluster" if subject in self.ledger.groups else self.lane.kind
        (self.held if case.held else self.made).append(
            Decision(
                model=self.model, event=self.lane.event, family=named.family, subject=Subject(kind, subject), firing=True,
                time_us=now, window_us=(case.onset_us, now), detector=lead,
                severity=case.cap, statistic=finite(log_e), threshold=threshold, log_e=finite(log_e), n=case.before + case.queries,
                evidence=evidence,
            )
        )  # fmt: skip


def _together(said: Sequence[Mapping[str, Any]], members: int) -> dict[str, Any]:
    """What gauges say of a subject: of several callers the one with the most rows, whose rows may be others' as well."""
    told: dict[str, Any] = {}
    for name in dict.fromkeys(n for s in said for n in s):
        of = [s[name] for s in said if name in s]
        most = max(of, key=_rows)
        told[name] = dict(most)
        if members > 1 and name == "exposure":
            told[name] |= {"distinct_rows": sum(map(_rows, of)), "callers": len(of)}
    return told


def _rows(said: Mapping[str, Any]) -> int:
    """Rows that a gauge has read."""
    return int(said.get("distinct_rows", said.get("training_rows", said.get("rows", 0))))
