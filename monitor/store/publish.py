"""Publishing: recorded segments get a batch number, one Delta commit a batch, and are marked readable.

One leased publisher per table. Numbers are given in a transaction of their own, to every recorded segment that has
none: ids of segments say nothing about their order, for a number drawn before a commit can be overtaken by a later
one. After a crash the batch is repeated or skipped as a whole, as the Delta log's own transaction version tells.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from monitor import telemetry
from monitor.errors import FencedOut, StoreError
from monitor.model import HOUR_US, SECOND_US
from monitor.store import compaction, leases
from monitor.store.delta import DataFile, DeltaLog, merged_schema
from monitor.store.engine import insert, read, write
from monitor.store.ingest import forget_keys
from monitor.store.schema import identity, models, segments
from monitor.store.segments import Files

LEASE_US: Final = 30 * SECOND_US
BATCH_SEGMENTS: Final = 500  # a long backlog becomes several commits
RECONCILE_US: Final = 6 * HOUR_US
DAY_US: Final = 24 * HOUR_US


@dataclass(slots=True)
class _Held:
    """What a publisher keeps of one table as long as it holds its lease."""

    epoch: int
    log: DeltaLog
    reconciled_us: int


class Publisher:
    """Publishes, compacts and sweeps. One per process, safe to share between its threads; several processes may have
    one, the lease picks who works.

    `at` is told every point at which a crash test may want to end the process: before_publish, after_publish,
    compacting.
    """

    def __init__(
        self, engine: sa.Engine, root: str | Path, owner: str, at: Callable[[str], None] = lambda point: None
    ) -> None:
        self._engine = engine
        self._files = Files(root)
        self._owner = owner
        self._at = at
        self._held: dict[str, _Held] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._names: dict[str, str] = {}
        self._acquainted = False

    def publish(self, model_id: str, now_us: int) -> int:
        """Make recorded segments readable; how many rows became so. 0 while another publisher holds the lease."""
        c = segments.c
        with read(self._engine) as conn:
            newest = sa.select(c.batch).where(c.model_id == model_id, c.batch.is_not(None), c.published)
            last = conn.scalar(newest.order_by(c.batch.desc()).limit(1)) or 0
            waiting = sa.select(c.segment).where(c.model_id == model_id, sa.or_(c.batch.is_(None), c.batch > last))
            idle = conn.execute(waiting.limit(1)).one_or_none() is None
        if idle and model_id in self._held:
            return 0
        return self._leased(model_id, now_us, lambda held: self._publish(model_id, held, int(last), now_us)) or 0

    def compact(self, model_id: str, now_us: int) -> int:
        """Merge small files of one day into a larger one in log order; how many were merged, 0 when none need it.

        Does one merge a call, so that publishing never waits long.
        """
        merge = compaction.due(self._engine, model_id, now_us)
        if merge is None or self._lease(model_id, now_us) is None:
            return 0
        # Writing takes seconds and its inputs never change, so publishing need not wait for it.
        file, schema = compaction.write_merged(self._engine, self._files, model_id, merge)
        work = partial(self._compact, model_id, merge=merge, file=file, schema=schema, now_us=now_us)
        return self._leased(model_id, now_us, work) or 0

    def sweep(self, now_us: int) -> int:
        """Remove files that nothing names for more than a day, and keys that protect nothing any more."""
        if leases.acquire(self._engine, "sweep", self._owner, now_us, LEASE_US) is None:
            return 0
        self._acquaint()
        with write(self._engine) as conn:
            forget_keys(conn, now_us)
        return compaction.sweep(self._engine, self._files, now_us - DAY_US)

    def close(self) -> None:
        """Give the leases back, so that a successor need not wait for them to run out."""
        for name in [f"publish:{model_id}" for model_id in self._held]:
            leases.release(self._engine, name, self._owner)
        self._held.clear()

    def _lease(self, model_id: str, now_us: int) -> int | None:
        return leases.acquire(self._engine, f"publish:{model_id}", self._owner, now_us, LEASE_US)

    def _leased(self, model_id: str, now_us: int, work: Callable[[_Held], int]) -> int | None:
        with self._locks.setdefault(model_id, threading.Lock()):
            self._acquaint()
            epoch = self._lease(model_id, now_us)
            held = self._held.pop(model_id, None)  # stays out after an error: look again at the table next time
            if epoch is None:
                return None
            if held is None or held.epoch != epoch:
                held = _Held(epoch, DeltaLog(self._files, model_id), reconciled_us=-RECONCILE_US)
            done = work(held)
            self._held[model_id] = held
            return done

    def _confirm(self, conn: sa.Connection, model_id: str, held: _Held) -> None:
        leases.confirm(conn, f"publish:{model_id}", self._owner, held.epoch)

    def _publish(self, model_id: str, held: _Held, last: int, now_us: int) -> int:
        began_s = time.perf_counter()
        self._number(model_id, held, last)
        rows = 0
        c = segments.c
        with read(self._engine) as conn:
            pending = conn.execute(
                sa.select(segments)
                .where(c.model_id == model_id, c.batch > last, ~c.published)
                .order_by(c.batch, c.ordinal)
            ).all()
        for batch in sorted({int(row.batch) for row in pending}):
            part = [row for row in pending if row.batch == batch]
            if held.log.version() < batch:
                schema = merged_schema(self._schema(model_id, row.path) for row in part)
                self._at("before_publish")
                held.log.commit(schema, [_data_file(row) for row in part], {}, batch, now_us)
            self._at("after_publish")
            with write(self._engine) as conn:
                self._confirm(conn, model_id, held)
                conn.execute(segments.update().where(c.model_id == model_id, c.batch == batch).values(published=True))
            rows += sum(row.rows for row in part)
        if pending:
            name = self._name(model_id)
            oldest_us = min(row.created_us for row in pending)
            telemetry.count("publish_rows_total", rows, model=name)
            telemetry.observe("publish_duration_seconds", time.perf_counter() - began_s, model=name)
            telemetry.gauge("publish_delay_seconds", max(0, now_us - oldest_us) / SECOND_US, model=name)
        if now_us - held.reconciled_us >= RECONCILE_US:
            self._reconcile(model_id, held, last, now_us)
        return rows

    def _number(self, model_id: str, held: _Held, last: int) -> None:
        c = segments.c
        with write(self._engine) as conn:
            self._confirm(conn, model_id, held)
            fresh = conn.execute(
                sa.select(c.segment, c.created_us, c.source, c.offsets).where(c.model_id == model_id, c.batch.is_(None))
            ).all()
            if not fresh:
                return
            highest = conn.scalar(sa.select(sa.func.max(c.batch)).where(c.model_id == model_id, c.batch >= last))
            # Never below what Delta has seen: a state store that was restored from a backup stands behind it.
            first = max(int(highest or 0), held.log.version()) + 1
            fresh = sorted(fresh, key=lambda r: (r.created_us, r.source, sorted(map(tuple, r.offsets)), r.segment))
            conn.execute(
                segments.update().where(c.segment == sa.bindparam("key"), c.batch.is_(None)),
                [
                    {"key": row.segment, "batch": first + place // BATCH_SEGMENTS, "ordinal": place % BATCH_SEGMENTS}
                    for place, row in enumerate(fresh)
                ],
            )

    def _reconcile(self, model_id: str, held: _Held, last: int, now_us: int) -> None:
        """Make the Delta log name exactly the files that the state store names.

        They differ after a crash during compaction, and after either side was restored from a backup.
        """
        named = compaction.named(self._engine, self._files, model_id)
        actual = held.log.paths()
        missing = [file for path, file in named.items() if path not in actual]
        strange = {path: size for path, size in actual.items() if path not in named}
        if missing or strange:
            schema = merged_schema(self._schema(model_id, file.path) for file in missing)
            held.log.commit(schema, missing, strange, max(held.log.version(), last), now_us)
        held.reconciled_us = now_us

    def _compact(
        self, model_id: str, held: _Held, merge: compaction.Merge, file: DataFile, schema: pa.Schema, now_us: int
    ) -> int:
        self._at("compacting")
        actual = held.log.paths()
        inputs = {path: actual[path] for path in merge.paths if path in actual}
        if len(inputs) != len(merge.paths):
            self._reconcile(model_id, held, held.log.version(), now_us)
            return 0
        held.log.commit(schema, [file], inputs, held.log.version(), now_us, data_change=False)
        self._at("compacting")
        c = segments.c
        with write(self._engine) as conn:
            self._confirm(conn, model_id, held)
            for part in merge.chunks():
                moved = conn.execute(segments.update().where(c.segment.in_(part)).values(compacted=file.path))
                if moved.rowcount != len(part):
                    raise FencedOut(f"segments of {model_id} changed while they were merged")
        return len(merge.paths)

    def _schema(self, model_id: str, path: str) -> Any:
        with self._files.open(model_id, path) as file:
            return pq.read_schema(file)

    def _name(self, model_id: str) -> str:
        if model_id not in self._names:
            with read(self._engine) as conn:
                name = conn.scalar(sa.select(models.c.name).where(models.c.model_id == model_id))
            self._names[model_id] = name or model_id
        return self._names[model_id]

    def _acquaint(self) -> None:
        """Refuse to touch an event log that belongs to another state store: it would look like rubbish to remove."""
        if self._acquainted:
            return
        with write(self._engine) as conn:
            row = insert(conn, identity).values(name="store", value=uuid.uuid4().hex).on_conflict_do_nothing()
            conn.execute(row)
            own = str(conn.scalar(sa.select(identity.c.value).where(identity.c.name == "store")))
        found = self._files.identify(own)
        if found != own:
            raise StoreError(
                f"the event log {self._files.uri} belongs to state store {found}, not to this one ({own}): "
                "correct store.path or store.database"
            )
        self._acquainted = True


def _data_file(row: Any) -> DataFile:
    return DataFile(row.path, row.bytes, row.rows, row.min_event_us, row.max_event_us)
