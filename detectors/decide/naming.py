"""What a suspect is after: the family of an attack, from what its flagged queries looked like.

Each flagged query is a token: how it relates to the suspect's other queries, and how sure the model was of its answer.
Tokens speak for techniques by log-likelihoods; the family of the best technique is named when it leads by LEAD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from detectors.base import LOOK_ALIKES, NAMED, TECHNIQUES
from monitor.model import Family, Severity

LEAD: Final = 1.0  # nats by which a family must lead the next; votes are tempered, so this is more than it looks
PLACES: Final = tuple(tuple(i for i, g in enumerate(TECHNIQUES.values()) if g is f) for f in NAMED)
ENOUGH: Final = 6  # flagged queries before a name is given
SURE: Final = 20.0  # nats that a fact says about its family, with which one is enough
FULL: Final = 25  # flagged queries before an incident may be more than minor
TOOL_SHARE: Final = 2 / 3  # of a suspect's strange queries that a tool explains, from which on it may be one
TOOL_LEAST: Final = 8  # of them
TOOL_MOST: Final = 100  # flagged queries beside drawn ones, from which on it is none whatever it explains
DRAWN_MOST: Final = (
    5_000  # drawn queries, from which on it is none: what LIME sends about one case unless told otherwise
)
ALIKE: Final[Mapping[str, str]] = {
    "what_if": "what-ifs of rows that it sent as they are",
    "explainer": "samples around rows that it sent as they are",
    "drawn": "rows that draw each column by itself, as LIME does unless told otherwise, and as theft does",
}
PROFILES: Final[Mapping[str, str]] = {"drawn": "explainer"}  # under which a tool is declared, where not its own name
FACTS: Final[Mapping[str, tuple[str, str]]] = {  # the same of detectors whose flags are facts
    "exposure": ("batch", "a declared budget holds for whatever it is asked for"),
    "canaries": ("health_probe", "nobody who may send canaries is declared under this name"),
}
BENIGN: Final[Mapping[Family, tuple[str, str]]] = {  # the honest use that looks most like it, and what tells them apart
    Family.ANOMALY: ("what_if", "its queries are not variations of a few fields of one honest row"),
    Family.EXTRACTION: ("explainer", "its made-up rows are not spread around rows that it sent as they are"),
    Family.EVASION: ("what_if", "each query moves many fields at once in small steps towards the model's boundary"),
    Family.MEMBERSHIP: ("batch", "it does not only repeat training rows: it varies them in small steps"),
    Family.INVERSION: ("explainer", "the score of one answer climbs from query to query"),
}


@dataclass(frozen=True)
class Named:
    """family: anomaly while undecided. technique: the likeliest, "" while undecided. sure: probability of the family."""

    family: Family
    technique: str
    sure: float


def named(votes: Sequence[float], count: int) -> Named:
    """What the votes (nats, one per entry of TECHNIQUES) of so many flagged queries name. A family is its best technique.

    >>> named([9.0, 0, 0, 0, 0, 0, 0, 0, 0], 20)
    Named(family=<Family.EXTRACTION: 'extraction'>, technique='made_up_rows', sure=1.0)
    >>> named([1.0, 0, 0, 0.5, 0, 0, 0, 0, 0], 20).family.value
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


def _best(votes: Sequence[float]) -> list[float]:
    """The votes of each family's best technique."""
    return [max([votes[i] for i in places]) for places in PLACES]


def look_alike(found: Family, fact: str = "") -> dict[str, Any]:
    """The nearest honest use and why it is not that. fact: the detector that knows it by a fact, if one does.

    >>> look_alike(Family.EXTRACTION, "exposure")["profile"]
    'batch'
    """
    profile, why = FACTS.get(fact) or BENIGN.get(found, BENIGN[Family.ANOMALY])
    return {"profile": profile, "why_not": why}


def looser(now: Severity | None, before: Severity) -> bool:
    """Whether a bound on the severity allows more than the one before; None: there is none."""
    return now is None or now.rank > before.rank


@dataclass(frozen=True)
class Tool:
    """The tool that a suspect may be: most of its strange queries are what such a tool sends.

    like: of LOOK_ALIKES; excused: of so many strange queries (flagged or excused) since there is evidence, those that a
    tool explains.
    """

    like: str
    excused: int
    strange: int

    def told(self) -> dict[str, Any]:
        """As evidence."""
        what, profile = ALIKE[self.like], PROFILES.get(self.like, self.like)
        why = f"{self.excused} of {self.strange} strange queries are {what}; an honest tool should be declared"
        return {"profile": profile, "why": why, "excused": self.excused, "strange": self.strange}


def tool(flagged: int, excused: Sequence[int]) -> Tool | None:
    """Whether a suspect may be a tool, by its flagged queries and those that each of LOOK_ALIKES explains; drawn ones are
    flagged all the same.

    >>> tool(13, [0, 84, 0])
    Tool(like='explainer', excused=84, strange=97)
    >>> tool(900, [0, 30, 850]).told()["profile"]
    'explainer'
    >>> tool(13, [10, 10, 0]) is None
    True
    """
    *_, drawn = excused
    n, strange = sum(excused), flagged + sum(excused) - drawn
    if n < TOOL_LEAST or n < TOOL_SHARE * strange or flagged - drawn >= TOOL_MOST or drawn >= DRAWN_MOST:
        return None
    return Tool(LOOK_ALIKES[max(range(len(excused)), key=lambda i: excused[i])], n, strange)
