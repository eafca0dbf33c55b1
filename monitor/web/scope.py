"""What a model's pages show of a range of time: reading the store once and shaping it for page and JSON twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from monitor.model import parse_time_us, rfc3339
from monitor.reports import charts, features
from monitor.reports.charts import Annotation, Chart, Point, Span
from monitor.reports.features import MEASURES, FeatureSeries
from monitor.reports.groups import GroupRow, group_rows
from monitor.reports.held import HeldRow, held_rows
from monitor.reports.segments import segments
from monitor.reports.sources import sources
from monitor.reports.words import moment, number
from monitor.store import lookups, queries, references
from monitor.store.held import held_back
from monitor.store.lookups import IncidentRow
from monitor.store.queries import DetectionRow, MarkRow, ModelRow, WindowRow
from monitor.web.site import Site
from monitor.web.view import DAY_US, OUTCOME_WORDS, title

RANGES: Final[Mapping[str, tuple[str, int | None]]] = {  # key in the address -> words, length
    "24h": ("24 h", DAY_US),
    "7d": ("7 days", 7 * DAY_US),
    "30d": ("30 days", 30 * DAY_US),
    "90d": ("90 days", 90 * DAY_US),
    "all": ("all", None),
}
DEFAULT_RANGE: Final = "7d"
FEATURES_SHOWN: Final = 30
HELD_SHOWN: Final = 20
HISTOGRAM_CHOICES: Final = 8
GROUPS_US: Final = 7 * DAY_US  # of versions and busy callers
NO_WINDOWS: Final = (
    "No window was judged in this range. Windows are judged once their events and the allowed lateness have passed."
)


class Scope(BaseModel):
    """The part of the address that says which time, which measure and how much of a list; what makes no sense is default."""

    model_config = ConfigDict(frozen=True)

    range: str = DEFAULT_RANGE
    until: str = ""
    measure: str = "evidence"
    features: str = ""
    held: str = ""

    def kept(self) -> dict[str, str]:
        """The parameters that follow the reader from page to page."""
        default = Scope()
        return {k: v for k in ("range", "until") if (v := getattr(self, k)) != getattr(default, k)}


def span_of(model: ModelRow, scope: Scope, clock_us: int) -> tuple[int, int]:
    """(start, end] of the range; it ends with the newest judged window unless `until` says otherwise."""
    until = try_time_us(scope.until)
    end_us = until if until is not None else model.judged_us if model.judged_us is not None else clock_us
    length = RANGES.get(scope.range, RANGES[DEFAULT_RANGE])[1]
    return (0 if length is None else end_us - length), end_us


def try_time_us(text: str) -> int | None:
    """A time from the address bar; None for anything that is none, or before 1970.

    >>> try_time_us("2023-11-14T22:13:20Z"), try_time_us("soon"), try_time_us("0001-01-01T00:00:00Z")
    (1700000000000000, None, None)
    """
    try:
        time_us = parse_time_us(text)
    except (ValueError, OverflowError):
        return None
    return time_us if time_us > 0 else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store holds of one model and range."""

    start_us: int
    end_us: int
    windows: Sequence[WindowRow]
    drift: Sequence[DetectionRow]
    others: Sequence[DetectionRow]
    marks: Sequence[MarkRow]
    incidents: Sequence[IncidentRow]

    @property
    def span(self) -> Span:
        """The time that charts cover: the range, cut to where windows begin."""
        first = min((w.start_us for w in self.windows), default=self.start_us)
        return Span(max(self.start_us, first), self.end_us)

    @property
    def notes(self) -> list[Annotation]:
        """Marks and incidents as a chart draws them."""
        drawn = [Annotation("mark", m.start_us, m.end_us, f"{m.kind}: {m.text}") for m in self.marks]
        for i in self.incidents:
            kind = "attack" if i.family in queries.ATTACK_FAMILIES else "incident"
            drawn.append(Annotation(kind, i.opened_us, i.cleared_us, title(i)))
        return drawn

    @property
    def restarts(self) -> list[int]:
        """When drift incidents ended: the evidence started afresh."""
        return [
            i.cleared_us for i in self.incidents if i.family == "drift" and i.whole_model and i.cleared_us is not None
        ]


def look(site: Site, model: ModelRow, scope: Scope) -> Seen:
    """Read one model's range."""
    start_us, end_us = span_of(model, scope, site.clock_us([model]))
    engine, key = site.engine, model.model_id
    return Seen(
        start_us,
        end_us,
        queries.windows(engine, key, start_us, end_us),
        queries.drift_detections(engine, key, start_us, end_us),
        queries.other_detections(engine, key, start_us, end_us),
        queries.model_marks(engine, model.name, start_us, end_us),
        lookups.incidents_between(engine, model.name, start_us, end_us),
    )


def volume_points(seen: Seen) -> list[Point]:
    """Events per window of the monitor that judged most windows; windows with a traffic alarm are raised."""
    by_monitor: dict[str, list[WindowRow]] = {}
    for w in seen.windows:
        by_monitor.setdefault(w.monitor, []).append(w)
    rows = max(by_monitor.values(), key=len, default=[])
    unusual = {d.end_us for d in seen.others if d.verdict == "alarm" and d.event == "TrafficAnomaly"}
    return [
        Point(
            w.start_us, w.end_us, None if w.outcome == "gap" else float(w.n),
            "unusual traffic" if w.end_us in unusual else "" if w.outcome == "judged" else _outcome(w), w.end_us in unusual,
        )
        for w in rows
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class JudgedWindow:
    """One window over all its monitors, with the feature that had changed most by then."""

    end_us: int
    n: int
    words: str
    detail: str | None
    strongest: str | None
    value: float | None


def judged_windows(seen: Seen, rows: Sequence[FeatureSeries]) -> list[JudgedWindow]:
    """The range's windows, oldest first; what only some of the monitors could not judge is said by name."""
    best: dict[int, tuple[float, str]] = {}
    for s in rows:
        for p in s.points:
            if p.value is not None and p.value > best.get(p.end_us, (0.0, ""))[0]:
                best[p.end_us] = (p.value, s.name)
    by_end: dict[int, list[WindowRow]] = {}
    for w in seen.windows:
        by_end.setdefault(w.end_us, []).append(w)
    made = []
    for end_us, same in sorted(by_end.items()):
        outcomes = {w.outcome for w in same}
        words = "; ".join(
            f"{OUTCOME_WORDS.get(o, o)}"
            + (f" ({', '.join(w.monitor for w in same if w.outcome == o)})" if len(outcomes) > 1 else "")
            for o in sorted(outcomes)
        )
        value, name = best.get(end_us, (None, None))
        detail = next((w.detail for w in same if w.detail), None)
        made.append(JudgedWindow(end_us, max(w.n for w in same), words, detail, name, value))
    return made


def _outcome(w: WindowRow) -> str:
    words = {"insufficient": "too little data", "failed": "could not be judged", "gap": "gap"}.get(w.outcome, w.outcome)
    return f"{words}: {w.detail}" if w.detail else words


def named_features(incidents: Sequence[IncidentRow]) -> frozenset[str]:
    """Features that an open incident names."""
    return frozenset(f.name for i in incidents if i.open for f in incident_features(i))


@dataclass(frozen=True, slots=True)
class NamedFeature:
    """A feature in an incident's evidence: its share of the evidence, and whatever else the detector wrote of it."""

    name: str
    share: float | None
    values: Mapping[str, Any] = field(default_factory=dict)


def incident_features(incident: IncidentRow) -> list[NamedFeature]:
    """The features in an incident's evidence, largest share first."""
    rows = incident.evidence.get("features")
    found = [
        NamedFeature(
            str(r["name"]), _share(r.get("share")), {str(k): v for k, v in r.items() if k not in features.UNSHOWN}
        )
        for r in (rows if isinstance(rows, list) else ())
        if isinstance(r, Mapping) and "name" in r
    ]
    return sorted(found, key=lambda f: (-(f.share or 0.0), f.name))


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def strip_of(series: FeatureSeries, key: str, span: Span) -> Markup:
    """One feature's row of the drift map, with its sentence for those who do not see it."""
    measure = MEASURES[key]
    top = max(series.points, key=lambda p: p.value if p.value is not None else -1.0)
    words = (
        f"{measure.label}: newest {number(series.last)}, highest {number(top.value)} at {moment(top.end_us)}"
        if series.last is not None
        else f"{measure.label}: nothing measured"
    )
    return charts.strip(series.points, span, lambda v: features.level(measure, v, series.usual), label=words)


def model_view(site: Site, model: ModelRow, scope: Scope) -> dict[str, Any]:
    """Everything the model's page shows."""
    seen = look(site, model, scope)
    measure = MEASURES.get(scope.measure, MEASURES["evidence"])
    rows = features.series(seen.drift, measure.key, seen.restarts, site.units(model.name))
    shown = rows if scope.features == "all" else rows[:FEATURES_SHOWN]
    points = charts.thinned(volume_points(seen), "mean")
    newest = seen.drift[-1] if seen.drift else None
    unasked = newest is not None and newest.verdict == "insufficient"
    held = held_of(site, model, scope)
    return {
        "now_us": site.clock_us([model]),
        "reference": references.reference(site.engine, model.model_id, model.reference_hash),
        "windows": judged_windows(seen, rows),
        "span_words": f"{moment(seen.span.start_us)} to {moment(seen.end_us)}" if seen.windows else "none",
        "range_words": [(k, w) for k, (w, _) in RANGES.items()],
        "range": scope.range if scope.range in RANGES else DEFAULT_RANGE,
        "earlier": rfc3339(seen.start_us) if seen.start_us > 0 and seen.windows else None,
        "volume": charts.bars(points, seen.span, title="Events per window", unit="events", notes=seen.notes)
        if points
        else None,
        "sources": sources(seen.others),
        "measure": measure,
        "measures": list(MEASURES.values()),
        "rows": [(s, strip_of(s, measure.key, seen.span)) for s in shown],
        "hidden": len(rows) - len(shown),
        "named": named_features(seen.incidents),
        "time_axis": charts.axis(seen.span),
        "segments": segments(
            queries.segment_detections(site.engine, model.model_id, seen.start_us, seen.end_us),
            seen.incidents,
            site.units(model.name),
        ),
        "held": held if scope.held == "all" else held[:HELD_SHOWN],
        "held_count": len(held),
        "groups": groups_of(site, model, seen.start_us, seen.end_us),
        "mix": [m for m in newest.evidence.get("mix") or () if isinstance(m, Mapping)] if newest is not None else [],
        "unasked": unasked_words(newest) if newest is not None and unasked else "",
        "marks": seen.marks,
        "past": [i for i in seen.incidents if not i.open],
        "keep": scope.kept(),
        "empty": NO_WINDOWS,
    }


def held_of(site: Site, model: ModelRow, scope: Scope) -> list[HeldRow]:
    """Callers that are held back, by what was said of them in a range, newest first. They are found event by event, so a
    range without `until` goes on to the newest event here, beyond the newest judged window.
    """
    start_us, end_us = span_of(model, scope, site.clock_us([model]))
    if try_time_us(scope.until) is None:
        end_us = max(end_us, model.last_event_us or 0)
    return held_rows(held_back(site.engine, model, start_us, end_us))


def groups_of(site: Site, model: ModelRow, start_us: int, end_us: int) -> list[GroupRow]:
    """Versions and busy callers in the newest stored buckets of a range, a week at most."""
    bins = queries.calibration(site.engine, model.model_id, "profile", model.reference_hash)
    since_us = max(start_us, end_us - GROUPS_US)
    return group_rows(bins, queries.counts(site.engine, model.model_id, model.reference_hash, since_us, end_us))


def unasked_words(detection: DetectionRow) -> str:
    """Why a window raised no question yet."""
    why = detection.evidence.get("reason") or detection.evidence.get("why")
    return (
        str(why)
        if why
        else "Too little history for alarms: drift is shown, and judged once enough windows have been seen."
    )


def feature_view(site: Site, model: ModelRow, scope: Scope, name: str, at: str) -> dict[str, Any]:
    """Everything the page of one feature shows; `at` names one window's end, empty for the whole range."""
    seen = look(site, model, scope)
    measure = MEASURES.get(scope.measure, MEASURES["evidence"])
    series = next((s for s in features.series(seen.drift, measure.key, seen.restarts) if s.name == name), None)
    ends = [p.end_us for p in series.points if p.value is not None] if series else []
    at_us = try_time_us(at)
    picked = next((p for p in series.points if p.end_us == at_us), None) if series else None
    start_us, end_us = (picked.start_us, picked.end_us) if picked else (seen.span.start_us, seen.end_us)
    shape = histogram_of(site, model, name, start_us, end_us)
    chart = None
    if series and ends:
        label = f"{measure.label} of {name}"
        points = charts.thinned(series.points, "max")
        chart = charts.line(points, seen.span, title=label, unit=measure.unit, notes=seen.notes)
    return {
        "now_us": site.clock_us([model]),
        "series": series,
        "newest": series.latest if series else {},
        "sources": sources(seen.others),
        "measure": measure,
        "measures": list(MEASURES.values()),
        "chart": chart,
        "shape": shape,
        "shape_words": moment(picked.end_us) if picked else "all windows in view",
        "choices": ends[-HISTOGRAM_CHOICES:][::-1] if shape else [],
        "at_us": picked.end_us if picked else None,
        "keep": scope.kept(),
    }


def histogram_of(site: Site, model: ModelRow, name: str, start_us: int, end_us: int) -> Chart | None:
    """A feature's reference beside its counts in a range; None where counts are not stored."""
    body = queries.calibration(site.engine, model.model_id, "profile", model.reference_hash)
    counts = features.counted(body, queries.counts(site.engine, model.model_id, model.reference_hash, start_us, end_us))
    shape = counts.shape(name) if counts else None
    if shape is None:
        return None
    return charts.histogram(shape.labels, shape.reference, shape.current, title=f"Distribution of {name}")
