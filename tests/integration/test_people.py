"""People and alerts, end to end: a scheduler, a real Alerta, operators there and here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from alerts import lifecycle
from alerts.alerta import Alerta
from alerts.base import SinkRejected, SinkUnavailable
from alerts.memory import MemorySink
from alerts.policy import policy
from alerts.quiet import HELD_BACK, REPORT_ONLY
from monitor.model import (
    HOUR_US,
    SECOND_US,
    UNREGISTERED,
    Act,
    Action,
    Alert,
    Decision,
    Event,
    Family,
    Mark,
    OutboxState,
    Said,
    Severity,
    Subject,
    Transition,
)
from monitor.scheduler import Jobs
from monitor.service import attention
from monitor.service.compose import Service
from monitor.service.system import system_tick
from monitor.store import alertlog, ledger, people
from monitor.store import outbox as outboxes
from monitor.store.engine import migrate, open_state, read, write
from monitor.store.schema import unregistered
from monitor.web import create_app
from tests.alerting import alert, attack, updated
from tests.servers.alerta import Alerta as Server
from tests.soc import Api, now_us, service_of, stored


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = service_of(tmp_path)
    yield made
    made.close()


def current(service: Service, t: Transition) -> Any:
    """The incident as the store has it."""
    (found,) = alertlog.by_id(service.engine, t.alert.alert_id)
    return found


def say(service: Service, t: Transition, said: Said | None = None, kind: str = "verdict", **fields: Any) -> None:
    """What a person does by command."""
    act = Act(t.alert.alert_id, kind, "ann", "because", "cli", now_us(), said, **fields)
    with write(service.engine) as conn:
        assert people.say(conn, act, t.alert, now_us())


def tick(service: Service) -> None:
    """One tick of the model and one of the system."""
    service.model("m", now_us()).tick(service.owner, now_us())
    system_tick(service, now_us())


def test_a_close_in_alerta_ends_the_incident(service: Service, alerta: Server, api: Api, name: str) -> None:
    """Read back as `undetermined`, by whom and with their words; nothing reopens the row, and a new incident does."""
    soc = Alerta("soc", alerta.url, alerta.key)
    jobs = Jobs(service, {"soc": soc})
    first = stored(service, name)
    jobs.deliver()
    api.call("PUT", f"/alert/{api.one(first)['id']}/action", action="close", text="known <b>tester</b>")
    jobs.attend()
    jobs.attend()  # the same close, seen twice, is one act
    (done,) = people.acts_of(service.engine, [first.alert.alert_id])[first.alert.alert_id]
    assert (done.act.said, done.act.source, done.act.actor) == (Said.UNDETERMINED, "sink:soc", "admin@example.org")
    assert "known <b>tester</b>" in done.act.reason
    tick(service)
    over = current(service, first)
    assert not over.open
    assert over.evidence["verdict"]["verdict"] == "undetermined"
    for _ in range(3):
        jobs.deliver()
        jobs.attend()
    assert api.one(first)["status"] == "closed"
    again = stored(service, name)
    jobs.deliver()
    assert api.one(again)["status"] == "open"


def test_ack_and_shelve_in_alerta_are_acknowledgements(service: Service, alerta: Server, api: Api, name: str) -> None:
    """Both count until the incident gets worse; un-ack takes it back; the incident stays open."""
    jobs = Jobs(service, {"soc": Alerta("soc", alerta.url, alerta.key)})
    first = stored(service, name)
    jobs.deliver()

    def acknowledged() -> Any:
        jobs.attend()
        acts = people.acts_of(service.engine, [first.alert.alert_id]).get(first.alert.alert_id, [])
        return people.acknowledged(first.alert.severity, acts)

    assert acknowledged() is None
    api.act(first, "ack")
    found = acknowledged()
    assert (found.act.kind, found.act.actor) == ("ack", "admin@example.org")
    assert people.acknowledged(Severity.CRITICAL, [found]) is None
    api.act(first, "unack")
    assert acknowledged() is None
    api.act(first, "shelve")
    assert acknowledged().act.kind == "shelve"
    tick(service)
    assert current(service, first).open


@pytest.mark.parametrize("action", ["ack", "shelve"])
def test_an_acknowledgement_ends_with_its_time_in_alerta(
    service: Service, alerta: Server, api: Api, name: str, action: str
) -> None:
    """Once Alerta's housekeeping has opened the row again, nobody is on it here either: escalation and reminders go on."""
    jobs = Jobs(service, {"soc": Alerta("soc", alerta.url, alerta.key)})
    first = stored(service, name)
    jobs.deliver()
    api.call("PUT", f"/alert/{api.one(first)['id']}/action", action=action, text="later", timeout=1)
    jobs.attend()
    end = time.monotonic() + 20
    while api.one(first)["status"] != "open":
        assert time.monotonic() < end
        time.sleep(0.2)
        api.call("GET", "/management/housekeeping")
    for _ in range(2):
        jobs.attend()
    done = people.acts_of(service.engine, [first.alert.alert_id])[first.alert.alert_id]
    assert [(a.act.kind, a.act.actor) for a in done] == [(action, "admin@example.org"), ("unack", "Alerta")]
    assert people.acknowledged(first.alert.severity, done) is None


def test_a_verdict_becomes_a_note_and_an_ack_an_ack(service: Service, alerta: Server, api: Api, name: str) -> None:
    """What was done in Lanner is told where others look; telling it twice changes nothing; hostile words are escaped."""
    soc = Alerta("soc", alerta.url, alerta.key)
    jobs = Jobs(service, {"soc": soc})
    first = stored(service, name)
    jobs.deliver()
    say(service, first, kind="ack")
    jobs.attend()
    assert api.one(first)["status"] == "ack"
    act = Act(first.alert.alert_id, "verdict", "ann <script>", "a test\x1b[2J", "cli", now_us(), Said.BENIGN_TRUE)
    with write(service.engine) as conn:
        people.say(conn, act, first.alert, now_us())
    tick(service)
    jobs.deliver()
    jobs.attend()
    soc.tell(first.alert, "verdict", "Lanner: verdict benign-true by ann <script>: a test\x1b[2J")
    row = api.one(first)
    assert row["status"] == "closed"
    notes = [h["text"] for h in row["history"] if h["type"] == "note"]
    assert notes == ["Lanner: verdict benign-true by ann \\x3cscript\\x3e: a test\\x1b[2J"]
    assert people.acts_of(service.engine, [first.alert.alert_id])[first.alert.alert_id][0].act.kind == "ack"


def test_a_note_waits_for_a_sink_that_is_away(service: Service) -> None:
    """What cannot be told now is told later."""
    heard: list[str] = []

    class Away(MemorySink):
        away = True

        def tell(self, alert: Any, kind: str, text: str) -> None:
            if self.away:
                raise SinkUnavailable("away")
            heard.append(f"{kind} {text}")

    first = stored(service)
    say(service, first, Said.TRUE)
    sink = Away("soc")
    assert attention.tell(service, {"soc": sink}, now_us()) == 0
    Away.away = False
    assert attention.tell(service, {"soc": sink}, now_us()) == 1
    assert attention.tell(service, {"soc": sink}, now_us()) == 0
    assert heard == ["verdict Lanner: verdict true by ann: because"]


def test_a_refused_note_is_not_tried_for_ever(service: Service) -> None:
    """What a sink will never take is told to the other sinks and is done with."""
    heard: list[str] = []

    class Refusing(MemorySink):
        def tell(self, alert: Any, kind: str, text: str) -> None:
            raise SinkRejected("403")

    class Hearing(MemorySink):
        def tell(self, alert: Any, kind: str, text: str) -> None:
            heard.append(kind)

    say(service, stored(service), Said.TRUE)
    assert attention.tell(service, {"soc": Refusing("soc"), "pager": Hearing("pager")}, now_us()) == 1
    assert attention.tell(service, {"soc": Refusing("soc"), "pager": Hearing("pager")}, now_us()) == 0
    assert heard == ["verdict"]


def test_a_verdict_without_a_tick_waits(service: Service) -> None:
    """Only ticks write incidents: until the next one the verdict is recorded and nothing has changed."""
    first = stored(service)
    tick(service)
    say(service, first, Said.FALSE)
    assert current(service, first).open
    tick(service)
    assert not current(service, first).open
    tick(service)
    steps = alertlog.timeline(service.engine, first.alert.alert_id)
    assert [s.action for s in steps] == ["open", "clear"]


def test_incidents_about_lanner_itself_take_verdicts(service: Service) -> None:
    """A disk that is full stays closed for a day once a person has closed its incident."""
    first = stored(service, model=UNREGISTERED, event=Event.MONITOR_DEGRADED, subject=Subject("component", "x"))
    say(service, first, Said.TRUE)
    tick(service)
    assert not current(service, first).open


def test_an_unknown_model_stays_closed_until_there_is_another(service: Service) -> None:
    """What a person closed is not reopened by the next tick, though its events go on; a new name is news."""

    def seen(*names: str) -> None:
        with write(service.engine) as conn:
            for name in names:
                row = {"source": "s", "name": name, "events": 1, "first_us": now_us(), "last_us": now_us()}
                conn.execute(unregistered.insert().values(row))

    seen("x")
    system_tick(service, now_us())
    (first,) = alertlog.find(service.engine)
    say(service, Transition(Action.OPEN, 0, first), Said.TRUE)
    for _ in range(3):
        system_tick(service, now_us())
    assert [a.open for a in alertlog.find(service.engine)] == [False]
    seen("y")
    system_tick(service, now_us())
    assert sorted(a.open for a in alertlog.find(service.engine)) == [False, True]


def test_nobody_came(tmp_path: Path) -> None:
    """After its time an incident is told to the sinks of the escalation, once for each severity; acknowledged ones are not."""
    service = service_of(tmp_path, alerting={"escalate": {"critical": "3m", "major": "10m"}, "escalate_to": ["pager"]})
    soc, pager = MemorySink("soc"), MemorySink("pager")
    jobs = Jobs(service, {"soc": soc, "pager": pager})
    late = stored(service, "late", opened_us=now_us() - 700 * SECOND_US)
    stored(service, "early", opened_us=now_us() - 500 * SECOND_US)
    taken = stored(service, "taken", opened_us=now_us() - 700 * SECOND_US)
    mild = stored(service, "worse just now", severity=Severity.MINOR, opened_us=now_us() - 700 * SECOND_US).alert
    worse = updated(Transition(Action.OPEN, mild.opened_us, mild), severity=Severity.MAJOR)
    with write(service.engine) as conn:
        alertlog.write(conn, [worse.alert], [worse], now_us() - 100 * SECOND_US)
    say(service, taken, kind="ack")
    for _ in range(3):
        jobs.attend()
        jobs.deliver()
    assert [t.alert.subject.id for t in pager.sent] == ["late"]
    worse = updated(late, severity=Severity.CRITICAL)
    with write(service.engine) as conn:
        alertlog.write(conn, [worse.alert], [worse], now_us() - 200 * SECOND_US)
    for _ in range(2):
        jobs.attend()
        jobs.deliver()
    say(service, worse, Said.TRUE)
    tick(service)
    jobs.deliver()
    assert [t.action for t in pager.sent] == [Action.OPEN, Action.UPDATE, Action.CLEAR]
    service.close()


def test_reminders_come_until_somebody_acknowledges(tmp_path: Path) -> None:
    """A sink that is reminded hears of an open incident again after the configured time."""
    service = service_of(tmp_path, alerting={"remind": "1h", "remind_to": ["soc"]})
    first = stored(service, opened_us=now_us() - 2 * HOUR_US)
    outbox = outboxes.SqlOutbox(service.engine)
    (row,) = outbox.lease("me", now_us(), SECOND_US, 10)
    outbox.settle(row.row_id, "me", OutboxState.SENT, now_us=now_us() - HOUR_US)
    assert attention.nobody_came(service, now_us() - 10 * SECOND_US) == 0
    assert attention.nobody_came(service, now_us() + SECOND_US) == 1
    assert [r.state for r in outbox.lease("me", now_us() + 2 * SECOND_US, SECOND_US, 10)] == [OutboxState.SENT]
    outbox.settle(row.row_id, "me", OutboxState.SENT, now_us=now_us() - HOUR_US)
    say(service, first, kind="ack")
    assert attention.nobody_came(service, now_us() + SECOND_US) == 0
    service.close()


def test_what_was_held_back_gives_people_their_time(tmp_path: Path) -> None:
    """Nobody could know of it before it was told: from then on the time for an acknowledgement runs."""
    service = service_of(tmp_path, alerting={"escalate": {"major": "10m"}, "escalate_to": ["pager"]})
    start = now_us()
    before = stored(service, opened_us=start - HOUR_US, evidence={HELD_BACK: REPORT_ONLY})
    told = updated(before, evidence={}, updated_us=start)
    with write(service.engine) as conn:
        alertlog.write(conn, [told.alert], [told], start)
    assert attention.nobody_came(service, start + 599 * SECOND_US) == 0
    assert attention.nobody_came(service, start + 600 * SECOND_US) == 1
    service.close()


def test_maintenance_is_seen_by_the_next_tick(service: Service) -> None:
    """A mark of the whole house silences what Lanner would say about itself, until its end."""
    number = people.mark(
        service.engine, Mark(None, "maintenance", now_us(), now_us() + HOUR_US, "disk", "ops"), now_us()
    )
    ledger.beat(service.engine, "source:http", now_us(), {"problems": {"p": "stopped"}})
    system_tick(service, now_us())
    assert alertlog.find(service.engine) == []
    assert people.end_mark(service.engine, number, "ops", now_us())
    ledger.beat(service.engine, "source:http", now_us(), {"problems": {"p": "stopped"}})
    system_tick(service, now_us())
    assert [a.event for a in alertlog.find(service.engine)] == [Event.MONITOR_DEGRADED]


def test_a_detector_below_the_floor_is_put_on_report_only(tmp_path: Path) -> None:
    """Enough false verdicts: its next incident is kept and not sent, and all can see why."""
    service = service_of(tmp_path, alerting={"precision_verdicts": 3})
    for i in range(3):
        t = stored(service, f"p{i}", detector="queries")
        say(service, t, Said.FALSE)
    system_tick(service, now_us())
    (told,) = [a for a in alertlog.find(service.engine) if a.event is Event.MONITOR_DEGRADED]
    assert told.subject == Subject("detector", "queries")
    assert "precision 0.00 over 3 verdicts" in told.text
    service.close()


def test_a_detector_on_report_only_tells_what_it_holds_back(tmp_path: Path) -> None:
    """The incident about it is as severe as the worst, and names the callers of each further critical one."""
    service = service_of(tmp_path, alerting={"precision_verdicts": 3})
    for i in range(3):
        say(service, stored(service, f"p{i}"), Said.FALSE)
    system_tick(service, now_us())
    for who in ("thief", "other"):
        held = {"principals": [who], HELD_BACK: REPORT_ONLY}
        stored(service, who, severity=Severity.CRITICAL, evidence=held)
        system_tick(service, now_us())
    (told,) = [a for a in alertlog.find(service.engine) if a.event is Event.MONITOR_DEGRADED]
    assert (told.severity, told.evidence["principals"]) == (Severity.CRITICAL, ["other", "thief"])
    assert "2 not sent, the worst critical" in told.text
    steps = alertlog.timeline(service.engine, told.alert_id)
    assert [(s.action, s.body["severity"]) for s in steps] == [
        ("open", "warning"), ("update", "critical"), ("update", "critical"),
    ]  # fmt: skip
    service.close()


def test_a_thief_behind_decoys_is_told_and_escalated(tmp_path: Path, alerta: Server, api: Api, name: str) -> None:
    """Held back with the decoys while minor; once major it is a row of its own in Alerta, and nobody coming is noticed."""
    service = service_of(
        tmp_path, alerting={"per_hour": 2, "escalate": {"major": "10m"}, "escalate_to": ["pager"]}
    )  # fmt: skip
    pager = MemorySink("pager")
    jobs = Jobs(service, {"soc": Alerta("soc", alerta.url, alerta.key), "pager": pager})
    alerts: dict[str, Alert] = {}
    counters: Mapping[str, Any] = {}

    def decide(*decisions: Decision) -> Transition:
        nonlocal counters
        standing = [a for a in alerts.values() if a.open]
        made = lifecycle.step(decisions, standing, counters, policy(service.config))
        alerts.update({a.alert_id: a for a in made.alerts})
        counters = made.counters
        with write(service.engine) as conn:
            alertlog.write(conn, made.alerts, made.transitions, now_us() - 700 * SECOND_US)
            outboxes.enqueue(conn, made.transitions, service.sinks_for, now_us())
        jobs.deliver()
        jobs.attend()
        jobs.deliver()
        return made.transitions[-1]

    minor = decide(*(attack(i, f"{name}-{i}") for i in range(2)), attack(9, f"{name}-thief"))
    assert (minor.alert.subject.id, api.find(minor)) == (f"{name}-thief", [])
    decide(attack(20, f"{name}-thief", queries=5000, family=Family.EXTRACTION))
    assert api.one(minor)["severity"] == "major"
    assert [t.alert.subject.id for t in pager.sent] == [f"{name}-thief"]
    service.close()


def test_a_detector_that_stops_is_noticed(service: Service) -> None:
    """Three schedules and a minute after its last completed run there is an incident; its next run ends it."""
    start = now_us()
    names = [n for n in ledger.beats(service.engine) if n.startswith("detector:")]
    assert names == []
    ledger.beat_all(service.engine, {"detector:m/queries": {"schedule_s": 60.0}}, start)
    system_tick(service, start + 239 * SECOND_US)
    assert alertlog.find(service.engine) == []
    system_tick(service, start + 241 * SECOND_US)
    (silent,) = alertlog.find(service.engine)
    assert (silent.event, silent.subject.id, silent.open) == (Event.DETECTOR_SILENT, "m/queries", True)
    ledger.beat_all(service.engine, {"detector:m/queries": {"schedule_s": 60.0}}, start + 242 * SECOND_US)
    system_tick(service, start + 243 * SECOND_US)
    assert not current(service, Transition(Action.OPEN, start, silent)).open


def test_ticks_are_signs_of_life(service: Service) -> None:
    """Every detector of a model that ticks has a heartbeat; those of detectors that are gone are forgotten."""
    ledger.beat_all(service.engine, {"detector:m/gone": {}}, now_us())
    tick(service)
    beats = {n for n in ledger.beats(service.engine) if n.startswith("detector:")}
    assert beats == {f"detector:m/{m.name}" for m in service.model("m", now_us()).watched.monitors}
    assert beats


def test_heartbeats_reach_alerta(service: Service, alerta: Server, api: Api) -> None:
    """One per detector that has completed a run since the last time, and one of the service."""
    jobs = Jobs(service, {"soc": Alerta("soc", alerta.url, alerta.key)})
    ledger.beat_all(service.engine, {"detector:m/queries": {"schedule_s": 60.0}}, now_us())
    jobs.attend()
    shown = {b["origin"]: b for b in api.call("GET", "/heartbeats")["heartbeats"]}
    assert shown["lanner/m/queries"]["timeout"] == 240
    assert shown["lanner/service"]["timeout"] == 300


def test_the_dead_mans_switch_is_asked_only_while_all_is_well(tmp_path: Path) -> None:
    """A real server counts the requests: none while ticks stand still or alerts do not get out, and no address in the log."""
    asked: list[str] = []

    class Switch(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Switch)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service = service_of(tmp_path, deadman={"url": f"http://127.0.0.1:{server.server_port}/ping/secret"})
    attention.alive(service, now_us(), now_us())
    assert asked == ["/ping/secret"]
    attention.alive(service, now_us() - 200 * SECOND_US, now_us())
    stored(service, model=UNREGISTERED, event=Event.DELIVERY_DEGRADED, subject=Subject("sink", "soc"))
    attention.alive(service, now_us(), now_us())
    assert len(asked) == 1
    server.shutdown()
    server.server_close()
    service.close()


def test_prometheus_is_told_when_all_was_well_last(service: Service) -> None:
    """No switch configured: /metrics of the page shows the scheduler's last sign of life, and it stands still in trouble."""
    page = TestClient(create_app(service.config, service.engine), base_url="http://127.0.0.1")

    def told() -> list[float]:
        lines = page.get("/metrics").text.splitlines()
        return [float(line.split()[1]) for line in lines if line.startswith("lanner_deadman_timestamp_seconds ")]

    at = now_us()
    Jobs(service, {}).alive()
    (first,) = told()
    assert first >= at // SECOND_US
    stored(service, model=UNREGISTERED, event=Event.DELIVERY_DEGRADED, subject=Subject("sink", "soc"))
    attention.alive(service, now_us(), now_us() + 600 * SECOND_US)
    assert told() == [first]


def test_two_processes_never_lose_an_act(tmp_path: Path, state_url: str) -> None:
    """The same act from two readers is one row, on both databases."""
    engine = open_state(state_url)
    migrate(engine)
    a = alert()
    act = Act(a.alert_id, "ack", "ann", "", "sink:soc", 5, ref="2026-11-24T00:00:00Z")
    made: list[bool] = []

    def run(say: Callable[..., bool]) -> None:
        with write(engine) as conn:
            made.append(say(conn, act, a, 5))

    threads = [threading.Thread(target=run, args=(people.say,)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(made) == [False, False, False, True]
    with read(engine) as conn:
        assert people.pending(conn, "m") == []  # an acknowledgement closes nothing
    engine.dispose()
