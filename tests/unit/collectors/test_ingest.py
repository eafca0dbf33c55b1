"""The ingester over in-memory twins: offsets, fencing, store failures, poison, skew, schemas."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from collectors.base import Claim, Decoder, IngestBatch, IngestResult, IngestSettings, PartitionKey, Record
from collectors.decode.native import native
from collectors.ingest import Ingester
from collectors.memory import MemoryCollector, MemoryEventLog
from monitor.errors import OffsetsLost, PoisonLimit, SchemaUnavailable, StoreError
from monitor.model import InferenceEvent

NOW_US = 1_795_334_400_000_000


def good(n: float, time_us: int = NOW_US, **fields: Any) -> bytes:
    """An event whose feature tells it apart."""
    return json.dumps({"event_time": time_us // 1000, "model": "m", "features": {"n": n}, **fields}).encode()


def records(values: Sequence[bytes | None], partition: int = 0, start: int = 0) -> list[Record]:
    """Values as records of one partition."""
    return [Record("src", "t", partition, start + i, None, v) for i, v in enumerate(values)]


class Clock:
    """Wall time that a test moves by hand."""

    def __init__(self) -> None:
        self.now_us = NOW_US

    def __call__(self) -> int:
        return self.now_us


def ingester(
    collector: MemoryCollector, log: Any, clock: Clock | None = None, decoder: Decoder | None = None, **settings: Any
) -> Ingester:
    """An ingester with small buffers."""
    return Ingester(
        collector, decoder or native(), log, IngestSettings(**{"flush_rows": 5, **settings}), "me", clock or Clock(),
        lambda name: f"p-{name}",
    )  # fmt: skip


def numbers(log: MemoryEventLog) -> list[Any]:
    """What was stored, in order."""
    return [(e.features or {}).get("n") for e in log.events]


def test_everything_is_stored_once_and_the_offsets_move_with_it() -> None:
    """Events, tombstones and poison all advance the offset; the committed one follows the stored one."""
    source = MemoryCollector("src", records([good(0), None, b"{", good(1), b"", good(2)]))
    log = MemoryEventLog()
    ingester(source, log).drain(threading.Event())
    assert numbers(log) == [0, 1, 2]
    assert log.next_offsets == {("src", ("t", 0)): 6}
    assert source.committed == {("t", 0): 6}
    assert [(d.offset, d.reason) for d in log.dead_letters] == [(2, "bad_json"), (4, "bad_json")]


def test_the_buffer_is_flushed_by_age() -> None:
    """A few rows wait until they are flush_s old, not longer."""
    clock, log = Clock(), MemoryEventLog()
    reader = ingester(MemoryCollector("src", records([good(0)])), log, clock, flush_rows=100, flush_s=2.0)
    reader.step()
    clock.now_us += 1_900_000
    reader.step()
    assert not log.events
    clock.now_us += 200_000
    reader.step()
    assert numbers(log) == [0]


def test_large_messages_flush_by_size() -> None:
    """The buffer is bounded in bytes as well as in rows."""
    log = MemoryEventLog()
    source = MemoryCollector("src", records([good(i, note="x" * 500) for i in range(4)]))
    ingester(source, log, flush_rows=1000, flush_bytes=1500).step()
    assert len(log.events) == 4


class Flaky(MemoryEventLog):
    """A log whose append fails, before or after it stored: the outcome is unknown to the caller."""

    failures: Sequence[str] = ()

    def append(self, batch: IngestBatch) -> IngestResult:
        how, self.failures = (self.failures[0], self.failures[1:]) if self.failures else ("", ())
        if how == "before":
            raise StoreError
        result = super().append(batch)
        if how == "after":
            raise StoreError
        return result


@pytest.mark.parametrize("failures", [["before"], ["after"], ["before", "after", "before"]])
def test_a_store_that_fails_loses_nothing_and_doubles_nothing(failures: list[str]) -> None:
    """Whether the failed transaction happened or not, re-reading from the stored offset sets it right."""
    clock, log = Clock(), Flaky()
    log.failures = failures
    reader = ingester(MemoryCollector("src", records([good(i) for i in range(30)]), max_records=7), log, clock)
    for _ in range(60):
        reader.step()
        clock.now_us += 1_000_000
    assert numbers(log) == list(range(30))


def test_a_fenced_out_ingester_stores_nothing_of_what_it_held() -> None:
    """After another owner's claim the buffer is dropped, and later claims start from the stored offset."""
    clock, log = Clock(), MemoryEventLog()
    reader = ingester(MemoryCollector("src", records([good(i) for i in range(4)])), log, clock, flush_rows=100)
    reader.step()
    log.claim("src", "other", [("t", 0)])
    reader.flush()
    assert not log.events
    clock.now_us += 10_000_000
    reader.step()
    reader.flush()
    assert numbers(log) == [0, 1, 2, 3]


def test_a_rebalance_drops_the_buffer_of_lost_partitions_only() -> None:
    """Partitions that go and come back are read again from the stored offset."""
    log = MemoryEventLog()
    source = MemoryCollector("src", [*records([good(0), good(1)]), *records([good(10)], partition=1)])
    reader = ingester(source, log, flush_rows=100)
    reader.step()
    source.reassign()
    reader.step()
    reader.flush()
    assert sorted(numbers(log)) == [0, 1, 10]


def test_the_start_of_latest_is_remembered() -> None:
    """Where "latest" was is stored before the first message comes, so a restart does not take a later one."""

    class Latest(MemoryCollector):
        def seek(self, partition: PartitionKey, offset: int | None) -> int:
            return super().seek(partition, 3 if offset is None else offset)

    clock, log = Clock(), MemoryEventLog()
    source = Latest("src", records([good(i) for i in range(3)]))
    reader = ingester(source, log, clock)
    reader.step()
    clock.now_us += 3_000_000
    reader.step()
    assert log.next_offsets == {("src", ("t", 0)): 3}


def test_the_poison_limit_stops_before_a_bad_deploy_is_drained() -> None:
    """Above the share the source stops with a clear error, and closing it stores nothing of the bad stretch."""
    log = MemoryEventLog()
    source = MemoryCollector("src", records([good(0)] * 5 + [b"{"] * 60), max_records=10)
    reader = ingester(source, log, max_poison=0.2, poison_window=100, flush_rows=1000)
    with pytest.raises(PoisonLimit, match="20% of the last 100"):
        reader.drain(threading.Event())
    reader.close()
    assert (log.events, log.dead_letters, log.next_offsets) == ([], [], {("src", ("t", 0)): None})


def test_scattered_poison_is_buried_and_the_rest_goes_on() -> None:
    """Below the limit nothing stops, however long it lasts."""
    log = MemoryEventLog()
    values = [b"{" if i % 4 == 0 else good(i) for i in range(2000)]
    ingester(MemoryCollector("src", records(values)), log, max_poison=0.3, poison_window=100).drain(threading.Event())
    assert (len(log.events), len(log.dead_letters)) == (1500, 500)


def test_what_is_too_large_is_buried_with_its_beginning() -> None:
    """An oversize message is never decoded; the dead letter keeps its first bytes and says so."""
    log = MemoryEventLog()
    source = MemoryCollector("src", records([b"x" * 5000, good(1)]))
    ingester(source, log, max_message_bytes=1000, dead_letter_bytes=10, max_poison=1).drain(threading.Event())
    (letter,) = log.dead_letters
    assert (letter.reason, letter.value, letter.truncated) == ("oversize", b"x" * 10, True)
    assert numbers(log) == [1]


def test_an_event_from_the_future_is_flagged_and_moves_no_watermark() -> None:
    """Only times up to five minutes ahead count as progress; on a log clock all do."""
    late, soon, far = NOW_US - 10**9, NOW_US + 200_000_000, NOW_US + 400_000_000
    for skew_s, newest, flags in ((300.0, soon, ["clock_skew"]), (float("inf"), far, [])):
        log = MemoryEventLog()
        source = MemoryCollector("src", records([good(0, late), good(1, soon), good(2, far)]))
        ingester(source, log, future_skew_s=skew_s).drain(threading.Event())
        assert log.newest_us == {("src", ("t", 0)): newest}
        assert [e.quality for e in log.events] == [[], [], flags]


def test_callers_are_pseudonyms_before_anything_is_stored() -> None:
    """Principal, credential, address and labeler go through the pseudonym; other names do not."""
    log = MemoryEventLog()
    event = good(0, principal="ann", credential_id="k", source_ip="203.0.113.7", session_id="s")
    label = {"kind": "feedback", "target": {"request_id": "r"}, "name": "l", "value": 1, "label_time": 1795334400123}
    values = [event, json.dumps({**label, "labeler": "bob"}).encode()]
    ingester(MemoryCollector("src", records(values)), log).drain(threading.Event())
    stored, verdict = (p.part for p in log.parts)
    assert isinstance(stored, InferenceEvent)
    assert (stored.principal, stored.credential_id, stored.source_ip) == (
        "p-ann", "p-k", "p-203.0.113.7@p-203.0.113.0/24",
    )  # fmt: skip
    assert (stored.session_id, getattr(verdict, "labeler", None)) == ("s", "p-bob")


@pytest.mark.parametrize(
    "message",
    [
        {"event_time": NOW_US // 1000, "model": "a\0b", "features": {}},
        {"kind": "feedback", "target": {"request_id": "\0"}, "name": "l", "value": 1, "label_time": NOW_US // 1000},
    ],
)
def test_names_that_no_store_takes_are_poison(message: dict[str, Any]) -> None:
    """A NUL in a name would fail the whole batch on PostgreSQL; it fails its own message only."""
    log = MemoryEventLog()
    source = MemoryCollector("src", records([json.dumps(message).encode(), good(1)]))
    ingester(source, log).drain(threading.Event())
    assert [d.reason for d in log.dead_letters] == ["bad_shape"]
    assert numbers(log) == [1]


def test_a_broken_decoder_buries_its_message() -> None:
    """Any other error in a decoder is a reason of its own, not the end of the source."""
    decode = native()

    def broken(record: Record) -> Sequence[Any]:
        if record.offset == 1:
            raise ZeroDivisionError
        return decode(record)

    log = MemoryEventLog()
    ingester(MemoryCollector("src", records([good(i) for i in range(3)])), log, decoder=broken).drain(threading.Event())
    assert ([d.reason for d in log.dead_letters], numbers(log)) == (["decoder_failed"], [0, 2])


def test_a_missing_schema_holds_its_partition_and_nothing_else() -> None:
    """The partition waits at that message, the others go on, and it goes on itself once the schema is there."""
    decode, there = native(), False

    def needs_schema(record: Record) -> Sequence[Any]:
        if record.partition == 0 and record.offset == 1 and not there:
            raise SchemaUnavailable
        return decode(record)

    clock, log = Clock(), MemoryEventLog()
    source = MemoryCollector("src", [*records([good(0), good(1), good(2)]), *records([good(10), good(11)], 1)])
    reader = ingester(source, log, clock, decoder=needs_schema, flush_rows=1)
    reader.step()
    reader.step()
    assert sorted(numbers(log)) == [0, 10, 11]
    there = True
    clock.now_us += 6_000_000
    reader.step()
    assert sorted(numbers(log)) == [0, 1, 2, 10, 11]


def test_lost_offsets_are_told_and_the_rest_goes_on() -> None:
    """A partition whose messages are gone becomes a standing problem; no other partition stops."""

    class Lossy(MemoryCollector):
        lost = True

        def poll(self, timeout_s: float) -> Sequence[Record]:
            if self.lost:
                self.lost = False
                raise OffsetsLost("t partition 1: offsets 3 to 9 were removed", "t", 1, 3, 10)
            return super().poll(timeout_s)

    told: list[Mapping[str, str]] = []
    log = MemoryEventLog()
    reader = ingester(Lossy("src", records([good(0)])), log, flush_rows=1)
    reader.on_problems = told.append
    reader.step()
    reader.step()
    assert told == [{"t/1": "t partition 1: offsets 3 to 9 were removed"}]
    assert numbers(log) == [0]


def test_the_store_hears_at_once_when_a_partition_is_read_to_its_end() -> None:
    """And not before what was read is stored."""
    clock, log = Clock(), MemoryEventLog()
    reader = ingester(MemoryCollector("src", records([good(0)])), log, clock, flush_rows=100)
    reader.step()
    assert log.caught_up == {("src", ("t", 0)): False}
    reader.flush()
    reader.step()
    assert log.caught_up == {("src", ("t", 0)): True}


def test_a_claim_that_fails_is_tried_again_later() -> None:
    """A store that is away at the start is waited for, with growing pauses."""

    class Away(MemoryEventLog):
        tries = 0

        def claim(self, source: str, owner: str, partitions: Sequence[PartitionKey]) -> Mapping[PartitionKey, Claim]:
            self.tries += 1
            if self.tries < 4:
                raise StoreError
            return super().claim(source, owner, partitions)

    clock, log = Clock(), Away()
    reader = ingester(MemoryCollector("src", records([good(0)])), log, clock, flush_rows=1)
    for _ in range(40):
        reader.step()
        clock.now_us += 100_000
    assert (log.tries, numbers(log)) == (4, [0])


def test_the_named_points_are_called() -> None:
    """Tests that end the process rely on them."""
    points: list[str] = []
    reader = ingester(MemoryCollector("src", records([good(0)])), MemoryEventLog())
    reader.at = points.append
    reader.step()
    reader.step()
    assert points == ["polled", "decoded"]
