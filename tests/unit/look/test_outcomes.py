"""How page and report name what labels say."""

from __future__ import annotations

from detectors.base import Detection
from detectors.performance.labelled import Performance
from monitor.reports.outcomes import outcomes
from monitor.store.queries import DetectionRow
from tests.judging import Court, known_later


def row(d: Detection) -> DetectionRow:
    """A detection as the store gives it back."""
    return DetectionRow(
        "performance", d.detector, d.family.value, d.event.value, d.subject.kind, d.subject.id, d.window_us[0], d.window_us[1],
        d.statistic, d.p_value, d.log_e, d.threshold, d.n, d.verdict.value, d.evidence,
    )  # fmt: skip


def test_event_time_label_time_and_estimate_are_three_lines() -> None:
    """Each says which it is; an estimate that is off says why."""
    detector = Performance(delay_s=0.0)
    court = Court(detector, detector.calibrate([], "none"))
    for i in range(3):
        court.window(known_later(i))
    by_event, by_label, estimate = outcomes([row(d) for d in court.detections])
    assert "event time" in by_event.way
    assert by_event.events == 100
    assert by_event.accuracy is not None
    assert by_event.band[0] < by_event.accuracy < by_event.band[1]
    assert "configured" in by_event.note
    assert "label time" in by_label.way
    assert estimate.accuracy is None
    assert "off: checked in 3 of 10 windows" in estimate.note
    assert "of fraud: off: precision, recall, f1, auc" in estimate.note


def test_nothing_is_told_before_labels_come() -> None:
    """No labels, no lines."""
    assert outcomes([]) == []
