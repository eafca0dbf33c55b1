"""The event log as the rest of Lanner sees it: collectors append to it, ticks and reports read it in log order.

Log order is (batch, ordinal, position): batch and ordinal are given to a segment when it is published, position is the
row's place in its segment. It never changes, whatever compaction does to files. Which file holds a segment stands in
the state store, so our own readers need no Delta log: that one is for Spark, Trino and DuckDB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import sqlalchemy as sa

from monitor.intake import Claim, IngestBatch, IngestResult, PartitionKey
from monitor.model import UNREGISTERED, stable_id
from monitor.store import ingest, labels, reading
from monitor.store.columns import FeatureSchema, physical, view
from monitor.store.engine import read
from monitor.store.schema import segments
from monitor.store.segments import Files, ModelTable

__all__ = ["EventLog", "ModelTable"]

MAX_ROWS: Final = 50_000


class EventLog:
    """Reads and writes the event log. Safe to use from several threads; open one per process.

    `models` maps names to tables. Events of other names go to the table of `_unregistered`. `at` is told every point
    at which a crash test may want to end the process: file_written, in_transaction, after_transaction.
    """

    def __init__(
        self,
        engine: sa.Engine,
        root: str | Path,
        models: Mapping[str, ModelTable],
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        stray = ModelTable(stable_id("model", UNREGISTERED), UNREGISTERED, FeatureSchema())
        self.models: Mapping[str, ModelTable] = {UNREGISTERED: stray, **models}
        self._by_id = {table.model_id: table for table in self.models.values()}
        self.engine = engine
        self.files = Files(root)
        self.at = at

    def claim(self, source: str, owner: str, partitions: Sequence[PartitionKey]) -> Mapping[PartitionKey, Claim]:
        """Take over partitions: bump their epochs (older owners are fenced out) and tell the stored next offsets."""
        return ingest.claim(self.engine, source, owner, partitions)

    def append(self, batch: IngestBatch) -> IngestResult:
        """Files first, then ONE transaction that checks epochs and offsets and records everything.

        Raises FencedOut when another owner has taken a partition (nothing is stored), StoreError when the store
        refuses or nobody knows whether it took the batch: claim again and go on from the stored offsets.
        """
        return ingest.append(self.engine, self.files, self.models, batch, self.at)

    def report(self, source: str, owner: str, caught_up: Mapping[PartitionKey, bool], now_us: int) -> None:
        """Heartbeat of an owner: which partitions it has read to their end (the idle rule of the watermark)."""
        ingest.report(self.engine, source, owner, caught_up, now_us)

    def under(self, name: str, schema: FeatureSchema) -> EventLog:
        """The same log with another schema for one model: features that stand in `extra` so far read as typed ones."""
        table = self.models[name]
        return EventLog(
            self.engine, self.files.uri, {**self.models, name: ModelTable(table.model_id, name, schema)}, self.at
        )

    def first_us(self, model_id: str) -> int | None:
        """The time of a model's first event."""
        with read(self.engine) as conn:
            first = conn.scalar(sa.select(sa.func.min(segments.c.min_event_us)).where(segments.c.model_id == model_id))
            return None if first is None else int(first)

    def latest_batch(self, model_id: str) -> int:
        """The newest batch that readers may see; 0 when there is none."""
        c = segments.c
        with read(self.engine) as conn:
            newest = conn.scalar(
                # a walk down the index that stops at once; max() would read every segment of the model
                sa.select(c.batch)
                .where(c.model_id == model_id, c.batch.is_not(None), c.published)
                .order_by(c.batch.desc())
                .limit(1)
            )
        return int(newest or 0)

    def read_log(
        self, model_id: str, after: int, upto: int, columns: Sequence[str], max_rows: int = MAX_ROWS
    ) -> Iterator[pa.Table]:
        """Rows of the batches in (after, upto] in log order, in tables of at most `max_rows` rows.

        `columns` as in docs/event-log.md, features as `feature:NAME`; `event_time` is int64 microseconds.
        """
        c = segments.c
        wanted = (c.model_id == model_id) & c.published & (c.batch > after) & (c.batch <= upto)
        yield from reading.resized(self._read(model_id, wanted, columns, max_rows, None), max_rows)

    def read_window(
        self,
        model_id: str,
        start_us: int,
        end_us: int,
        columns: Sequence[str],
        upto: int | None = None,
        max_rows: int = MAX_ROWS,
    ) -> Iterator[pa.Table]:
        """Rows whose event time lies in [start_us, end_us), in log order; with `upto` only those of batches up to it."""
        c = segments.c
        wanted = (c.model_id == model_id) & c.published & (c.max_event_us >= start_us) & (c.min_event_us < end_us)
        if upto is not None:
            wanted &= c.batch <= upto
        yield from reading.resized(self._read(model_id, wanted, columns, max_rows, (start_us, end_us)), max_rows)

    def labels(self, model: str, start_us: int, end_us: int, as_of_us: int) -> pa.Table:
        """Labels known at `as_of_us` of the events in [start_us, end_us); see monitor.store.labels."""
        ids = self.read_window(self.models[model].model_id, start_us, end_us, labels.COLUMNS)
        return labels.known(self.engine, model, ids, start_us, as_of_us)

    def feedback(
        self, model: str, start_us: int, end_us: int, columns: Sequence[str], late_us: int | None = None
    ) -> pa.Table:
        """Labels given in [start_us, end_us) with their events; see monitor.store.labels.given."""
        events = functools.partial(self.read_window, self.models[model].model_id)
        return labels.given(self.engine, model, start_us, end_us, late_us, events, columns)

    def _read(
        self,
        model_id: str,
        wanted: sa.ColumnElement[bool],
        columns: Sequence[str],
        max_rows: int,
        window_us: tuple[int, int] | None,
    ) -> Iterator[pa.Table]:
        schema = self._by_id[model_id].schema
        needed = physical(schema, columns)
        for stretch in reading.plan(self.engine, wanted):
            for table in reading.rows(self.engine, self.files, model_id, stretch, needed, max_rows, window_us):
                yield view(table, schema, columns)
