"""Which published techniques an alert points at: MITRE ATLAS, OWASP LLM and OWASP ML ids per family and event.

The table is data (`alerts/techniques.json`) with the versions it was taken from, so that it can be refreshed alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from monitor.model import Event, Family


@dataclass(frozen=True, slots=True)
class Techniques:
    """The table and where it comes from. `by_family` and `by_event` map to ids, most specific first."""

    versions: Mapping[str, str]
    by_family: Mapping[str, Sequence[str]]
    by_event: Mapping[str, Sequence[str]]
    names: Mapping[str, str]


@cache
def table() -> Techniques:
    """The table that this version of Lanner ships.

    >>> table().versions["atlas"]
    '5.6.0'
    """
    raw = json.loads(files("alerts").joinpath("techniques.json").read_text(encoding="utf-8"))
    return Techniques(raw["versions"], raw["families"], raw["events"], raw["names"])


def techniques(event: Event, family: Family) -> tuple[str, ...]:
    """Ids that fit an alert: those of its family, else those of its event; drift and quality point at none.

    >>> techniques(Event.ATTACK_SUSPECTED, Family.EXTRACTION)[0]
    'AML.T0024.002'
    >>> techniques(Event.FEATURE_DRIFT, Family.DRIFT)
    ()
    """
    known = table()
    return tuple(known.by_family.get(family.value) or known.by_event.get(event.value) or ())
