"""The write side of the event log: files first, then ONE transaction that decides what is ingested.

The transaction checks that every partition still belongs to the writer (epoch) and stands where the batch begins
(compare-and-set on the stored next offset), names the files, stores halves, feedback and dead letters, and moves the
offsets. Whatever happens before it leaves only files that nobody names; whatever happens after it is repeatable.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from monitor.errors import FencedOut, StoreError
from monitor.intake import Advance, Claim, IngestBatch, IngestResult, PartitionKey, Placed
from monitor.model import HOUR_US, SECOND_US, UNREGISTERED, FeedbackEvent, Half, InferenceEvent, Mark, stable_id
from monitor.store.columns import EARLIEST_US, LATEST_US, json_text, storable
from monitor.store.engine import insert, write
from monitor.store.features import clean
from monitor.store.people import put_mark
from monitor.store.schema import dead_letters, feedback, halves, idempotency, partitions, unregistered
from monitor.store.segments import Files, ModelTable, Segment, record, write_segment

MAX_FILE_AGE_S: Final = 3600.0  # an older file may already be near the sweep's day: it is written again, not recorded
IDEMPOTENCY_US: Final = 24 * HOUR_US
UNREGISTERED_NAMES: Final = 100  # names of unknown models that are kept apart per source
OTHER_NAMES: Final = "…"
NAME_LENGTH: Final = 200

At = Callable[[str], None]  # told each point that a crash may follow; does nothing but in tests


def claim(engine: sa.Engine, source: str, owner: str, wanted: Sequence[PartitionKey]) -> Mapping[PartitionKey, Claim]:
    """Bump the epochs of partitions and make `owner` theirs; see collectors.base.EventLog."""
    claims: dict[PartitionKey, Claim] = {}
    with write(engine) as conn:
        for topic, partition in sorted(wanted):
            row = insert(conn, partitions).values(
                source=source, topic=topic, partition=partition, epoch=1, owner=owner, updated_us=0
            )
            epoch, next_offset = conn.execute(
                row.on_conflict_do_update(
                    index_elements=["source", "topic", "partition"],
                    set_={"epoch": partitions.c.epoch + 1, "owner": row.excluded.owner, "caught_up_since_us": None},
                ).returning(partitions.c.epoch, partitions.c.next_offset)
            ).one()
            claims[topic, partition] = Claim(int(epoch), None if next_offset is None else int(next_offset))
    return claims


def report(engine: sa.Engine, source: str, owner: str, caught_up: Mapping[PartitionKey, bool], now_us: int) -> None:
    """Note which of an owner's partitions are read to their end, and since when; see collectors.base.EventLog."""
    if not caught_up:
        return
    with write(engine) as conn:
        for (topic, partition), at_end in sorted(caught_up.items()):
            since = sa.func.coalesce(partitions.c.caught_up_since_us, now_us) if at_end else sa.null()
            conn.execute(
                partitions.update()
                .where(_partition(source, topic, partition), partitions.c.owner == owner)
                .values(caught_up_since_us=since, updated_us=now_us)
            )


def append(
    engine: sa.Engine, files: Files, models: Mapping[str, ModelTable], batch: IngestBatch, at: At
) -> IngestResult:
    """Store one flush, all or nothing; see collectors.base.EventLog."""
    began_s = time.monotonic()
    events, waiting, verdicts, told = _sorted_out(batch.parts)
    written = write_events(files, models, events, batch.source, batch.received_us, ordered=batch.ordered)
    at("file_written")
    unknown = Counter({name: len(placed) for name, placed in events.items() if not registered(name, models)})
    stored = False
    try:
        with write(engine) as conn:
            if time.monotonic() - began_s > MAX_FILE_AGE_S:
                raise StoreError("the file of this batch has become too old to be recorded: write it again")
            fresh = batch.idempotency_key is None or _first_time(conn, batch)
            if fresh:
                for advance in sorted(batch.advances, key=lambda a: (a.topic, a.partition)):
                    _advance(conn, batch.source, advance, batch.received_us)
                record(conn, written)
                _store_halves(conn, batch, waiting)
                _store_feedback(conn, batch, verdicts)
                for mark in told:
                    put_mark(conn, mark, batch.received_us)
                _store_dead_letters(conn, batch)
                _mark_redriven(conn, batch.redriven)
                count_unregistered(conn, batch.source, unknown, batch.received_us)
            at("in_transaction")
        stored = fresh
    except FencedOut:
        discard(files, written)
        raise
    at("after_transaction")
    if not stored:
        discard(files, written)
        return IngestResult(repeated=True)
    return IngestResult(
        events=sum(map(len, events.values())),
        halves=len(waiting),
        feedback=len(verdicts),
        marks=len(told),
        dead_letters=len(batch.dead_letters),
        unregistered=unknown.total(),
    )


def write_events(
    files: Files,
    models: Mapping[str, ModelTable],
    events: Mapping[str, Sequence[Placed]],
    source: str,
    received_us: int,
    *,
    ordered: bool = False,
) -> list[Segment]:
    """One file per model; events of unknown models share the file of `_unregistered`."""
    tables: dict[str, list[Placed]] = defaultdict(list)
    for name, placed in events.items():
        tables[name if registered(name, models) else UNREGISTERED].extend(placed)
    return [
        write_segment(files, models[name], placed, source, received_us, ordered=ordered)
        for name, placed in tables.items()
    ]


def registered(name: str, models: Mapping[str, ModelTable]) -> bool:
    """Whether events of this name have a table of their own."""
    return name in models and name != UNREGISTERED


def _sorted_out(parts: Sequence[Placed]) -> tuple[dict[str, list[Placed]], list[Placed], list[Placed], list[Mark]]:
    events: dict[str, list[Placed]] = defaultdict(list)
    waiting: list[Placed] = []
    verdicts: list[Placed] = []
    told: list[Mark] = []
    content = list(map(attrgetter("part"), parts))
    if set(map(type, content)) == {InferenceEvent}:  # nothing but whole events, and mostly of one model
        names = set(map(attrgetter("model"), content))
        if len(names) == 1:
            return {names.pop(): list(parts)}, waiting, verdicts, told
    for placed in parts:
        part = placed.part
        if type(part) is InferenceEvent:
            events[part.model].append(placed)
        elif isinstance(part, Mark):
            told.append(part)
        else:
            (waiting if isinstance(part, Half) else verdicts).append(placed)
    return events, waiting, verdicts, told


def discard(files: Files, written: Sequence[Segment]) -> None:
    """Remove files of a transaction that certainly did not happen."""
    for segment in written:
        files.delete(segment.model_id, segment.path)


def _partition(source: str, topic: str, partition: int) -> sa.ColumnElement[bool]:
    c = partitions.c
    return (c.source == source) & (c.topic == topic) & (c.partition == partition)


def _advance(conn: sa.Connection, source: str, advance: Advance, now_us: int) -> None:
    c = partitions.c
    newest: Any = c.max_event_us
    if advance.max_event_time_us is not None:
        seen = sa.func.coalesce(c.max_event_us, advance.max_event_time_us)
        newest = sa.case((seen > advance.max_event_time_us, seen), else_=advance.max_event_time_us)
    moved = conn.execute(
        partitions.update()
        .where(
            _partition(source, advance.topic, advance.partition),
            c.epoch == advance.epoch,
            c.next_offset.is_not_distinct_from(advance.expected),
        )
        .values(next_offset=advance.next_offset, max_event_us=newest, caught_up_since_us=None, updated_us=now_us)
    )
    if moved.rowcount != 1:
        raise FencedOut(f"partition {advance.topic}/{advance.partition} has passed to another process or moved on")


def _first_time(conn: sa.Connection, batch: IngestBatch) -> bool:
    row = insert(conn, idempotency).values(
        source=batch.source, key=clean(batch.idempotency_key or ""), received_us=batch.received_us
    )
    taken = row.on_conflict_do_update(
        index_elements=["source", "key"],
        set_={"received_us": row.excluded.received_us},
        where=idempotency.c.received_us <= batch.received_us - IDEMPOTENCY_US,
    )
    return conn.execute(taken.returning(idempotency.c.received_us)).one_or_none() is not None


def _store_halves(conn: sa.Connection, batch: IngestBatch, waiting: Sequence[Placed]) -> None:
    rows = []
    for topic, partition, offset, half in waiting:
        assert isinstance(half, Half)
        row = {
            "source": batch.source,
            "pair_key": clean(half.pair_key),
            "row_index": half.event.row_index,
            "side": half.side,
            "model": clean(half.event.model),
            "topic": clean(topic),
            "partition": partition,
            "offset": offset,
            "event_us": in_range(half.event.event_time_us),
            "received_us": batch.received_us,
            "body": packed(half.event),
        }
        rows.append(row)
    if rows:
        conn.execute(halves.insert(), rows)


def in_range(time_us: int) -> int:
    """A time that every store can hold: the years 1 to 9999."""
    return min(max(time_us, EARLIEST_US), LATEST_US)


def packed(event: InferenceEvent) -> bytes:
    """An event as msgpack, whatever texts and numbers it holds."""
    try:
        return msgspec.msgpack.encode(event)
    except (UnicodeError, OverflowError):
        return msgspec.msgpack.encode(storable(msgspec.to_builtins(event)))


def _store_feedback(conn: sa.Connection, batch: IngestBatch, verdicts: Sequence[Placed]) -> None:
    rows = []
    within: Counter[tuple[str, int, int]] = Counter()
    for topic, partition, offset, verdict in verdicts:
        assert isinstance(verdict, FeedbackEvent)
        number = within[topic, partition, offset]
        within[topic, partition, offset] += 1
        target = storable(verdict.target)
        row = {
            "feedback_id": stable_id("feedback", batch.source, clean(topic), partition, offset, number),
            "model": clean(verdict.model),
            "target": target,
            "target_key": target_key(target),
            "name": clean(verdict.name),
            "value": storable(verdict.value),
            "kind": clean(verdict.kind),
            "labeler": None if verdict.labeler is None else clean(verdict.labeler),
            "label_us": in_range(verdict.label_time_us),
            "received_us": min(batch.received_us, in_range(verdict.label_time_us))
            if batch.ordered
            else batch.received_us,
        }
        rows.append(row)
    if rows:
        conn.execute(insert(conn, feedback).on_conflict_do_nothing(), rows)


def target_key(target: Mapping[str, str]) -> str:
    """What a label is joined on: the strongest id of its target.

    >>> target_key({"client_request_id": "abc", "request_id": "r-1"})
    'request_id=r-1'
    """
    for name in ("event_id", "request_id", "client_request_id"):
        if name in target:
            return f"{name}={target[name]}"
    return json_text(dict(sorted(target.items())))


def _store_dead_letters(conn: sa.Connection, batch: IngestBatch) -> None:
    rows = [
        {
            "source": batch.source,
            "topic": clean(letter.topic),
            "partition": letter.partition,
            "offset": letter.offset,
            "reason": letter.reason,
            "detail": clean(letter.detail),
            "key": letter.key,
            "value": letter.value,
            "headers": msgspec.msgpack.encode([(clean(name), value) for name, value in letter.headers]),
            "timestamp_ms": letter.timestamp_ms,
            "truncated": letter.truncated,
            "received_us": batch.received_us,
        }
        for letter in batch.dead_letters
    ]
    if rows:
        conn.execute(insert(conn, dead_letters).on_conflict_do_nothing(), rows)


def _mark_redriven(conn: sa.Connection, ids: Sequence[int]) -> None:
    c = dead_letters.c
    if ids:
        marked = conn.execute(dead_letters.update().where(c.id.in_(ids), c.state == "new").values(state="redriven"))
        if marked.rowcount != len(set(ids)):
            raise FencedOut("somebody else has dealt with one of these dead letters: list them again")


def count_unregistered(conn: sa.Connection, source: str, unknown: Mapping[str, int], now_us: int) -> None:
    """Add to the counts of unknown model names; beyond a hundred names a source they count together under "…"."""
    if not unknown:
        return
    c = unregistered.c
    known = set(conn.scalars(sa.select(c.name).where(c.source == source)))
    counts: Counter[str] = Counter()
    for name, events in unknown.items():
        shown = clean(name)[:NAME_LENGTH]
        if shown not in known and len(known - {OTHER_NAMES}) >= UNREGISTERED_NAMES:
            shown = OTHER_NAMES
        known.add(shown)
        counts[shown] += events
    for name, events in sorted(counts.items()):
        row = insert(conn, unregistered).values(
            source=source, name=name, events=events, first_us=now_us, last_us=now_us
        )
        conn.execute(
            row.on_conflict_do_update(
                index_elements=["source", "name"],
                set_={"events": c.events + row.excluded.events, "last_us": row.excluded.last_us},
            )
        )


def forget_keys(conn: sa.Connection, now_us: int) -> None:
    """Drop idempotency keys that no longer protect anything."""
    conn.execute(idempotency.delete().where(idempotency.c.received_us < now_us - IDEMPOTENCY_US - 60 * SECOND_US))
