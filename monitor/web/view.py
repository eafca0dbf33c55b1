"""How values become words on the page. Pure functions and the template environment; names from logs stay plain text.

Autoescaping is on for every template, so nothing here marks text of a log as safe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import jinja2

from alerts.techniques import table as technique_table
from alerts.text import FAMILY_TITLES, LOOKALIKES, STEPS, TITLES, effects, group, reasons, usual
from monitor.model import HOUR_US, SECOND_US, Act, Event, Family, Severity, rfc3339
from monitor.reports.charts import Chart, histogram, share_bar, spark
from monitor.reports.compared import moved
from monitor.reports.words import ANSWER_WORDS, VERSION_WORDS, change, moment, number, seen
from monitor.store import people
from monitor.store.lookups import IncidentRow, TransitionRow
from monitor.store.people import ActRow
from monitor.store.queries import Status
from monitor.web.assets import Assets

DAY_US: Final = 24 * HOUR_US
STATUS_WORDS: Final[Mapping[Status, tuple[str, str]]] = {  # word, what it means
    Status.ATTACK: ("Attack suspected", "an incident of an attack family is open"),
    Status.INCIDENT: ("Incident open", "a drift, quality or data incident is open"),
    Status.FAILED: ("Not judged", "its newest windows could not be judged"),
    Status.LATE: ("Late", "events or judgements are behind the clock"),
    Status.LEARNING: ("Learning", "too little history for alarms yet; rules that need none are running"),
    Status.WAITING: ("Waiting", "no window has been judged yet"),
    Status.HEALTHY: ("As usual", "judged, and nothing speaks against the reference"),
}
OUTCOME_WORDS: Final = {"judged": "judged", "insufficient": "too little data", "failed": "failed", "gap": "gap"}
DELIVERY_WORDS: Final = {
    "pending": "waiting",
    "sent": "taken",
    "superseded": "replaced by a newer state",
    "suppressed": "suppressed by the sink",
    "unknown": "unknown, asserted again later",
    "dead": "refused for good",
}
KNOWN_EVIDENCE: Final = frozenset({
    "features", "detectors", "principals", "model_version", "detector_version",
    "bets", "causes", "changes", "compared", "concentrates", "effects", "expected", "explained_by", "pictures", "score", "versions",
})  # shown in their own tables  # fmt: skip
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def ago(us: int | None) -> str:
    """A length of time in words, one unit.

    >>> ago(90 * SECOND_US), ago(3 * HOUR_US), ago(None), ago(0)
    ('1 min', '3 h', '–', '0 s')
    """
    if us is None:
        return "–"
    for size, word in ((2 * DAY_US, "d"), (HOUR_US, "h"), (60 * SECOND_US, "min"), (0, "s")):
        if us >= size:
            unit = {"d": DAY_US, "h": HOUR_US, "min": 60 * SECOND_US, "s": SECOND_US}[word]
            return f"{us // unit} {word}"
    return "0 s"


def clock(time_us: int | None) -> str:
    """A time with seconds, UTC."""
    return "–" if time_us is None else rfc3339(time_us)[:19].replace("T", " ")


def title(incident: IncidentRow) -> str:
    """What is suspected, in words; unknown codes are shown as they are."""
    try:
        event, family = Event(incident.event), Family(incident.family)
    except ValueError:
        return incident.event
    named = FAMILY_TITLES.get(family) if event is Event.ATTACK_SUSPECTED else None
    return named or TITLES.get(event, incident.event)


def story(incident: IncidentRow) -> list[tuple[str, str]]:
    """An alert's text as (keyword, words): WHY, WHAT, NOT ... The headline is left out, the page has one."""
    told = []
    for line in incident.text.splitlines():
        head, _, rest = line.partition(" ")
        if head.isupper() and head.isalpha():
            told.append((head.capitalize(), rest.strip()))
    return told or ([("Text", incident.text)] if incident.text else [])


def gist(incident: IncidentRow) -> list[str]:
    """An incident in a few short facts, for a card: its features, or what the caller did."""
    e = incident.evidence
    rows = (
        [r for r in e.get("features") or () if isinstance(r, Mapping) and "name" in r]
        if isinstance(e.get("features"), list)
        else []
    )
    facts = [
        f"{r['name']} {_float(r.get('share')) or 0:.0%}" if r.get("share") is not None else str(r["name"])
        for r in rows[:3]
    ]
    if len(rows) > 3:
        facts.append(f"{len(rows) - 3} more")
    queries = _float(e.get("queries"))
    if queries is not None:
        facts.append(f"{number(queries)} queries")
    return facts + [technique(t) for t in incident.techniques[:1]]


def guidance(incident: IncidentRow) -> tuple[str, list[str]]:
    """(what looks the same and is harmless, first reversible steps) for an incident."""
    try:
        event = Event(incident.event)
    except ValueError:
        return "", []
    steps = [s.strip() for s in re.split(r"(?:^|\s{2,})\d+ ", STEPS.get(event, "")) if s.strip()]
    return LOOKALIKES.get(event, ""), steps


def act_words(act: Act) -> str:
    """What a person did."""
    if act.said is not None:
        return f"verdict {act.said.value}"
    return {"ack": "acknowledged", "shelve": "shelved", "unack": "taken back"}.get(act.kind, act.kind)


def by_people(incident: IncidentRow, done: Sequence[ActRow]) -> str:
    """What people say of an incident, short: the verdict, else who is on it; nothing when nobody has come."""
    said = people.verdict(done)
    if said is not None and said.act.said is not None:
        return f"{said.act.said.value}, {seen(said.act.actor)}"
    taken = people.acknowledged(Severity(incident.severity), done) if incident.open else None
    return "" if taken is None else seen(taken.act.actor)


def technique(code: str) -> str:
    """The published name of a technique id, the id itself when the shipped table lacks it."""
    return technique_table().names.get(code, code)


def changes(before: TransitionRow | None, after: TransitionRow) -> list[str]:
    """What one transition changed, as short phrases."""
    if before is None:
        return []
    found = []
    if before.severity != after.severity:
        found.append(f"severity {before.severity} → {after.severity}")
    for key in ("features", "principals"):
        old, new = _names(before.evidence.get(key)), _names(after.evidence.get(key))
        if new - old:
            found.append(f"{key} joined: {', '.join(sorted(new - old))}")
        if old - new:
            found.append(f"{key} left: {', '.join(sorted(old - new))}")
    queries = after.evidence.get("queries")
    if queries is not None and queries != before.evidence.get("queries"):
        found.append(f"{number(_float(queries))} queries since it opened")
    if after.evidence.get("reason"):
        found.append(str(after.evidence["reason"]))
    return found


def _names(value: object) -> set[str]:
    if not isinstance(value, list):
        return set()
    return {str(v.get("name", v)) if isinstance(v, dict) else str(v) for v in value}


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def cell(value: object) -> str:
    """Any piece of evidence as text: numbers rounded, plain lists and objects in a row, what is nested deeper as JSON.

    >>> cell([1, "a"]), cell({"fields_differ": 30}), cell({"a": {"b": [1]}})
    ('1, a', 'fields differ 30', '{"a": {"b": [1]}}')
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int | float):
        return number(float(value))
    if isinstance(value, str):
        return seen(value)
    if isinstance(value, list) and not any(isinstance(v, list | Mapping) for v in value):
        return ", ".join(cell(v) for v in value)
    if isinstance(value, Mapping) and not any(isinstance(v, list | Mapping) for v in value.values()):
        return ", ".join(f"{words_of(k)} {cell(v)}" for k, v in value.items())
    return seen(json.dumps(value, ensure_ascii=False))


def other_evidence(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Evidence that is one value, as (words, value)."""
    return [(words_of(k), cell(v)) for k, v in evidence.items() if k not in KNOWN_EVIDENCE and not _is_table(v)]


def evidence_tables(evidence: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Evidence that is a list of objects, as (words, columns, rows); at most 20 rows of 8 columns each."""
    made = []
    for key, rows in evidence.items():
        if key not in KNOWN_EVIDENCE and _is_table(rows):
            columns = list(dict.fromkeys(str(k) for r in rows[:20] for k in r))[:8]
            made.append(
                (words_of(key), [words_of(c) for c in columns], [[cell(r.get(c)) for c in columns] for r in rows[:20]])
            )
    return made


@dataclass(frozen=True, slots=True)
class Cause:
    """What is behind a drift, ready to be shown: see docs/detectors.md, who and why."""

    changes: Sequence[tuple[str, str, str, str, str]]  # feature, measure, before, after, how much
    sentences: Sequence[str]
    groups: Sequence[tuple[str, float, float, float]]  # whose rows, part of the shift, their share now and before
    pictures: Sequence[tuple[str, Chart]]
    compared: str


def cause(evidence: Mapping[str, Any]) -> Cause | None:
    """Who and why of a drift incident; None where its evidence does not tell."""
    compared = evidence.get("compared")
    if not isinstance(compared, Mapping):
        return None
    moved = [*_rows(evidence, "changes"), *_rows(evidence, "score")]
    known = dict.fromkeys((str(c.get("name")), str(c.get("measure"))) for c in moved)
    by_name = {(str(c.get("name")), str(c.get("measure"))): c for c in reversed(moved)}
    groups = [
        (
            f"{seen(g.get('kind'))} {group(g)}", _float(g.get("explains")) or 0.0, _float(g.get("share")) or 0.0,
            _float(g.get("share_before")) or 0.0,
        )
        for g in _rows(evidence, "concentrates")
    ]  # fmt: skip
    pictures = []
    for p in _rows(evidence, "pictures"):
        labels = [str(x) for x in p.get("labels") or ()]
        before, after = ([_float(x) or 0.0 for x in p.get(k) or ()] for k in ("before", "after"))
        if len(labels) == len(before) == len(after) > 0:
            name = str(p.get("name"))
            pictures.append((name, histogram(labels, before, after, title=name, height=170)))
    told = reasons(evidence)
    if not told:
        told = ["No single caller, version, category or segment explains it, and the data look whole."]
    told += effects(evidence)
    counts = f"{number(_float(compared.get('before')))} events of the reference beside {number(_float(compared.get('after')))}"
    since = f" since {seen(compared['since'])[:16].replace('T', ' ')} UTC" if compared.get("since") else ""
    return Cause([_moved(by_name[k]) for k in known], told, groups, pictures, counts + since)


def _moved(c: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    before, after, sd = (_float(c.get(k)) for k in ("before", "after", "in_sd"))
    unit = f" {c['unit']}" if c.get("unit") else ""
    size = f"{sd:+.2f} sd" if sd is not None else "" if before is None or after is None else f"{after - before:+.3g}"
    return str(c.get("name")), str(c.get("measure")), number(before) + unit, number(after) + unit, size


def _rows(evidence: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = evidence.get(key)
    return [r for r in found if isinstance(r, Mapping)] if isinstance(found, list) else []


def words_of(key: object) -> str:
    """A key of a JSON object as words."""
    return seen(key).replace("_", " ")


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def model_url(name: str, model_id: str | None = None) -> str:
    """The address of a model: by name where the name is safe in a path, else by id.

    >>> model_url("card-fraud"), model_url("../x", "id-1")
    ('/models/card-fraud', '/models/id-1')
    """
    ref = name if _PLAIN_NAME.fullmatch(name) else (model_id or quote(name, safe=""))
    return f"/models/{ref}"


def with_query(path: str, params: Mapping[str, object], **new: object) -> str:
    """A path with these parameters; None and empty ones are left out, so defaults stay out of the address bar.

    >>> with_query("/x", {"a": 1, "b": ""}, c="é")
    '/x?a=1&c=%C3%A9'
    """
    kept = {k: v for k, v in {**params, **new}.items() if v not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path


@dataclass(frozen=True, slots=True)
class Here:
    """Where the reader is: everything a template needs to build the address of a neighbour."""

    path: str
    params: Mapping[str, str]

    def url(self, **new: object) -> str:
        return with_query(self.path, self.params, **new)


def total(counts: Mapping[str, int] | Sequence[int]) -> int:
    return sum(counts.values() if isinstance(counts, Mapping) else counts)


def environment(assets: Assets) -> jinja2.Environment:
    """The templates with their filters; strict about missing names, escaping everything."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("monitor.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        ago=ago, clock=clock, moment=moment, iso=rfc3339, number=number, seen=seen, cell=cell, title_of=title, story=story, gist=gist,
        technique=technique, change=change,
    )  # fmt: skip
    env.globals.update(
        asset=assets.url, spark=spark, share_bar=share_bar, model_url=model_url, with_query=with_query,
        status_words=STATUS_WORDS, version_words=VERSION_WORDS, answer_words=ANSWER_WORDS, outcome_words=OUTCOME_WORDS, delivery_words=DELIVERY_WORDS, total=total,
        act_words=act_words, changes=changes, other_evidence=other_evidence, evidence_tables=evidence_tables, guidance=guidance, cause_of=cause, usual_of=usual, moved=moved,
    )  # fmt: skip
    return env
