"""The segments of a model as the page and the owner's report show them, read from stored detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from monitor.reports import features
from monitor.store.lookups import IncidentRow
from monitor.store.queries import DetectionRow

SMALLEST: Final = 3  # features whose smallest visible shift is told of each segment
STATES: Final[Mapping[str, str]] = {  # as a model's status: a key for its shape, and its word
    "incident": "incident open",
    "healthy": "as usual",
    "learning": "learning",
    "waiting": "too little data",
}


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """How one segment stands after the newest window of a monitor.

    state: a key of STATES, `why` says more where nothing is judged; incident: id of its open one; rows: of the newest
    window; windows: judged in the range; evidence: running, of its most changed feature, in nats; smallest: shifts that
    it can show in features that it changed most, in the feature's unit or as a share of rows.
    """

    name: str
    monitor: str
    state: str
    why: str
    incident: str | None
    rows: int
    windows: int
    evidence: float | None
    feature: str | None
    smallest: Sequence[tuple[str, str]]

    @property
    def words(self) -> str:
        return STATES[self.state]


def segments(
    found: Sequence[DetectionRow], incidents: Sequence[IncidentRow], units: Mapping[str, str] | None = None
) -> list[SegmentRow]:
    """Segments that the newest window of a monitor had, those with an incident first, then by evidence.

    `found`: detections of segments, oldest first; `incidents`: the model's in the same range; `units`: of features.
    """
    newest: dict[str, int] = {}
    groups: dict[tuple[str, str], list[DetectionRow]] = {}
    for d in found:
        groups.setdefault((d.monitor, d.subject_id), []).append(d)
        newest[d.monitor] = max(newest.get(d.monitor, 0), d.end_us)
    made = [
        _segment(rows, [i for i in incidents if (i.subject_kind, i.subject_id) == ("segment", name)], units or {})
        for (monitor, name), rows in groups.items()
        if rows[-1].end_us == newest[monitor]  # what is no segment any more is not shown as one
    ]
    return sorted(made, key=lambda s: (s.incident is None, -(s.evidence or 0.0), s.name, s.monitor))


def _segment(rows: Sequence[DetectionRow], incidents: Sequence[IncidentRow], units: Mapping[str, str]) -> SegmentRow:
    last = rows[-1]
    drift = [i for i in incidents if i.family == "drift"]
    opened = next((i.alert_id for i in drift if i.open), None)
    why = str(last.evidence.get("reason") or "") if last.verdict == "insufficient" else ""
    state = "healthy" if last.verdict != "insufficient" else "learning" if why.startswith("learning") else "waiting"
    judged = [d for d in rows if d.verdict != "insufficient"]
    restarts = [i.cleared_us for i in drift if i.cleared_us is not None]
    told = features.series([_filled(d, judged) for d in judged], "evidence", restarts)
    top = max(told, key=lambda s: s.last or 0.0, default=None)
    return SegmentRow(
        last.subject_id, last.monitor, "incident" if opened else state, why, opened, last.n, len(judged),
        top.last if top else None, top.name if top and top.last else None, _smallest(judged[-1], units) if judged else (),
    )  # fmt: skip


def _filled(d: DetectionRow, judged: Sequence[DetectionRow]) -> DetectionRow:
    """With every feature that any window tells of. A segment's window stores those that changed most in it: the others
    had no more evidence than the least of them.
    """
    own = _features(d)
    least = min((v for r in own if (v := r.get("log_e")) is not None), default=None)
    missing = {r["name"] for other in judged for r in _features(other)} - {r["name"] for r in own}
    filled = [*own, *({"name": name, "log_e": least} for name in sorted(missing))]
    return replace(d, evidence={**d.evidence, "features": filled})


def _features(d: DetectionRow) -> list[Mapping[str, Any]]:
    return [r for r in d.evidence.get("features") or () if isinstance(r, Mapping) and "name" in r]


def _smallest(d: DetectionRow, units: Mapping[str, str]) -> list[tuple[str, str]]:
    told = [
        (name, features.smallest_shift(r, number_like=r.get("wasserstein") is not None, unit=units.get(name)))
        for r in _features(d)
        for name in [str(r["name"])]
    ]
    return [(name, words) for name, words in told if words is not None][:SMALLEST]
