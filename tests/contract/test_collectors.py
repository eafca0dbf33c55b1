"""One suite over every collector: what the ingester may rely on, whatever the source."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from collectors.base import Collector, IngestSettings, Record
from collectors.decode.native import native
from collectors.files import FileCollector
from collectors.ingest import Ingester
from collectors.kafka import KafkaCollector
from collectors.memory import MemoryCollector, MemoryEventLog
from monitor.config import Source


class Place(Protocol):
    """Somewhere messages can be put for a collector to read."""

    def put(self, values: Sequence[bytes]) -> None: ...
    def open(self) -> Collector: ...


class MemoryPlace:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def put(self, values: Sequence[bytes]) -> None:
        start = len(self.records)
        self.records += [Record("src", "t", 0, start + i, None, v) for i, v in enumerate(values)]

    def open(self) -> Collector:
        return MemoryCollector("src", self.records, max_records=7)


class FilePlace:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "events.jsonl"

    def put(self, values: Sequence[bytes]) -> None:
        with self.file.open("ab") as out:
            out.writelines(value + b"\n" for value in values)

    def open(self) -> Collector:
        return FileCollector("src", [str(self.file)], max_records=7)


class KafkaPlace:
    def __init__(self, bootstrap: str, mode: str) -> None:
        self.topic = f"contract-{uuid.uuid4().hex[:12]}"
        self.bootstrap, self.mode = bootstrap, mode
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        admin.create_topics([NewTopic(self.topic, 1, 1)])
        admin.close()

    def put(self, values: Sequence[bytes]) -> None:
        producer = KafkaProducer(bootstrap_servers=self.bootstrap)
        for value in values:
            producer.send(self.topic, value)
        producer.flush()
        producer.close()

    def open(self) -> Collector:
        assign = (0,) if self.mode == "assign" else None
        source = Source(
            type="kafka", topic=self.topic, bootstrap=self.bootstrap, assign=assign, group=self.topic,
            session_timeout=6.0,
        )  # fmt: skip
        return KafkaCollector("src", source)


@pytest.fixture(params=["memory", "files", "kafka-assign", "kafka-group"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of each kind."""
    if request.param == "memory":
        return MemoryPlace()
    if request.param == "files":
        return FilePlace(tmp_path)
    return KafkaPlace(request.getfixturevalue("kafka"), request.param.removeprefix("kafka-"))


@pytest.fixture
def opened(place: Place) -> Iterator[Callable[[], Collector]]:
    """Opens collectors and closes them after the test."""
    made: list[Collector] = []

    def open_one() -> Collector:
        made.append(place.open())
        return made[-1]

    yield open_one
    for collector in made:
        collector.close()


def gained(collector: Collector) -> tuple[str, int]:
    """The one partition, once the collector has kept it for a moment: a group may rebalance twice at its start."""
    deadline = time.monotonic() + 30
    partition: tuple[str, int] | None = None
    quiet_at = 0.0
    while time.monotonic() < deadline:
        got, lost = collector.changes()
        if lost and not got:
            partition = None
        if got:
            assert len(got) == 1
            partition, quiet_at = got[0], time.monotonic() + (1.0 if isinstance(collector, KafkaCollector) else 0.0)
        if partition is not None and time.monotonic() >= quiet_at:
            return partition
        assert not collector.poll(0.05), "nothing may be read before it is gained"
    raise AssertionError("no partition in 30 s")


def read(collector: Collector, n: int) -> list[Record]:
    """At least n records, or what came in a minute."""
    out: list[Record] = []
    deadline = time.monotonic() + 60
    while len(out) < n and time.monotonic() < deadline:
        out += collector.poll(0.2)
    return out


VALUES = [b'{"n": %d}' % i for i in range(20)]


def test_records_come_in_order_and_untouched(place: Place, opened: Callable[[], Collector]) -> None:
    """From the start on, each record once, offsets rising, bytes as they were put."""
    place.put(VALUES)
    collector = opened()
    partition = gained(collector)
    assert not collector.poll(0), "a gained partition waits for seek and resume"
    assert collector.seek(partition, None) == 0
    collector.resume(partition)
    records = read(collector, 20)
    assert [r.value for r in records] == VALUES
    assert [r.offset for r in records] == list(range(20))
    assert {(r.source, r.topic, r.partition) for r in records} == {("src", *partition)}


def test_reading_goes_on_where_it_is_told_to(place: Place, opened: Callable[[], Collector]) -> None:
    """A second collector that seeks to offset 12 reads 12 and later, and what is put afterwards."""
    place.put(VALUES)
    collector = opened()
    partition = gained(collector)
    assert collector.seek(partition, 12) == 12
    collector.resume(partition)
    assert [r.offset for r in read(collector, 8)] == list(range(12, 20))
    if isinstance(place, MemoryPlace):
        return  # its list is taken at the start
    place.put([b'{"n": 20}'])
    assert [r.value for r in read(collector, 1)] == [b'{"n": 20}']


def test_a_paused_partition_is_silent_and_loses_nothing(place: Place, opened: Callable[[], Collector]) -> None:
    """Nothing comes while paused; after seek and resume everything does."""
    place.put(VALUES)
    collector = opened()
    partition = gained(collector)
    collector.seek(partition, 0)
    collector.resume(partition)
    first = read(collector, 1)
    collector.pause(partition)
    assert collector.poll(0.3) == () or not collector.poll(0.3)
    collector.seek(partition, first[-1].offset + 1)
    collector.resume(partition)
    rest = read(collector, 20 - len(first))
    assert [r.offset for r in first + rest] == list(range(20))


def test_lag_is_zero_only_at_the_end(place: Place, opened: Callable[[], Collector]) -> None:
    """Behind the end the lag is positive or unknown; once all is read it becomes 0."""
    place.put(VALUES)
    collector = opened()
    partition = gained(collector)
    collector.seek(partition, 5)
    assert collector.lag()[partition] != 0
    collector.resume(partition)
    read(collector, 15)
    deadline = time.monotonic() + 60
    while collector.lag()[partition] != 0 and time.monotonic() < deadline:
        collector.poll(0.2)
    assert collector.lag()[partition] == 0


def test_commit_is_advice_and_never_fails(place: Place, opened: Callable[[], Collector]) -> None:
    """Committing anything, even a partition nobody knows, raises nothing and moves nothing."""
    place.put(VALUES)
    collector = opened()
    partition = gained(collector)
    collector.seek(partition, 0)
    collector.commit({partition: 10, ("elsewhere", 3): 1})
    collector.resume(partition)
    assert read(collector, 20)[0].offset == 0


def test_the_ingester_drains_it_and_a_second_one_finds_nothing_new(place: Place) -> None:
    """Everything is stored once, and a restart goes on from the stored offset."""
    event = b'{"event_time": "2026-01-01T00:00:00Z", "model": "m", "features": {"n": %d}}'
    place.put([event % i for i in range(20)])
    log = MemoryEventLog()
    for _ in range(2):
        ingester = Ingester(
            place.open(), native(), log, IngestSettings(flush_rows=6), "me", lambda: 1_800_000_000_000_000, str
        )
        ingester.drain(threading.Event())
        ingester.close()
    assert [e.features for e in log.events] == [{"n": float(i)} for i in range(20)]
    assert list(log.next_offsets.values()) == [20]
    assert all(log.caught_up.values())
