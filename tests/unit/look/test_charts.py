"""Charts: a picture, a sentence and a table that say the same, whatever the names and numbers are."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.model import HOUR_US
from monitor.reports import charts
from monitor.reports.charts import Annotation, Point, Span
from tests.scenes import HOSTILE

SPAN = Span(0, 10 * HOUR_US)
VALUES = [None, 1.0, 2.0, 3.0, None, 5.0, 4.0, 0.0, 7.0, 8.0]
POINTS = [Point(i * HOUR_US, (i + 1) * HOUR_US, v, "late" if v == 5 else "", v == 8) for i, v in enumerate(VALUES)]


def widths(svg: str) -> list[float]:
    """Right edges of every rectangle, in percent."""
    found = ET.fromstring(svg).iter("rect")
    return [float(r.get("x", "0").rstrip("%")) + float(r.get("width", "0").rstrip("%")) for r in found]


def test_a_chart_is_well_formed_and_named() -> None:
    """Every chart is XML with an accessible name, and stays inside its frame."""
    notes = [Annotation("mark", HOUR_US, None, "deploy"), Annotation("incident", 2 * HOUR_US, None, "drift")]
    made = [
        charts.bars(POINTS, SPAN, title="Events", unit="events", notes=notes).svg,
        charts.line(POINTS, SPAN, title="PSI", unit="", threshold=6.0, notes=notes).svg,
        charts.histogram(["a", "b"], [0.4, 0.6], [0.5, 0.5], title="d").svg,
        charts.strip(POINTS, SPAN, int, label="strip"),
        charts.spark([1, 2, 3], "spark"),
        charts.share_bar(2.0, "share"),
    ]
    for svg in made:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert max(widths(svg), default=0) <= 100.2
        assert "style=" not in svg
        assert "nan" not in svg


def test_gaps_are_drawn_as_gaps() -> None:
    """A window that was not judged is never drawn as zero, and the sentence counts it."""
    chart = charts.bars(POINTS, SPAN, title="Events", unit="events")
    assert chart.svg.count("c-gap") == 2
    assert "2 windows were not judged" in chart.summary
    assert charts.line(POINTS, SPAN, title="x", unit="").svg.count("<polyline") == 2


def test_the_table_holds_every_number_newest_first() -> None:
    """Who cannot see the picture reads the same numbers."""
    chart = charts.line(POINTS, SPAN, title="PSI", unit="")
    assert [row[1] for row in chart.rows] == ["8", "7", "0", "4", "5", "–", "3", "2", "1", "–"]
    assert chart.rows[0][0] == "1970-01-01 09:00 to 10:00"


def test_the_threshold_is_said_in_words() -> None:
    """The alarm level and how often it was reached stand in the sentence."""
    assert (
        "The alarm level is 6; 2 of 8 windows reach it."
        in charts.line(POINTS, SPAN, title="x", unit="", threshold=6).summary
    )


def test_names_from_logs_are_text() -> None:
    """Markup in a name is shown, not obeyed, in every chart."""
    note = Annotation("mark", HOUR_US, None, HOSTILE)
    for svg in (
        charts.bars([Point(0, HOUR_US, 1.0, HOSTILE)], SPAN, title=HOSTILE, unit=HOSTILE, notes=[note]).svg,
        charts.line([Point(0, HOUR_US, 1.0, HOSTILE)], SPAN, title=HOSTILE, unit=HOSTILE, notes=[note]).svg,
        charts.histogram([HOSTILE], [1.0], [1.0], title=HOSTILE).svg,
        charts.strip(POINTS, SPAN, int, label=HOSTILE),
    ):
        ET.fromstring(svg)
        assert "<img" not in svg
        assert "<script" not in svg
        assert "\u202e" not in svg


def test_a_quiet_strip_is_one_rectangle() -> None:
    """Neighbours of one shade are merged, so that a month of quiet windows stays small."""
    quiet = [Point(i * HOUR_US, (i + 1) * HOUR_US, 0.0) for i in range(720)]
    assert charts.strip(quiet, Span(0, 720 * HOUR_US), int, label="quiet").count("M") == 2  # and the line under it


def test_long_ranges_are_thinned_without_losing_the_peak() -> None:
    """Two thousand windows become at most 240 points, and the largest value is still there."""
    many = [Point(i * HOUR_US, (i + 1) * HOUR_US, float(i == 777)) for i in range(2000)]
    few = charts.thinned(many, "max")
    assert len(few) <= 240
    assert max(p.value or 0.0 for p in few) == 1.0
    assert few[0].note == "max of 9 windows"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0, 1e12)), max_size=30), st.text(max_size=40))
def test_any_numbers_and_any_name_make_a_chart(values: list[float | None], name: str) -> None:
    """No value and no name breaks a chart, the empty one included."""
    points = [Point(i * HOUR_US, (i + 1) * HOUR_US, v, name) for i, v in enumerate(values)]
    for chart in (charts.bars(points, SPAN, title=name, unit="x"), charts.line(points, SPAN, title=name, unit="x")):
        ET.fromstring(re.sub(r"[\ud800-\udfff\ufffe\uffff]", "", chart.svg))
        assert chart.summary


@pytest.mark.parametrize("hours", [1, 6, 24, 7 * 24, 30 * 24, 365 * 24])
def test_there_are_always_a_few_time_labels(hours: int) -> None:
    """Every range has between two and eight round times."""
    assert 2 <= len(charts.ticks(Span(0, hours * HOUR_US))) <= 8
