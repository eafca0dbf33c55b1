"""What every collector, decoder and event log agrees on.

A collector polls Records; framing and a pure decoder turn each into Parts; the ingester (collectors/ingest.py) joins
halves, buffers, and hands an IngestBatch to the EventLog, whose one transaction decides what is ingested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from monitor.intake import Advance, Claim, DeadLetter, IngestBatch, IngestResult, PartitionKey, Placed
from monitor.model import FeedbackEvent, Half, InferenceEvent, Mark

__all__ = [
    "REASONS",
    "Advance",
    "Claim",
    "Collector",
    "DeadLetter",
    "Decoder",
    "EventLog",
    "IngestBatch",
    "IngestResult",
    "IngestSettings",
    "Part",
    "PartitionKey",
    "Placed",
    "Record",
]

# Why a message could not become an event. Codes are metric labels and stand in the dead letter; never free text.
REASONS: Final[Mapping[str, str]] = {
    "bad_json": "the value is not valid JSON (or not UTF-8)",
    "bad_shape": "the value is valid, but not of the shape this decoder reads",
    "missing_field": "a required field is absent",
    "bad_time": "the event time is absent, without zone, or not a time",
    "oversize": "the value is larger than the source's max_message_bytes",
    "bomb": "the value decompresses to far more than its size",
    "too_deep": "the value nests deeper than 64 levels",
    "bad_framing": "the schema framing or content encoding is broken",
    "unknown_type": "the CloudEvents type or message kind is not known",
    "decoder_failed": "the decoder itself failed; please report this with the dead letter",
}


class Record(NamedTuple):
    """One message as it came: bytes and headers untouched (header names repeat, values may be no UTF-8).

    `topic` is the Kafka topic, a file's content id, or "http"; `offset` is the Kafka offset or the line number.
    """

    source: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int | None = None
    timestamp_type: int = 0  # 0 CreateTime, 1 LogAppendTime


Part = InferenceEvent | Half | FeedbackEvent | Mark
Decoder = Callable[[Record], Sequence[Part]]  # pure; () is legal (tombstone, schema record); raises DecodeError


class Collector(Protocol):
    """A source of records. Positions belong to the event log: a collector starts where it is told to."""

    name: str

    def changes(self) -> tuple[Sequence[PartitionKey], Sequence[PartitionKey]]:
        """Partitions (gained, lost) since the last call. A gained one stays paused until `seek` and `resume`.

        A partition that was lost and gained again in between stands in both.
        """
        ...

    def seek(self, partition: PartitionKey, offset: int | None) -> int:
        """Read this partition from `offset` on; None: from the source's configured start. Returns the offset."""
        ...

    def poll(self, timeout_s: float) -> Sequence[Record]:
        """Up to a bounded number of records, () when nothing came in time. Raises OffsetsLost, DependencyUnreachable.

        Records of one partition come in order and stand together.
        """
        ...

    def commit(self, positions: Mapping[PartitionKey, int]) -> None:
        """Tell the source, for its own displays, what is safely stored: next offsets. Advisory; never raises."""
        ...

    def pause(self, partition: PartitionKey) -> None: ...

    def resume(self, partition: PartitionKey) -> None: ...

    def lag(self) -> Mapping[PartitionKey, int | None]:
        """Messages behind the end of each assigned partition; None where the source cannot say. 0 = read to its end."""
        ...

    def close(self) -> None: ...


class EventLog(Protocol):
    """Where events land. Implemented by monitor.store.eventlog.EventLog and collectors.memory.MemoryEventLog."""

    def claim(self, source: str, owner: str, partitions: Sequence[PartitionKey]) -> Mapping[PartitionKey, Claim]:
        """Take over partitions: bump their epochs (older owners are fenced out) and tell the stored next offsets."""
        ...

    def append(self, batch: IngestBatch) -> IngestResult:
        """Files first, then ONE transaction that checks epochs and offsets and records everything.

        Raises FencedOut when another owner has taken a partition (nothing is stored), StoreError when the outcome
        is unknown: reopen, claim again and go on from the stored offsets.
        """
        ...

    def report(self, source: str, owner: str, caught_up: Mapping[PartitionKey, bool], now_us: int) -> None:
        """Heartbeat of an owner: which partitions it has read to their end (the idle rule of the watermark)."""
        ...


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """How a source's ingester buffers and when it gives up. Sizes in rows and bytes, times in seconds."""

    flush_rows: int = 20_000
    flush_s: float = 2.0
    flush_bytes: int = 64 << 20
    max_message_bytes: int = 1 << 20
    max_poison: float = 0.5  # share of the last `poison_window` records that may fail before the source stops
    poison_window: int = 1000
    pairing_timeout_s: float = 900.0
    dead_letter_bytes: int = 65_536
    future_skew_s: float = 300.0
    attributes: Mapping[str, str] = field(default_factory=dict)
