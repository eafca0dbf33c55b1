"""Charts as SVG drawn on the server: one module for the page and for the report, readable without JavaScript.

A chart is a picture, a sentence that says what it shows, and the numbers as a table; whoever cannot see the picture
loses nothing. Widths are percentages and heights pixels, so text keeps its size from 320 px to a wall screen. Colours
are classes (`charts.css`), so one picture serves light, dark and print, and no inline style is needed.

Names that come from logs are escaped here; everything returned is safe to place in a page.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from markupsafe import Markup, escape

from monitor.model import HOUR_US, SECOND_US
from monitor.reports.words import moment, number, seen

LEVELS: Final = 6  # shades of a heat strip
DOTS: Final = 60  # a line of more points is drawn without dots
FOOT: Final = 22  # px kept for the time labels
HEAD: Final = 16  # px kept above the plot for the top label
_DAY_US: Final = 24 * HOUR_US
_STEPS_US: Final = (
    *(m * 60 * SECOND_US for m in (1, 5, 15, 30)),
    *(h * HOUR_US for h in (1, 2, 3, 6, 12)),
    *(d * _DAY_US for d in (1, 2, 7, 14, 30, 90, 180, 365)),
)


@dataclass(frozen=True, slots=True)
class Span:
    """The time that a chart covers, in microseconds UTC."""

    start_us: int
    end_us: int

    def x(self, time_us: int) -> float:
        """Where a time stands, in percent of the width, kept inside the chart."""
        share = (time_us - self.start_us) / max(1, self.end_us - self.start_us)
        return round(100 * min(1.0, max(0.0, share)), 3)


@dataclass(frozen=True, slots=True)
class Point:
    """One window's value; None draws a gap and `note` says why."""

    start_us: int
    end_us: int
    value: float | None
    note: str = ""
    raised: bool = False  # drawn as the window that matters (alarm, unusual volume)


@dataclass(frozen=True, slots=True)
class Annotation:
    """Something that happened at a time (a deploy) or from a time on (an incident, `end_us` None = still on)."""

    kind: str  # mark, incident (drift, quality) or attack
    start_us: int
    end_us: int | None
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture, its sentence and its numbers."""

    svg: Markup
    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def ticks(span: Span, wanted: int = 7) -> list[tuple[int, str]]:
    """Round times inside the span with short labels; the date stands where the day changes.

    >>> [label for _, label in ticks(Span(0, 24 * HOUR_US), 4)]
    ['1 Jan', '06:00', '12:00', '18:00', '2 Jan']
    """
    step = next((s for s in _STEPS_US if (span.end_us - span.start_us) / s <= wanted), _STEPS_US[-1])
    first = -(-span.start_us // step) * step
    return [(t, _tick(t)) for t in range(first, span.end_us + 1, step)]


def _tick(time_us: int) -> str:
    t = datetime.fromtimestamp(time_us // SECOND_US, UTC)
    return f"{t.day} {t:%b}" if time_us % _DAY_US == 0 else f"{t:%H:%M}"


def nice_top(value: float) -> float:
    """The next round number above, for the top of an axis.

    >>> nice_top(0.37), nice_top(1234), nice_top(0)
    (0.4, 1500.0, 1.0)
    """
    if value < sys.float_info.min or not math.isfinite(value):  # below it, powers of ten lose their digits
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(k for k in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if k * unit >= value * 0.9999) * unit:.6g}")


def bars(
    points: Sequence[Point], span: Span, *, title: str, unit: str, notes: Sequence[Annotation] = (), height: int = 150
) -> Chart:
    """Counts per window as bars; windows that were not judged are hatched, raised ones are strong."""
    top = nice_top(max((p.value or 0.0 for p in points), default=0.0))
    plot = height - FOOT - HEAD
    drawn = []
    for p in points:
        x, width = span.x(p.start_us), span.x(p.end_us) - span.x(p.start_us)
        gap = min(0.12 * width, 0.25)
        tall = plot if p.value is None else max(1.0, plot * p.value / top)
        look = "c-gap" if p.value is None else "c-bar c-raised" if p.raised else "c-bar"
        drawn.append(
            f'<rect class="{look}" x="{x + gap / 2:.3f}%" y="{HEAD + plot - tall:.1f}" width="{max(0.08, width - gap):.3f}%" '
            f'height="{tall:.1f}" rx="1">{_tip(p, unit)}</rect>'
        )
    summary = _summary(points, title, unit)
    body = (
        _notes(notes, span, height)
        + grid(plot)
        + "".join(drawn)
        + time_labels(span, height)
        + heights(top, plot, number)
    )
    return Chart(frame(body, height, summary), summary, ("Window", unit, "Note"), _table(points))


def line(
    points: Sequence[Point],
    span: Span,
    *,
    title: str,
    unit: str,
    threshold: float | None = None,
    notes: Sequence[Annotation] = (),
    height: int = 190,
) -> Chart:
    """A statistic over time with its threshold; a gap stays a gap, raised points carry a marker."""
    known = [p for p in points if p.value is not None]
    top = nice_top(
        max([p.value or 0.0 for p in known] + ([threshold] if threshold is not None else [])) if known else 1.0
    )
    plot = height - FOOT - HEAD

    def y(value: float) -> float:
        return round(HEAD + plot * (1 - max(0.0, value) / top), 2)

    runs: list[list[str]] = [[]]
    for p in points:
        if p.value is None:
            runs.append([])
        else:
            runs[-1].append(f"{10 * span.x((p.start_us + p.end_us) // 2):.1f},{y(p.value)}")
    base = HEAD + plot
    paths = "".join(
        f'<polygon class="c-area" points="{r[0].split(",")[0]},{base} {" ".join(r)} {r[-1].split(",")[0]},{base}"/>'
        f'<polyline class="c-line" points="{" ".join(r)}" vector-effect="non-scaling-stroke"/>'
        for r in runs
        if len(r) > 1
    )
    inner = f'<svg x="0" y="0" width="100%" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none">{paths}</svg>'
    plain = "c-dot" if len(known) <= DOTS else "c-hit"
    alone = {r[0] for r in runs if len(r) == 1}  # a window between two gaps has no line to be seen by
    dots = ""
    for p in known:
        x, height_y = span.x((p.start_us + p.end_us) // 2), y(p.value or 0.0)
        look = "c-dot" if f"{10 * x:.1f},{height_y}" in alone else plain
        radius = 4 if p.raised or look == "c-hit" else 2.5
        mark = "c-dot c-raised" if p.raised else look
        dots += f'<circle class="{mark}" cx="{x}%" cy="{height_y}" r="{radius}">{_tip(p, unit)}</circle>'
    summary, limit = _summary(points, title, unit), ""
    if threshold is not None:
        limit = (
            f'<line class="c-limit" x1="0" x2="100%" y1="{y(threshold)}" y2="{y(threshold)}"/>'
            f'<text class="c-limit-label" x="100%" y="{y(threshold) - 5}" text-anchor="end">alarm level {number(threshold)}</text>'
        )
        over = sum((p.value or 0.0) >= threshold for p in known)
        summary += f" The alarm level is {number(threshold)}; {over} of {len(known)} windows reach it."
    body = (
        _notes(notes, span, height)
        + grid(plot)
        + inner
        + limit
        + dots
        + time_labels(span, height)
        + heights(top, plot, number)
    )
    return Chart(frame(body, height, summary), summary, ("Window", unit, "Note"), _table(points))


def strip(
    points: Sequence[Point], span: Span, level: Callable[[float], int], *, label: str, height: int = 20
) -> Markup:
    """One row of a heat map: each window's shade is `level` of its value (0 to LEVELS - 1), gaps have their own.

    Neighbours of one shade are one rectangle, so a quiet month costs a few bytes.
    """
    looks = ["gap" if p.value is None else f"h{min(LEVELS - 1, max(0, level(p.value)))}" for p in points]
    cells: dict[str, list[str]] = {}
    first = 0
    for i in range(1, len(points) + 1):
        if i < len(points) and looks[i] == looks[first] and points[i].start_us <= points[i - 1].end_us:
            continue
        if looks[first] != "gap":
            x = 10 * span.x(points[first].start_us)
            width = max(1.5, 10 * span.x(points[i - 1].end_us) - x)
            cells.setdefault(looks[first], []).append(f"M{x:.1f} 0h{width:.1f}v10h-{width:.1f}z")
        first = i
    # What no window covers shows the thin line underneath: another shape, not another shade.
    drawn = '<path class="c-gap" d="M0 4h1000v2H0z"/>' + "".join(
        f'<path class="{look}" d="{"".join(d)}"/>' for look, d in sorted(cells.items())
    )
    inner = f'<svg width="100%" height="{height}" viewBox="0 0 1000 10" preserveAspectRatio="none">{drawn}</svg>'
    return frame(inner, height, label, "strip")


def thinned(points: Sequence[Point], how: Literal["mean", "max"], most: int = 240) -> list[Point]:
    """At most `most` points: neighbours are drawn as one, by their mean or their maximum, and say so."""
    group = -(-len(points) // most)
    if group <= 1:
        return list(points)
    made = []
    for i in range(0, len(points), group):
        some = points[i : i + group]
        known = [p.value for p in some if p.value is not None]
        value = None if not known else max(known) if how == "max" else sum(known) / len(known)
        notes = [p.note for p in some if p.note]
        note = f"{how} of {len(some)} windows" + (f", {notes[-1]}" if any(p.raised for p in some) and notes else "")
        made.append(Point(some[0].start_us, some[-1].end_us, value, note, any(p.raised for p in some)))
    return made


def axis(span: Span) -> Markup:
    """The time labels under a column of strips."""
    drawn = time_labels(span, FOOT)
    return Markup(f'<svg class="chart axis" width="100%" height="{FOOT}" aria-hidden="true">{drawn}</svg>')  # noqa: S704 - numbers and dates


def spark(values: Sequence[float], label: str, height: int = 28) -> Markup:
    """A line of small bars, for a table cell."""
    top = max(values, default=0.0) or 1.0
    step = 100 / max(1, len(values))
    rects = "".join(
        f'<rect class="c-bar" x="{i * step:.2f}%" y="{height - tall:.1f}" width="{step * 0.72:.2f}%" height="{tall:.1f}"/>'
        for i, tall in enumerate(max(1.0, height * v / top) for v in values)
    )
    return frame(rects, height, label, "spark")


def histogram(
    labels: Sequence[str], reference: Sequence[float], current: Sequence[float], *, title: str, height: int = 210
) -> Chart:
    """Shares of a feature's bins in the reference (outlined) and in the current window (filled), side by side."""
    top = nice_top(max([*reference, *current], default=0.0))
    plot = height - FOOT - HEAD
    step = 100 / max(1, len(labels))
    drawn = []
    for i, (name, ref, cur) in enumerate(zip(labels, reference, current, strict=True)):
        tip = f"<title>{escape(seen(name))}: reference {ref:.1%}, current {cur:.1%}</title>"
        hr, hc = max(1.0, plot * ref / top), max(1.0, plot * cur / top)
        drawn.append(
            f'<g>{tip}<rect class="c-ref" x="{(i + 0.10) * step:.3f}%" y="{HEAD + plot - hr:.1f}" width="{0.38 * step:.3f}%" height="{hr:.1f}"/>'
            f'<rect class="c-cur" x="{(i + 0.52) * step:.3f}%" y="{HEAD + plot - hc:.1f}" width="{0.38 * step:.3f}%" height="{hc:.1f}"/></g>'
        )
    body = (
        grid(plot) + "".join(drawn) + _bin_names(labels, step, HEAD + plot) + heights(top, plot, lambda v: f"{v:.0%}")
    )
    rows = [
        (n, f"{r:.2%}", f"{c:.2%}", f"{100 * (c - r):+.2f}") for n, r, c in zip(labels, reference, current, strict=True)
    ]
    summary = f"{title}: share of events in {len(labels)} bins, reference beside current."
    if rows:
        most = max(range(len(rows)), key=lambda i: abs(current[i] - reference[i]))
        summary += f" The largest change is in {labels[most]}: {reference[most]:.1%} became {current[most]:.1%}."
    return Chart(frame(body, height, summary), summary, ("Bin", "Reference", "Current", "Change, points"), rows)


def _bin_names(labels: Sequence[str], step: float, base: float) -> str:
    """As many names under the bins as fit: all of a few, else the first, middle and last."""
    shown = range(len(labels)) if len(labels) <= 6 else sorted({0, len(labels) // 2, len(labels) - 1})
    names = []
    for i in shown:
        anchor = "middle" if 0 < i < len(labels) - 1 or len(labels) <= 6 else "start" if i == 0 else "end"
        x = (i + 0.5) * step if anchor == "middle" else 0 if anchor == "start" else 100
        short = labels[i] if len(labels[i]) <= 14 else labels[i][:13] + "…"
        names.append(
            f'<text class="c-label" x="{x:.2f}%" y="{base + 17}" text-anchor="{anchor}">{escape(seen(short))}</text>'
        )
    return "".join(names)


def share_bar(share: float, label: str) -> Markup:
    """One horizontal bar from 0 to 1, for a table cell."""
    width = round(100 * min(1.0, max(0.0, share)), 2)
    body = f'<rect class="c-track" x="0" y="3" width="100%" height="8" rx="4"/><rect class="c-share" x="0" y="3" width="{width}%" height="8" rx="4"/>'
    return frame(body, 14, label, "share")


def frame(body: str, height: int, label: str, look: str = "") -> Markup:
    head = f'<svg class="chart {look}" width="100%" height="{height}" role="img" aria-label="{escape(seen(label))}">'
    return Markup(f"{head}{body}</svg>")  # noqa: S704 - every piece of text in it went through escape()


def _tip(p: Point, unit: str) -> str:
    value = "not judged" if p.value is None else f"{number(p.value)} {unit}".strip()
    note = f" · {p.note}" if p.note else ""
    return f"<title>{moment(p.start_us)} to {_clock(p)}: {escape(seen(value))}{escape(seen(note))}</title>"


def _clock(p: Point) -> str:
    same_day = p.start_us // _DAY_US == p.end_us // _DAY_US
    return moment(p.end_us)[11:] if same_day else moment(p.end_us)


def grid(plot: int) -> str:
    lines = "".join(f'<line class="c-grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>' for y in (HEAD, HEAD + plot / 2))
    return f'{lines}<line class="c-base" x1="0" x2="100%" y1="{HEAD + plot}" y2="{HEAD + plot}"/>'


def heights(top: float, plot: int, words: Callable[[float], str]) -> str:
    """What the grid lines stand for; drawn last, with a rim, so that no bar hides them."""
    return "".join(
        f'<text class="c-label c-rim" x="0" y="{HEAD + plot * (1 - s) - 4}">{words(top * s)}</text>' for s in (0.5, 1.0)
    )


def time_labels(span: Span, height: int) -> str:
    found = []
    for i, (t, label) in enumerate(ticks(span)):
        x = span.x(t)
        if 3 <= x <= 97:  # a label at the rim would be cut
            look = ("c-label c-major" if t % _DAY_US == 0 else "c-label") + (" c-alt" if i % 2 else "")
            found.append(f'<text class="{look}" x="{x}%" y="{height - 6}" text-anchor="middle">{label}</text>')
    return "".join(found)


def _notes(notes: Sequence[Annotation], span: Span, height: int) -> str:
    drawn = []
    for n in notes:
        x = span.x(n.start_us)
        tip = f"<title>{escape(seen(n.label))}, {moment(n.start_us)}</title>"
        if n.kind == "attack":
            drawn.append(
                f'<g>{tip}<line class="c-attacked" x1="{x}%" x2="{x}%" y1="{HEAD - 6}" y2="{height - FOOT}"/>'
                f'<rect class="c-attack-head" x="{x}%" y="{HEAD - 11}" width="9" height="9"/></g>'
            )
        elif n.kind == "incident":
            width = span.x(n.end_us if n.end_us is not None else span.end_us) - x
            drawn.append(
                f'<g>{tip}<rect class="c-incident" x="{x}%" y="{HEAD}" width="{max(0.4, width):.3f}%" height="{height - FOOT - HEAD}"/>'
                f'<line class="c-opened" x1="{x}%" x2="{x}%" y1="{HEAD}" y2="{height - FOOT}"/></g>'
            )
        else:
            drawn.append(
                f'<g>{tip}<line class="c-mark" x1="{x}%" x2="{x}%" y1="{HEAD}" y2="{height - FOOT}"/>'
                f'<circle class="c-mark-head" cx="{x}%" cy="{HEAD}" r="4"/></g>'
            )
    return "".join(drawn)


def _summary(points: Sequence[Point], title: str, unit: str) -> str:
    known = [p.value for p in points if p.value is not None]
    if not known:
        return f"{title}: nothing to show in this range."
    ordered = sorted(known)
    missing = len(points) - len(known)
    text = (
        f"{title}, {len(points)} windows from {moment(points[0].start_us)} to {moment(points[-1].end_us)} UTC: "
        f"between {number(ordered[0])} and {number(ordered[-1])} {unit}, median {number(ordered[len(ordered) // 2])}, "
        f"last {number(known[-1])}."
    )
    return text + (f" {missing} windows were not judged." if missing else "")


def _table(points: Sequence[Point]) -> list[tuple[str, str, str]]:
    return [(f"{moment(p.start_us)} to {_clock(p)}", number(p.value), p.note) for p in reversed(points)]
