"""The middle of a tick on a real store: late rows, failing detectors, silence, restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from collectors.base import Advance, IngestBatch, Placed, Record
from collectors.decode import decoder_for
from detectors.anomaly.volume import Volume
from detectors.base import Calibration, Feedback, Measured, State, Window
from monitor.config import load
from monitor.model import HOUR_US, Action, Event, Family, InferenceEvent, Subject
from monitor.service.compose import Service, open_service
from monitor.service.live import LiveModel
from monitor.service.privacy import pseudonym
from monitor.service.watch import Monitor
from monitor.store.references import of_model
from tests.alerting import alert
from tests.stories import MODEL, START_US, story, write_config, write_jsonl


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    file = write_config(tmp_path, clock="log", privacy={"principals": "plain"}, store={"path": "data"})
    opened = open_service(load(file), "test")
    yield opened
    opened.close()


def events(service: Service, hours: float) -> list[InferenceEvent]:
    """The story's first hours, decoded."""
    decode = decoder_for("native", service.config)
    found = [decode(Record("s", "t", 0, i, None, json.dumps(e).encode()))[0] for i, e in enumerate(story().log)]
    return [e for e in found if isinstance(e, InferenceEvent) and e.event_time_us < START_US + hours * HOUR_US]


def ingest(service: Service, parts: list[InferenceEvent], at: int = 0) -> None:
    """Append and publish as one batch."""
    epoch = service.log.claim("s", "test", [("t", 0)])["t", 0].epoch
    high = max(p.event_time_us for p in parts)
    step = Advance("t", 0, epoch, at or None, at + len(parts), high)
    placed = [Placed("t", 0, at + i, p) for i, p in enumerate(parts)]
    service.log.append(IngestBatch(source="s", received_us=high, parts=placed, advances=[step]))
    service.publisher().publish(service.tables[MODEL].model_id, high)


def tick(service: Service, *, close: bool = False) -> LiveModel:
    """One tick of the story's model."""
    live = service.model(MODEL, 0)
    assert live.tick("test", START_US, clock="log", close=close)
    return live


def window_states(live: LiveModel) -> dict[str, bytes]:
    """What windows have left behind."""
    assert live.work is not None
    return {
        n: s.to_bytes() for n, s in live.work.states.items() if n in ("budget", "detector:marginals", "detector:volume")
    }


def test_late_rows_amend_state_but_not_judgements(service: Service, tmp_path: Path) -> None:
    """Rows that come hours late leave the state as if they had been on time; the ledger keeps what was judged without them."""
    parts = events(service, 30)
    late = [p for p in parts if START_US + 10 * HOUR_US <= p.event_time_us < START_US + 10.5 * HOUR_US]
    assert len(late) > 3
    early = [p for p in parts if p not in late]
    cut = next(i for i, p in enumerate(early) if p.event_time_us > START_US + 14 * HOUR_US)
    ingest(service, early[:cut])
    tick(service)
    ingest(service, late + early[cut:], at=cut)
    amended = tick(service, close=True)
    (tmp_path / "punctual").mkdir()
    file = write_config(tmp_path / "punctual", clock="log", privacy={"principals": "plain"}, store={"path": "data"})
    other = open_service(load(file), "test")
    ingest(other, parts)
    punctual = tick(other, close=True)
    assert window_states(amended) == window_states(punctual)
    rows = {r.end_us: r.n for r in _ledger(service) if r.monitor == "marginals"}
    whole = {r.end_us: r.n for r in _ledger(other) if r.monitor == "marginals"}
    other.close()
    end = START_US + 11 * HOUR_US
    assert rows[end] == whole[end] - len(late)
    assert {e: n for e, n in rows.items() if e != end} == {e: n for e, n in whole.items() if e != end}


def test_state_survives_a_restart(service: Service) -> None:
    """A process that starts from the store goes on as if it had never ended."""
    parts = events(service, 20)
    ingest(service, parts[:300])
    before = tick(service)
    kept = window_states(before)
    service.live.clear()
    ingest(service, parts[300:310], at=300)
    after = tick(service)
    assert after is not before
    assert {n: s for n, s in window_states(after).items() if n != "budget"}.keys() >= {"detector:marginals"}
    assert kept.keys() == window_states(after).keys()


def test_a_new_reference_ends_what_rests_on_the_old_one(service: Service) -> None:
    """Of callers that is use that crept up, whose habits start anew; suspected attacks stay."""
    ingest(service, events(service, 2))
    live = tick(service)
    assert live.work is not None
    kinds = (
        (Event.TRAFFIC_ANOMALY, "principal"),
        (Event.ATTACK_SUSPECTED, "principal"),
        (Event.FEATURE_DRIFT, "segment"),
    )
    same = replace(alert(), model=MODEL)
    opened = [replace(same, alert_id=kind + event, event=event, subject=Subject(kind, "x")) for event, kind in kinds]
    live.work.open = {a.key: a for a in opened}
    live._rebase(live.work)
    assert [a.event for a in live.work.open.values()] == [Event.ATTACK_SUSPECTED]


def test_segments_and_context_of_the_configuration_are_counted(tmp_path: Path) -> None:
    """Callers of the reference are known under their stored names; parts that change begin anew, old counts are left alone."""
    model = {"reference": {"file": "reference.jsonl"}, "segments": ["principal"], "context": ["worst_area"]}
    sections: dict[str, Any] = {"clock": "log", "store": {"path": "data"}}
    file = write_config(tmp_path, **{**sections, "models": {MODEL: model}})
    few = [e for e in story().reference if e["principal"] in ("client-00", "client-01")]
    write_jsonl(tmp_path / "reference.jsonl", few)
    opened = open_service(load(file), "test")
    stored = pseudonym(opened.config)
    parts = [msgspec.structs.replace(p, principal=stored(p.principal or "")) for p in events(opened, 12)]
    ingest(opened, parts[:100])
    live = tick(opened)
    assert live.work is not None
    lengths = {m.name: m.window_us for m in live.watched.monitors if m.reads == "windows"}
    assert (lengths["marginals"], lengths["volume"]) == (24 * HOUR_US, HOUR_US)  # two rows an hour: judged by days
    profile = next(iter(live.work.profiles.values()))
    segments = live.watched.bins.strata.segments
    assert len(segments) == 2
    assert segments[0].name.startswith("principal:h1-")
    assert profile.parts[1:].sum() > 0
    assert profile.parts[0].sum() == profile.counts.sum()
    opened.close()
    file.write_text(json.dumps({**sections, "models": {MODEL: {"reference": {"file": "reference.jsonl"}}}}))
    again = open_service(load(file), "test")
    ingest(again, parts[100:], at=100)
    live = tick(again)
    assert live.work is not None
    assert all(p.key == live.watched.bins.key for p in live.work.profiles.values())
    again.close()


def test_segments_that_nobody_named_are_found_and_stay(tmp_path: Path) -> None:
    """`segments: auto` counts parts of the reference; its findings say which; a restart divides in the same way."""
    model = {"reference": {"file": "reference.jsonl"}, "segments": "auto"}
    file = write_config(tmp_path, clock="log", store={"path": "data"}, models={MODEL: model})
    write_jsonl(tmp_path / "reference.jsonl", story().reference[::4])
    opened = open_service(load(file), "test")
    ingest(opened, events(opened, 12))
    live = tick(opened)
    assert live.work is not None
    bins = live.watched.bins
    chosen = [s.name for s in bins.strata.segments]
    assert len(chosen) == 12
    assert next(iter(live.work.profiles.values())).parts.sum() > 0
    (row,) = of_model(opened.engine, opened.tables[MODEL].model_id)
    told = [f["text"] for f in row.findings if f["code"] == "segments"]
    assert all(sum(name in text for text in told) == 1 for name in chosen)
    opened.close()
    again = open_service(load(file), "test")
    assert again.model(MODEL, 0).watched.bins.key == bins.key
    again.close()


def test_a_newer_detector_learns_anew(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version of a detector learnt from the reference is left alone, and nothing is judged with it."""
    before = {m.name: m.calibration.hash for m in service.model(MODEL, 0).watched.monitors}
    monkeypatch.setattr(Volume, "version", Volume.version + 1)
    calibrate = Volume.calibrate
    monkeypatch.setattr(
        Volume, "calibrate", lambda self, *args: replace(calibrate(self, *args), version=Volume.version)
    )
    again = open_service(service.config, "test")
    after = {m.name: m.calibration.hash for m in again.model(MODEL, 0).watched.monitors}
    again.close()
    assert {name for name in before if before[name] != after[name]} == {"volume"}


@dataclass(frozen=True)
class Brittle:
    """A detector that fails in its third window."""

    name: ClassVar[str] = "brittle"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = 1

    def calibrate(self, reference: Any, reference_hash: str) -> Calibration:
        return Calibration(self.name, 1, reference_hash, {})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        seen = int(state.meta["seen"]) if state is not None else 0
        if START_US + 2 * HOUR_US <= window.start_us < START_US + 3 * HOUR_US:
            raise ZeroDivisionError("secret text from a log")
        return Measured(State(self.name, 1, cal.hash, {"seen": seen + 1}))


def test_a_failing_detector_is_an_incident_of_its_own(service: Service) -> None:
    """The others go on; the incident opens, says nothing that a log said, and clears after good runs."""
    live = service.model(MODEL, 0)
    brittle = Monitor("brittle", Brittle(), Brittle().calibrate((), "r"), HOUR_US)
    live.watched = replace(live.watched, monitors=(*live.watched.monitors, brittle))
    ingest(service, events(service, 12))
    live = tick(service)
    failed = [t for t in live.committed if t.alert.event is Event.DETECTOR_FAILED]
    assert [t.action for t in failed] == [Action.OPEN, Action.CLEAR]
    assert "secret" not in json.dumps([t.to_json() for t in failed])
    outcomes = [r.outcome for r in _ledger(service) if r.monitor == "brittle"]
    assert outcomes.count("failed") == 1
    assert len([r for r in _ledger(service) if r.monitor == "marginals"]) == len(outcomes)


def test_silence_between_events(service: Service) -> None:
    """A gap longer than the reference ever had opens DataMissing when its limit passed and clears it with the next event."""
    parts = [p for p in events(service, 60) if not START_US + 20 * HOUR_US <= p.event_time_us < START_US + 50 * HOUR_US]
    ingest(service, parts)
    live = tick(service)
    missing = [t for t in live.committed if t.alert.event is Event.DATA_MISSING]
    assert [t.action for t in missing] == [Action.OPEN, Action.UPDATE, Action.CLEAR]  # it lasts for more than a day
    last = max(p.event_time_us for p in parts if p.event_time_us < START_US + 20 * HOUR_US)
    first = min(p.event_time_us for p in parts if p.event_time_us > START_US + 50 * HOUR_US)
    assert last < missing[0].time_us < START_US + 30 * HOUR_US
    assert missing[1].time_us == missing[0].time_us + 24 * HOUR_US
    assert missing[2].time_us == first


def _ledger(service: Service) -> list[Any]:
    from monitor.store import ledger

    return ledger.ledger_rows(service.engine, service.tables[MODEL].model_id, 0, 1 << 62)
