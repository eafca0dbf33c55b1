"""A new model version is a mark, and is compared with the old one's windows by the drift engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from detectors.drift.marginals import VERSION
from detectors.groups import load as load_groups
from detectors.profile import Profile
from monitor.model import HOUR_US, FeedbackEvent, InferenceEvent
from monitor.service import renewal, versions
from monitor.service.compose import open_service
from monitor.store import alertlog, comparisons, counts, people
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
    assert pair["rows"] == [60 * 20, 29 * 20]  # of hours that have ended
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
        assert "asked otherwise" in body
        assert "Versions and busy callers" in body
    groups = client.get(f"/api/v1/models/{MODEL}/groups").json()["items"]
    assert {(g["kind"], g["name"]) for g in groups} == {("version", "1"), ("version", NEW)}
    assert pair["answers_verdict"] == "other inputs"
    found.close()


def test_versions_are_compared_by_labels_that_had_the_same_time_to_come(tmp_path: Path) -> None:
    """Labels come an hour later; one answer in twenty of the old version is wrong, three in ten of the new one; windows
    that are younger than half of the new version's time are not looked at.
    """
    jsonl(tmp_path / "a.jsonl", made(range(-10, 0)))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    rng, old, new = np.random.default_rng(9), made(range(60), seed=2), made(range(60, 90), seed=3, version="2")
    parts: list[InferenceEvent | FeedbackEvent] = []
    for i, e in enumerate([*old, *new]):
        wrong = rng.random() < (0.3 if e.model_version == "2" else 0.05)
        truth = e.prediction if not wrong else "no" if e.prediction == "yes" else "yes"
        told = FeedbackEvent(
            model=MODEL,
            target={"request_id": str(i)},
            name="label",
            value=truth,
            label_time_us=e.event_time_us + HOUR_US,
        )
        parts += [msgspec.structs.replace(e, request_id=str(i)), told]
    feed(found, parts)
    renewal.attend(found, MODEL, 1)
    (pair,) = comparisons.listed(found.engine, found.tables[MODEL].model_id)
    errors, brier = pair["labels"]
    assert (errors["what"], errors["differs"], brier["what"]) == ("share of wrong answers", True, "Brier score")
    assert 0.02 < errors["before"] < 0.09
    assert 0.2 < errors["after"] < 0.4
    assert errors["band"][0] < errors["difference"] < errors["band"][1]
    client = TestClient(create_app(found.config, found.engine), base_url="http://127.0.0.1")
    for address in (f"/models/{MODEL}", f"/models/{MODEL}/report"):
        assert "share of wrong answers" in client.get(address).text
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
        assert pair["answers_verdict"] == "same"
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


def test_another_model_is_told_from_other_traffic(tmp_path: Path) -> None:
    """Side by side with the old one: a version that says yes more often to the same inputs answers otherwise; one that is
    asked other inputs does not, though both say yes more often. Of a day too little is known.
    """
    jsonl(tmp_path / "a.jsonl", made(range(-60, 0)))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    rng = np.random.default_rng(8)
    feed(found, made(range(30), 40, seed=2))
    events = made(range(30, 90), 60, seed=3) + made(range(30, 90), 30, seed=4, shift=0.7, version="asked")
    for e in made(range(31, 90), 30, seed=5, version="other"):
        p = min(0.999, (e.scores or [])[1] + 0.12)
        answer = {"prediction": "yes" if p > 0.5 else "no", "scores": [1 - p, p]}
        events.append(msgspec.structs.replace(e, model_version="other", latency_ms=80.0, **answer))
    events = [
        e if e.latency_ms else msgspec.structs.replace(e, latency_ms=float(rng.uniform(20, 40))) for e in events
    ]  # fmt: skip
    events.sort(key=lambda e: e.event_time_us)
    feed(found, events)
    watched = found.live[MODEL].watched
    told = {}
    for new, came in (("asked", 30), ("other", 31)):
        at = versions.Pair("1", new, START_US + came * HOUR_US, START_US + 90 * HOUR_US)
        told[new] = versions.compared(watched, at, versions.counted(found, watched, at))
    assert {v: t["answers_verdict"] for v, t in told.items()} == {"asked": "other inputs", "other": "other answers"}
    by = {v: {(a["name"], a["what"]): a for a in t["answers"]} for v, t in told.items()}
    score = ("score:yes", "mean")
    assert by["asked"][score]["differs"]
    assert not by["asked"][score]["same_inputs"]["differs"]
    assert by["asked"][score]["difference"] > 4 * abs(by["asked"][score]["same_inputs"]["difference"])
    assert by["other"][score]["same_inputs"]["difference"] == pytest.approx(0.12, abs=0.02)  # means go by bins
    slow = by["other"]["latency", "median ms"]
    assert slow["differs"]
    assert slow["after"] == pytest.approx(80, rel=0.1)
    assert not by["other"]["prediction", "missing"]["differs"]
    early = versions.Pair("1", "asked", START_US + 30 * HOUR_US, START_US + 34 * HOUR_US)
    few = versions.compared(watched, early, versions.counted(found, watched, early))
    assert few["answers_verdict"] == "learning"
    assert all(a["band"] is None for a in few["answers"])
    found.close()


def test_counts_of_versions_and_callers_are_those_of_their_rows(tmp_path: Path) -> None:
    """By ticks of any size, with late rows, and rebuilt from the log: the same groups, bounded, and sums of the whole."""
    jsonl(tmp_path / "a.jsonl", made(range(-60, 0)))
    events = [
        *made(range(6), 400, seed=2, caller="busy"), *made(range(6), 100, seed=3, caller="quiet", version="2"),
        *(e for i in range(12) for e in made(range(6), 220, seed=10 + i, caller=f"many {i}")),
    ]  # fmt: skip
    events.sort(key=lambda e: e.event_time_us)
    late = made(range(2, 3), 50, seed=90, caller="busy", version="2")
    tail = made(range(6, 8), 10, seed=91)
    stored = []
    for cut in (len(events), 7_000):
        folder = tmp_path / str(cut)
        folder.mkdir()
        jsonl(folder / "a.jsonl", made(range(-60, 0)))
        found = service(folder, {"reference": {"file": "a.jsonl"}})
        for at in range(0, len(events), cut):
            feed(found, events[at : at + cut])
        feed(found, tail)
        feed(found, [*late, *made(range(8, 9), 10, seed=92)])
        watched = found.live[MODEL].watched
        load = (found.engine, watched.model_id, watched.reference_hash, START_US, START_US + 6 * HOUR_US)
        ticked = counts.load_groups(*load)
        renewal.rebuild(found, watched, 1)
        assert counts.load_groups(*load) == ticked
        stored.append(ticked)
        found.close()
    assert stored[0] == stored[1]
    at, body, raw = stored[0][2]
    whole = Profile.from_bytes(body, watched.bins)
    by_version = {g.name: g for g in load_groups(raw, whole, "version")}
    assert at == START_US + 2 * HOUR_US
    assert {v: g.counts.n for v, g in by_version.items()} == {"1": 400 + 12 * 220, "2": 150}
    assert (by_version["1"].counts.counts + by_version["2"].counts.counts == whole.counts).all()
    callers = {g.name: g.counts.n for g in load_groups(raw, whole, "caller")}
    assert len(callers) == 8
    assert callers["busy"] == 450
    assert "quiet" not in callers
    assert len(raw) < 12_000
