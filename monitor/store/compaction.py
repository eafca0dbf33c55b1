"""Compaction and sweep: many small files become few large ones in log order, and files that nobody names go.

Two steps, so that every row is rewritten at most twice: during the day, runs of small files; after the day, all of its
files up to a target size. The state store says where a segment's rows stand, so readers never wait for either.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from monitor.model import HOUR_US
from monitor.store import reading
from monitor.store.columns import ORDER
from monitor.store.delta import DataFile, merged_schema
from monitor.store.engine import read
from monitor.store.schema import segments
from monitor.store.segments import Files, day_of

RUN_FILES: Final = 64  # so many small files of a running day are merged
TARGET_BYTES: Final = 128 << 20
ROW_GROUP: Final = 50_000
GRACE_US: Final = HOUR_US  # a day is over for compaction this long after midnight UTC
CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Merge:
    """Files of one day that become one: their folder, paths and segments, and what the new file will hold."""

    folder: str
    paths: tuple[str, ...]
    segments: tuple[str, ...]
    rows: int
    min_event_us: int
    max_event_us: int

    def chunks(self) -> Iterator[Sequence[str]]:
        """The segments in portions that one SQL statement can name."""
        for first in range(0, len(self.segments), CHUNK):
            yield self.segments[first : first + CHUNK]


def due(engine: sa.Engine, model_id: str, now_us: int) -> Merge | None:
    """The next merge of a table, the oldest day first; None when no file is worth it."""
    c = segments.c
    folder = sa.func.substr(c.path, 1, len("day=2026-11-22"))
    open_files = sa.func.count(sa.case((c.compacted.is_(None), c.segment)))
    with read(engine) as conn:
        days = conn.execute(
            sa.select(folder, open_files)
            .where(_mergeable(model_id))
            .group_by(folder)
            .having(sa.func.count(sa.distinct(_file())) > 1)
            .order_by(folder)
        ).all()
        for day, waiting in days:
            over = day.removeprefix("day=") < day_of(now_us - GRACE_US)
            if not over and waiting < RUN_FILES:
                continue
            chosen = _mergeable(model_id) if over else (_ours(model_id) & c.compacted.is_(None))
            wanted = sa.select(segments).where(chosen, folder == day).order_by(c.batch, c.ordinal)
            merge = _merge(day, conn.execute(wanted).all())
            if merge is not None:
                return merge
    return None


def _file() -> sa.ColumnElement[str]:
    return sa.func.coalesce(segments.c.compacted, segments.c.path)


def _ours(model_id: str) -> sa.ColumnElement[bool]:
    return (segments.c.model_id == model_id) & segments.c.published


def _mergeable(model_id: str) -> sa.ColumnElement[bool]:
    """Segments in their own file, and those in merged files that are still small."""
    held = segments.alias()
    small = (
        sa.select(held.c.compacted)
        .where(held.c.model_id == model_id, held.c.compacted.is_not(None))
        .group_by(held.c.compacted)
        .having(sa.func.sum(held.c.bytes) < TARGET_BYTES // 2)
    )
    return _ours(model_id) & sa.or_(segments.c.compacted.is_(None), segments.c.compacted.in_(small))


def _merge(folder: str, rows: Sequence[Any]) -> Merge | None:
    """The first files in log order that fit the target, each with all of its segments; None when fewer than two."""
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        sizes[row.compacted or row.path] += row.bytes
    paths: set[str] = set()
    size = 0
    for path, its_bytes in sizes.items():
        if len(paths) >= 2 and size + its_bytes > TARGET_BYTES:
            break
        paths.add(path)
        size += its_bytes
    if len(paths) < 2:
        return None
    chosen = [row for row in rows if (row.compacted or row.path) in paths]
    return Merge(
        folder=folder,
        paths=tuple(sorted(paths)),
        segments=tuple(row.segment for row in chosen),
        rows=sum(row.rows for row in chosen),
        min_event_us=min(row.min_event_us for row in chosen),
        max_event_us=max(row.max_event_us for row in chosen),
    )


def write_merged(engine: sa.Engine, files: Files, model_id: str, merge: Merge) -> tuple[DataFile, pa.Schema]:
    """Write the rows of the merge in log order as one file, with batch and ordinal; nothing names it yet."""
    held = merged_schema(_schemas(files, model_id, merge.paths))
    schema = pa.schema([*ORDER.items(), *(field for field in held if field.name not in ORDER)])

    def tables() -> Iterator[pa.Table]:
        wanted = _ours(model_id) & _file().in_(merge.paths)
        for stretch in reading.plan(engine, wanted):
            for table in reading.rows(engine, files, model_id, stretch, schema.names, ROW_GROUP):
                yield _as(table, schema)

    path = f"{merge.folder}/c-{uuid.uuid4().hex}.parquet"
    size = files.write(model_id, path, schema, reading.resized(tables(), ROW_GROUP))
    return DataFile(path, size, merge.rows, merge.min_event_us, merge.max_event_us), schema


def _schemas(files: Files, model_id: str, paths: Iterable[str]) -> Iterator[pa.Schema]:
    for path in paths:
        with files.open(model_id, path) as file:
            yield pq.read_schema(file)


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    held = set(table.column_names)
    return pa.table(
        [table[f.name] if f.name in held else pa.nulls(table.num_rows, f.type) for f in schema], schema=schema
    )


def named(engine: sa.Engine, files: Files, model_id: str) -> dict[str, DataFile]:
    """The files that hold a model's published segments now, by path, with what a Delta log needs to know of them."""
    c = segments.c
    sums = (sa.func.sum(c.bytes), sa.func.sum(c.rows), sa.func.min(c.min_event_us), sa.func.max(c.max_event_us))
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(_file(), c.compacted, *sums).where(_ours(model_id)).group_by(_file(), c.compacted)
        )
        held = [(str(path), compacted, tuple(map(int, rest))) for path, compacted, *rest in rows]
    return {
        path: DataFile(path, files.size(model_id, path) if compacted else size, count, first, last)
        for path, compacted, (size, count, first, last) in held
    }


def sweep(engine: sa.Engine, files: Files, before_us: int) -> int:
    """Remove files older than `before_us` that no segment names; how many.

    A merged file's inputs stay as long as the merged file itself is younger than that: long readers still use them.
    """
    folders: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for model_id, path, changed_us in files.list():
        folders[model_id, path.partition("/")[0]][path] = changed_us
    removed = 0
    for (model_id, folder), held in sorted(folders.items()):
        needed = _needed(engine, model_id, folder, held, before_us)
        for path, changed_us in held.items():
            if changed_us < before_us and path not in needed:
                files.delete(model_id, path)
                removed += 1
    return removed


def _needed(engine: sa.Engine, model_id: str, folder: str, held: dict[str, int], before_us: int) -> set[str]:
    c = segments.c
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(c.path, c.compacted).where(c.model_id == model_id, c.path.startswith(f"{folder}/"))
        ).all()
    needed: set[str] = set()
    for row in rows:
        if row.compacted is not None:
            needed.add(row.compacted)
        if row.compacted is None or held.get(row.compacted, before_us) >= before_us:
            needed.add(row.path)
    return needed
