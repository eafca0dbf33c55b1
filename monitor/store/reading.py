"""Reading rows by segment: from a segment's own file while it stands, else from the compacted file that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from monitor.errors import StoreError
from monitor.store.columns import ORDER
from monitor.store.engine import read
from monitor.store.schema import segments
from monitor.store.segments import Files

Ends = Mapping[str, tuple[int, int]]  # column -> least and largest value that is wanted


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive segments of the log that one file holds; `order` is (segment, batch, ordinal), ascending."""

    path: str
    compacted: bool
    order: tuple[tuple[str, int, int], ...]


def plan(engine: sa.Engine, wanted: sa.ColumnElement[bool]) -> list[Stretch]:
    """The published segments that meet a condition, in log order, by the files that hold them now."""
    c = segments.c
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(c.segment, c.path, c.compacted, c.batch, c.ordinal).where(wanted).order_by(c.batch, c.ordinal)
        ).all()
    stretches: list[Stretch] = []
    for row in rows:
        place = (row.segment, int(row.batch), int(row.ordinal))
        last = stretches[-1] if stretches else None
        if last and row.compacted and last.path == row.compacted:
            stretches[-1] = Stretch(last.path, compacted=True, order=(*last.order, place))
        else:
            stretches.append(Stretch(row.compacted or row.path, bool(row.compacted), (place,)))
    return stretches


def rows(
    engine: sa.Engine,
    files: Files,
    model_id: str,
    stretch: Stretch,
    needed: Sequence[str],
    max_rows: int,
    window_us: tuple[int, int] | None = None,
) -> Iterator[pa.Table]:
    """The physical columns of a stretch in log order, those of `needed` that its file has; order columns always can be had.

    With `window_us` only rows whose event time lies in it. Raises StoreError when the file is gone for good.
    """
    try:
        file = files.open(model_id, stretch.path)
    except FileNotFoundError:
        # Compaction and sweep have overtaken a long read: the same rows stand in another file now.
        moved = plan(engine, segments.c.segment.in_([segment for segment, _, _ in stretch.order]))
        if [other.path for other in moved] == [stretch.path]:
            raise StoreError(f"{stretch.path} of the event log is gone: restore it from a backup") from None
        for other in moved:
            yield from rows(engine, files, model_id, other, needed, max_rows, window_us)
        return
    within = {} if window_us is None else {"event_time": (window_us[0], window_us[1] - 1)}
    with file, pq.ParquetFile(file) as parquet:
        found = _compacted_rows if stretch.compacted else _segment_rows
        for table in found(parquet, stretch, [*needed, "event_time"], max_rows, within):
            yield table if window_us is None else _within(table, *window_us)


def _segment_rows(
    parquet: pq.ParquetFile, stretch: Stretch, needed: Sequence[str], max_rows: int, within: Ends
) -> Iterator[pa.Table]:
    """A segment's own file: batch and ordinal are not in it."""
    ((_, batch, ordinal),) = stretch.order
    for table in _batches(parquet, needed, max_rows, within):
        for name, value in (("batch", batch), ("ordinal", ordinal)):
            if name in needed:
                table = table.append_column(name, pa.repeat(pa.scalar(value, ORDER[name]), table.num_rows))
        yield table


def _compacted_rows(
    parquet: pq.ParquetFile, stretch: Stretch, needed: Sequence[str], max_rows: int, within: Ends
) -> Iterator[pa.Table]:
    """A file of many segments, sorted in log order."""
    names = pa.array([segment for segment, _, _ in stretch.order])
    batches = {"batch": (stretch.order[0][1], stretch.order[-1][1])}
    for table in _batches(parquet, [*needed, "batch", "segment"], max_rows, {**within, **batches}):
        yield table.filter(pc.is_in(table["segment"], value_set=names))


def _batches(parquet: pq.ParquetFile, needed: Iterable[str], max_rows: int, within: Ends) -> Iterator[pa.Table]:
    """Those of the columns that the file has, of the row groups that may hold rows `within`.

    One group after the other: what reads several at once keeps all of them in memory.
    """
    places = {name: at for at, name in enumerate(parquet.schema_arrow.names)}
    columns = [name for name in dict.fromkeys(needed) if name in places]
    for i in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(i)
        if all(_meets(group.column(places[name]), name, *ends) for name, ends in within.items()):
            for rows in parquet.iter_batches(batch_size=max_rows, row_groups=[i], columns=columns):
                yield pa.Table.from_batches([rows])


def _meets(column: Any, name: str, low: int, high: int) -> bool:
    """Whether a column of a row group can hold a value from low to high; where its ends are not known it can."""
    known = column.statistics if column.path_in_schema == name and column.is_stats_set else None
    return known is None or not known.has_min_max or (known.min_raw <= high and known.max_raw >= low)


def _within(table: pa.Table, start_us: int, end_us: int) -> pa.Table:
    times = table["event_time"].cast(pa.int64())
    return table.filter(pc.and_(pc.greater_equal(times, start_us), pc.less(times, end_us)))


def resized(tables: Iterable[pa.Table], max_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `max_rows` rows, the last one excepted; none when there are no rows."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        if table.num_rows:
            waiting.append(table)
            rows += table.num_rows
        while rows >= max_rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, max_rows).combine_chunks()
            waiting = [whole.slice(max_rows)]
            rows -= max_rows
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()
