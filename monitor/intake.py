"""What passes between the collectors and the event log: ownership of partitions, and one flush of one source.

Neither side imports the other, so what they share stands here; collectors.base adds the Protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from monitor.model import FeedbackEvent, Half, InferenceEvent, Mark

PartitionKey = tuple[str, int]  # (topic, partition)


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership of a partition: writes carry `epoch`, and only the newest epoch's writes are accepted."""

    epoch: int
    next_offset: int | None  # None: never read; start at the source's `start` (earliest or latest)


@dataclass(frozen=True, slots=True)
class Advance:
    """A partition's step from `expected` to `next_offset` under `epoch`; part of an IngestBatch's transaction."""

    topic: str
    partition: int
    epoch: int
    expected: int | None
    next_offset: int
    max_event_time_us: int | None


class Placed(NamedTuple):
    """A part and where it came from; `row_index` inside the part orders the rows of one message."""

    topic: str
    partition: int
    offset: int
    part: InferenceEvent | Half | FeedbackEvent | Mark


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not become an event: why, where it stands, and its capped bytes for re-driving."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    key: bytes | None
    value: bytes | None  # capped; `truncated` tells
    headers: Sequence[tuple[str, bytes]]
    timestamp_ms: int | None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class IngestBatch:
    """Everything one flush of one source stores, all or nothing."""

    source: str
    received_us: int
    parts: Sequence[Placed]
    dead_letters: Sequence[DeadLetter] = ()
    advances: Sequence[Advance] = ()
    idempotency_key: str | None = None  # HTTP: a repeated key within 24 h stores nothing and succeeds
    ordered: bool = False  # replay: parts come in order of time, so a label is received when it is given
    redriven: Sequence[int] = ()  # ids of the dead letters that these parts come from: marked in the same transaction


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Counts of what one batch stored, for metrics and HTTP answers."""

    events: int = 0
    halves: int = 0
    feedback: int = 0
    marks: int = 0
    dead_letters: int = 0
    unregistered: int = 0
    repeated: bool = False  # the idempotency key was known

    def stored(self) -> list[tuple[str, int]]:
        """What was stored by kind, as metrics name it; only what there was."""
        found = (("event", self.events), ("half", self.halves), ("feedback", self.feedback), ("mark", self.marks))
        return [(kind, n) for kind, n in found if n]
