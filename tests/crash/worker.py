"""One collector process of the crash tests: real Kafka, real stores, and a point at which it kills or stops itself.

Runs in a child forked by the nursery, which has imported all this and opened nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

import collectors.kafka
from collectors.base import IngestSettings, Part, Record
from collectors.ingest import Ingester
from collectors.kafka import KafkaCollector
from monitor.config import Source
from monitor.errors import DecodeError, DependencyUnreachable, FencedOut, StoreError
from monitor.intake import IngestBatch, IngestResult
from monitor.model import Half, InferenceEvent, stable_id
from monitor.store import compaction, ingest
from monitor.store.columns import FeatureSchema
from monitor.store.engine import open_state, write
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.pairing import pair
from monitor.store.publish import Publisher
from monitor.store.schema import partitions

SOURCE = "crash"
MODEL = ModelTable(stable_id("model", "crash"), "m", FeatureSchema(("amount",), ("country",)))
POINTS = (
    "polled",
    "decoded",
    "file_written",
    "in_transaction",
    "after_transaction",
    "before_publish",
    "after_publish",
    "compacting",
)
POLL_RECORDS = 120
BIRTH_US = 1_700_000_000_000_000


class Job(msgspec.Struct, kw_only=True):
    """What a child is to do. `point`/`nth`: where it ends itself, `None` to live; `goal`: offsets to read up to."""

    bootstrap: str
    topic: str
    url: str
    root: str
    owner: str
    goal: dict[int, int]
    point: str | None = None
    nth: int = 1
    sent_signal: int = int(signal.SIGKILL)
    group: str | None = None
    publishes: bool = True
    broken: str | None = None  # "commit_first" or "no_fence": the controls
    limit_s: float = 60.0


def message(number: int) -> tuple[int, bytes]:
    """Partition and value of the n-th message: events, halves on two partitions, and poison."""
    kind = number % 10
    if kind == 7:
        return number // 10 % 2, b"{" + str(number).encode()
    if kind in (3, 4):  # request and response of one exchange, on different partitions
        return kind % 2, msgspec.json.encode({"id": number - (kind == 4), "side": ("request", "response")[kind == 4]})
    return number // 10 % 2, msgspec.json.encode({"id": number})


def expected(numbers: range) -> Counter[int]:
    """Events that the messages of these numbers must make, each once."""
    return Counter(n for n in numbers if n % 10 not in (4, 7))


def decode(record: Record) -> list[Part]:
    """The decoder of these messages."""
    try:
        body = msgspec.json.decode(record.value or b"")
    except msgspec.DecodeError as e:
        raise DecodeError("bad_json", "poison") from e
    number = body["id"]
    event = InferenceEvent(
        event_time_us=BIRTH_US + number * 1000,
        model="m",
        request_id=str(number),
        features={"amount": float(number), "country": "QA"},
    )
    return [Half(side=body["side"], pair_key=str(number), event=event)] if "side" in body else [event]


class Witness(EventLog):
    """The real event log, which remembers whether it has refused this writer."""

    refused = False

    def append(self, batch: IngestBatch) -> IngestResult:
        try:
            return super().append(batch)
        except FencedOut:
            self.refused = True
            raise


class CommitFirst(Witness):
    """A broken event log: it moves the offsets before anything is stored."""

    def append(self, batch: IngestBatch) -> IngestResult:
        with write(self.engine) as conn:
            for advance in batch.advances:
                ingest._advance(conn, batch.source, advance, batch.received_us)
        return super().append(_without_advances(batch))


class NoFence(Witness):
    """A broken event log: it stores first and moves the offsets in a transaction of their own."""

    def append(self, batch: IngestBatch) -> IngestResult:
        result = super().append(_without_advances(batch))
        with write(self.engine) as conn:
            for advance in batch.advances:
                ingest._advance(conn, batch.source, advance, batch.received_us)
        return result


def _without_advances(batch: IngestBatch) -> IngestBatch:
    return IngestBatch(batch.source, batch.received_us, batch.parts, batch.dead_letters)


LOGS: Mapping[str | None, type[Witness]] = {None: Witness, "commit_first": CommitFirst, "no_fence": NoFence}


def run(job: Job) -> str:
    """Collect, pair, publish and compact until all is stored, or until the point; "done", "refused" (and then done) or "late"."""
    crawls = job.point is not None  # many small polls, so that points are met often
    if crawls:
        collectors.kafka.MAX_RECORDS = POLL_RECORDS  # type: ignore[misc]
    compaction.RUN_FILES = 3  # type: ignore[misc]
    at = _bomb(job)
    engine = open_state(job.url)
    log = LOGS[job.broken](engine, job.root, {"m": MODEL}, at)
    source = Source(
        type="kafka",
        topic=job.topic,
        bootstrap=job.bootstrap,
        assign=None if job.group else (0, 1),
        group=job.group or "none",
        session_timeout=3.0,
        options={
            "max_partition_fetch_bytes": 4096 if crawls else 1 << 20,
            "fetch_max_wait_ms": 20,
            "max_poll_interval_ms": 5000,  # bounds how long a rebalance waits for a member that was stopped
        },
    )
    settings = IngestSettings(flush_rows=100, flush_s=0.05, max_poison=1.0)
    end_s = time.monotonic() + job.limit_s
    publisher = Publisher(engine, job.root, "publisher", at)
    ingester = Ingester(KafkaCollector(SOURCE, source), decode, log, settings, job.owner, _now_us, str, at)
    while time.monotonic() < end_s:
        try:
            ingester.step(0.05)
            if job.publishes:
                pair(log, _now_us(), 3600 * 10**6, "pairer")
                publisher.publish(MODEL.model_id, _now_us())
                publisher.compact(MODEL.model_id, _now_us())
        except (FencedOut, StoreError, DependencyUnreachable):
            pass
        if _reached(engine, job.goal):
            ingester.close()
            return "refused" if log.refused else "done"
    return "late"


def _now_us() -> int:
    return time.time_ns() // 1000


def _bomb(job: Job) -> Callable[[str], None]:
    left = job.nth

    def at(point: str) -> None:
        nonlocal left
        if point == job.point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), job.sent_signal)

    return at


def _reached(engine: sa.Engine, goal: Mapping[int, int]) -> bool:
    with engine.connect() as conn:
        rows: Any = conn.execute(sa.select(partitions.c.partition, partitions.c.next_offset)).all()
    stored = {int(partition): next_offset or 0 for partition, next_offset in rows}
    return all(stored.get(partition, 0) >= offset for partition, offset in goal.items())
