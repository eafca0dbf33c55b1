"""The Kafka collector against a real broker: rebalances, growth, lost offsets, restarts, and hostile producers."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewPartitions, NewTopic

from alerts import lifecycle
from alerts.policy import Policy
from collectors.base import Collector, IngestSettings, Record
from collectors.decode.native import native
from collectors.ingest import Ingester
from collectors.kafka import KafkaCollector, need_crc32c
from collectors.memory import MemoryEventLog
from collectors.recent import recent
from monitor.config import Source, load
from monitor.errors import ConfigError, DependencyUnreachable, LannerError, OffsetsLost
from monitor.model import HOUR_US, SECOND_US, parse_time_us
from monitor.service import collect
from monitor.service.compose import open_service
from monitor.service.told import told
from monitor.store import deadletters, ledger
from tests.alerting import drift
from tests.running import eventually
from tests.servers.kafka import Kafka

EVENT = b'{"event_time": "2026-01-01T00:00:00Z", "model": "m", "features": {"n": %d}}'


class Topic:
    """A topic of its own for each test."""

    def __init__(self, bootstrap: str, partitions: int = 1, **configs: str) -> None:
        self.bootstrap = bootstrap
        self.name = f"t-{uuid.uuid4().hex[:12]}"
        self.partitions = partitions
        self.admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        self.admin.create_topics([NewTopic(self.name, partitions, 1, topic_configs=configs)])

    def put(self, numbers: range, **options: Any) -> None:
        """Events with these numbers, spread over the partitions in turn."""
        producer = KafkaProducer(bootstrap_servers=self.bootstrap, **options)
        for n in numbers:
            producer.send(self.name, EVENT % n, partition=n % self.partitions)
        producer.flush()
        producer.close()

    def source(self, **fields: Any) -> Source:
        """A source that reads it, by default in a group of its own name."""
        given = {"type": "kafka", "topic": self.name, "bootstrap": self.bootstrap, "group": self.name}
        return Source(**{**given, "session_timeout": 6.0, **fields})

    def delete_before(self, partition: int, offset: int) -> None:
        """What retention does."""
        self.admin.delete_records({TopicPartition(self.name, partition): offset})


@pytest.fixture
def topic(kafka: str) -> Iterator[Topic]:
    """A topic with two partitions."""
    made = Topic(kafka, 2)
    yield made
    made.admin.close()


def start(collector: Collector, offsets: dict[int, int] | None = None) -> list[tuple[str, int]]:
    """Starts every partition of an assigning collector."""
    gained, _ = collector.changes()
    for key in gained:
        collector.seek(key, (offsets or {}).get(key[1]))
        collector.resume(key)
    return list(gained)


def poll_all(collector: Collector, n: int) -> list[Record]:
    """At least n records."""
    out: list[Record] = []

    def enough() -> bool:
        out.extend(collector.poll(0.2))
        return len(out) >= n

    eventually(enough)
    return out


def test_marks_come_once_and_explain(topic: Topic, tmp_path: Path) -> None:
    """What pipelines write to a topic stands beside the next incident: each once, poison kept aside, no clock moved."""
    day = "2026-11-22T%02d:00:00Z"
    said = [
        {"kind": "deploy", "text": "version 4 <b>of the scorer</b>", "model": "m", "start": day % 8, "by": "ci"},
        {"kind": "maintenance", "text": "disks", "model": "m", "start": day % 9, "end": day % 11},
        {"kind": "maintenance", "text": "for ever", "start": day % 9},
        {"kind": "batch", "text": "re-score", "model": "other", "start": day % 9, "end": day % 10},
    ]
    producer = KafkaProducer(bootstrap_servers=topic.bootstrap)
    for mark in said:
        producer.send(topic.name, json.dumps(mark).encode(), partition=0)
    producer.flush()
    producer.close()
    file = tmp_path / "lanner.yaml"
    source = {
        "type": "kafka",
        "topic": topic.name,
        "bootstrap": topic.bootstrap,
        "group": topic.name,
        "decoder": "marks",
    }
    file.write_text(json.dumps({"models": {"m": {}}, "sources": {"ci": {**source, "max_poison": 1.0}}}))
    for _ in range(2):  # a restart reads nothing twice
        service = open_service(load(file), "test")
        collect.run(service, threading.Event(), once=True)
        service.close()
    service = open_service(load(file), "test")
    noon_us = parse_time_us(day % 12)
    known, _ = told(service.engine, "m", noon_us, service.config)
    assert [(m.kind, m.actor) for m in known.marks] == [("deploy", "ci"), ("maintenance", "source ci")]
    (letter,) = deadletters.find(service.engine)
    assert (letter.letter.offset, letter.letter.reason) == (2, "bad_time")
    decision = drift(0, time_us=noon_us, window_us=(noon_us - HOUR_US, noon_us))
    in_between = replace(
        decision, time_us=noon_us - 90 * 60 * SECOND_US, window_us=(noon_us - 2 * HOUR_US, noon_us - HOUR_US)
    )
    quiet = lifecycle.step([in_between], (), {}, Policy(), known)
    assert (quiet.dropped, quiet.transitions) == ({"maintenance": 1}, ())
    (opened,) = lifecycle.step([decision], (), {}, Policy(), known).transitions
    assert "known here: maintenance disks" in opened.alert.text
    assert "deploy version 4 \\x3cb\\x3eof the scorer" in opened.alert.text
    assert service.model("m", noon_us).tick("test", noon_us)
    table = service.model("m", noon_us).watched.table
    assert ledger.standing(service.engine, table.model_id, "m", 0).watermark_us is None
    service.close()


class Running:
    """An ingester in a thread of its own, as the service runs it."""

    def __init__(self, collector: Collector, log: MemoryEventLog, owner: str, **settings: Any) -> None:
        flush = IngestSettings(**{"flush_rows": 50, "flush_s": 0.2, **settings})
        self.collector = collector
        self.problems: list[Any] = []
        self.ingester = Ingester(
            collector,
            native(),
            log,
            flush,
            owner,
            lambda: time.time_ns() // 1000,
            str,
            on_problems=self.problems.append,
        )
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.ingester.run, args=(self.stop,), daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.ingester.close()


def numbers(log: MemoryEventLog) -> list[int]:
    """What was stored, sorted."""
    return sorted(int((e.features or {})["n"]) for e in log.events)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_read(topic: Topic, codec: str | None) -> None:
    """Batches compressed in any way Kafka knows come out as they went in."""
    topic.put(range(40), compression_type=codec)
    collector = KafkaCollector("src", topic.source(assign=(0, 1)))
    start(collector)
    values = sorted(r.value or b"" for r in poll_all(collector, 40))
    collector.close()
    assert values == sorted(EVENT % n for n in range(40))


def test_members_that_come_and_go_store_everything_once(topic: Topic) -> None:
    """Three members of one group join and leave under load: no event is lost and none stored twice."""
    log = MemoryEventLog()
    members = [Running(KafkaCollector("src", topic.source()), log, "m0")]
    topic.put(range(300))
    eventually(lambda: len(log.events) >= 50)
    members.append(Running(KafkaCollector("src", topic.source()), log, "m1"))
    topic.put(range(300, 600))
    eventually(lambda: len(log.events) >= 350)
    members.append(Running(KafkaCollector("src", topic.source()), log, "m2"))
    topic.put(range(600, 900))
    members.pop(0).end()
    topic.put(range(900, 1200))
    eventually(lambda: len(log.events) >= 1200)
    for member in members:
        member.end()
    assert numbers(log) == list(range(1200))


def test_new_partitions_are_found(topic: Topic) -> None:
    """A topic that grows is read whole without a restart, within the metadata's age of 30 s."""
    log = MemoryEventLog()
    member = Running(KafkaCollector("src", topic.source(options={"metadata_max_age_ms": 1500})), log, "m0")
    topic.put(range(10))
    eventually(lambda: len(log.events) >= 10)
    topic.admin.create_partitions({topic.name: NewPartitions(4)})
    topic.partitions = 4
    eventually(lambda: len(topic.admin.describe_topics([topic.name])[0]["partitions"]) == 4)
    topic.put(range(10, 50))
    eventually(lambda: len(log.events) >= 50)
    member.end()
    assert numbers(log) == list(range(50))
    assert len(log.next_offsets) == 4


def test_lost_offsets_stop_one_partition_and_name_the_range(topic: Topic) -> None:
    """When retention overtook the stored offset nothing is skipped in silence; the other partition goes on."""
    topic.put(range(20))
    topic.delete_before(0, 6)
    log = MemoryEventLog()
    log.next_offsets = {("src", (topic.name, 0)): 2, ("src", (topic.name, 1)): 2}
    running = Running(KafkaCollector("src", topic.source(assign=(0, 1))), log, "m0")
    eventually(lambda: running.problems and len(log.events) >= 8)
    assert running.collector.lag()[topic.name, 0] != 0
    running.end()
    (problem,) = running.problems[-1].values()
    assert f"{topic.name} partition 0: offsets 2 to 5 were removed before Lanner read them" in problem
    assert numbers(log) == list(range(5, 20, 2))
    assert log.next_offsets["src", (topic.name, 0)] == 2


def test_lost_offsets_can_be_accepted(topic: Topic) -> None:
    """A person may say that the gap is known: reading goes on behind it."""
    topic.put(range(20))
    topic.delete_before(0, 6)
    collector = KafkaCollector("src", topic.source(assign=(0,)), accept_lost=True)
    start(collector, {0: 2})
    offsets = [r.offset for r in poll_all(collector, 4)]
    collector.close()
    assert offsets == [6, 7, 8, 9]


def test_an_offset_beyond_the_log_is_told_as_a_topic_made_anew(topic: Topic) -> None:
    """A stored offset that the log has never reached stops the partition too."""
    topic.put(range(4))
    collector = KafkaCollector("src", topic.source(assign=(0,)))
    start(collector, {0: 90})
    with pytest.raises(OffsetsLost, match="truncated or made anew"):
        eventually(lambda: collector.poll(0.2))
    collector.close()


def test_a_header_name_that_is_no_utf8_stops_nothing(topic: Topic) -> None:
    """librdkafka lets a producer send any bytes as a name; the message and its neighbours are read."""
    producer = KafkaProducer(bootstrap_servers=topic.bootstrap)

    class AnyBytes(str):
        __slots__ = ()

        def encode(self, *_: Any) -> bytes:
            return b"\xff\xfe"

    headers = [[], [(AnyBytes("x"), b"1"), ("twice", b"a"), ("twice", b"")], []]
    for n, given in enumerate(headers):
        producer.send(topic.name, EVENT % n, partition=0, headers=given)
    producer.flush()
    producer.close()
    collector = KafkaCollector("src", topic.source(assign=(0,)))
    start(collector)
    records = poll_all(collector, 3)
    collector.close()
    assert [r.value for r in records] == [EVENT % n for n in range(3)]
    assert list(records[1].headers) == [("\\xff\\xfe", b"1"), ("twice", b"a"), ("twice", b"")]


def test_aborted_transactions_are_not_read_and_do_not_look_like_lag(topic: Topic) -> None:
    """Only committed messages come; the markers between them leave no lag behind."""
    producer = KafkaProducer(bootstrap_servers=topic.bootstrap, transactional_id=topic.name)
    producer.init_transactions()
    for n, end in enumerate((producer.commit_transaction, producer.abort_transaction, producer.commit_transaction)):
        producer.begin_transaction()
        producer.send(topic.name, EVENT % n, partition=0)
        end()
    producer.close()
    collector = KafkaCollector("src", topic.source(assign=(0,)))
    (key,) = start(collector)
    values = [r.value for r in poll_all(collector, 2)]
    eventually(lambda: (collector.poll(0.2), collector.lag()[key] == 0)[1])
    collector.close()
    assert values == [EVENT % 0, EVENT % 2]


def test_a_broker_that_restarts_costs_nothing(kafka_server: Kafka) -> None:
    """While it is away the lag is unknown; afterwards everything comes, once."""
    topic = Topic(kafka_server.bootstrap, 2)
    topic.put(range(20))
    log = MemoryEventLog()
    running = Running(KafkaCollector("src", topic.source(assign=(0, 1))), log, "m0")
    eventually(lambda: len(log.events) >= 20)
    kafka_server.kill()
    eventually(lambda: None in running.collector.lag().values())
    kafka_server.restart()
    topic.put(range(20, 40))
    eventually(lambda: len(log.events) >= 40)
    running.end()
    topic.admin.close()
    assert numbers(log) == list(range(40))


def test_what_cannot_be_reached_is_said(kafka: str, topic: Topic) -> None:
    """No broker, no topic, no such partition, unknown options: each its own clear error, within seconds."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DependencyUnreachable, match=nowhere):
            KafkaCollector("src", topic.source(bootstrap=nowhere, options={"bootstrap_timeout_ms": 1500}))
    with pytest.raises(DependencyUnreachable, match="there is no topic nothing-here"):
        KafkaCollector("src", topic.source(topic="nothing-here"))
    with pytest.raises(DependencyUnreachable, match=r"partitions \[7\]"):
        KafkaCollector("src", topic.source(assign=(7,)))
    with pytest.raises(ConfigError, match="ssl_cafil"):
        KafkaCollector("src", topic.source(options={"ssl_cafil": "x"}))
    with pytest.raises(ConfigError, match="group_id is set by Lanner"):
        KafkaCollector("src", topic.source(options={"group_id": "x"}))
    assert kafka


def test_the_latest_start_is_where_the_log_ends_now(topic: Topic) -> None:
    """A first start at latest skips what was there and says from where it reads."""
    topic.put(range(10))
    collector = KafkaCollector("src", topic.source(assign=(0,), start="latest"))
    (key,), _ = collector.changes()
    assert collector.seek(key, None) == 5
    collector.close()


def test_a_look_at_a_topic_leaves_no_trace(topic: Topic) -> None:
    """The latest messages over all partitions, without a group."""
    topic.put(range(30))
    records = recent("src", topic.source(), Path(), 5)
    assert len(records) == 5
    assert all(r.offset >= 10 for r in records)
    assert topic.name not in str(topic.admin.list_groups())


def test_a_missing_checksum_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without crc32c reading costs ten times as much, so it is refused with the remedy."""
    monkeypatch.setattr("kafka.record.util.crc32c_c", None)
    with pytest.raises(LannerError, match="crc32c"):
        need_crc32c()
