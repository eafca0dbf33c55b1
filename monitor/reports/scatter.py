"""Points as SVG: rows of a log over time, or in two dimensions. The companion of `monitor.reports.charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

from monitor.reports.charts import FOOT, HEAD, Chart, Span, frame, grid, heights, nice_top, time_labels
from monitor.reports.words import number, seen

RADIUS: Final = {
    "c-ref": 2.0,
    "c-dot": 3.0,
    "c-dot c-raised": 4.5,
}  # looks differ in size and filling, not in colour alone


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points of one kind. x: 0 to 1 of the width; y: in the chart's unit, 0 or more; tips: one a point, or none."""

    look: str  # a class of RADIUS
    x: Sequence[float]
    y: Sequence[float]
    tips: Sequence[str] = ()


def scatter(
    clouds: Sequence[Cloud],
    *,
    summary: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    span: Span | None = None,
    top: float | None = None,
    height: int = 230,
) -> Chart:
    """A picture of points, later clouds above earlier ones. `span` labels the width with times, `top` the height.

    Points that are no numbers are left out; text in tips is escaped.
    """
    plot = height - FOOT - HEAD
    most = nice_top(max((v for c in clouds for v in c.y if math.isfinite(v)), default=1.0)) if top is None else top
    drawn = []
    for c in clouds:
        for i, (x, y) in enumerate(zip(c.x, c.y, strict=True)):
            if math.isfinite(x) and math.isfinite(y):
                at = HEAD + plot * (1 - min(1.0, max(0.0, y / most)))
                tip = f"<title>{escape(seen(c.tips[i]))}</title>" if c.tips else ""
                where = f'cx="{100 * min(1.0, max(0.0, x)):.2f}%" cy="{at:.1f}"'
                drawn.append(f'<circle class="{c.look}" {where} r="{RADIUS[c.look]}">{tip}</circle>')
    words = (time_labels(span, height) + heights(most, plot, number)) if span is not None else ""
    svg: Markup = frame(grid(plot) + "".join(drawn) + words, height, summary)
    return Chart(svg, summary, columns, rows)
