"""The report for a model's owner: one HTML file that loads nothing and runs nothing, from what is already stored.

Its statistics rest on the counts of every event in the range, never on a sample, so making it takes milliseconds and
its size (some tens of kilobytes) does not depend on the traffic.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import jinja2
from markupsafe import Markup, escape

from alerts.text import TITLES, shown
from monitor.model import Event, parse_time_us
from monitor.reports import charts, features
from monitor.reports.charts import Annotation, Chart, Point, Span
from monitor.reports.diagnosis import Diagnosis
from monitor.reports.features import MEASURES, Counts
from monitor.reports.groups import group_rows
from monitor.reports.outcomes import outcomes
from monitor.reports.segments import segments
from monitor.reports.sources import sources
from monitor.reports.words import ANSWER_WORDS, VERSION_WORDS, change, moment, number, percent, seen
from monitor.store import comparisons, lookups, queries, references
from monitor.store.lookups import IncidentRow
from monitor.store.queries import Engine, ModelRow, WindowRow

STRIPS: Final = 25  # features in the picture of drift over time
HISTOGRAMS: Final = 10  # most changed distributions that are drawn
OUTCOMES: Final = {"insufficient": "had too little data or history", "failed": "failed", "gap": "are gaps"}


@dataclass(frozen=True, slots=True)
class Report:
    """The finished file, the content security policy it carries, and its numbers for programs."""

    html: str
    policy: str
    summary: Mapping[str, Any]


def report(
    engine: Engine,
    model: ModelRow,
    start_us: int,
    end_us: int,
    *,
    environment: str,
    owner: str | None,
    made_us: int,
    version: str,
    ailments: Sequence[Diagnosis] = (),
    units: Mapping[str, str] | None = None,
) -> Report:
    """A model's report over (start_us, end_us]; `made_us`: what it is dated with, `ailments`: its monitors' now, `units`: of features."""
    windows = queries.windows(engine, model.model_id, start_us, end_us)
    span = Span(max(start_us, min((w.start_us for w in windows), default=start_us)), end_us)
    drift = queries.drift_detections(engine, model.model_id, start_us, end_us)
    bins = queries.calibration(engine, model.model_id, "profile", model.reference_hash)
    stored = queries.counts(engine, model.model_id, model.reference_hash, span.start_us, end_us)
    counts, busy = features.counted(bins, stored), group_rows(bins, stored)
    incidents = lookups.incidents_between(engine, model.name, start_us, end_us)
    marks = queries.model_marks(engine, model.name, start_us, end_us)
    rows = main_windows(windows)
    points = [
        Point(w.start_us, w.end_us, None if w.outcome == "gap" else float(w.n), OUTCOMES.get(w.outcome, ""))
        for w in rows
    ]
    notes = [Annotation("mark", m.start_us, m.end_us, f"{m.kind}: {m.text}") for m in marks]
    volume = charts.bars(charts.thinned(points, "mean"), span, title="Events per window", unit="events", notes=notes)
    judged = Counter(w.outcome for w in rows)
    distances = ranked(counts)
    series = features.series(drift, MEASURES["evidence"].key, _ended(incidents), units)
    smallest = {s.name: s.smallest for s in series}
    versions = _compared(engine, model, start_us, end_us)
    parts = segments(queries.segment_detections(engine, model.model_id, start_us, end_us), incidents, units)
    others = queries.other_detections(engine, model.model_id, start_us, end_us)
    style, policy = _style()
    html = _environment().get_template("owner.html").render(
        model=model, environment=environment, owner=owner, made_us=made_us, version=version, policy=policy,
        style=Markup(style), span=span, verdict=verdict(incidents, judged), events=sum(w.n for w in rows),  # noqa: S704
        outcomes=dict(judged), not_judged=sum(n for o, n in judged.items() if o != "judged"), words=OUTCOMES,
        reference=references.reference(engine, model.model_id, model.reference_hash), incidents=[_told(i) for i in incidents],
        volume=volume if points else None, measure=MEASURES["evidence"], strips=_strips(series, span),
        axis=charts.axis(span), features=distances, smallest=smallest, events_counted=counts.current.n if counts else 0,
        histograms=_histograms(counts, [name for name, _ in distances]), marks=marks, figure=_figure, ailments=ailments,
        outcomes_told=outcomes(others), sources=sources(others),
        versions=versions, version_words=VERSION_WORDS, answer_words=ANSWER_WORDS, segments=parts, groups=busy,
    )  # fmt: skip
    summary = {
        "model": model.name, "headline": verdict(incidents, judged), "events": sum(w.n for w in rows),
        "windows": dict(judged), "features": {name: {**d, "smallest": smallest.get(name)} for name, d in distances}, "versions": versions,
        "incidents": [{k: getattr(i, k) for k in ("alert_id", "event", "severity", "open")} for i in incidents],
        "segments": [
            {"name": s.name, "state": s.words, "events": s.rows, "feature": s.feature, "evidence": s.evidence} for s in parts
        ],
        "sources": [{"of": s.words.lower(), "count": s.count, "busiest": s.busiest, "share": s.share} for s in sources(others)],
        "groups": [g.to_json() for g in busy], "diagnosis": [d.to_json() for d in ailments],
    }  # fmt: skip
    return Report(html, policy, summary)


def _compared(engine: Engine, model: ModelRow, start_us: int, end_us: int) -> list[dict[str, Any]]:
    """New versions of the model that came in this time or were still compared with the old one's windows."""
    listed = comparisons.listed(engine, model.model_id)
    return [c for c in listed if c["until_us"] > start_us and parse_time_us(c["came"]) <= end_us]


def _style() -> tuple[str, str]:
    """The style sheet, and the content security policy that allows it and nothing else."""
    style = (resources.files("monitor.reports") / "charts.css").read_text() + (
        resources.files("monitor.reports") / "owner.css"
    ).read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return style, policy


def main_windows(windows: Sequence[WindowRow]) -> list[WindowRow]:
    """The windows of the monitor that judged most of them, so that no event is counted twice."""
    by_monitor: dict[str, list[WindowRow]] = {}
    for w in windows:
        by_monitor.setdefault(w.monitor, []).append(w)
    return max(by_monitor.values(), key=len, default=[])


def ranked(counts: Counts | None) -> list[tuple[str, dict[str, float | None]]]:
    """Every feature with its distances to the reference, the most changed first."""
    if counts is None or not counts.current.n:
        return []
    return sorted(counts.distances().items(), key=lambda kv: (-(kv[1]["js"] or 0.0), kv[0]))


def verdict(incidents: Sequence[IncidentRow], outcomes: Mapping[str, int]) -> str:
    """The report in one sentence.

    >>> verdict([], {"judged": 5})
    'Nothing unusual: 5 windows were judged and no incident was open.'
    """
    judged = outcomes.get("judged", 0)
    if incidents:
        still = sum(i.open for i in incidents)
        return f"{len(incidents)} incident{'s' if len(incidents) > 1 else ''} in this time, {still} still open."
    if not judged:
        return "No window could be judged in this time, so nothing can be said about change."
    return f"Nothing unusual: {judged:,} windows were judged and no incident was open."


def _ended(incidents: Sequence[IncidentRow]) -> list[int]:
    """When drift incidents of the whole model ended: the evidence started afresh."""
    return [i.cleared_us for i in incidents if i.family == "drift" and i.whole_model and i.cleared_us is not None]


def _told(i: IncidentRow) -> dict[str, Any]:
    named = TITLES[Event(i.event)] if i.event in [*Event] else i.event
    lines = [line.partition(" ") for line in i.text.splitlines()]
    told = [rest.strip() for head, _, rest in lines if head in ("WHY", "WHAT")]
    about = "the whole model" if i.whole_model else f"{i.subject_kind} {shown(i.subject_id)}"
    return {
        "title": named, "about": about, "severity": i.severity, "opened_us": i.opened_us, "cleared_us": i.cleared_us, "told": told,
    }  # fmt: skip


def _strips(series: Sequence[features.FeatureSeries], span: Span) -> list[tuple[features.FeatureSeries, Markup]]:
    measure = MEASURES["evidence"]
    return [
        (
            s,
            charts.strip(
                s.points,
                span,
                lambda v: features.level(measure, v),
                label=f"highest {number(s.peak)}",
                height=16,
            ),
        )
        for s in series[:STRIPS]
    ]


def _histograms(counts: Counts | None, names: Sequence[str]) -> list[tuple[str, Chart]]:
    drawn = []
    for name in names[:HISTOGRAMS]:
        shape = counts.shape(name) if counts else None
        if shape is not None:
            chart = charts.histogram(shape.labels, shape.reference, shape.current, title=name, height=170)
            drawn.append((name, chart))
    return drawn


def _figure(chart: Chart) -> Markup:
    """A chart with its sentence and its table folded away."""
    head = "".join(f'<th scope="col">{escape(c or "Value")}</th>' for c in chart.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(seen(c))}</td>" for c in row) + "</tr>" for row in chart.rows)
    told = f"<figcaption>{escape(seen(chart.summary))}</figcaption>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    folded = f"<details><summary>The numbers as a table</summary>{table}</details>"
    return Markup(f"<figure>{chart.svg}{told}{folded}</figure>")  # noqa: S704 - every piece of text went through escape()


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("monitor.reports"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters.update(change=change, seen=seen, moment=moment, number=number, percent=percent)
    return env
