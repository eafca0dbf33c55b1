"""The clockwork: APScheduler drives publishing, ticks, delivery and upkeep of one process.

Jobs of several processes may overlap freely: leases and fencing tokens in the state store decide who may write.
Wall time enters Lanner here, by the clock of the state store, and in the collectors' loops, nowhere else.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from alerts import pipeline
from alerts.base import Sink
from alerts.registry import sinks as configured_sinks
from monitor import telemetry
from monitor.errors import FencedOut, LannerError, StoreError
from monitor.model import SECOND_US, rfc3339
from monitor.service import attention, renewal
from monitor.service.compose import Service
from monitor.service.system import system_tick
from monitor.store import leases, ledger, queries, reports
from monitor.store.engine import StoreClock
from monitor.store.outbox import SqlOutbox
from monitor.store.pairing import pair

log = structlog.get_logger("lanner.scheduler")

DELIVER_S = 1.0
UPKEEP_S = 60.0  # one merge per table and run
REFERENCES_S = 60.0
REPORT_CHECK_S = 60.0
REPORT_S = 900.0  # a report that takes longer is ended
REPORT_LEASE_US = 3600 * SECOND_US  # so long nobody tries one again that failed
CHILD_POLL_S = 0.5
ATTEND_S = 60.0  # what people did and did not do, and signs of life
ALIVE_S = 60.0  # that all is well, for /metrics; a configured dead-man's switch has its own


def wall_us() -> int:
    """Wall time of this machine in microseconds UTC."""
    return time.time_ns() // 1000


class Jobs:
    """What the clockwork calls. Each job is safe to run at any time and in any number of processes."""

    def __init__(self, service: Service, sinks: dict[str, Sink] | None = None, file: Path | None = None) -> None:
        self.service = service
        self.file = file  # of the configuration, for child processes; None: no reports are made
        self.closing = threading.Event()
        self.now_us = StoreClock(service.engine, wall_us)
        self.publisher = service.publisher()
        self.outbox = SqlOutbox(service.engine)
        self.sinks = configured_sinks(service.config) if sinks is None else sinks
        self.rngs = {name: random.Random(f"{service.owner} {name}") for name in self.sinks}
        self.paces = {name: pipeline.Pace(sink.per_minute) for name, sink in service.config.sinks.items()}
        self.ticked_us = self.now_us()  # when all models were last seen to
        for source in service.config.sources:
            ledger.expect(service.engine, f"collector:{source}", self.ticked_us)  # a source that never comes is missed
        self.beaten_us = 0
        self.timeout_us = round(
            max((s.pairing_timeout for s in service.config.sources.values()), default=900.0) * SECOND_US
        )

    def publish(self) -> None:
        """Pair what has met, then make every recorded segment readable."""
        service, at = self.service, self.now_us()
        pair(service.log, at, self.timeout_us, service.owner)
        for name, table in service.tables.items():
            self._apart("publish", name, partial(self.publisher.publish, table.model_id, at))
        ledger.beat(service.engine, f"component:publisher:{service.owner}", at)

    def tick(self) -> None:
        """One tick of every model whose lease is free or ours, then one of the system."""
        for name in sorted(self.service.config.models):
            if not self._apart("tick", name, partial(self._tick, name)):
                ledger.expect(self.service.engine, f"model:{name}", self.now_us())  # its silence counts from here on
        system_tick(self.service, self.now_us())
        self.ticked_us = self.now_us()

    def _tick(self, name: str) -> None:
        live = self.service.model(name, self.now_us())
        at = self.now_us()  # learning may have taken longer than a lease lasts
        if live.tick(self.service.owner, at):
            ledger.beat(self.service.engine, f"model:{name}", at, {"owner": self.service.owner})
            telemetry.observe("tick_duration_seconds", (self.now_us() - at) / SECOND_US, model=name)

    def _apart(self, job: str, about: str, work: Callable[[], object]) -> bool:
        """Do one part of a job; whether it ended well. What fails in one model or task holds up no other and no alert."""
        try:
            work()
        except FencedOut as error:
            log.warning("fenced_out", job=job, about=about, reason=str(error))
        except Exception as error:
            telemetry.count("job_failures_total", job=job)
            strange = not isinstance(error, LannerError | OSError)
            kind = type(error).__name__
            log.error("part_failed", job=job, about=about, error=kind, reason=str(error), exc_info=strange)
        else:
            return True
        return False

    def deliver(self, *names: str) -> None:
        """Send what is due at these sinks, or at all, one after the other; outcomes are settled in the outbox."""
        for name in names or self.sinks:
            one = {name: self.sinks[name]}
            pipeline.deliver(self.outbox, one, self.service.owner, self.now_us(), self.rngs[name], paces=self.paces)

    def attend(self) -> None:
        """Mend what sinks show wrongly, hear and tell what people did, escalate what nobody took, pass heartbeats on."""
        at, service = self.now_us(), self.service
        if self.sinks:
            self._apart("attend", "sinks", partial(attention.read_back, service, self.sinks, at))
            self._apart("attend", "people", partial(attention.nobody_came, service, at))
        self._apart("attend", "notes", partial(attention.tell, service, self.sinks, at))
        if self._apart("attend", "heartbeats", partial(attention.beat, service, self.sinks, self.beaten_us, at)):
            self.beaten_us = at

    def alive(self) -> None:
        """Say that all is well, if it is."""
        attention.alive(self.service, self.ticked_us, self.now_us())

    def attend_references(self) -> None:
        """Take in references that waited for their time, propose what was observed, count history anew."""
        for name in sorted(self.service.config.models):
            renewal.attend(self.service, name, self.now_us())

    def report(self) -> None:
        """Make the reports that are due, each in a process of its own, so that neither its memory nor its end is ours."""
        if self.file is None:
            return
        for name, model in sorted(self.service.config.models.items()):
            table, at = self.service.tables[name], self.now_us()
            row = queries.one_model(self.service.engine, name, at, clock=self.service.config.clock, grace_us=0)
            judged_us = None if row is None else row.judged_us
            newest_us = reports.newest_end(self.service.engine, table.model_id)
            span_us = reports.due(newest_us, judged_us, round(model.reports.every * SECOND_US))
            if span_us is None or not queries.windows(self.service.engine, table.model_id, *span_us):
                continue
            lease, holder = f"report:{table.model_id}", f"{self.service.owner} {at}"
            # A lease of its own for every try: what fails keeps it, and nobody tries again before it runs out.
            if leases.acquire(self.service.engine, lease, holder, at, REPORT_LEASE_US) is None:
                continue
            kind = "--evidently" if model.reports.evidently else "--no-evidently"
            words = [
                "report",
                name,
                "-c",
                str(self.file),
                "--keep",
                kind,
                "--from",
                rfc3339(span_us[0]),
                "--to",
                rfc3339(span_us[1]),
            ]
            if self._child(words):
                leases.release(self.service.engine, lease, holder)

    def _child(self, words: Sequence[str]) -> bool:
        """Run one command of ours; whether it ended well. It is ended when it takes too long or we are closing."""
        command = [sys.executable, "-m", "monitor.cli", *words]
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
            waited_s = 0.0
            while child.poll() is None and waited_s < REPORT_S and not self.closing.wait(CHILD_POLL_S):
                waited_s += CHILD_POLL_S
            if child.poll() is None:
                child.kill()
                child.wait()
            if child.returncode == 0:
                return True
            said.seek(0)
            last = said.read()[-500:].decode(errors="replace")
        if not self.closing.is_set():
            telemetry.count("job_failures_total", job="report")
            log.error("report_failed", model=words[1], exit_code=child.returncode, reason=last)
        return False

    def upkeep(self) -> None:
        """Compact tables and sweep files that no segment names."""
        for table in self.service.tables.values():
            self.publisher.compact(table.model_id, self.now_us())
        self.publisher.sweep(self.now_us())


def guarded(name: str, job: Callable[[], None]) -> Callable[[], None]:
    """A job whose expected failures are logged and counted; the next run tries again."""

    def run() -> None:
        try:
            job()
        except (LannerError, StoreError, OSError) as error:
            telemetry.count("job_failures_total", job=name)
            log.error("job_failed", job=name, error=type(error).__name__, reason=str(error))

    return run


def clockwork(service: Service, jobs: Jobs) -> BackgroundScheduler:
    """All jobs on their intervals; a run that is still going skips its next turn instead of piling up."""
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(9 + len(jobs.sinks))},  # a sink that hangs holds its own thread only
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        timezone="UTC",
    )
    schedule = service.config.schedule
    deliveries = [(f"deliver {name}", partial(jobs.deliver, name), DELIVER_S) for name in jobs.sinks]
    work: list[tuple[str, Callable[[], None], float]] = [
        ("publish", jobs.publish, schedule.publish),
        ("tick", jobs.tick, schedule.tick),
        *deliveries,
        ("attend", jobs.attend, ATTEND_S),
        ("upkeep", jobs.upkeep, UPKEEP_S),
        ("references", jobs.attend_references, REFERENCES_S),
        ("report", jobs.report, REPORT_CHECK_S),
        ("alive", jobs.alive, ALIVE_S if service.config.deadman is None else service.config.deadman.every),
    ]
    for name, job, every_s in work:
        scheduler.add_job(guarded(name, job), "interval", seconds=every_s, id=name)
    return scheduler


def run(service: Service, stop: threading.Event, file: Path | None = None) -> None:
    """Run until `stop` is set; ends after the jobs under way. `file`: where the configuration stands."""
    jobs = Jobs(service, file=file)
    # Calibration may take a while: do it before the first interval, so that ticks start warm.
    for name in sorted(service.config.models):
        service.model(name, jobs.now_us())
    scheduler = clockwork(service, jobs)
    scheduler.start()
    log.info("scheduler_started", owner=service.owner, models=len(service.config.models))
    stop.wait()
    jobs.closing.set()
    scheduler.shutdown(wait=True)
    jobs.publisher.close()
    service.close()
