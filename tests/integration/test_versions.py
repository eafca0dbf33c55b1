"""A new model version is a mark, and is compared with the old one's windows by the drift engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from detectors.drift.marginals import VERSION
from monitor.model import HOUR_US
from monitor.service import renewal
from monitor.service.compose import open_service
from monitor.store import alertlog, comparisons, people
from monitor.store.engine import read
from monitor.web import create_app
from tests.smalllogs import MODEL, START_US, feed, jsonl, made, service

NEW = "2 <b>"


def test_a_new_version_is_marked_and_compared(tmp_path: Path) -> None:
    """Its first answer is one mark; a day later answers and features are compared, again later, and no incident comes of it."""
    jsonl(tmp_path / "a.jsonl", made(range(-60, 0)))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    feed(found, made(range(60), seed=2))
    events = made(range(60, 70), seed=3, shift=1.2, version=NEW)
    feed(found, events)
    found.close()
    found = open_service(found.config, "test")  # a restart marks nothing again
    feed(found, made(range(70, 80), seed=4, shift=1.2, version=NEW))
    with read(found.engine) as conn:
        (mark,) = [m.mark for m in people.marks_since(conn, MODEL, 0)]
    assert (mark.kind, mark.start_us, mark.actor) == ("version", events[0].event_time_us, "lanner")
    assert "2 <b> answers for the first time" in mark.text
    key = found.tables[MODEL].model_id
    renewal.attend(found, MODEL, 1)
    assert comparisons.listed(found.engine, key) == []  # too early

    feed(found, made(range(80, 90), seed=5, shift=1.2, version=NEW))
    for _ in range(2):
        renewal.attend(found, MODEL, 2)
    (pair,) = comparisons.listed(found.engine, key)
    assert (pair["old"], pair["new"], pair["verdict"], pair["final"]) == ("1", NEW, "changed", False)
    assert pair["rows"] == [60 * 20, 30 * 20 - 1]
    (drift,) = alertlog.find(found.engine)  # of the traffic's shift, not of the comparison
    assert (drift.evidence["model_version"], drift.evidence["detector_version"]) == (NEW, VERSION)
    by = {f["name"]: f for f in pair["features"]}
    assert by["score:yes"]["answer"]
    assert by["x"]["after"] - by["x"]["before"] > 0.8
    assert by["y"]["share"] is None
    assert sum(f["share"] or 0.0 for f in pair["features"]) > 0.9

    client = TestClient(create_app(found.config, found.engine), base_url="http://127.0.0.1")
    assert client.get(f"/api/v1/models/{MODEL}/versions").json()["items"][0]["verdict"] == "changed"
    for address in (f"/models/{MODEL}", f"/models/{MODEL}/report"):
        body = client.get(address).text
        assert "Version 2 &lt;b&gt; against 1" in body
        assert "sees a difference" in body
    found.close()


def test_an_equal_version_and_a_short_history(tmp_path: Path) -> None:
    """A version that answers alike is called the same; with too few windows of the old one only sizes are told."""
    for hours, verdict in ((70, "same"), (30, "learning")):
        folder = tmp_path / str(hours)
        folder.mkdir()
        jsonl(folder / "a.jsonl", made(range(-10, 0)))
        found = service(folder, {"reference": {"file": "a.jsonl"}})
        feed(found, made(range(hours), seed=2) + made(range(hours, hours + 30), seed=3, version="2"))
        renewal.attend(found, MODEL, 1)
        (pair,) = comparisons.listed(found.engine, found.tables[MODEL].model_id)
        assert pair["verdict"] == verdict
        assert pair["features"][0]["js"] is not None
        assert pair["until_us"] >= START_US + (hours + 29) * HOUR_US
        found.close()


def test_a_version_whose_log_is_a_sample_is_compared_by_its_traffic(tmp_path: Path) -> None:
    """One category of the new version is logged at a declared quarter: by its traffic it is the same; its rows would differ."""
    jsonl(tmp_path / "a.jsonl", made(range(-10, 0)))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    rng, new = np.random.default_rng(5), made(range(60, 86), 40, seed=3, version="2")
    parts = [0.25 if (e.features or {})["c"] == "a" else 1.0 for e in new]
    told = [
        msgspec.structs.replace(e, sampling_fraction=f)
        for e, f in zip(new, parts, strict=True)
        if f == 1 or rng.random() < f
    ]
    feed(found, made(range(60), 40, seed=2) + told)
    renewal.attend(found, MODEL, 1)
    (pair,) = comparisons.listed(found.engine, found.tables[MODEL].model_id)
    assert pair["verdict"] == "same"
    assert pair["rows"][1] == pytest.approx(len(new), rel=0.1)
    (c,) = (f for f in pair["features"] if f["name"] == "c")
    assert c["js"] < 0.05
    found.close()
