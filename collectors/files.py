"""Logs in files: JSON Lines (one message a line) and Parquet (one message a row), read once or followed as they grow.

The position of a message is (content id, line). The content id is a hash of the file's beginning, not its name, so a
rotated, renamed or moved file is the same file, and a new file under an old name is a new one.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import structlog

from collectors.base import PartitionKey, Record
from monitor.errors import DependencyUnreachable, UsageError

MAX_LINE_BYTES: Final = 64 << 20  # a longer line is cut, and then refused as oversize by the ingester
HEAD_BYTES: Final = 65_536  # of the first line, what the content id is made of
CHUNK_BYTES: Final = 4 << 20
SCAN_S: Final = 1.0  # how often the glob patterns are looked at again
FORGET_S: Final = 30.0  # how long a vanished file is still reported as read to its end
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"

log = structlog.get_logger("lanner.files")


def read_records(path: Path, source: str) -> Iterator[Record]:
    """Every message of one file: JSONL (also gzipped) by lines, Parquet by rows. Empty lines are skipped.

    Nested Parquet columns are the fields of the native format. The topic is the content id, the offset the line or
    row number from 0. Raises UsageError when the file cannot be read.
    """
    try:
        topic = content_id(path, whole=True)
        if topic is None:
            return
        for number, value in _parquet_rows(path, 0) if _starts(path, _PARQUET) else _lines(path):
            if value:
                yield Record(source, topic, 0, number, None, value)
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends; an unterminated last line counts."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        stream = stack.enter_context(gzip.open(raw)) if _starts(path, _GZIP) else raw
        number = 0
        while line := stream.readline(MAX_LINE_BYTES):
            whole = line
            while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)  # the rest of an absurd line is skipped, not kept
            yield number, whole.strip(b"\r\n \t")
            number += 1


def _parquet_rows(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Rows from `start` on, each as the JSON text it would be in the native format."""
    import pyarrow as pa  # noqa: PLC0415 -- heavy, and only Parquet needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            groups = ([i] for i in range(file.num_row_groups))  # one by one: all at once would stay in memory
            for batch in chain.from_iterable(file.iter_batches(5000, row_groups=group) for group in groups):
                skip = max(0, start - number)
                if skip < batch.num_rows:
                    rows = batch.slice(skip).to_pylist(maps_as_pydicts="lossy")
                    yield from enumerate(map(_row_json, rows), number + skip)
                number += batch.num_rows
    except pa.ArrowException as error:
        raise UsageError(f"{path} is not a readable Parquet file: {error}") from error


def _row_json(row: dict[str, Any]) -> bytes:
    """One row as a native event; `feature:NAME` columns become features, absent values are left out."""
    event: dict[str, Any] = {}
    features: dict[str, Any] = {}
    for name, value in row.items():
        if name.startswith("feature:"):
            features[name.removeprefix("feature:")] = value
        elif value is not None:
            event[name] = value
    if features:
        event["features"] = {**(event.get("features") or {}), **features}
    return msgspec.json.encode(event, enc_hook=str)


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def content_id(path: Path, *, whole: bool = False) -> str | None:
    """A hash of the first line (of Parquet: of the footer, the last 64 KiB); None while there is no whole first line.

    With `whole` the file is known to be complete, and a single line without end counts. Two different files that
    begin with the same line are the same content to us, so a header line must not be all that a file begins with.
    """
    with path.open("rb") as stream:
        return _content_id(stream, whole)


def _content_id(stream: BinaryIO, whole: bool) -> str | None:
    head = stream.read(HEAD_BYTES)
    if head.startswith(_PARQUET):
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - HEAD_BYTES))
        tail = stream.read(HEAD_BYTES)
        if not tail.endswith(_PARQUET) or size < 12:
            return None  # still being written
        return "parquet-" + hashlib.sha256(tail).hexdigest()[:32]
    if head.startswith(_GZIP):  # the id of what is inside: a log that rotation compresses stays the same content
        try:
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        except zlib.error:
            return None
    line, end, _ = head.partition(b"\n")
    if not head or not (end or whole or len(head) == HEAD_BYTES):
        return None
    return "lines-" + hashlib.sha256(line.rstrip(b"\r")).hexdigest()[:32]


@dataclass(slots=True)
class _File:
    """One followed file: where its reader stands. `line` is None until the first seek."""

    path: Path
    inode: tuple[int, int]
    line: int | None = None
    byte: int = 0
    paused: bool = True
    at_end: bool = False
    seen: tuple[int, int] = (-1, -1)  # size and modification time at the last read
    gone_at_s: float | None = None  # when no path held this content any more
    rows: Iterator[tuple[int, bytes]] | None = field(default=None, repr=False)  # Parquet and gzip


class FileCollector:
    """Follows the files that match glob patterns; each content is a partition of its own.

    With `follow` off, what is there at the first look is read to its end, unterminated last lines included; with it
    on, an unterminated line waits for its end. A file that vanishes before it was read to its end is reported.
    """

    def __init__(
        self, name: str, patterns: Sequence[str], *, follow: bool = True, max_records: int = 10_000,
        clock_s: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.name = name
        self._patterns, self._follow, self._max_records = tuple(patterns), follow, max_records
        self._clock_s, self._wait = clock_s, wait
        self._files: dict[PartitionKey, _File] = {}
        self._known: dict[tuple[int, int], str] = {}  # inode -> content id
        self._gained: list[PartitionKey] = []
        self._lost: list[PartitionKey] = []
        self._next_scan_s = float("-inf")

    def changes(self) -> tuple[Sequence[PartitionKey], Sequence[PartitionKey]]:
        if self._clock_s() >= self._next_scan_s:
            self._scan()
            self._next_scan_s = self._clock_s() + SCAN_S if self._follow else float("inf")
        gained, lost = self._gained, self._lost
        self._gained, self._lost = [], []
        return gained, lost

    def seek(self, partition: PartitionKey, offset: int | None) -> int:
        file = self._files[partition]
        file.line, file.byte, file.rows, file.at_end = offset or 0, 0, None, False
        if offset and not _is_packed(file.path):
            file.byte = _byte_of_line(file.path, offset)
        return offset or 0

    def poll(self, timeout_s: float) -> Sequence[Record]:
        out: list[Record] = []
        for key, file in self._files.items():
            if file.line is None or file.paused or file.gone_at_s is not None or len(out) >= self._max_records:
                continue
            try:
                self._read(key, file, out)
            except FileNotFoundError:
                file.at_end = False  # renamed: the next scan finds it again under its content id
                self._next_scan_s = float("-inf")
            except OSError as error:
                raise DependencyUnreachable(f"{file.path}: {error}") from error
        if not out and timeout_s > 0:
            self._wait(min(timeout_s, 0.2))
        return out

    def commit(self, positions: Mapping[PartitionKey, int]) -> None:
        """Nothing to tell: files keep no positions."""

    def pause(self, partition: PartitionKey) -> None:
        if partition in self._files:
            self._files[partition].paused = True

    def resume(self, partition: PartitionKey) -> None:
        if partition in self._files:
            self._files[partition].paused = False

    def lag(self) -> Mapping[PartitionKey, int | None]:
        return {key: 0 if file.at_end else None for key, file in self._files.items()}

    def close(self) -> None:
        self._files.clear()

    # -- finding files

    def _scan(self) -> None:
        """Looks at the patterns again: new contents are gained, moved files found again, finished ones dropped."""
        seen: dict[PartitionKey, Path] = {}
        for path in matching(self._patterns):
            try:
                with path.open("rb") as stream:
                    status = os.fstat(stream.fileno())
                    inode = (status.st_dev, status.st_ino)
                    topic = _content_id(stream, whole=not self._follow)
            except OSError as error:
                log.warning("file_unreadable", source=self.name, path=str(path), reason=str(error))
                continue
            if topic is None:
                continue
            key = (topic, 0)
            if key in seen:
                continue  # a copy under a second name
            seen[key] = path
            file = self._files.get(key)
            if file is None:
                self._files[key] = _File(path, inode)
                self._gained.append(key)
            elif file.path != path or file.inode != inode or file.gone_at_s is not None:
                file.path, file.inode, file.rows, file.seen, file.gone_at_s = path, inode, None, (-1, -1), None
        now_s = self._clock_s()
        for key in [k for k in self._files if k not in seen]:
            file = self._files[key]
            if file.gone_at_s is None:
                file.gone_at_s = now_s
                if not file.at_end:
                    log.error("file_vanished", source=self.name, path=str(file.path), read_lines=file.line)
                file.at_end = True  # nothing more can come from it, and it must not hold the watermark
            elif now_s - file.gone_at_s >= FORGET_S:
                del self._files[key]
                self._lost.append(key)

    # -- reading

    def _read(self, key: PartitionKey, file: _File, out: list[Record]) -> None:
        status = file.path.stat()
        if file.at_end and file.seen == (status.st_size, status.st_mtime_ns):
            return
        if _is_packed(file.path):
            self._read_rows(key, file, out)
        else:
            self._read_lines(key, file, out)
        file.seen = (status.st_size, status.st_mtime_ns)

    def _read_lines(self, key: PartitionKey, file: _File, out: list[Record]) -> None:
        with file.path.open("rb") as stream:
            if _content_id(stream, whole=not self._follow) != key[0]:
                raise FileNotFoundError(file.path)  # another content stands under this name now
            stream.seek(file.byte)
            data = stream.read(CHUNK_BYTES)
            while b"\n" not in data and len(data) < MAX_LINE_BYTES and (more := stream.read(CHUNK_BYTES)):
                data += more
            ended = stream.tell() >= os.fstat(stream.fileno()).st_size
        lines = data.split(b"\n")
        tail = lines.pop()
        take = self._max_records - len(out)
        if len(lines) > take:
            ended, lines = False, lines[:take]
        elif tail and ended and not self._follow:
            lines.append(tail)
        elif len(tail) >= MAX_LINE_BYTES:
            raise OSError(f"line {(file.line or 0) + len(lines) + 1} is longer than {MAX_LINE_BYTES} bytes")
        line, topic, source = file.line or 0, key[0], self.name
        file.byte += sum(map(len, lines)) + len(lines)
        file.line = line + len(lines)
        file.at_end = ended
        for number, value in enumerate(lines, line):
            text = value.strip(b"\r \t")
            out.append(Record(source, topic, 0, number, None, text or None))  # an empty line counts, like a tombstone

    def _read_rows(self, key: PartitionKey, file: _File, out: list[Record]) -> None:
        if file.rows is None:
            file.rows = _packed_rows(file.path, file.line or 0)
        for number, value in file.rows:
            out.append(Record(self.name, key[0], 0, number, None, value or None))
            file.line = number + 1
            if len(out) >= self._max_records:
                return
        file.at_end = True


def matching(patterns: Sequence[str]) -> list[Path]:
    """The files that glob patterns name, sorted; `**` reaches into folders."""
    names = {name for pattern in patterns for name in glob.iglob(pattern, recursive=True)}  # noqa: PTH207 -- absolute
    return [path for path in map(Path, sorted(names)) if path.is_file()]


def _is_packed(path: Path) -> bool:
    """Parquet and gzip cannot be followed from a byte; they are read from their beginning and skipped over."""
    return _starts(path, _PARQUET) or _starts(path, _GZIP)


def _packed_rows(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    if _starts(path, _PARQUET):
        return _parquet_rows(path, start)
    return ((number, value) for number, value in _lines(path) if number >= start)


def _byte_of_line(path: Path, line: int) -> int:
    """Where a line begins; found by counting, once after each start."""
    at = 0
    with path.open("rb") as stream:
        while line and (chunk := stream.read(CHUNK_BYTES)):
            here = chunk.count(b"\n")
            if here < line:
                line -= here
                at += len(chunk)
                continue
            found = -1
            for _ in range(line):
                found = chunk.index(b"\n", found + 1)
            return at + found + 1
    return at
