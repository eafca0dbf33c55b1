"""What a suspect is after: the family of an attack, from what its flagged queries looked like.

What its queries are like speaks for techniques (detectors.decide.techniques), and so do detectors that know a technique by a
fact; the family of the best technique is named when it leads by LEAD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from detectors.base import LOOK_ALIKES, LOOKS, NAMED, TECHNIQUES
from monitor.model import Family, Severity

LEAD: Final = 0.7  # nats by which a family must lead the next: twice as likely
PLACES: Final = tuple(tuple(i for i, g in enumerate(TECHNIQUES.values()) if g is f) for f in NAMED)
ENOUGH: Final = 6  # flagged queries before a name is given
SURE: Final = 20.0  # nats that a fact says about its family, with which one is enough
FULL: Final = (
    100  # flagged queries before an incident may be more than minor, and before it is no tool's whatever it explains
)
MIXED: Final = 300  # the same where they are fewer
MAINLY: Final = (
    3 / 10
)  # than so large a share of its queries: tools send much that is not strange, searches hardly anything else
TOOL_SHARE: Final = 1 / 2  # of a suspect's strange queries that a tool explains, from which on it may be one
TOOL_LEAST: Final = 8  # of them
TOOL_SURE: Final = 3 / 4  # of them, from which on the incident is held back,
TOOL_HELD: Final = 500  # flagged queries beside drawn ones, up to which that holds
DECIDED: Final = 12  # made-up rows after which it is known whether they are drawn column by column
LEADS: Final = 2.0  # nats by which a technique leads the next when all that is flagged is taken for it
CLOSE: Final = 1.0  # nats by which it may lag behind where nearly all rows are known for it,
NEARLY: Final = 0.9  # so large a share
ONE_CASE: Final = 5_000  # made-up rows that LIME sends about one case unless told otherwise: beyond, it is no tool's
STEPS_LEAST: Final = 0.1  # share of flagged queries that are steps from others, from which on it is a search
TORN_LEAST: Final = 0.3  # share that break several rules or combine what does not go together: rows are made up
ALIKE: Final[Mapping[str, str]] = {
    "what_if": "what-ifs of rows that it sent as they are",
    "explainer": "samples around rows that it sent as they are",
    "drawn": "rows that draw each column by itself, as LIME does unless told otherwise, and as theft does",
    "slopes": "steps up and down from a row in several numbers, as an analysis of sensitivity takes, and as ZOO does",
}
APART: Final = "made-up rows that are no steps from each other"
PROFILES: Final[Mapping[str, str]] = {
    "drawn": "explainer",
    "slopes": "what_if",
}  # under which a tool is declared, where not its own name
FACTS: Final[Mapping[str, tuple[str, str]]] = {  # the same of detectors whose flags are facts
    "exposure": ("batch", "a declared budget holds for whatever it is asked for"),
    "canaries": ("health_probe", "nobody who may send canaries is declared under this name"),
}
BENIGN: Final[Mapping[Family, tuple[str, str]]] = {  # the honest use that looks most like it, and what tells them apart
    Family.ANOMALY: ("what_if", "its queries are not variations of a few fields of one honest row"),
    Family.EXTRACTION: ("explainer", "its made-up rows are not spread around rows that it sent as they are"),
    Family.EVASION: ("what_if", "each query moves many fields at once in small steps towards the model's boundary"),
    Family.MEMBERSHIP: ("batch", "it does not only repeat training rows: it varies them in small steps"),
    Family.INVERSION: ("explainer", "it changes a few fields of its best row again and again"),
}


class Use(NamedTuple):
    """An honest use. profile: as the directory calls it, where it does; what: its queries do; whose: queries those are;
    usual: the share of them that do (about the median of such clients on four sets of the design split, docs/attacks.md).
    """

    profile: str
    what: str
    whose: str
    usual: float


USES: Final[Mapping[str, Use]] = {  # by what is counted of its queries
    "varied": Use("what_if", "change a few fields of an earlier row", "those of a what-if analyst do", 0.8),
    "sampled": Use("explainer", "are samples around an earlier row", "those of an explainer are", 0.95),
    "repeated": Use("load_test", "repeat an earlier row", "those of a load test do", 0.99),
    "records": Use("batch", "are training records", "those of a re-scoring are", 0.75),
    "one_rule": Use("unit", "break one rule alone", "those with one field in another unit or precision do", 0.5),
}
MARKS: Final[Mapping[str, str]] = {  # what flagged queries do that honest ones do not
    "boundary": "lie near the boundary",
    "stepping": "are small steps from others",
    "invalid": "break several rules at once",
    "implausible": "combine what never goes together",
}


@dataclass(frozen=True)
class Named:
    """family: anomaly while undecided. technique: the likeliest, "" while undecided. sure: probability of the family."""

    family: Family
    technique: str
    sure: float


def named(votes: Sequence[float], count: int) -> Named:
    """What the votes (nats, one per entry of TECHNIQUES) of so many flagged queries name. A family is its best technique.

    >>> named([9.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 20)
    Named(family=<Family.EXTRACTION: 'extraction'>, technique='made_up_rows', sure=1.0)
    >>> named([1.0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0], 20).family.value
    'anomaly'
    """
    best = _best(votes)
    sure = round(1 / sum(math.exp(v - max(best)) for v in best), 3)
    family = leading(votes, count)
    if family is Family.ANOMALY:
        return Named(family, "", sure)
    technique = max((v, t) for v, t in zip(votes, TECHNIQUES, strict=True) if TECHNIQUES[t] is family)[1]
    return Named(family, technique, sure)


def leading(votes: Sequence[float], count: int) -> Family:
    """The family alone: that of the best technique when it leads the next family by LEAD, else anomaly."""
    if count < ENOUGH and max(votes) < SURE:
        return Family.ANOMALY
    best = _best(votes)
    second, first = sorted(best)[-2:]
    return NAMED[best.index(first)] if first - second >= LEAD else Family.ANOMALY


def lead(votes: Sequence[float]) -> float:
    """By how many nats more speaks for rows drawn column by column than for any other technique; less than 0: another leads.

    >>> lead([3.0, 0, 0, 0, 0, 0, 0, 0, 0, 5.0])
    2.0
    """
    *others, drawn = votes  # column_draws is the last of TECHNIQUES
    return drawn - max(others)


def taken(flagged: int, excused: Sequence[int], lead: float) -> Sequence[int]:
    """What each of LOOK_ALIKES explains, with all flagged queries as drawn where the table of techniques is sure of it: in
    tables with gaps, or few numbers, the columns themselves do not tell.

    >>> taken(90, [0, 20, 3, 0], 2.5), taken(90, [0, 20, 3, 0], 1.5)
    ([0, 20, 90, 0], [0, 20, 3, 0])
    """
    what_ifs, samples, drawn, slopes = excused
    return [what_ifs, samples, max(drawn, flagged - slopes), slopes] if lead >= LEADS else excused


def _best(votes: Sequence[float]) -> list[float]:
    """The votes of each family's best technique."""
    return [max([votes[i] for i in places]) for places in PLACES]


@dataclass(frozen=True)
class Seen:
    """What was counted of a suspect's queries since there is evidence. looks: those that look like each of LOOKS, and the
    training records among all that it sent (`records`).
    """

    queries: int
    flagged: int
    looks: Mapping[str, int]


def look_alike(found: Family, fact: str = "", seen: Seen | None = None) -> dict[str, Any]:
    """The nearest honest use and why it is not that. fact: the detector that knows it by a fact, if one does. Without
    queries that could be counted, what is so of the family as a rule.

    >>> look_alike(Family.EXTRACTION, "exposure")["profile"]
    'batch'
    >>> few = {"varied": 12, "boundary": 61, "invalid": 9}
    >>> look_alike(Family.EVASION, "", Seen(100, 70, few))["why_not"]
    '12% of its 100 queries change a few fields of an earlier row, those of a what-if analyst do in 80%; 61 of 70 flagged ones lie near the boundary'
    """
    if fact in FACTS or seen is None or seen.queries < ENOUGH or not seen.flagged:
        profile, why = FACTS.get(fact) or BENIGN.get(found, BENIGN[Family.ANOMALY])
        return {"profile": profile, "why_not": why}
    share = {name: min(1.0, seen.looks.get(name, 0) / seen.queries) for name in USES}
    usual = BENIGN.get(found, BENIGN[Family.ANOMALY])[0]
    name = max(USES, key=lambda u: (share[u] / USES[u].usual, USES[u].profile == usual))
    if not share[name]:
        name = next((u for u in USES if USES[u].profile == usual), name)
    use = USES[name]
    mark = max(MARKS, key=lambda m: seen.looks.get(m, 0))
    why = f"{share[name]:.0%} of its {seen.queries} queries {use.what}, {use.whose} in {use.usual:.0%}"
    return {
        "profile": use.profile,
        "why_not": f"{why}; {seen.looks.get(mark, 0)} of {seen.flagged} flagged ones {MARKS[mark]}",
    }


@dataclass(frozen=True)
class Tool:
    """The tool that a suspect may be: most of its strange queries are what such a tool sends.

    like: of LOOK_ALIKES; excused: of so many strange queries (flagged or excused) since there is evidence and just before,
    those that a tool explains.
    """

    like: str
    excused: int
    strange: int

    @property
    def why(self) -> str:
        """In words."""
        return f"{self.excused} of {self.strange} strange queries are {ALIKE[self.like]}; an honest tool should be declared"

    def told(self) -> dict[str, Any]:
        """As evidence."""
        profile = PROFILES.get(self.like, self.like)
        return {"profile": profile, "why": self.why, "excused": self.excused, "strange": self.strange}


def needed(flagged: int, queries: int) -> int:
    """Flagged queries that it takes for a full severity, of a caller with so many since there is evidence.

    >>> needed(30, 100), needed(29, 100)
    (100, 300)
    """
    return FULL if flagged >= MAINLY * queries else MIXED


def tool(flagged: int, queries: int, excused: Sequence[int]) -> Tool | None:
    """Whether a suspect may be a tool, by its flagged queries among all, and those that each of LOOK_ALIKES explains; drawn
    ones and slopes are flagged all the same.

    >>> tool(13, 97, [0, 84, 0, 0])
    Tool(like='explainer', excused=84, strange=97)
    >>> tool(900, 930, [0, 30, 850, 0]).told()["profile"]
    'explainer'
    >>> tool(25, 45, [10, 10, 0, 0]) is None
    True
    """
    what_ifs, samples, drawn, slopes = excused
    n, others = sum(excused), flagged - drawn - slopes
    strange = n + others
    if n < TOOL_LEAST or n < TOOL_SHARE * strange or others >= needed(flagged, queries) or drawn >= ONE_CASE:
        return None
    most = [what_ifs, samples, drawn, 2 * slopes]  # a slope takes two steps, of which the first is a what-if
    return Tool(LOOK_ALIKES[most.index(max(most))], n, strange)


def held(flagged: int, excused: Sequence[int], lead: float) -> bool:
    """Whether a caller is so much like a tool that its incident is held back: three in four of its strange queries are
    what-ifs and samples, and hardly any a slope. Whoever imitates a tool pays for each query of its own with three of the tool's.

    lead: by how much its rows come from each other like those that LIME draws. Where they do, rows drawn column by column
    count as a tool's, up to those about one case, and the first DECIDED are given the benefit of the doubt: it takes so many
    to see how they are drawn.

    >>> held(13, [0, 84, 0, 0], -5), held(13, [30, 0, 0, 0], -5), held(13, [60, 0, 0, 12], -5)
    (True, False, False)
    >>> held(900, [0, 30, 850, 0], 1), held(900, [0, 30, 400, 0], 1), held(10, [0, 0, 0, 0], 1)
    (True, False, True)
    >>> held(900, [0, 0, 890, 0], -0.5), held(900, [0, 0, 890, 0], -1.5)
    (True, False)
    """
    what_ifs, samples, drawn, slopes = excused
    explained, others = what_ifs + samples, flagged - drawn
    drawing = lead >= 0 or (lead >= -CLOSE and drawn >= NEARLY * flagged)
    if drawing:
        explained, others = explained + drawn, max(0, others - DECIDED)
    enough = (drawing or explained >= TOOL_LEAST) and slopes < TOOL_LEAST and drawn < ONE_CASE
    return enough and explained >= TOOL_SURE * (explained + others) and others < TOOL_HELD


class Bound(NamedTuple):
    """The severity that an incident may not pass as yet, and why."""

    severity: Severity
    why: str


def bound(flagged: int, queries: int, excused: Sequence[int], looks: Sequence[int]) -> Bound | None:
    """What a suspect's incident is bound by: a warning for what may be a tool; minor while few queries speak against it, and
    for made-up rows that are no search, which explainers send as well as thieves, up to what is sent about one case. looks: one entry per LOOKS.

    >>> bound(13, 97, [0, 84, 0, 0], [0] * 8).severity.value, bound(99, 99, [0, 0, 0, 0], [0] * 8).severity.value
    ('warning', 'minor')
    >>> bound(120, 900, [0, 0, 0, 0], [0] * 8).why
    'fewer than 300 queries speak against it, and most of what it sends is ordinary'
    >>> bound(300, 400, [0, 80, 0, 0], [0, 0, 0, 0, 290, 200, 4, 30]).why
    'made-up rows that are no steps from each other: an explainer sends up to 5,000 about one case'
    >>> bound(300, 400, [0, 80, 0, 0], [0, 0, 0, 0, 290, 200, 40, 30]) is None
    True
    """
    if said := tool(flagged, queries, excused):
        return Bound(Severity.WARNING, said.why)
    if flagged < (least := needed(flagged, queries)):
        but = ", and most of what it sends is ordinary" if least > FULL else ""
        return Bound(Severity.MINOR, f"fewer than {least} queries speak against it{but}")
    seen = dict(zip(LOOKS, looks, strict=True))
    torn = max(seen["invalid"], seen["implausible"])
    if flagged < ONE_CASE and seen["stepping"] < STEPS_LEAST * flagged and torn >= TORN_LEAST * flagged:
        return Bound(Severity.MINOR, f"{APART}: an explainer sends up to {ONE_CASE:,} about one case")
    return None


def looser(now: Bound | None, before: Severity) -> bool:
    """Whether a bound on the severity allows more than the one before; None: there is none."""
    return now is None or now.severity.rank > before.rank
