"""Exactly once: real Kafka, both state stores, SIGKILL at every named point, and two broken ingesters that must fail."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from monitor.store.engine import migrate, open_state
from monitor.store.eventlog import EventLog
from monitor.store.schema import dead_letters, halves, partitions
from tests.crash.worker import MODEL, POINTS, Job, expected, message
from tests.servers.kafka import Kafka

ROUNDS = 6  # kills at every point on each store: 8 points x 6 rounds x 2 stores = 96, and 10 in group mode


class Nursery:
    """The process that forks workers for us."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.crash.nursery"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **command: object) -> dict[str, object]:
        """One command, one answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(msgspec.json.encode(command).decode() + "\n")
        self._process.stdin.flush()
        answer: dict[str, object] = msgspec.json.decode(self._process.stdout.readline())
        return answer

    def start(self, job: Job) -> int:
        """Fork a worker; its process id."""
        return int(str(self.ask(fork=job)["pid"]))

    def wait(self, pid: int) -> object:
        """The signal that ended the worker, or what it said."""
        answer = self.ask(wait=pid)
        return answer.get("signal", answer.get("said"))

    def run(self, job: Job) -> object:
        """Start and wait."""
        return self.wait(self.start(job))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One nursery for all tests: importing is what takes the time."""
    it = Nursery()
    yield it
    it.close()


@dataclass
class Bench:
    """A topic of our own, a fresh store, and the journal of what was sent."""

    bootstrap: str
    topic: str
    url: str
    root: Path
    engine: sa.Engine
    producer: KafkaProducer
    sent: int = 0
    ends: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0})

    def send(self, count: int) -> None:
        """Produce the next messages of the endless series."""
        for number in range(self.sent, self.sent + count):
            partition, value = message(number)
            self.producer.send(self.topic, value=value, partition=partition)
            self.ends[partition] += 1
        self.producer.flush()
        self.sent += count

    def top_up(self, floor: int = 900) -> None:
        """Keep so many messages unread that any worker meets its point."""
        with self.engine.connect() as conn:
            read = conn.scalar(sa.select(sa.func.sum(partitions.c.next_offset))) or 0
        lacking = max(0, floor - (self.sent - int(read)))
        self.send(-(-lacking // 10) * 10)  # whole tens, so that no exchange is cut in two

    def job(self, **fields: object) -> Job:
        """A worker for this bench."""
        base = {"bootstrap": self.bootstrap, "topic": self.topic, "url": self.url, "root": str(self.root)}
        return msgspec.convert({"owner": "worker", "goal": dict(self.ends), **base, **fields}, Job)

    def stored(self) -> Counter[int]:
        """How often each event stands in the event log."""
        log = EventLog(self.engine, self.root, {"m": MODEL})
        tables = log.read_log(MODEL.model_id, 0, log.latest_batch(MODEL.model_id), ["request_id"])
        return Counter(int(i) for table in tables for i in table["request_id"].to_pylist())

    def quarantined(self) -> Counter[int]:
        """How often each poison message stands among the dead letters."""
        with self.engine.connect() as conn:
            return Counter(int(bytes(v)[1:]) for v in conn.scalars(sa.select(dead_letters.c.value)))

    def verify(self) -> None:
        """Every event once, none twice, every poison message kept, Delta equal to what our own readers see."""
        events, poison = self.stored(), self.quarantined()
        numbers = range(self.sent)
        print(
            f"sent {self.sent} = events {events.total()} + second halves {self.sent // 10} + quarantined {poison.total()}"
        )
        assert events == expected(numbers)
        assert poison == Counter(n for n in numbers if n % 10 == 7)
        with self.engine.connect() as conn:
            assert conn.scalar(sa.select(sa.func.count()).select_from(halves)) == 0
        delta = DeltaTable(str(self.root / MODEL.model_id)).to_pyarrow_table(columns=["request_id"])
        assert Counter(map(int, delta["request_id"].to_pylist())) == events


@pytest.fixture
def bench(kafka: str, state_url: str, tmp_path: Path) -> Iterator[Bench]:
    """A bench on the real Kafka and one of the two state stores."""
    with _bench(kafka, state_url, tmp_path) as it:
        yield it


@contextmanager
def _bench(bootstrap: str, url: str, folder: Path) -> Iterator[Bench]:
    topic = f"crash-{folder.name}-{random.Random(url + str(folder)).getrandbits(32):x}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, 2, 1)])
    admin.close()
    engine = open_state(url)
    migrate(engine)
    bench = Bench(bootstrap, topic, url, folder / "events", engine, _producer(bootstrap))
    try:
        yield bench
    finally:
        bench.producer.close()
        engine.dispose()


def _producer(bootstrap: str) -> KafkaProducer:
    return KafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, batch_size=2048, acks="all")


def test_every_event_is_stored_once_whatever_point_a_kill_hits(bench: Bench, nursery: Nursery) -> None:
    """Workers killed at every named point of the path lose nothing and count nothing twice."""
    rng = random.Random(20261122)
    hits: Counter[str] = Counter()
    rounds = [point for point in POINTS for _ in range(ROUNDS)]
    rng.shuffle(rounds)
    for point in rounds:
        bench.top_up()
        ended = nursery.run(bench.job(point=point, nth=rng.randint(1, 3)))
        assert ended in (signal.SIGKILL, "done"), ended
        hits[point] += ended == signal.SIGKILL
    assert nursery.run(bench.job()) == "done"
    print(f"kills {hits.total()}: {dict(sorted(hits.items()))}")
    bench.verify()
    assert min(hits[point] for point in POINTS) >= 5, hits


@pytest.mark.parametrize(("broken", "point"), [("commit_first", "file_written"), ("no_fence", "after_transaction")])
def test_a_broken_ingester_is_caught(broken: str, point: str, kafka: str, tmp_path: Path, nursery: Nursery) -> None:
    """The same kills and the same count convict an ingester that moves offsets before, or apart from, its rows."""
    with _bench(kafka, f"sqlite:///{tmp_path / 'state.db'}", tmp_path) as bench:
        kills = 0
        for _ in range(6):
            bench.top_up()
            kills += nursery.run(bench.job(point=point, nth=2, broken=broken)) == signal.SIGKILL
        assert nursery.run(bench.job(broken=broken)) == "done"
        assert kills >= 4
        events, wanted = bench.stored(), expected(range(bench.sent))
        lost, twice = wanted - events, events - wanted
        print(f"{broken}: {kills} kills, lost {lost.total()}, twice {twice.total()}")
        assert lost if broken == "commit_first" else twice
        with pytest.raises(AssertionError):
            bench.verify()


def test_group_members_take_over_from_the_dead_and_refuse_the_late(bench: Bench, nursery: Nursery) -> None:
    """In a consumer group the next member goes on after a kill; one stopped past its session writes nothing any more."""
    member = {"group": bench.topic, "publishes": False}
    kills = 0
    for point in POINTS[:5]:
        bench.top_up()
        first = nursery.start(bench.job(owner="first", point=point, nth=2, **member))
        kills += nursery.wait(first) == signal.SIGKILL
        assert nursery.run(bench.job(owner="second", **member)) == "done"
    for point in ("decoded", "file_written"):
        bench.top_up()
        late = nursery.start(bench.job(owner="late", point=point, nth=2, sent_signal=int(signal.SIGSTOP), **member))
        _until(lambda: _stopped(late), 30)  # noqa: B023 -- called at once
        assert nursery.run(bench.job(owner="second", **member)) == "done"
        os.kill(late, signal.SIGCONT)
        assert nursery.wait(late) == "refused"
    assert kills == 5
    assert nursery.run(bench.job()) == "done"
    bench.verify()


def test_members_of_a_group_share_and_lose_nothing(bench: Bench, nursery: Nursery) -> None:
    """Two members that read at once, one of them killed in the middle, make every event once."""
    bench.top_up(6000)
    member = {"group": bench.topic, "publishes": False}
    first = nursery.start(bench.job(owner="first", point="in_transaction", nth=4, **member))
    second = nursery.start(bench.job(owner="second", point="never", **member))  # crawls too, but is not killed
    assert nursery.wait(second) in ("done", "refused")
    assert nursery.wait(first) in (signal.SIGKILL, "done", "refused")
    assert nursery.run(bench.job()) == "done"
    bench.verify()


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_a_broker_restart_loses_nothing(tmp_path: Path, kafka_server: Kafka, nursery: Nursery) -> None:
    """A worker that reads while the broker is killed and started again goes on where it was."""
    with _bench(kafka_server.bootstrap, f"sqlite:///{tmp_path / 'state.db'}", tmp_path) as bench:
        bench.send(2000)
        pid = nursery.start(bench.job(goal={0: bench.ends[0] + 1000, 1: bench.ends[1] + 1000}))
        _until((bench.root / MODEL.model_id).exists, 20)
        bench.producer.close()  # the client of this test is not what is tested, and it leaks sockets
        kafka_server.kill()
        kafka_server.restart()
        bench.producer = _producer(bench.bootstrap)
        bench.send(2000)
        assert nursery.wait(pid) in ("done", "refused")
        assert nursery.run(bench.job()) == "done"
        bench.verify()


def _until(true: Callable[[], object], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
