"""In-memory twins of a source and of the event log: for tests, for replay, and for trying a decoder without a store.

They pass the same contract tests as the real ones.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from collectors.base import Claim, DeadLetter, IngestBatch, IngestResult, PartitionKey, Placed, Record
from monitor.errors import FencedOut
from monitor.model import FeedbackEvent, Half, InferenceEvent, Mark


class MemoryCollector:
    """Records from a list. Partitions are gained at the start, and again after `reassign`.

    >>> source = MemoryCollector("s", [Record("s", "t", 0, 0, None, b"{}")])
    >>> source.changes()
    ([('t', 0)], [])
    >>> source.seek(("t", 0), None), len(source.poll(0))
    (0, 1)
    """

    def __init__(self, name: str, records: Iterable[Record] = (), max_records: int = 10_000) -> None:
        self.name = name
        self.committed: dict[PartitionKey, int] = {}
        self._log: dict[PartitionKey, list[Record]] = defaultdict(list)
        self._position: dict[PartitionKey, int] = {}
        self._paused: set[PartitionKey] = set()
        self._gained: list[PartitionKey] = []
        self._lost: list[PartitionKey] = []
        self._max_records = max_records
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        """Appends records; a partition seen for the first time is gained."""
        for record in records:
            key = (record.topic, record.partition)
            if key not in self._log:
                self._gained.append(key)
            self._log[key].append(record)

    def reassign(self) -> None:
        """Loses and gains every partition, as a rebalance does."""
        self._lost = list(self._log)
        self._gained = list(self._log)
        self._position.clear()

    def changes(self) -> tuple[Sequence[PartitionKey], Sequence[PartitionKey]]:
        gained, lost = self._gained, self._lost
        self._gained, self._lost = [], []
        return gained, lost

    def seek(self, partition: PartitionKey, offset: int | None) -> int:
        self._position[partition] = offset or 0
        return self._position[partition]

    def poll(self, timeout_s: float) -> Sequence[Record]:
        del timeout_s  # what is here is here
        out: list[Record] = []
        for key, position in self._position.items():
            if key in self._paused:
                continue
            fresh = [r for r in self._log[key] if r.offset >= position][: self._max_records - len(out)]
            if fresh:
                self._position[key] = fresh[-1].offset + 1
                out.extend(fresh)
        return out

    def commit(self, positions: Mapping[PartitionKey, int]) -> None:
        self.committed.update(positions)

    def pause(self, partition: PartitionKey) -> None:
        self._paused.add(partition)

    def resume(self, partition: PartitionKey) -> None:
        self._paused.discard(partition)

    def lag(self) -> Mapping[PartitionKey, int | None]:
        return {key: sum(r.offset >= at for r in self._log[key]) for key, at in self._position.items()}

    def close(self) -> None:
        self._position.clear()


@dataclass
class MemoryEventLog:
    """An EventLog that keeps everything in lists, with the same fencing as the real one."""

    parts: list[Placed] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    next_offsets: dict[tuple[str, PartitionKey], int | None] = field(default_factory=dict)
    epochs: dict[tuple[str, PartitionKey], int] = field(default_factory=dict)
    newest_us: dict[tuple[str, PartitionKey], int] = field(default_factory=dict)
    caught_up: dict[tuple[str, PartitionKey], bool] = field(default_factory=dict)
    keys: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=10_000))

    @property
    def events(self) -> list[InferenceEvent]:
        return [p.part for p in self.parts if isinstance(p.part, InferenceEvent)]

    def claim(self, source: str, owner: str, partitions: Sequence[PartitionKey]) -> Mapping[PartitionKey, Claim]:
        del owner
        claims = {}
        for partition in partitions:
            key = (source, partition)
            self.epochs[key] = self.epochs.get(key, 0) + 1
            claims[partition] = Claim(self.epochs[key], self.next_offsets.setdefault(key, None))
        return claims

    def append(self, batch: IngestBatch) -> IngestResult:
        if batch.idempotency_key is not None and (batch.source, batch.idempotency_key) in self.keys:
            return IngestResult(repeated=True)
        for a in batch.advances:
            key = (batch.source, (a.topic, a.partition))
            if self.epochs.get(key) != a.epoch or self.next_offsets.get(key) != a.expected:
                raise FencedOut
        for a in batch.advances:
            key = (batch.source, (a.topic, a.partition))
            self.next_offsets[key] = a.next_offset
            if a.max_event_time_us is not None:
                self.newest_us[key] = max(a.max_event_time_us, self.newest_us.get(key, a.max_event_time_us))
        if batch.idempotency_key is not None:
            self.keys.append((batch.source, batch.idempotency_key))
        self.parts.extend(batch.parts)
        self.dead_letters.extend(batch.dead_letters)
        kinds = [type(p.part) for p in batch.parts]
        return IngestResult(
            events=kinds.count(InferenceEvent),
            halves=kinds.count(Half),
            feedback=kinds.count(FeedbackEvent),
            marks=kinds.count(Mark),
            dead_letters=len(batch.dead_letters),
        )

    def report(self, source: str, owner: str, caught_up: Mapping[PartitionKey, bool], now_us: int) -> None:
        del owner, now_us
        self.caught_up.update({(source, partition): value for partition, value in caught_up.items()})
