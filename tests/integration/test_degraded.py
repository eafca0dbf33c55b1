"""When a sink fails, the others say so: real receivers, a real scheduler, and a clock that is passed in."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alerts import pipeline
from alerts.alerta import Alerta
from alerts.base import SinkRejected
from alerts.memory import MemorySink
from alerts.registry import sinks as configured
from monitor.errors import StoreError
from monitor.intake import Advance, IngestBatch, Placed
from monitor.model import SECOND_US, Event, InferenceEvent, OutboxState, Severity, Transition, stable_id
from monitor.scheduler import Jobs, clockwork
from monitor.service import health
from monitor.service.compose import Service
from monitor.service.system import system_tick
from monitor.store import alertlog, ledger
from monitor.store.outbox import SqlOutbox, rows
from tests.contract.test_sinks import receiving
from tests.running import eventually
from tests.servers import proxy as proxies
from tests.servers.alerta import Alerta as Server
from tests.soc import Api, service_of, stored


def test_the_second_sink_hears_that_the_first_is_behind(tmp_path: Path, alerta: Server, api: Api, name: str) -> None:
    """Ten minutes after the first alert that Alerta did not take, and not before; over when Alerta has caught up."""
    start = time.time_ns() // 1000
    with receiving() as chat, proxies.running(alerta.port) as proxy:
        sinks = {
            "soc": {"type": "alerta", "url": proxy.url, "key": alerta.key},
            "duty": {"type": "apprise", "target": chat.url.replace("http://", "json://")},
        }
        service = service_of(tmp_path, sinks=sinks)
        both, outbox, rng = configured(service.config), SqlOutbox(service.engine), random.Random(1)

        def at(seconds: float) -> list[Event]:
            """One pass of the service at this time; what is open about Lanner itself."""
            now_us = start + round(seconds * SECOND_US)
            system_tick(service, now_us)
            pipeline.deliver(outbox, both, "test", now_us, rng)
            return [a.event for a in alertlog.find(service.engine) if a.open and a.model != "m"]

        proxy.always = proxies.answers(503, '{"message": "maintenance"}')
        late = stored(service, name, opened_us=start)
        for seconds in (1, 60, 300, 599):
            assert at(seconds) == []
        assert chat.seen == []
        assert at(602) == [Event.DELIVERY_DEGRADED]
        (first,) = (json.loads(body) for _, body in chat.seen)
        assert "sink soc" in first["title"]
        assert "1 alerts wait, the oldest for more than ten minutes" in first["message"]
        proxy.always = None
        for seconds in (905, 1205, 1505, 1805):  # every wait for a retry is shorter than these five minutes
            open_now = at(seconds)
        assert open_now == []
        assert api.one(late)["status"] == "open"
        titles = [json.loads(body)["title"] for _, body in chat.seen]
        assert [t.startswith("CLEARED") for t in titles] == [False, True]
        lanner = [
            r for r in api.call("GET", "/alerts?event=DeliveryDegraded")["alerts"] if r["origin"].startswith("lanner")
        ]
        assert lanner == []  # never told to the sink that it is about
        service.close()


def about(service: Service, seconds: float, start: int) -> dict[str, str]:
    """What stands open about Lanner itself after a system tick so long after the start: subject -> reason."""
    system_tick(service, start + round(seconds * SECOND_US))
    found = [a for a in alertlog.find(service.engine) if a.open and a.model != "m"]
    return {f"{a.event.value} {a.subject.kind}:{a.subject.id}": str(a.evidence["reason"]) for a in found}


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Service]:
    """A service with one file source and nothing that runs."""
    service = service_of(tmp_path, sources={"files": {"type": "files", "paths": ["*.jsonl"]}})
    yield service
    service.close()


def read_up_to(service: Service, offset: int, event_us: int, now_us: int, *, at_end: bool) -> None:
    """What a collector does: claim, store up to an offset with events of this time, report whether that is the end."""
    key = ("t", 0)
    claim = service.log.claim("files", "me", [key])[key]
    step = Advance("t", 0, claim.epoch, claim.next_offset, offset, event_us)
    service.log.append(IngestBatch("files", now_us, (), advances=[step]))
    service.log.report("files", "me", {key: at_end}, now_us)


def test_a_collector_that_lags_or_dies_is_an_incident(lone: Service) -> None:
    """A quarter of an hour behind, or five minutes without a word; each ends after three good looks."""
    start = time.time_ns() // 1000
    name = "MonitorDegraded component:collector files"
    read_up_to(lone, 10, start - 1000 * SECOND_US, start, at_end=False)
    assert "lags" in about(lone, 1, start)[name]
    read_up_to(lone, 20, start, start + 2 * SECOND_US, at_end=True)
    assert [name in about(lone, s, start) for s in (3, 4, 5)] == [True, True, False]
    assert about(lone, 300, start) == {}
    assert "has not reported for five minutes" in about(lone, 303, start)[name]


def test_a_source_that_never_comes_is_an_incident(lone: Service) -> None:
    """Five minutes after a scheduler first knew of it, and until something is read; a restart gives it no time anew."""
    start = time.time_ns() // 1000
    name = "MonitorDegraded component:collector files"
    Jobs(lone, {})
    assert name not in about(lone, 290, start)
    Jobs(lone, {})
    assert "nothing was ever read" in about(lone, 310, start)[name]
    read_up_to(lone, 10, start + 310 * SECOND_US, start + 311 * SECOND_US, at_end=True)
    assert [name in about(lone, s, start) for s in (312, 313, 314)] == [True, True, False]


def test_a_publisher_that_is_late_is_an_incident(lone: Service) -> None:
    """Recorded events that nobody publishes for more than a minute."""
    start = time.time_ns() // 1000
    key = ("t", 0)
    claim = lone.log.claim("files", "me", [key])[key]
    event = InferenceEvent(event_time_us=start, model="m", features={"x": 1.0})
    batch = IngestBatch(
        "files", start, [Placed("t", 0, 0, event)], advances=[Advance("t", 0, claim.epoch, None, 1, start)]
    )
    lone.log.append(batch)
    name = "MonitorDegraded component:publisher"
    assert name not in about(lone, 59, start)
    assert about(lone, 62, start)[name] == "recorded events are not published"
    Jobs(lone, {}).publish()
    assert [name in about(lone, s, start) for s in (63, 64, 65)] == [True, True, False]


def test_a_full_disk_is_an_incident(lone: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a gibibyte or five percent free in the store; the limit is raised here, as no test may fill a disk."""
    start = time.time_ns() // 1000
    assert about(lone, 1, start) == {}
    monkeypatch.setattr(health, "DISK_BYTES", 1 << 62)
    monkeypatch.setattr(health, "DISK_SHARE", 1.0)
    assert "MiB are free in the store" in about(lone, 2, start)["MonitorDegraded component:disk"]


def test_a_stopped_source_and_a_refusing_sink_are_incidents(lone: Service) -> None:
    """What a collector reports of its source, and alerts that a sink refused for good."""
    start = time.time_ns() // 1000
    ledger.beat(lone.engine, "source:files", start, {"problems": {"t/0": "offsets 5 to 9 are lost"}})
    assert about(lone, 1, start)["MonitorDegraded source:files"] == "t/0: offsets 5 to 9 are lost"
    stored(lone, "p1", opened_us=start)
    refusing = MemorySink("soc", fail=refuse)
    pipeline.deliver(SqlOutbox(lone.engine), {"soc": refusing}, "test", start, random.Random(1))
    assert "refused alerts for good" in about(lone, 2, start)["MonitorDegraded sink:soc"]


def refuse(transition: Transition) -> None:
    """As a sink answers 403."""
    raise SinkRejected("403")


def test_a_dead_detector_is_seen_in_alerta(lone: Service, alerta: Server, api: Api) -> None:
    """Three schedules and a minute after its last run the row is there; the age of the incident makes it critical a day later."""
    start = time.time_ns() // 1000
    detector = f"m/{stable_id('dead detector')[:8]}"
    ledger.beat_all(lone.engine, {f"detector:{detector}": {"schedule_s": 60.0}}, start)
    sink = Alerta("soc", alerta.url, alerta.key)

    def shown(seconds: float) -> list[str]:
        about(lone, seconds, start)
        now_us = start + round(seconds * SECOND_US)
        pipeline.deliver(SqlOutbox(lone.engine), {"soc": sink}, "test", now_us, random.Random(1))
        rows = api.call("GET", "/alerts?event=DetectorSilent")["alerts"]
        return [r["severity"] for r in rows if detector in r["resource"]]

    assert shown(239) == []
    assert shown(241) == ["major"]
    assert shown(241 + 86_400) == ["critical"]
    (row,) = [r for r in api.call("GET", "/alerts?event=DetectorSilent")["alerts"] if detector in r["resource"]]
    assert "more severe because it lasts" in row["text"]


def test_a_model_whose_ticks_fail_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are judged, and after four minutes there is one incident about it, which its next tick ends."""
    service = service_of(tmp_path, models={"a": {}, "b": {}}, sinks={}, routes=[])
    clock = [time.time_ns() // 1000]
    jobs = Jobs(service, {})
    monkeypatch.setattr(jobs, "now_us", lambda: clock[0])
    first = service.model("a", clock[0])

    def broken(*_: object, **__: object) -> bool:
        raise StoreError("a page of its table cannot be read")

    with monkeypatch.context() as broke:
        broke.setattr(first, "tick", broken)
        seen: list[list[str]] = []
        for minutes in (0, 3, 5):
            clock[0] += minutes * 60 * SECOND_US
            jobs.tick()
            seen.append([f"{a.event.value} {a.subject.id}" for a in alertlog.find(service.engine) if a.open])
    assert seen == [[], [], ["DetectorSilent model a"]]
    beats = ledger.beats(service.engine)
    assert beats["model:b"][0] > beats["model:a"][0]
    clock[0] += SECOND_US
    jobs.tick()
    clock[0] += SECOND_US
    jobs.tick()
    assert [a.open for a in alertlog.find(service.engine)] == [False]
    service.close()


class Hung:
    """A sink that never comes back from a call until it is let go."""

    name = "hung"

    def __init__(self) -> None:
        self.entered, self.free = threading.Event(), threading.Event()

    def send(self, transition: Transition, *, timeout_s: float) -> None:
        self.entered.set()
        self.free.wait(60)


def test_a_hung_sink_holds_up_no_other(tmp_path: Path, alerta: Server, api: Api, name: str) -> None:
    """The scheduler's own threads: Alerta shows alert after alert within five seconds, while another sink hangs."""
    names = {"soc": {"type": "memory"}, "hung": {"type": "memory"}, "log": {"type": "memory"}}
    service = service_of(tmp_path, sinks=names, routes=[])
    hung, log = Hung(), MemorySink("log")
    jobs = Jobs(service, {"hung": hung, "soc": Alerta("soc", alerta.url, alerta.key), "log": log})
    scheduler = clockwork(service, jobs)
    scheduler.start()
    try:
        for i in range(3):
            began = time.monotonic()
            t = stored(service, f"{name}-{i}", severity=Severity.MAJOR)
            while not api.find(t) or len(log.sent) <= i:
                assert time.monotonic() - began < 5
                time.sleep(0.05)
        assert hung.entered.is_set()
        eventually(lambda: set(jobs.outbox.backlog(jobs.now_us())) == {"hung"}, 10)
        assert not hung.free.is_set()
    finally:
        hung.free.set()
        scheduler.shutdown(wait=True)
    jobs.deliver()
    states = {r.state for r in rows(service.engine, sink="hung")}
    assert states <= {OutboxState.SENT, OutboxState.UNKNOWN}
    service.close()
