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
from alerts.memory import MemorySink
from alerts.registry import sinks as configured
from monitor.model import SECOND_US, Event, OutboxState, Severity, Transition, stable_id
from monitor.scheduler import Jobs, clockwork
from monitor.service.system import system_tick
from monitor.store import alertlog
from monitor.store.outbox import SqlOutbox, rows
from tests.contract.test_sinks import receiving
from tests.integration.test_alerta import Api
from tests.integration.test_kafka import until
from tests.integration.test_people import service_of, stored
from tests.servers import proxy as proxies
from tests.servers.alerta import Alerta as Server


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A subject of the test's own, as the server is shared."""
    return "t-" + stable_id(request.node.nodeid)[:12]


@pytest.fixture
def api(alerta: Server) -> Iterator[Api]:
    made = Api(alerta)
    yield made
    made.session.close()


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
        until(lambda: set(jobs.outbox.backlog(jobs.now_us())) == {"hung"}, 10)
        assert not hung.free.is_set()
    finally:
        hung.free.set()
        scheduler.shutdown(wait=True)
    jobs.deliver()
    states = {r.state for r in rows(service.engine, sink="hung")}
    assert states <= {OutboxState.SENT, OutboxState.UNKNOWN}
    service.close()
