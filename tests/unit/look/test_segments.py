"""The segments of a model, from their stored detections."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.model import HOUR_US
from monitor.reports.segments import SegmentRow, segments
from monitor.store.lookups import IncidentRow
from monitor.store.queries import DetectionRow


def detection(name: str, hour: int, verdict: str = "ok", **evidence: Any) -> DetectionRow:
    """A stored detection of one window of a segment."""
    return DetectionRow(
        "marginals", "marginals", "drift", "FeatureDrift", "segment", name, hour * HOUR_US, (hour + 1) * HOUR_US,
        None, None, None, None, 70 + hour, verdict, evidence,
    )  # fmt: skip


def incident(name: str, opened: float, cleared: float | None = None) -> IncidentRow:
    """An incident of a segment."""
    return IncidentRow(
        alert_id=f"id of {name}", model="m", event="FeatureDrift", family="drift", severity="minor", subject_kind="segment",
        subject_id=name, open=cleared is None, quiet=False, seq=1, opened_us=round(opened * HOUR_US), updated_us=round(opened * HOUR_US),
        cleared_us=None if cleared is None else round(cleared * HOUR_US), detector="marginals", statistic=None, threshold=None,
        p_value=None, log_e=None, n=None, window_us=None, techniques=(), text="", evidence={},
    )  # fmt: skip


def feature(name: str, log_e: float, **more: Any) -> dict[str, Any]:
    """A feature in a segment's evidence."""
    return {"name": name, "log_e": log_e, "wasserstein": 0.1, **more}


def told(*rows: DetectionRow, incidents: tuple[IncidentRow, ...] = ()) -> dict[str, SegmentRow]:
    """Segments by name."""
    return {s.name: s for s in segments(rows, incidents)}


def test_evidence_is_that_of_the_most_changed_feature() -> None:
    """It runs over windows as the page's features do; what a window does not store counts as its least, not as nothing."""
    strong = [
        detection("QA", h, features=[feature("amount", 2.0, smallest=12.5), feature("age", -1.0)]) for h in (0, 1)
    ]
    other = detection("QA", 2, features=[feature("age", -0.5)])
    found = told(*strong, other)["QA"]
    assert (found.state, found.rows, found.windows, found.feature) == ("healthy", 72, 3, "amount")
    alone = told(*strong)["QA"]
    assert alone.evidence == pytest.approx(4.13, abs=0.01)
    assert alone.smallest == [("amount", "12.5")]
    assert segments(strong, (), {"amount": "QAR"})[0].smallest == [("amount", "12.5 QAR")]
    assert found.evidence == pytest.approx(3.64, abs=0.01)


def test_a_segment_says_why_it_is_not_judged() -> None:
    """Learning and too little data are states of their own."""
    found = told(
        detection("QA", 0, "insufficient", reason="learning: 12 of 50 windows"),
        detection("AE", 0, "insufficient", reason="fewer than 20 rows in the window"),
    )
    assert (found["QA"].words, found["QA"].why) == ("learning", "learning: 12 of 50 windows")
    assert (found["AE"].words, found["AE"].evidence) == ("too little data", None)


def test_an_open_incident_comes_first_and_an_ended_one_restarts_the_evidence() -> None:
    """Whatever the evidence is; and what is no segment any more is not shown."""
    rows = [detection(n, h, features=[feature("amount", 1.0)]) for h in (0, 1) for n in ("QA", "AE")]
    gone = detection("BH", 0, features=[feature("amount", 1.0)])
    found = segments([gone, *rows], [incident("AE", 1), incident("QA", 1.0, cleared=1.5)])
    assert [(s.name, s.state) for s in found] == [("AE", "incident"), ("QA", "healthy")]
    assert found[0].incident == "id of AE"
    assert found[1].evidence == pytest.approx(1.0)
    assert found[0].evidence == pytest.approx(2.31, abs=0.01)


def test_a_category_tells_its_smallest_shift_as_a_share() -> None:
    """Numbers have a unit, categories a share of the rows."""
    row = {"name": "channel", "log_e": 0.1, "wasserstein": None, "smallest": 0.045}
    assert told(detection("QA", 0, features=[row]))["QA"].smallest == [("channel", "4.5% of rows")]
