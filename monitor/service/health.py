"""What Lanner says about itself: silence of its own parts is an alert like any other.

Everything is read from the state store, so any scheduler notices what has happened to any other process. What no
process of Lanner can notice, the end of all of them, is for a signal whose absence pages: see docs/alerts.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from alerts.flood import NAMED
from alerts.quiet import HELD_BACK, REPORT_ONLY
from monitor.model import SECOND_US, UNREGISTERED, Decision, Event, Family, Severity, Subject
from monitor.service.compose import Service
from monitor.service.told import demoted
from monitor.store import alertlog, ledger
from monitor.store import references as store
from monitor.store.engine import read
from monitor.store.lookups import PartitionRow, all_partitions
from monitor.store.outbox import SqlOutbox

MINUTE_US: Final = 60 * SECOND_US
LATE_PUBLISH_US: Final = MINUTE_US
LATE_DELIVERY_US: Final = 10 * MINUTE_US
REFUSED_US: Final = (
    24 * 60 * MINUTE_US
)  # a refused alert is an incident for a day; it stays listed until it is sent again
DEAD_COLLECTOR_US: Final = 5 * MINUTE_US
LAG_US: Final = 15 * MINUTE_US
SILENT_US: Final = 4 * MINUTE_US  # three times the minute that may pass between ticks, and a minute
DISK_SHARE: Final = 0.05
DISK_BYTES: Final = 1 << 30


def decisions(service: Service, now_us: int, clock: str) -> list[Decision]:
    """Every component with what is wrong with it, or that nothing is."""
    found = list(sources(service))
    if clock == "wall":
        found += publisher(service, now_us)
        found += sinks(service, now_us)
        found += models(service, now_us)
        found += detectors(service, now_us)
        found += collectors(service, now_us)
        found += disk(service, now_us)
        found += references(service, now_us)
    return found


def sources(service: Service) -> Iterator[Decision]:
    """A source that has stopped or lost offsets, as its collector reports it."""
    for name, (beat_us, detail) in ledger.beats(service.engine).items():
        kind, _, subject = name.partition(":")
        if kind == "source" and subject in service.sources:
            problems = detail.get("problems", {})
            reason = "; ".join(f"{where}: {what}" for where, what in sorted(problems.items()))
            yield _state("source", subject, beat_us, reason if problems else None)


def publisher(service: Service, now_us: int) -> Iterator[Decision]:
    """Recorded events that nobody publishes."""
    since_us = ledger.unpublished_since(service.engine)
    late = since_us is not None and now_us - since_us > LATE_PUBLISH_US
    at_us = since_us + LATE_PUBLISH_US if late and since_us is not None else now_us
    yield _state("component", "publisher", at_us, "recorded events are not published" if late else None)


def sinks(service: Service, now_us: int) -> Iterator[Decision]:
    """A sink whose oldest waiting alert is older than ten minutes, or that refuses alerts; the other sinks hear of it."""
    outbox = SqlOutbox(service.engine)
    waiting, refused = outbox.backlog(now_us), outbox.refused(now_us - REFUSED_US)
    for sink in service.config.sinks:
        rows, age_us = waiting.get(sink, (0, 0))
        late = age_us > LATE_DELIVERY_US
        words = f"{rows} alerts wait, the oldest for more than ten minutes" if late else None
        at_us = now_us - age_us + LATE_DELIVERY_US if late else now_us
        yield _state("sink", sink, at_us, words, Event.DELIVERY_DEGRADED)
        dead = "it refused alerts for good: lanner outbox list --state dead" if refused.get(sink) else None
        yield _state("sink", sink, now_us, dead)


def models(service: Service, now_us: int) -> Iterator[Decision]:
    """A model whose ticks do not complete: nothing of it is judged, and that is one incident, not one per detector."""
    late = _silent_models(service, now_us)
    for name in service.config.models:
        reason = "its ticks do not complete, see the log of the scheduler" if name in late else None
        yield _state("component", f"model {name}", late.get(name, now_us), reason, Event.DETECTOR_SILENT)


def _silent_models(service: Service, now_us: int) -> dict[str, int]:
    """Since when the ticks of these models are late."""
    beats = ledger.beats(service.engine)
    since = {n: beats[f"model:{n}"][0] + SILENT_US for n in service.config.models if f"model:{n}" in beats}
    return {name: at_us for name, at_us in since.items() if at_us < now_us}


def detectors(service: Service, now_us: int) -> Iterator[Decision]:
    """Detectors that have not completed within three schedules and a minute, and those on report only."""
    late_models = _silent_models(service, now_us)
    with read(service.engine) as conn:
        failed = {f"{a.model}/{a.subject.id}" for a in alertlog.open_alerts(conn) if a.event is Event.DETECTOR_FAILED}
    lateness_us = round((service.config.schedule.lateness + service.config.schedule.idle) * SECOND_US)
    for name, (beat_us, detail) in ledger.beats(service.engine).items():
        kind, _, subject = name.partition(":")
        if kind != "detector" or subject.rpartition("/")[0] not in service.config.models:
            continue
        schedule_us = round(float(detail.get("schedule_s", 60.0)) * SECOND_US)
        # A window is judged only after its lateness, which is part of the schedule and no silence.
        limit_us = 3 * schedule_us + MINUTE_US + (lateness_us if schedule_us > MINUTE_US else 0)
        explained = subject in failed or subject.rpartition("/")[0] in late_models
        late = now_us - beat_us > limit_us and not explained
        reason = f"no completed run for more than {limit_us // MINUTE_US} min" if late else None
        yield _state("detector", subject, beat_us + limit_us if late else now_us, reason, Event.DETECTOR_SILENT)
    yield from _demotions(service, now_us)


def _demotions(service: Service, now_us: int) -> Iterator[Decision]:
    """Detectors on report only, each as severe as the worst that it holds back, and those that are so no longer."""
    now = demoted(service.engine, now_us, service.config)
    with read(service.engine) as conn:
        standing = alertlog.open_alerts(conn)
    before = [a.subject for a in standing if (a.model, a.event) == (UNREGISTERED, Event.MONITOR_DEGRADED)]
    for detector in sorted({*now, *(s.id for s in before if s.kind == "detector")}):
        if detector not in now:
            yield _state("detector", detector, now_us, None)
            continue
        held = [a for a in standing if a.detector == detector and a.evidence.get(HELD_BACK) == REPORT_ONLY]
        worst = max((a.severity for a in held), key=lambda s: s.rank, default=Severity.WARNING)
        kept = f"{len(held)} not sent, the worst {worst.value}" if held else "its incidents are not sent"
        said = _state("detector", detector, now_us, f"on report only: {now[detector]}; {kept}", severity=worst)
        # Names make each further one an update: nothing critical goes without a line.
        who = {str(p) for a in held if a.severity is Severity.CRITICAL for p in a.evidence.get("principals", ())}
        yield replace(said, evidence={**said.evidence, "principals": sorted(who)[:NAMED]}) if who else said


def collectors(service: Service, now_us: int) -> Iterator[Decision]:
    """A source that nothing was ever read from, or whose collector has not reported for five minutes, or lags by a quarter of an hour."""
    beats = ledger.beats(service.engine)
    by: dict[str, list[PartitionRow]] = {}
    for p in all_partitions(service.engine):
        by.setdefault(p.source, []).append(p)
    for name, source in service.config.sources.items():
        if source.type == "http":
            continue
        if name not in by:
            since_us = beats.get(f"collector:{name}", (now_us, {}))[0]
            never = now_us - since_us > DEAD_COLLECTOR_US and source.follow and source.decoder != "marks"
            reason = "nothing was ever read from it: does it exist, and does `lanner collect` run?" if never else None
            yield _state("component", f"collector {name}", now_us, reason)
            continue
        topic = source.topic
        mine = [p for p in by[name] if topic is None or p.topic == topic]
        heard_us = max((p.updated_us for p in mine), default=now_us)
        behind = [p for p in mine if p.caught_up_since_us is None and p.max_event_us is not None]
        oldest_us = min((p.max_event_us for p in behind if p.max_event_us is not None), default=now_us)
        reason = None
        if now_us - heard_us > DEAD_COLLECTOR_US and source.follow:
            reason = "its collector has not reported for five minutes"
        elif now_us - oldest_us > LAG_US:
            reason = "its collector lags: it reads events from more than 15 min ago"
        yield _state("component", f"collector {name}", now_us, reason)


def references(service: Service, now_us: int) -> Iterator[Decision]:
    """A model whose proposed reference waits for people while it has none, or one that is not approved by enough."""
    bare = store.waiting(service.engine)
    for name in service.config.models:
        wait = f"reference version {bare[name]} waits for approval: lanner reference approve" if name in bare else None
        yield _state("component", f"reference {name}", now_us, wait, severity=Severity.WARNING)


def disk(service: Service, now_us: int) -> Iterator[Decision]:
    """The disk of the store is nearly full."""
    usage = shutil.disk_usage(service.root)
    full = usage.free < min(DISK_BYTES, DISK_SHARE * usage.total)
    yield _state("component", "disk", now_us, f"{usage.free >> 20} MiB are free in the store" if full else None)


def _state(
    kind: str,
    subject: str,
    at_us: int,
    reason: str | None,
    event: Event = Event.MONITOR_DEGRADED,
    severity: Severity | None = None,
) -> Decision:
    return Decision(
        model=UNREGISTERED,
        event=event,
        family=Family.MONITOR,
        subject=Subject(kind, subject),
        firing=reason is not None,
        time_us=at_us,
        window_us=(at_us, at_us),
        detector="self",
        severity=severity,
        fixed_rule=True,
        evidence={} if reason is None else {"reason": reason},
    )
