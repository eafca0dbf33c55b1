"""Per-feature views of stored detections and counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa

from monitor.model import HOUR_US
from monitor.reports import features
from monitor.store import queries
from monitor.store.queries import DetectionRow
from tests import scenes


def detection(hour: int, verdict: str = "ok", **values: object) -> DetectionRow:
    """A stored detection of one window that names one feature `x`."""
    evidence = {"features": [{"name": "x", **values}]} if values else {}
    a, b = hour * HOUR_US, (hour + 1) * HOUR_US
    return DetectionRow(
        "marginals",
        "marginals",
        "drift",
        "FeatureDrift",
        "model",
        "m",
        a,
        b,
        None,
        None,
        None,
        None,
        100,
        verdict,
        evidence,
    )


def test_evidence_accumulates_and_never_goes_below_zero() -> None:
    """Evidence adds up while windows speak against 'no change', and old quiet windows do not pay for new ones."""
    (series,) = features.series([detection(i, log_e=-1.0 if i < 10 else 2.0) for i in range(15)], "evidence")
    values = [p.value or 0.0 for p in series.points]
    assert max(values[:10]) < 0.7
    assert np.all(np.diff(values[9:]) > 1.5)


def test_a_window_without_counts_is_a_gap() -> None:
    """A window that named no feature leaves a gap, and the sum goes on after it."""
    (series,) = features.series([detection(0, psi=0.1), detection(1), detection(2, psi=0.2)], "psi")
    assert [p.value for p in series.points] == [0.1, None, 0.2]
    assert series.latest["psi"] == 0.2


@pytest.mark.parametrize("bad", ["text", None, True, float("nan"), float("inf"), [1]])
def test_evidence_that_is_no_number_is_a_gap(bad: object) -> None:
    """Nothing that a store can hold breaks the view."""
    (series,) = features.series([detection(0, psi=bad)], "psi")
    assert series.last is None


def test_the_most_changed_feature_comes_first() -> None:
    """Features are ordered by how far they are from the reference over the range."""
    row = detection(0, psi=0.1)
    rows = {"features": [{"name": n, "psi": v} for n, v in (("a", 0.1), ("b", 0.4), ("c", 0.2))]}
    found = features.series([replace(row, evidence=rows)], "psi")
    assert [s.name for s in found] == ["b", "c", "a"]


def test_shares_of_bins_add_up_to_one(scene: sa.Engine) -> None:
    """Reference and current shares of a stored feature are distributions over the same bins."""
    model = queries.one_model(scene, "card-fraud", scenes.NOW_US, clock="wall", grace_us=0)
    assert model is not None
    body = queries.calibration(scene, model.model_id, "profile", model.reference_hash)
    counts = features.counted(body, queries.counts(scene, model.model_id, model.reference_hash, 0, scenes.END_US))
    assert counts is not None
    for name in counts.names:
        shape = counts.shape(name)
        assert shape is not None
        assert sum(shape.reference) == pytest.approx(1)
        assert sum(shape.current) == pytest.approx(1)
        assert len(shape.labels) == len(set(shape.labels))
    assert counts.shape("no such feature") is None


def test_without_a_stored_reference_there_is_nothing_to_compare() -> None:
    """No calibration, no picture."""
    assert features.counted(None, []) is None


def test_evidence_starts_afresh_when_an_incident_ends() -> None:
    """After an incident has ended, old evidence no longer darkens the picture."""
    found = [detection(i, log_e=2.0 if i < 8 else -0.5) for i in range(12)]
    (carried,) = features.series(found, "evidence")
    (fresh,) = features.series(found, "evidence", [9 * HOUR_US + 1])
    assert (carried.last or 0.0) > 10
    assert (fresh.last or 0.0) < 1
    assert max(p.value or 0.0 for p in fresh.points[:9]) > 10


def test_distances_of_small_windows_are_shaded_against_their_own_usual() -> None:
    """A feature whose windows are noisy is not dark all over; the window that stands out is."""
    psi = features.MEASURES["psi"]
    (noisy,) = features.series([detection(i, psi=4.0 if i == 30 else 0.5 + 0.1 * (i % 3)) for i in range(40)], "psi")
    shades = [features.level(psi, p.value or 0.0, noisy.usual) for p in noisy.points]
    assert shades[30] == 4
    assert sum(shades) == 4
