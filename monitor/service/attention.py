"""What depends on wall time and on people: reading back what operators did, telling others, escalation, reminders, signs of life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from alerts import deadman, pipeline
from alerts.base import BeatingSink, Deed, Sink, SinkRejected, TellableSink
from alerts.quiet import HELD_BACK
from monitor import telemetry
from monitor.errors import LannerError
from monitor.model import SECOND_US, UNREGISTERED, Act, Action, Alert, Event, Said, Severity, Transition
from monitor.service.compose import Service
from monitor.store import alertlog, ledger, people
from monitor.store.engine import read, write
from monitor.store.ledger import ALIVE
from monitor.store.outbox import SqlOutbox, enqueue
from monitor.store.people import ActRow

log = structlog.get_logger("lanner.attention")

SERVICE_BEAT_S: Final = 300.0  # dead service -> external page within five minutes
STUCK_US: Final = 180 * SECOND_US
NOT_WELL: Final = frozenset({Event.DETECTOR_SILENT, Event.DELIVERY_DEGRADED})


def read_back(service: Service, sinks: Mapping[str, Sink], now_us: int) -> Mapping[str, int]:
    """Compare with what the sinks show; what operators did there becomes an act here, once."""
    heard: list[tuple[str, Alert, Deed]] = []
    found = pipeline.reconcile(SqlOutbox(service.engine), sinks, now_us, lambda *deed: heard.append(deed))
    if heard:
        with write(service.engine) as conn:
            for sink, alert, deed in heard:
                if people.say(conn, act_of(sink, alert, deed, now_us), alert, now_us):
                    log.info("operator_acted", sink=sink, what=deed.kind, alert_id=alert.alert_id)
    return found


def act_of(sink: str, alert: Alert, deed: Deed, now_us: int) -> Act:
    """What an operator did in a sink, as an act of ours: to close is to say that it is over, not what it was."""
    closed = deed.kind == "close"
    kinds = {"ack": "ack", "shelve": "shelve", "close": "verdict"}
    return Act(
        alert_id=alert.alert_id, kind=kinds.get(deed.kind, "unack"), actor=deed.who or "operator",
        reason=f"{deed.kind} in {sink}" + (f": {deed.note}" if deed.note else ""), source=f"sink:{sink}", time_us=now_us,
        said=Said.UNDETERMINED if closed else None, closes=closed, ref=deed.ref,
    )  # fmt: skip


def tell(service: Service, sinks: Mapping[str, Sink], now_us: int) -> int:
    """Show acts in the sinks where they were not done: acknowledgements and notes. What fails is tried again."""
    with read(service.engine) as conn:
        waiting = people.untold(conn)
        alerts = alertlog.by_ids(conn, sorted({a.act.alert_id for a in waiting}))
    told = []
    for row in waiting:
        alert = alerts.get(row.act.alert_id)
        if alert is None or _told(sinks, row, alert):
            told.append(row.id)
    people.tell(service.engine, told, now_us)
    return len(told)


def _told(sinks: Mapping[str, Sink], row: ActRow, alert: Alert) -> bool:
    if row.act.kind not in {"ack", "verdict"}:
        return True
    what = "acknowledged" if row.act.said is None else f"verdict {row.act.said.value}"
    text = f"Lanner: {what} by {row.act.actor}: {row.act.reason}"
    for sink in sinks.values():
        if not isinstance(sink, TellableSink) or row.act.source == f"sink:{sink.name}":
            continue
        try:
            sink.tell(alert, row.act.kind, text)
        except SinkRejected as error:  # never: it must not stand in the way of what others have to be told
            log.error("sink_refused_note", sink=sink.name, alert_id=alert.alert_id, reason=str(error))
        except LannerError as error:
            log.warning("sink_not_told", sink=sink.name, alert_id=alert.alert_id, reason=str(error))
            return False
    return True


def nobody_came(service: Service, now_us: int) -> int:
    """Escalate and remind: open incidents that nobody has acknowledged in time; how many deliveries that makes."""
    rules = service.config.alerting
    if not rules.escalate_to and not rules.remind_to:
        return 0
    with read(service.engine) as conn:
        standing = [a for a in alertlog.open_alerts(conn) if HELD_BACK not in a.evidence]
    acts = people.acts_of(service.engine, [a.alert_id for a in standing])
    alone = [a for a in standing if people.acknowledged(a.severity, acts.get(a.alert_id, ())) is None]
    outbox = SqlOutbox(service.engine)
    made = escalate(service, alone, outbox.told([a.alert_id for a in alone]), now_us)
    before_us = now_us - round(rules.remind * SECOND_US)
    for sink in rules.remind_to:
        n = outbox.remind(sink, [a.alert_id for a in alone], before_us, now_us)
        made += n
        telemetry.count("reminders_total", n, sink=sink)
    return made


def escalate(service: Service, alone: Sequence[Alert], told: Mapping[tuple[str, str], int], now_us: int) -> int:
    """Put incidents that waited too long on their way to the sinks of the escalation, once for each severity.

    `told`: (alert, sink) -> rank of the worst severity that it was told.
    """
    rules = service.config.alerting
    made = 0
    for alert in alone:
        after_s = rules.escalate.get(alert.severity.value)
        to = [s for s in rules.escalate_to if told.get((alert.alert_id, s), -1) < alert.severity.rank]
        if after_s is None or not to or now_us - _severe_since_us(service, alert) < after_s * SECOND_US:
            continue
        _also(service, alert, to, now_us)
        made += len(to)
        telemetry.count("escalations_total", severity=Severity(alert.severity).value)
        log.warning("escalated", alert_id=alert.alert_id, severity=alert.severity.value, sinks=",".join(to))
    return made


def _severe_since_us(service: Service, alert: Alert) -> int:
    """Since when people could know that it is this severe: what got worse just now gives them their time anew."""
    line = alertlog.timeline(service.engine, alert.alert_id)
    told = (e for e in line if HELD_BACK not in e.body["evidence"])
    return next((e.recorded_us for e in told if e.body["severity"] == alert.severity.value), alert.opened_us)


def _also(service: Service, alert: Alert, to: Sequence[str], now_us: int) -> None:
    state = Transition(Action.OPEN if alert.seq == 1 else Action.UPDATE, alert.updated_us, alert)
    with write(service.engine) as conn:
        enqueue(conn, [state], lambda _: to, now_us)
        people.audited(conn, "lanner", "escalate", alert.alert_id, {"to": list(to)}, now_us)


def beat(service: Service, sinks: Mapping[str, Sink], since_us: int, now_us: int) -> None:
    """Pass on what has completed a run since `since_us` to the sinks that watch heartbeats, and that the service lives."""
    done = [(n, b) for n, b in ledger.beats(service.engine).items() if n.startswith("detector:") and b[0] > since_us]
    for sink in sinks.values():
        if not isinstance(sink, BeatingSink):
            continue
        try:
            for name, (_, detail) in done:
                limit_s = 3 * float(detail.get("schedule_s", 60.0)) + 60
                sink.beat(name.removeprefix("detector:"), limit_s, service.config.environment)
            sink.beat("service", SERVICE_BEAT_S, service.config.environment)
        except LannerError as error:
            log.warning("heartbeat_failed", sink=sink.name, reason=str(error))


def alive(service: Service, ticked_us: int, now_us: int) -> None:
    """Say that all is well, in the store for /metrics and to the dead-man's switch, unless this process is stuck or alerts
    do not get out: what is not said is the message.
    """
    with read(service.engine) as conn:
        standing = alertlog.open_alerts(conn, UNREGISTERED)
    broken = {a.event.value for a in standing if a.event in NOT_WELL or a.subject.kind == "sink"}
    if now_us - ticked_us > STUCK_US:
        broken.add("no tick")
    if broken:
        log.warning("deadman_not_pinged", because=", ".join(sorted(broken)))
        return
    ledger.beat(service.engine, ALIVE, now_us)
    switch = service.config.deadman
    if switch is None:
        return
    try:
        deadman.ping(switch.url.get_secret_value())
    except LannerError as error:
        log.warning("deadman_failed", reason=str(error))
