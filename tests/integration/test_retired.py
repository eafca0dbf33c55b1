"""What becomes of incidents whose monitor, component or model leaves the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detectors.anomaly.volume import Volume
from monitor.model import HOUR_US, SECOND_US, UNREGISTERED, Act, Action, Alert, Event, Said
from monitor.service.system import system_tick
from monitor.store import alertlog, ledger, people
from monitor.store.engine import write
from tests.smalllogs import MODEL, START_US, feed, jsonl, made, service

REFERENCE = {"reference": {"file": "a.jsonl"}}


def monitor(detector: str, **fields: Any) -> dict[str, Any]:
    """The configuration of one monitor in the place of the default one."""
    return {"monitors": {"own": {"model": MODEL, "detector": detector, **fields}}}


def standing(run: Any) -> dict[Event, Alert]:
    """What is open about the model."""
    with run.engine.connect() as conn:
        return {a.event: a for a in alertlog.open_alerts(conn, MODEL)}


@pytest.mark.parametrize("later", [{"enabled": False}, {"window": "2h"}])
def test_a_drift_ends_with_its_monitor(tmp_path: Path, later: dict[str, Any]) -> None:
    """Switched off, or judging windows of another length: what it had found nobody would ever end."""
    jsonl(tmp_path / "a.jsonl", made(range(-150, 0)))
    run = service(tmp_path, REFERENCE, **monitor("marginals"))
    feed(run, made(range(30), seed=3, shift=2.0))
    drifts = {Event.FEATURE_DRIFT, Event.PREDICTION_DRIFT} & standing(run).keys()
    assert drifts
    run.close()
    again = service(tmp_path, REFERENCE, **monitor("marginals", **later))
    feed(again, made(range(30, 34), seed=4))
    ended = [t.alert for t in again.live[MODEL].committed if t.action is Action.CLEAR]
    assert {a.event for a in ended} == drifts
    assert not drifts & standing(again).keys()
    work = again.live[MODEL].work
    assert work is not None
    assert not work.feedback.frozen
    again.close()


def test_a_silence_that_nobody_watches_any_more_silences_nothing(tmp_path: Path) -> None:
    """While DataMissing is open no drift opens: it must not outlive the monitor that would end it."""
    jsonl(tmp_path / "a.jsonl", made(range(-150, 0)))
    run = service(tmp_path, REFERENCE, **monitor("missing", params={"limit_s": 1800}))
    feed(run, made(range(3), seed=3))
    assert run.live[MODEL].tick("test", START_US + 5 * HOUR_US, clock="wall")
    assert Event.DATA_MISSING in standing(run)
    run.close()
    again = service(tmp_path, REFERENCE, **monitor("missing", enabled=False))
    feed(again, made(range(6, 30), seed=4, shift=2.0))
    assert Event.DATA_MISSING not in standing(again)
    assert {Event.FEATURE_DRIFT, Event.PREDICTION_DRIFT} & standing(again).keys()
    again.close()


def test_a_failing_detector_that_is_switched_off_fails_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its incident ends with it; that of another one stays."""
    jsonl(tmp_path / "a.jsonl", made(range(-150, 0)))

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Volume, "measure", fail)
    length = {"one": "1h", "two": "2h"}
    others: dict[str, Any] = {
        "monitors": {n: {"model": MODEL, "detector": "volume", "window": w} for n, w in length.items()}
    }
    run = service(tmp_path, REFERENCE, **others)
    feed(run, made(range(3), seed=3))
    with run.engine.connect() as conn:
        assert {a.subject.id for a in alertlog.open_alerts(conn, MODEL)} == {"one", "two"}
    run.close()
    del others["monitors"]["one"]
    again = service(tmp_path, REFERENCE, **others)
    feed(again, made(range(3, 5), seed=4))
    with again.engine.connect() as conn:
        assert {a.subject.id for a in alertlog.open_alerts(conn, MODEL)} == {"two"}
    again.close()


def test_what_is_configured_no_more_is_in_no_trouble(tmp_path: Path) -> None:
    """A silent model, a silent detector and a source never read: gone from the configuration they keep nobody from sleep."""
    jsonl(tmp_path / "a.jsonl", made(range(-1, 0)))
    source = {"in": {"type": "files", "paths": ["in/*.jsonl"]}}
    run = service(tmp_path, REFERENCE, clock="wall", sources=source)
    for name in (f"model:{MODEL}", "collector:in"):
        ledger.beat(run.engine, name, START_US)
    ledger.beat(run.engine, "source:in", START_US, {"problems": {"t/0": "offsets are lost"}})
    ledger.beat_all(run.engine, {f"detector:{MODEL}/volume": {"schedule_s": 60.0}}, START_US)
    system_tick(run, START_US + 239 * SECOND_US)
    system_tick(run, START_US + 400 * SECOND_US)

    def troubles(at: Any) -> set[str]:
        with at.engine.connect() as conn:
            return {
                f"{a.event.value} {a.subject.kind} {a.subject.id}" for a in alertlog.open_alerts(conn, UNREGISTERED)
            }

    silent = f"DetectorSilent component model {MODEL}"
    assert troubles(run) == {silent, "MonitorDegraded component collector in", "MonitorDegraded source in"}
    run.close()
    again = service(tmp_path, {}, clock="wall", models={"other": {}}, sources={"new": {"type": "http"}})
    made_now = system_tick(again, START_US + 500 * SECOND_US)
    assert {t.alert.evidence["reason"] for t in made_now} == {"no longer configured"}
    assert troubles(again) == set()
    again.close()


def test_a_verdict_ends_an_incident_of_a_model_that_is_gone(tmp_path: Path) -> None:
    """No tick of the model would apply it; nothing but a person ends it, and the model's own state is left alone."""
    jsonl(tmp_path / "a.jsonl", made(range(-150, 0)))
    run = service(tmp_path, REFERENCE)
    feed(run, made(range(30), seed=3, shift=2.0))
    found = standing(run)
    run.close()
    again = service(tmp_path, {}, clock="wall", models={"other": {}})
    now_us = START_US + 40 * HOUR_US
    system_tick(again, now_us)
    assert standing(again) == found
    drift = found[Event.FEATURE_DRIFT]
    with write(again.engine) as conn:
        people.say(
            conn,
            Act(drift.alert_id, "verdict", "ann", "it was retired", "cli", now_us, Said.TRUE, closes=True),
            drift,
            now_us,
        )
    system_tick(again, now_us)
    assert found.keys() - standing(again).keys() == {Event.FEATURE_DRIFT}
    with again.engine.connect() as conn:
        assert not people.pending(conn, MODEL)
    again.close()
    back = service(tmp_path, REFERENCE)
    feed(back, made(range(30, 31), seed=4))
    back.close()
