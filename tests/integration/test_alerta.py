"""The Alerta sink against a real Alerta, and through a proxy that fails the ways networks and servers do."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alerts import lifecycle, pipeline
from alerts.alerta import Alerta
from alerts.alertarows import resource
from alerts.base import SinkRejected, SinkState, SinkSuppressed, SinkUnavailable, SinkUnknown
from alerts.memory import MemoryOutbox
from alerts.pipeline import Delivery
from alerts.policy import Policy
from monitor.cli import doctor
from monitor.config import Config
from monitor.model import Alert, Event, OutboxState, Severity, Subject, Transition
from monitor.store.engine import migrate, open_state, write
from monitor.store.outbox import SqlOutbox, enqueue, rows
from tests.alerting import at, cleared, opened, traffic, updated
from tests.servers import ROOT
from tests.servers import alerta as alerta_server
from tests.servers import proxy as proxies
from tests.servers.alerta import Alerta as Server
from tests.servers.postgres import Postgres
from tests.servers.proxy import Proxy
from tests.soc import Api

QUICK = Delivery(timeout_s=1.0, first_retry_s=0.05, longest_retry_s=0.2, reassert_s=0.5, refresh_s=30.0, stop_after=50)


@pytest.fixture
def sink(alerta: Server) -> Alerta:
    return Alerta("soc", alerta.url, alerta.key)


@pytest.fixture
def proxy(alerta: Server) -> Iterator[Proxy]:
    with proxies.running(alerta.port) as made:
        yield made


@pytest.fixture
def through(alerta: Server, proxy: Proxy) -> Alerta:
    """The sink with the proxy between."""
    return Alerta("soc", proxy.url, alerta.key, timeout_s=1.0)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[SqlOutbox]:
    """An outbox on SQLite."""
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(engine)
    yield SqlOutbox(engine)
    engine.dispose()


def fill(outbox: SqlOutbox, transitions: Sequence[Transition], now_us: int = at(0)) -> None:
    with write(outbox.engine) as conn:
        enqueue(conn, transitions, lambda _: ["soc"], now_us)


class Line:
    """An outbox and a sink in real time."""

    def __init__(self, sink: Alerta, settings: Delivery = QUICK) -> None:
        self.sink = sink
        self.settings = settings
        self.outbox = MemoryOutbox()
        self.rng = random.Random(3)

    @staticmethod
    def now_us() -> int:
        return time.time_ns() // 1000

    def put(self, *transitions: Transition) -> None:
        self.outbox.enqueue(transitions, lambda _: [self.sink.name], self.now_us())

    def deliver(self) -> pipeline.Delivered:
        return pipeline.deliver(self.outbox, {self.sink.name: self.sink}, "me", self.now_us(), self.rng, self.settings)

    def until(self, met: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, [(r.state, r.last_error) for r in self.outbox.rows()]
            self.deliver()
            time.sleep(0.02)

    def settled(self) -> bool:
        return all(r.state not in {OutboxState.PENDING, OutboxState.UNKNOWN} for r in self.outbox.rows())


def test_one_problem_is_one_row_from_open_to_clear(sink: Alerta, api: Api, name: str) -> None:
    """Open, repeat, worse, clear, and open again all meet in one row, whose status follows."""
    first = opened(name)
    assert sink.send(first, timeout_s=5).status == "open"
    sink.send(first, timeout_s=5)
    worse = updated(first, severity=Severity.CRITICAL)
    sink.send(worse, timeout_s=5)
    row = api.one(first)
    assert (row["severity"], row["status"], row["previousSeverity"]) == ("critical", "open", "major")
    assert row["attributes"]["state_seq"] == 2
    assert (row["group"], row["origin"], row["environment"]) == (
        "ModelSecurity",
        "lanner/AttackSuspected",
        "Production",
    )
    assert sink.send(cleared(worse), timeout_s=5) == SinkState("normal", "closed", row["id"])
    assert sink.send(opened(name, opened_us=at(100)), timeout_s=5).status == "open"
    assert sink.current(first.alert) == SinkState("major", "open", row["id"])


def test_nothing_is_known_of_what_was_never_sent(sink: Alerta, name: str) -> None:
    """Reading back an unknown key gives None."""
    assert sink.current(opened(name).alert) is None


def test_a_clear_without_an_alert_makes_no_row(sink: Alerta, api: Api, name: str) -> None:
    """Alerta would create a closed row; the outbox does not send what the sink was never told."""
    line = Line(sink)
    first = opened(name)
    line.put(first, cleared(first))
    line.deliver()
    assert line.settled()
    assert api.find(first) == []


def test_an_operators_close_stands_until_it_is_worse(sink: Alerta, api: Api, name: str) -> None:
    """A refresh does not reopen what a person closed, which Alerta itself would do; an escalation does."""
    line = Line(sink)
    first = opened(name, severity=Severity.MINOR)
    line.put(first)
    line.deliver()
    api.act(first, "close")
    shown = sink.current(first.alert)
    assert shown is not None
    assert pipeline.closed_by_person(shown)
    (row,) = line.outbox.rows()
    line.outbox.touch(row.row_id, line.now_us())
    line.deliver()
    assert api.one(first)["status"] == "closed"
    assert line.outbox.rows()[0].last_error == pipeline.CLOSED_THERE
    line.put(updated(first, severity=Severity.MAJOR))
    line.deliver()
    assert (api.one(first)["status"], api.one(first)["severity"]) == ("open", "major")


def test_an_acknowledgement_survives_refreshes_and_falls_with_a_higher_severity(
    sink: Alerta, api: Api, name: str
) -> None:
    """What Alerta does right is left to it."""
    first = opened(name, severity=Severity.MINOR)
    sink.send(first, timeout_s=5)
    sink.send(updated(first, severity=Severity.MAJOR), timeout_s=5)
    api.act(first, "ack")
    assert sink.send(updated(first, severity=Severity.MAJOR), timeout_s=5).status == "ack"
    assert sink.send(updated(first, severity=Severity.CRITICAL), timeout_s=5).status == "open"


def test_a_shelved_row_reopens_when_it_is_worse_or_new(sink: Alerta, api: Api, name: str) -> None:
    """Alerta keeps a shelved row shelved under a critical attack; the adapter opens it, and only then."""
    first = opened(name, severity=Severity.MAJOR)
    sink.send(first, timeout_s=5)
    api.act(first, "shelve")
    assert sink.send(first, timeout_s=5).status == "shelved"
    worse = updated(first, severity=Severity.CRITICAL)
    assert sink.send(worse, timeout_s=5).status == "open"
    assert api.one(first)["status"] == "open"
    api.act(first, "shelve")
    sink.send(cleared(worse), timeout_s=5)
    again = opened(name, severity=Severity.MINOR, opened_us=at(500))
    assert sink.send(again, timeout_s=5).status == "open"
    assert api.one(first)["status"] == "open"


def test_a_blackout_suppresses_and_its_end_shows_the_alert(sink: Alerta, api: Api, name: str) -> None:
    """202 is no delivery: the row is kept as suppressed, and comes through once the blackout is over."""
    line = Line(sink)
    first = opened(name)
    made = api.call("POST", "/blackout", environment="Production", resource=resource(first.alert), duration=3600)
    with pytest.raises(SinkSuppressed):
        sink.send(first, timeout_s=5)
    line.put(first)
    line.deliver()
    assert [r.state for r in line.outbox.rows()] == [OutboxState.SUPPRESSED]
    assert api.find(first) == []
    api.call("DELETE", f"/blackout/{made['id']}")
    line.outbox.touch(line.outbox.rows()[0].row_id, line.now_us())
    line.deliver()
    assert api.one(first)["status"] == "open"


@pytest.mark.parametrize(
    ("broken", "error"),
    [({"environment": "Nowhere"}, SinkRejected), ({"customer": None}, None)],
)
def test_a_server_that_refuses_the_alert_is_believed(
    sink: Alerta, name: str, broken: dict[str, Any], error: type[Exception] | None
) -> None:
    """An environment that the server does not allow is a dead letter and not retried for ever."""
    first = opened(name, **broken)
    if error is None:
        assert sink.send(first, timeout_s=5).status == "open"
        return
    with pytest.raises(error, match="403"):
        sink.send(first, timeout_s=5)


@pytest.mark.parametrize(
    "hostile",
    [
        {"evidence": {"features": [{"name": "<script>alert(1)</script>", "share": float("nan")}], "queries": 3}},
        {"statistic": float("nan"), "threshold": float("inf")},
        {"text": "x" * 1_000_000},
        {"detector": "\x00\x1b[2J"},
        {"evidence": {"reason": "nul\x00byte" * 1000}},
        {"n": None, "p_value": None, "log_e": None},
    ],
    ids=["markup", "nan", "long", "nul", "long reason", "absent"],
)
def test_what_would_poison_the_server_is_made_harmless_first(
    sink: Alerta, api: Api, name: str, hostile: dict[str, Any]
) -> None:
    """NaN, NUL and endless texts make Alerta answer 500, like a passing fault; they never reach it."""
    t = opened(name, **hostile)
    assert sink.send(t, timeout_s=5).status == "open"
    row = api.one(t)
    assert len(row["text"]) <= 1500
    assert row["rawData"].startswith("sha256:")
    assert not {c for v in row["attributes"].values() for c in str(v)} & set("<>\x00\x1b&")


def test_hostile_and_long_names_stay_apart(sink: Alerta, api: Api, name: str) -> None:
    """Two subjects that agree in their first five hundred characters are two harmless rows."""
    rows = [opened(f"<b onmouseover=1>{name}\x00'\"" + "é" * 500 + end) for end in "12"]
    ids = {sink.send(t, timeout_s=5).remote_id for t in rows}
    assert len(ids) == 2
    assert all("<" not in api.one(t)["resource"] and len(api.one(t)["resource"]) <= 200 for t in rows)


FAULTS: dict[str, proxies.Fault] = {
    "500": proxies.answers(500, '{"status": "error", "message": "boom"}'),
    "500 after it was stored": proxies.answers_after(500, '{"status": "error", "message": "boom"}'),
    "503 without status": proxies.answers(503, '{"message": "maintenance"}'),
    "302": proxies.answers(302, head="Location: /\r\n"),
    "502 as HTML": proxies.answers(502, "<html>Bad Gateway</html>", kind="text/html"),
    "200 empty": proxies.answers(200),
    "429": proxies.answers(429, '{"status": "error", "message": "slow down"}'),
    "timeout": proxies.silent(3),
    "reset": proxies.reset,
    "reset after it was stored": proxies.reset_after,
    "slow drip": proxies.drips(0.02),
    "slow drip of headers": proxies.drips(0.02, headers=True),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_no_fault_loses_an_opening_or_a_clear(
    through: Alerta, proxy: Proxy, api: Api, name: str, fault: proxies.Fault
) -> None:
    """Two faults on the way to the opening and two on the way to the clear: both arrive, once each in effect."""
    line = Line(through)
    first = opened(name)
    proxy.plan(fault, fault)
    line.put(first)
    line.until(line.settled)
    assert (api.one(first)["severity"], api.one(first)["status"]) == ("major", "open")
    proxy.plan(fault, fault)
    line.put(cleared(first))
    line.until(line.settled)
    assert (api.one(first)["severity"], api.one(first)["status"]) == ("normal", "closed")


def test_a_late_write_does_not_reopen_a_cleared_alert(through: Alerta, proxy: Proxy, api: Api, name: str) -> None:
    """The lost opening is committed after the clear; the newest state is asserted again and wins."""
    line = Line(through, replace(QUICK, reassert_s=2.0))
    first, gate = opened(name), threading.Event()
    proxy.plan(proxies.zombie(gate))
    line.put(first)
    line.deliver()
    line.put(cleared(first))
    line.until(lambda: not line.outbox.backlog(line.now_us()))
    assert api.find(first) == []  # nothing there to clear, but the outcome of the opening is still unknown
    gate.set()
    line.until(lambda: api.has_shown(first, "major"))
    line.until(line.settled)
    assert (api.one(first)["severity"], api.one(first)["status"]) == ("normal", "closed")


def test_a_late_clear_does_not_hide_a_new_attack(through: Alerta, proxy: Proxy, api: Api, name: str) -> None:
    """The lost clear of the first incident is committed after the second opened; the second stays open."""
    line = Line(through, replace(QUICK, reassert_s=2.0))
    first, gate = opened(name), threading.Event()
    line.put(first)
    line.until(line.settled)
    proxy.plan(proxies.zombie(gate))
    line.put(cleared(first))
    line.deliver()
    line.put(opened(name, opened_us=at(300), severity=Severity.CRITICAL))
    line.until(lambda: bool(api.one(first)["severity"] == "critical"))
    gate.set()
    line.until(lambda: api.has_shown(first, "normal"))
    line.until(line.settled)
    assert (api.one(first)["severity"], api.one(first)["status"]) == ("critical", "open")


def test_a_call_ends_at_its_deadline(alerta: Server, proxy: Proxy, name: str) -> None:
    """A server that drips one byte at a time cannot hold a sender longer than the time-out of the whole call."""
    sink = Alerta("soc", proxy.url, alerta.key, timeout_s=0.5)
    sink.send(opened(name), timeout_s=5)
    for headers in (False, True):
        proxy.plan(proxies.drips(0.1, headers=headers))
        started = time.monotonic()
        with pytest.raises(SinkUnknown):
            sink.send(opened(name), timeout_s=5)
        assert time.monotonic() - started < 1.5


def test_the_key_is_in_no_message(alerta: Server, proxy: Proxy, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """Alerta's 401 echoes the whole key; neither error, nor log, nor repr does."""
    key = "canary-0123456789-abcdefghijklmnop-ABCDEFG"
    sink = Alerta("soc", alerta.url, key)
    with pytest.raises(SinkRejected) as raised:
        sink.send(opened(name), timeout_s=5)
    line = Line(Alerta("soc", proxy.url, key))
    proxy.plan(proxies.echoes_key)
    line.put(opened(name))
    line.deliver()
    (row,) = line.outbox.rows()
    assert row.state is OutboxState.DEAD
    out, err = capfd.readouterr()
    for text in (str(raised.value), repr(raised.value), repr(sink), str(row.last_error), out, err):
        assert key not in text
        assert key[7:30] not in text


def test_nothing_of_the_environment_is_used(
    alerta: Server, proxy: Proxy, api: Api, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """ALERTA_* variables, proxies and .netrc neither redirect the alert nor replace the key."""
    for variable in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy.url)
    monkeypatch.setenv("ALERTA_ENDPOINT", proxy.url)
    monkeypatch.setenv("ALERTA_API_KEY", "wrong")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    assert Alerta("soc", alerta.url, alerta.key).send(opened(name), timeout_s=5).status == "open"
    assert proxy.seen == []


def test_a_redirect_takes_no_key_along(alerta: Server, proxy: Proxy, name: str) -> None:
    """A 302 to another server is not followed: the key goes where it was meant to go and nowhere else."""
    with proxies.running(alerta.port) as elsewhere:
        proxy.plan(proxies.answers(302, head=f"Location: {elsewhere.url}/alert\r\n"))
        with pytest.raises(SinkUnavailable, match="redirect"):
            Alerta("soc", proxy.url, alerta.key).send(opened(name), timeout_s=5)
        assert elsewhere.seen == []


def test_a_server_with_unsafe_defaults_is_refused(
    postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """No login, open sign-up, the default secret: alerts wait, with the reason, unless the sink says allow_insecure."""
    folder = tmp_path_factory.mktemp("unsafe-alerta")
    unsafe = {"AUTH_REQUIRED": False, "SIGNUP_ENABLED": True, "SECRET_KEY": "changeme"}
    server = alerta_server.start(folder, postgres_server, unsafe)
    try:
        sink = Alerta("soc", server.url, server.key)
        with pytest.raises(SinkUnavailable, match=r"AUTH_REQUIRED.*SIGNUP_ENABLED.*SECRET_KEY is the default"):
            sink.send(opened(name), timeout_s=5)
        assert (
            Alerta("soc", server.url, server.key, allow_insecure=True).send(opened(name), timeout_s=5).status == "open"
        )
        assert diagnosed(server.url, server.key)[0] == "fail"
        assert "AUTH_REQUIRED" in diagnosed(server.url, server.key)[1]
        assert diagnosed(server.url, server.key, allow_insecure=True)[0] == "warn"
    finally:
        server.stop()


def diagnosed(url: str, key: str, **more: Any) -> tuple[str, str]:
    """What `lanner doctor -c` says of an Alerta, at last."""
    sinks = {"soc": {"type": "alerta", "url": url, "key": key, **more}}
    config = Config.model_validate({"models": {"m": {}}, "sinks": sinks})
    return [(f.state, f.says) for f in doctor.service(config) if f.what == "sinks.soc"][-1]


def test_doctor_asks_whether_alerta_takes_the_key(alerta: Server) -> None:
    """Before the first alert does: a good key, a wrong one whose echo is not shown."""
    assert diagnosed(alerta.url, alerta.key) == ("ok", "a safe Alerta that takes the key")
    wrong = "canary-0123456789-abcdefghijklmnop"
    state, says = diagnosed(alerta.url, wrong)
    assert (state, "401" in says, wrong in says) == ("fail", True, False)


def test_a_scoped_key_does_it_all_and_no_more(
    postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """With CUSTOMER_VIEWS: the four scopes of the docs send, read, acknowledge, note and beat for every customer; no keys."""
    folder = tmp_path_factory.mktemp("customers-alerta")
    server = alerta_server.start(folder, postgres_server, {"CUSTOMER_VIEWS": True})
    admin = Api(server)
    try:
        scopes = ["read:alerts", "write:alerts", "admin:alerts", "write:heartbeats"]
        made = admin.call("POST", "/key", user="admin@example.org", scopes=scopes, text="lanner")
        sink = Alerta("soc", server.url, made["key"])
        ours = [opened(name, customer=c) for c in ("cards", "loans", None)]
        ids = {sink.send(t, timeout_s=5).remote_id for t in ours}
        assert len(ids) == 3  # one problem of two customers is two rows
        assert [sink.current(t.alert).severity for t in ours] == ["major"] * 3  # type: ignore[union-attr]
        sink.tell(ours[0].alert, "ack", "Lanner: acknowledged")
        sink.tell(ours[0].alert, "verdict", "Lanner: verdict false")
        sink.beat("m/queries", 240, "Production")
        assert sink.send(cleared(ours[1]), timeout_s=5).status == "closed"
        rows = {r["customer"]: r["status"] for r in admin.find(ours[0])}
        assert rows == {"cards": "ack", "loans": "closed", None: "open"}
        admin.session.headers["Authorization"] = f"Key {made['key']}"
        assert admin.call("GET", "/keys")["status"] == "error"
        assert admin.call("POST", "/blackout", environment="Production")["status"] == "error"
    finally:
        admin.session.close()
        server.stop()


def test_a_safe_server_is_not_suspected(alerta: Server) -> None:
    """The check of the secret finds nothing where the secret is its own."""
    assert Alerta("soc", alerta.url, alerta.key).unsafe() == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://user:pw@127.0.0.1:1", "127.0.0.1:8080", "http://"])
def test_an_address_that_cannot_be_meant_is_refused(url: str) -> None:
    """Only http and https with a host, and no user in the address, where it would be logged."""
    with pytest.raises(SinkRejected):
        Alerta("soc", url, "k").unsafe()


def test_plain_http_to_another_machine_is_refused() -> None:
    """Without TLS the key could be read on the way; nothing is sent, not even a look at the configuration."""
    with pytest.raises(SinkUnavailable, match="plain http"):
        Alerta("soc", "http://192.0.2.1:8080", "k").send(opened(), timeout_s=1)


def test_a_heartbeat_is_shown(sink: Alerta, api: Api) -> None:
    """A heartbeat carries its time-out and what the command line of Alerta needs to alert on it."""
    sink.beat("marginals", 60, "Production")
    (beat,) = [b for b in api.call("GET", "/heartbeats")["heartbeats"] if b["origin"] == "lanner/marginals"]
    assert (beat["timeout"], beat["status"]) == (60, "ok")


def test_reconciliation_reopens_what_a_late_normal_closed(sink: Alerta, api: Api, name: str) -> None:
    """A stranger's `normal` on our key differs from what we say, is found by reading back, and is mended."""
    line = Line(sink)
    first = opened(name)
    line.put(first)
    line.deliver()
    row = api.one(first)
    api.call("POST", "/alert", resource=row["resource"], event=row["event"], environment="Production",
             severity="normal", service=row["service"])  # fmt: skip
    assert api.one(first)["status"] == "closed"
    assert pipeline.reconcile(line.outbox, {"soc": sink}, line.now_us()) == {"soc": 1}
    line.deliver()
    assert api.one(first)["status"] == "open"


def test_a_borderline_series_is_one_row_with_three_changes_at_most(sink: Alerta, api: Api, name: str) -> None:
    """A thousand evaluations around the line, through rules, outbox and Alerta: one id, at most three changes of status."""
    line, policy, rng = Line(sink), Policy(), random.Random(11)
    open_now: dict[str, Alert] = {}
    counters: Mapping[str, Any] = {}
    subject = Subject("segment", name)
    for minute in range(1000):
        value = rng.gauss(10.0, 0.5)
        decision = traffic(60.0 * minute, firing=value > 10, statistic=value, subject=subject)
        ruled = replace(decision, event=Event.DATA_QUALITY)
        step = lifecycle.step([ruled], tuple(open_now.values()), counters, policy)
        counters = step.counters
        for alert in step.alerts:
            open_now[alert.alert_id] = alert
            if not alert.open:
                del open_now[alert.alert_id]
        if step.transitions or minute % 100 == 0:
            line.put(*step.transitions)
            line.deliver()
    line.until(line.settled)
    row = api.one(line.outbox.rows()[0].transition)
    assert len({r.transition.alert.alert_id for r in line.outbox.rows()}) == 1
    turns = [h for h in row["history"] if h["type"] in {"new", "severity", "status"}]
    assert 1 <= len(turns) <= 3


def test_a_backlog_is_drained_within_a_minute(sink: Alerta, stored: SqlOutbox, name: str) -> None:
    """Three hundred alerts leave a SQLite outbox at more than the 17 a second that a thousand in a minute ask for."""
    fill(stored, [opened(f"{name}-{i}") for i in range(300)])
    started = time.monotonic()
    done = pipeline.deliver(stored, {"soc": sink}, "me", at(0), random.Random(1))
    took = time.monotonic() - started
    assert done.outcomes == {"soc": {OutboxState.SENT: 300}}
    assert took < 300 / 17
    assert stored.backlog(at(0)) == {}


SENDER = """
import random, sys, time
from alerts import pipeline
from alerts.alerta import Alerta
from monitor.store.engine import open_state
from monitor.store.outbox import SqlOutbox
outbox, sink = SqlOutbox(open_state(sys.argv[1])), Alerta("soc", sys.argv[2], sys.argv[3])
ahead_us = int(sys.argv[4]) * 61_000_000  # the leases of the one before have run out
while True:
    pipeline.deliver(outbox, {"soc": sink}, f"child {sys.argv[4]}", time.time_ns() // 1000 + ahead_us, random.Random(1))
"""


def test_senders_that_are_killed_lose_nothing(alerta: Server, sink: Alerta, stored: SqlOutbox, name: str) -> None:
    """Three senders die by SIGKILL in the middle of their rows; the next one finishes every opening and every clear."""
    now_us = time.time_ns() // 1000
    ours = [opened(f"{name}-{i}") for i in range(120)]
    fill(stored, ours, now_us)
    for child in range(3):
        before = len(rows(stored.engine, state=OutboxState.SENT, limit=1000))
        command = [sys.executable, "-c", SENDER, str(stored.engine.url), alerta.url, alerta.key, str(child)]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            end = time.monotonic() + 30
            while len(rows(stored.engine, state=OutboxState.SENT, limit=1000)) < before + 5:
                assert time.monotonic() < end
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait(10)
        fill(stored, [cleared(t) for t in ours[child * 40 : child * 40 + 20]], now_us)
    for later_s in (300, 400, 500, 600):  # leases run out, unknown outcomes are asserted again
        pipeline.deliver(stored, {"soc": sink}, "heir", now_us + later_s * 1_000_000, random.Random(2))
    waiting = {r.state for r in rows(stored.engine, limit=1000)} - {OutboxState.SENT, OutboxState.SUPERSEDED}
    assert waiting == set()
    over = {t.alert.subject.id for k in range(3) for t in ours[k * 40 : k * 40 + 20]}
    for t in ours:
        shown = sink.current(t.alert)
        if t.alert.subject.id in over:
            assert shown is None or shown.severity == "normal"
        else:
            assert shown is not None
            assert (shown.severity, shown.status) == ("major", "open")


def test_openings_are_seen_within_five_seconds(sink: Alerta, name: str) -> None:
    """At ten alerts a second, nineteen of twenty are accepted within five seconds of being put in the outbox."""
    line = Line(sink)
    delays: list[float] = []
    for i in range(50):
        put_at = time.monotonic()
        line.put(opened(f"{name}-{i}", event=Event.ACCESS_ANOMALY))
        line.deliver()
        delays.append(time.monotonic() - put_at)
        time.sleep(max(0.0, 0.1 - delays[-1]))
    assert line.settled()
    assert sorted(delays)[int(0.95 * len(delays))] < 5.0
