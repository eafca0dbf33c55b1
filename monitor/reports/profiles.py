"""Uses of a model that its incidents suggest to declare: learnt here, confirmed by whoever puts them into the directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from monitor.config.principals import KnownPrincipal
from monitor.model import Said
from monitor.reports.held import held_rows
from monitor.store.lookups import IncidentRow
from monitor.store.people import ActRow, verdict
from monitor.store.queries import DetectionRow

_DECLARED: Final = KnownPrincipal.model_fields["profile"].annotation
ABUSE: Final[Mapping[str, str]] = {
    "odd_hours": "batch",
    "errors": "retries",
}  # by the signal that leads; else load_test
PROFILES: Final = frozenset(p for part in get_args(_DECLARED) for p in get_args(part))


@dataclass(frozen=True, slots=True)
class Proposal:
    """A caller that may be an honest tool. why: as its incident says, or what was held back (incident: None); by: who gave
    a verdict of benign-true, if one did.
    """

    name: str
    profile: str
    why: str
    incident: str | None
    by: str | None


def proposals(
    incidents: Sequence[IncidentRow], acts: Mapping[str, Sequence[ActRow]], held: Sequence[DetectionRow]
) -> list[Proposal]:
    """One entry per caller, from its newest incident that speaks for one, else from what was held back, newest first;
    those with a person's verdict first.

    An incident speaks for a use when most of its strange queries are what such a tool sends, or when a person
    said that there was a good reason (benign-true): then for the honest use that looks most like it. A verdict
    that it was an attack, or nothing at all, speaks against any. One on abuse tells no use by itself: the signal that led it
    does once there was a good reason.
    """
    found: dict[str, Proposal] = {}
    guilty: set[str] = set()
    for i in sorted(incidents, key=lambda i: (-i.opened_us, i.alert_id)):
        like, said = _looks_like(i), verdict(acts.get(i.alert_id, ()))
        if i.subject_kind != "principal" or not isinstance(like, Mapping) or like.get("profile") not in PROFILES:
            continue
        benign = said is not None and said.act.said is Said.BENIGN_TRUE
        against = said is not None and said.act.said in (Said.TRUE, Said.FALSE)
        if against:
            guilty.add(i.subject_id)
        if against or not (benign or "why" in like):
            continue
        why = str(like.get("why") or like.get("why_not") or "") if not benign or said is None else said.act.reason
        by = said.act.actor if benign and said is not None else None
        found.setdefault(i.subject_id, Proposal(i.subject_id, str(like["profile"]), why, i.alert_id, by))
    for h in held_rows(held):
        like = h.look_alike
        if h.principal not in guilty and like.get("profile") in PROFILES and "why" in like:
            told = Proposal(h.principal, str(like["profile"]), str(like["why"]), None, None)
            found.setdefault(h.principal, told)
    return sorted(found.values(), key=lambda p: (p.by is None, p.name))


def _looks_like(incident: IncidentRow) -> Any:
    """The honest use that an incident resembles most, as evidence says it."""
    if incident.event != "AbuseSuspected":
        return incident.evidence.get("look_alike")
    led = next((str(d.get("name", "")).partition("/")[2] for d in incident.evidence.get("detectors") or ()), "")
    return {"profile": ABUSE.get(led, "load_test"), "why_not": ""}
