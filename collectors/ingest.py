"""From a collector to the event log: poll, decode, buffer, and hand over batches that are stored whole or not at all.

The event log alone knows what is stored. The ingester starts where the log says, carries the epoch of its claim with
every batch, and after any doubt (fenced out, store error) forgets its buffer, claims again and re-reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from collectors.base import (
    Advance,
    Collector,
    DeadLetter,
    Decoder,
    EventLog,
    IngestBatch,
    IngestSettings,
    PartitionKey,
    Placed,
    Record,
)
from collectors.pairing import pair
from collectors.parts import admit
from collectors.poison import Poison, dead_letter
from monitor import telemetry
from monitor.errors import (
    DecodeError,
    DependencyUnreachable,
    FencedOut,
    OffsetsLost,
    PoisonLimit,
    SchemaUnavailable,
    StoreError,
)
from monitor.model import SECOND_US

REPORT_US = 5 * SECOND_US  # how often the store hears which partitions are read to their end
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 30.0  # before claiming again, doubled with each failure in a row
POLL_S = 0.5  # longest wait for records; the buffer's age may make it shorter

log = structlog.get_logger("lanner.ingest")


_place: Callable[..., Placed] = tuple.__new__  # NamedTuple's own constructor costs twice as much


@dataclass(slots=True)
class _Held:
    """A claimed partition. [expected, next_offset) is read but not yet stored."""

    epoch: int
    expected: int | None
    next_offset: int
    newest_us: int | None = None
    parked: bool = False  # waits for a schema


class Ingester:
    """Reads one source into the event log; owned by one thread.

    `clock` gives microseconds UTC; `pseudonym` maps callers' names before anything is stored; `at` is called at the
    named points "polled" and "decoded" so that tests can end the process there; `on_problems` hears of partitions
    that need a person (JSON-ready: name -> what is wrong) whenever that changes.
    """

    def __init__(
        self,
        collector: Collector,
        decoder: Decoder,
        log: EventLog,
        settings: IngestSettings,
        owner: str,
        clock: Callable[[], int],
        pseudonym: Callable[[str], str],
        at: Callable[[str], None] = lambda _: None,
        on_problems: Callable[[Mapping[str, str]], None] = lambda _: None,
    ) -> None:
        self.collector, self.decoder, self.log, self.settings = collector, decoder, log, settings
        self.owner, self.clock, self.pseudonym, self.at, self.on_problems = owner, clock, pseudonym, at, on_problems
        self.problems: dict[str, str] = {}
        self._poison = Poison(settings.max_poison, settings.poison_window)
        self._unclaimed: dict[PartitionKey, None] = {}
        self._held: dict[PartitionKey, _Held] = {}
        self._retry_us: dict[PartitionKey, int] = {}  # parked partitions, and when to try them again
        self._wait_s = FIRST_WAIT_S
        self._claim_at_us = 0
        self._report_at_us = 0
        self._reported: dict[PartitionKey, bool] = {}
        # The buffer, and when its oldest record came.
        self._parts: list[Placed] = []
        self._dead: list[DeadLetter] = []
        self._bytes = 0
        self._since_us: int | None = None

    # -- the loop

    def run(self, stop: threading.Event) -> None:
        """Steps until `stop` is set. Raises PoisonLimit; an unreachable source is waited for."""
        wait_s = FIRST_WAIT_S
        while not stop.is_set():
            try:
                self.step()
                wait_s = FIRST_WAIT_S
            except DependencyUnreachable as error:
                log.warning("source_unreachable", source=self.collector.name, reason=str(error), retry_in_s=wait_s)
                stop.wait(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        self.flush()

    def drain(self, stop: threading.Event) -> int:
        """Reads every partition to its end, stores all, and returns how many records that were."""
        records = 0
        while not stop.is_set():
            taken = self.step()
            records += taken
            if taken == 0 and not self._unclaimed and all(n == 0 for n in self.collector.lag().values()):
                self.flush()
                if not self._unclaimed:
                    self._report(self.clock())
                    break
        return records

    def step(self, timeout_s: float = POLL_S) -> int:
        """One poll, decoded and buffered, and flushed when the buffer is full or old enough. Returns records taken."""
        now_us = self.clock()
        self._follow_assignment()
        if self._unclaimed and now_us >= self._claim_at_us:
            self._claim(now_us)
        self._retry_parked(now_us)
        if self._since_us is not None:
            left_s = self.settings.flush_s - (now_us - self._since_us) / SECOND_US
            timeout_s = max(0.0, min(timeout_s, left_s))
        records: Sequence[Record] = ()
        try:
            records = self.collector.poll(timeout_s)
        except OffsetsLost as error:
            self._trouble(error)
        now_us = self.clock()
        if records:
            self.at("polled")
            try:
                self._take(records, now_us)
            except BaseException:
                self._distrust()  # a half-taken poll must never be stored, not even by close()
                raise
            self.at("decoded")
        if self._due(now_us):
            self.flush()
        self._report(now_us)
        return len(records)

    def close(self) -> None:
        """Stores what is buffered, if the store allows it, and lets the source go."""
        try:
            self.flush()
        finally:
            self.collector.close()

    # -- ownership

    def _follow_assignment(self) -> None:
        gained, lost = self.collector.changes()
        if lost:
            # Their new owner reads again from the stored offset; what we hold of them must not be stored by us.
            self._forget(lost)
        for partition in gained:
            self._unclaimed[partition] = None
            self._claim_at_us = 0

    def _forget(self, partitions: Sequence[PartitionKey]) -> None:
        gone = set(partitions)
        for partition in gone:
            self._held.pop(partition, None)
            self._unclaimed.pop(partition, None)
            self._retry_us.pop(partition, None)
            self._reported.pop(partition, None)
        self._parts = [p for p in self._parts if (p.topic, p.partition) not in gone]
        self._dead = [d for d in self._dead if (d.topic, d.partition) not in gone]

    def _claim(self, now_us: int) -> None:
        wanted = list(self._unclaimed)
        try:
            claims = self.log.claim(self.collector.name, self.owner, wanted)
        except StoreError as error:
            self._back_off(now_us, "store_unavailable", error)
            return
        for partition in wanted:
            claim = claims[partition]
            start = self.collector.seek(partition, claim.next_offset)
            self.collector.resume(partition)
            self._held[partition] = _Held(claim.epoch, claim.next_offset, start)
            del self._unclaimed[partition]
            if start != (claim.next_offset or 0) and self._since_us is None:
                self._since_us = now_us  # store where "latest" was, lest a restart take a later one

    def _distrust(self) -> None:
        """Nothing buffered is trusted any more: everything is claimed again and read from the stored offsets."""
        for partition in self._held:
            self.collector.pause(partition)
            self._unclaimed[partition] = None
        self._held.clear()
        self._retry_us.clear()
        self._reported.clear()
        self._clear()

    def _back_off(self, now_us: int, event: str, error: Exception) -> None:
        log.warning(event, source=self.collector.name, reason=str(error), retry_in_s=self._wait_s)
        self._claim_at_us = now_us + round(self._wait_s * SECOND_US)
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    # -- records

    def _clear(self) -> None:
        self._parts, self._dead, self._bytes = [], [], 0
        self._since_us = None

    def _take(self, records: Sequence[Record], now_us: int) -> None:
        """Decodes runs of records of one partition; a failing record becomes a dead letter and its neighbours go on."""
        if self._since_us is None:
            self._since_us = now_us
        start, n = 0, len(records)
        while start < n:
            first = records[start]
            key = (first.topic, first.partition)
            end = start + 1
            while end < n and records[end].partition == first.partition and records[end].topic == first.topic:
                end += 1
            held = self._held.get(key)
            if held is not None and not held.parked:
                self._take_run(key, held, records[start:end], now_us)
            start = end

    def _take_run(self, key: PartitionKey, held: _Held, records: Sequence[Record], now_us: int) -> None:
        decode, keep, pseudonym = self.decoder, self._parts.append, self.pseudonym
        topic, partition = key
        source = self.collector.name
        limit = self.settings.max_message_bytes
        future_us = now_us + self.settings.future_skew_s * SECOND_US
        newest = -1 if held.newest_us is None else held.newest_us
        next_offset, size = held.next_offset, 0
        for record in records:
            offset = record.offset
            if offset < next_offset:
                continue  # a seek may replay a little; what is read twice is taken once
            value = record.value
            try:
                if value is not None:
                    size += len(value)
                    if len(value) > limit:
                        raise DecodeError("oversize", f"{len(value)} bytes")
                parts = decode(record)
                time_us = admit(parts, source, future_us, pseudonym)
                if time_us > newest:  # noqa: PLR1730 -- max() costs a call per event
                    newest = time_us
                for part in parts:
                    keep(_place(Placed, (topic, partition, offset, part)))
            except DecodeError as error:
                self._bury(record, error.reason, error.detail, offset - records[0].offset)
            except SchemaUnavailable as error:
                self._park(key, held, str(error), now_us)
                break
            except Exception as error:
                log.exception("decoder_failed", source=self.collector.name, topic=topic, offset=offset)
                self._bury(record, "decoder_failed", type(error).__name__, offset - records[0].offset)
            next_offset = offset + 1
        self._poison.passed(len(records))
        held.next_offset = next_offset
        held.newest_us = None if newest < 0 else newest
        self._bytes += size

    def _bury(self, record: Record, reason: str, detail: str, place: int) -> None:
        """Keeps a poison message as a dead letter; raises PoisonLimit when too many of the last ones were poison."""
        self._dead.append(dead_letter(record, reason, detail, self.settings.dead_letter_bytes))
        telemetry.count("decode_failures_total", source=self.collector.name, reason=reason)
        if self._poison.failed(place):  # what is buffered is not stored, so the next start reads these messages again
            raise PoisonLimit(
                f"Source {self.collector.name}: more than {self.settings.max_poison:.0%} of the last "
                f"{self.settings.poison_window} messages cannot be decoded (latest: {reason}, {record.topic} partition "
                f"{record.partition} offset {record.offset}). {' '.join((PoisonLimit.__doc__ or '').split())}"
            )

    # -- waiting for schemas

    def _park(self, key: PartitionKey, held: _Held, reason: str, now_us: int) -> None:
        log.warning("partition_waits", source=self.collector.name, topic=key[0], partition=key[1], reason=reason)
        self.collector.pause(key)
        held.parked = True
        self._retry_us[key] = now_us + 5 * SECOND_US
        telemetry.gauge("collector_paused", len(self._retry_us), source=self.collector.name)

    def _retry_parked(self, now_us: int) -> None:
        for key in [k for k, at_us in self._retry_us.items() if now_us >= at_us]:
            held = self._held[key]
            del self._retry_us[key]
            held.parked = False
            self.collector.seek(key, held.next_offset)
            self.collector.resume(key)
            telemetry.gauge("collector_paused", len(self._retry_us), source=self.collector.name)

    # -- storing

    def _due(self, now_us: int) -> bool:
        return self._since_us is not None and (
            len(self._parts) + len(self._dead) >= self.settings.flush_rows
            or self._bytes >= self.settings.flush_bytes
            or now_us - self._since_us >= self.settings.flush_s * SECOND_US
        )

    def flush(self) -> None:
        """Hands the buffer to the event log. On success the offsets move on; on any doubt everything is read again."""
        advances = [
            Advance(topic, partition, held.epoch, held.expected, held.next_offset, held.newest_us)
            for (topic, partition), held in self._held.items()
            if held.next_offset != (held.expected or 0)
        ]
        if not advances:
            self._clear()
            return
        batch = IngestBatch(self.collector.name, self.clock(), pair(self._parts), self._dead, advances)
        try:
            result = self.log.append(batch)
        except FencedOut as error:
            telemetry.count("collector_fenced_total", source=self.collector.name)
            self._distrust()
            self._back_off(self.clock(), "fenced_out", error)
            return
        except StoreError as error:
            self._distrust()
            self._back_off(self.clock(), "store_failed", error)
            return
        self._wait_s = FIRST_WAIT_S
        for a in advances:
            held = self._held[a.topic, a.partition]
            held.expected = held.next_offset
        self.collector.commit({(a.topic, a.partition): a.next_offset for a in advances})
        name = self.collector.name
        telemetry.count("collector_bytes_total", self._bytes, source=name)
        for outcome, n in result.stored():
            telemetry.count("collector_records_total", n, source=name, outcome=outcome)
        if self._dead:
            telemetry.count("collector_records_total", len(self._dead), source=name, outcome="dead_letter")
        self._clear()

    def _report(self, now_us: int) -> None:
        """Tells the store who is read to its end: at once when a partition gets there, else now and then."""
        lag = self.collector.lag()
        caught_up = {
            key: lag.get(key) == 0 and held.next_offset == (held.expected or 0) for key, held in self._held.items()
        }
        news = any(value and not self._reported.get(key) for key, value in caught_up.items())
        if not caught_up or not (news or now_us >= self._report_at_us):
            return
        try:
            self.log.report(self.collector.name, self.owner, caught_up, now_us)
        except StoreError as error:
            log.warning("report_failed", source=self.collector.name, reason=str(error))
            return
        finally:
            self._report_at_us = now_us + REPORT_US
        self._reported = caught_up
        for (topic, partition), behind in lag.items():
            if behind is not None:
                telemetry.gauge(
                    "collector_lag_records", behind, source=self.collector.name, topic=topic, partition=str(partition)
                )

    def _trouble(self, error: OffsetsLost) -> None:
        """A partition that has stopped until a person decides; the others go on."""
        log.error("offsets_lost", source=self.collector.name, reason=str(error))
        telemetry.count("offsets_lost_total", max(0, error.until - error.first), source=self.collector.name)
        self.problems = {**self.problems, f"{error.topic}/{error.partition}": str(error)}
        self.on_problems(self.problems)
