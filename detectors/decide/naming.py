"""What a suspect is after: the family of an attack, from what its flagged queries looked like.

Each flagged query is a token: how it relates to the suspect's other queries, and how sure the model was of its answer.
Tokens speak for families by log-likelihoods; the family is named when it leads the next by a factor of LEAD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from detectors.base import NAMED
from monitor.model import Family

LEAD: Final = 3.0  # nats by which a family must lead: about 20 to 1
ENOUGH: Final = 6  # flagged queries before a name is given
BENIGN: Final[Mapping[Family, tuple[str, str]]] = {  # the honest use that looks most like it, and what tells them apart
    Family.ANOMALY: ("what_if", "its queries are not variations of a few fields of one honest row"),
    Family.EXTRACTION: ("explainer", "its made-up rows are not spread around rows that it sent as they are"),
    Family.EVASION: ("what_if", "each query moves many fields at once in small steps towards the model's boundary"),
    Family.MEMBERSHIP: ("batch", "it does not only repeat training rows: it varies them in small steps"),
    Family.INVERSION: ("explainer", "the score of one answer climbs from query to query"),
}


def family(votes: list[float], count: int) -> tuple[Family, float]:
    """The family that the votes (nats, one per family of NAMED) name, and its probability; anomaly while undecided.

    >>> family([9.0, 1.0, 0.0, 0.0], 20)[0].value, family([1.0, 0.5, 0.0, 0.0], 20)[0].value
    ('extraction', 'anomaly')
    """
    order = sorted(range(len(NAMED)), key=lambda i: -votes[i])
    lead = votes[order[0]] - votes[order[1]]
    total = sum(math.exp(min(0.0, v - votes[order[0]])) for v in votes)
    sure = 1 / total
    return (NAMED[order[0]], sure) if count >= ENOUGH and lead >= LEAD else (Family.ANOMALY, sure)


def look_alike(found: Family) -> dict[str, Any]:
    """The nearest honest use and why it is not that."""
    profile, why = BENIGN.get(found, BENIGN[Family.ANOMALY])
    return {"profile": profile, "why_not": why}
