"""Segments: one Parquet file per model and flush, durable before the state store names it, never changed afterwards.

A file that no row of `segments` names does not exist for any reader; the sweep removes it later. Folders carry the
model's id and the day of arrival, never a name from a log.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa
from pyarrow import fs

from monitor.errors import StoreError
from monitor.intake import Placed
from monitor.model import SECOND_US
from monitor.store.columns import FeatureSchema, to_table
from monitor.store.schema import segments

IDENTITY: Final = (
    "_state_store"  # a file in the folder of the event log: the id of the state store that names its files
)
ROW_GROUP: Final = 4_096  # rows of a segment that are read at once: a window is often a small part of a large batch


@dataclass(frozen=True, slots=True)
class ModelTable:
    """One table of the event log: the model's id (it names the folder), its name, and its typed columns."""

    model_id: str
    name: str
    schema: FeatureSchema


@dataclass(frozen=True, slots=True)
class Segment:
    """A file as the `segments` table records it. `path` is relative to the model's folder."""

    segment: str
    model_id: str
    path: str
    rows: int
    bytes: int
    min_event_us: int
    max_event_us: int
    offsets: tuple[tuple[str, int, int, int], ...]
    source: str
    created_us: int


class Files:
    """The folder of the event log: local (files and folders are synced to disk) or an object store by URL."""

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            self._fs, self._base = fs.FileSystem.from_uri(str(root))
        else:
            self._fs, self._base = fs.LocalFileSystem(), str(Path(root).absolute())
        self.uri = str(root) if "://" in str(root) else self._base
        self.local = isinstance(self._fs, fs.LocalFileSystem)

    def table_uri(self, model_id: str) -> str:
        """Where a model's Delta table stands."""
        return f"{self.uri.rstrip('/')}/{model_id}"

    def write(self, model_id: str, path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
        """Write a new Parquet file, durable when this returns; its size in bytes. The tables become row groups."""
        whole = f"{self._base}/{model_id}/{path}"
        try:
            if not self.local:
                with self._fs.open_output_stream(whole) as stream:
                    _write_parquet(stream, schema, tables)
                return int(self._fs.get_file_info(whole).size)
            made = _make_folders(Path(whole).parent)
            with Path(whole).open("xb") as file:
                _write_parquet(file, schema, tables)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            for folder in {Path(whole).parent, *made}:
                _sync(folder)
        except OSError as e:
            self._drop(whole)  # half a file only takes the room that is missing
            raise StoreError(f"the event log cannot be written: {e.strerror or e}") from e
        return size

    def _drop(self, whole: str) -> None:
        try:
            self._fs.delete_file(whole)
        except OSError:
            pass  # the sweep will

    def open(self, model_id: str, path: str) -> Any:
        """A random-access file; FileNotFoundError when it is gone."""
        return self._fs.open_input_file(f"{self._base}/{model_id}/{path}")

    def size(self, model_id: str, path: str) -> int:
        """Size in bytes; 0 when the file is gone."""
        return int(self._fs.get_file_info(f"{self._base}/{model_id}/{path}").size or 0)

    def identify(self, store: str) -> str:
        """The id of the state store that this folder belongs to; a fresh folder is given `store`."""
        path = f"{self._base}/{IDENTITY}"
        if self._fs.get_file_info(path).type != fs.FileType.File:
            if self.local:
                _make_folders(Path(self._base))
            with self._fs.open_output_stream(path) as stream:
                stream.write(store.encode())
            return store
        with self._fs.open_input_file(path) as stream:
            return str(stream.read().decode(errors="replace").strip())

    def delete(self, model_id: str, path: str) -> None:
        """Remove a file; it is no error when it is gone."""
        try:
            self._fs.delete_file(f"{self._base}/{model_id}/{path}")
        except FileNotFoundError:
            pass

    def list(self) -> Iterable[tuple[str, str, int]]:
        """(model id, path, time of last change in microseconds) of every Parquet file under the folder."""
        selector = fs.FileSelector(self._base, recursive=True, allow_not_found=True)
        for entry in self._fs.get_file_info(selector):
            model_id, _, path = entry.path[len(self._base) :].strip("/").partition("/")
            if entry.type == fs.FileType.File and path.startswith("day=") and path.endswith(".parquet"):
                yield model_id, path, entry.mtime_ns // 1000


def _write_parquet(sink: Any, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    texts = [f.name for f in schema if pa.types.is_string(f.type)]
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=texts,
        write_statistics=["event_time", "batch", "ordinal", "position"],
    ) as writer:
        for table in tables:
            writer.write_table(table)


def _make_folders(folder: Path) -> list[Path]:
    """Make the folder; the parents whose entries changed and must be synced too."""
    if folder.is_dir():
        return []
    above = _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    return [*above, folder.parent]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def day_of(time_us: int) -> str:
    """The UTC day of a time, as in `day=2026-11-22`.

    >>> day_of(1_700_000_000_000_000)
    '2023-11-14'
    """
    return f"{datetime.fromtimestamp(time_us // SECOND_US, UTC):%Y-%m-%d}"


def write_segment(
    files: Files, model: ModelTable, placed: Sequence[Placed], source: str, received_us: int, *, ordered: bool = False
) -> Segment:
    """Write events of one model as one file under a fresh name. Nothing is recorded yet."""
    name = uuid.uuid4().hex
    table = to_table(placed, model.schema, name, received_us, source, replayed=ordered)
    path = f"day={day_of(received_us)}/{name}.parquet"
    groups = (table.slice(at, ROW_GROUP) for at in range(0, table.num_rows, ROW_GROUP))
    size = files.write(model.model_id, path, table.schema, groups)
    times = pc.min_max(table["event_time"].cast(pa.int64())).as_py()
    spans = table.group_by(["topic", "partition"]).aggregate([("offset", "min"), ("offset", "max")]).to_pylist()
    return Segment(
        segment=name,
        model_id=model.model_id,
        path=path,
        rows=table.num_rows,
        bytes=size,
        min_event_us=times["min"],
        max_event_us=times["max"],
        offsets=tuple(sorted((s["topic"], s["partition"], s["offset_min"], s["offset_max"]) for s in spans)),
        source=source,
        created_us=received_us,
    )


def record(conn: sa.Connection, written: Sequence[Segment]) -> None:
    """Make segments part of the event log, inside the transaction that decides."""
    if written:
        conn.execute(segments.insert(), [_row(s) for s in written])


def _row(segment: Segment) -> Mapping[str, Any]:
    row = {name: getattr(segment, name) for name in Segment.__slots__}
    return {**row, "offsets": [list(span) for span in segment.offsets]}
