"""Files: formats, growth, rotation, compression, and what makes two files the same."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.base import IngestSettings, Record
from collectors.decode.native import native
from collectors.files import FileCollector, content_id, read_records
from collectors.ingest import Ingester
from collectors.memory import MemoryEventLog
from monitor.errors import UsageError


def line(n: int) -> bytes:
    """An event of its own."""
    return b'{"event_time": "2026-01-01T00:00:00Z", "model": "m", "features": {"n": %d}}' % n


def write(path: Path, *numbers: int, end: bytes = b"\n", mode: str = "ab") -> None:
    """Appends events as lines."""
    with path.open(mode) as out:
        for n in numbers:
            out.write(line(n) + end)


class Reader:
    """A FileCollector whose clock a test moves, with everything gained sought to its stored place."""

    def __init__(self, *patterns: Path, follow: bool = True) -> None:
        self.now_s = 0.0
        self.collector = FileCollector(
            "src", [str(p) for p in patterns], follow=follow, clock_s=lambda: self.now_s, wait=lambda _: None
        )
        self.places: dict[tuple[str, int], int] = {}
        self.lost: list[tuple[str, int]] = []

    def read(self) -> list[int]:
        """The numbers of the events that are new."""
        self.now_s += 2
        out: list[Record] = []
        for _ in range(3):
            gained, lost = self.collector.changes()
            self.lost += lost
            for key in gained:
                self.collector.seek(key, self.places.get(key))
                self.collector.resume(key)
            out += self.collector.poll(0)
        for r in out:
            self.places[r.topic, r.partition] = r.offset + 1
        return [json.loads(r.value)["features"]["n"] for r in out if r.value]


def test_lines_are_read_once_as_they_come(tmp_path: Path) -> None:
    """Growth is followed, and an unterminated line waits for its end."""
    file, reader = tmp_path / "a.jsonl", Reader(tmp_path / "*.jsonl")
    write(file, 0, 1)
    assert reader.read() == [0, 1]
    assert reader.read() == []
    with file.open("ab") as out:
        out.write(line(2))
    assert reader.read() == []
    with file.open("ab") as out:
        out.write(b"\n" + line(3) + b"\r\n\n")
    assert reader.read() == [2, 3]


def test_without_follow_the_last_line_needs_no_end(tmp_path: Path) -> None:
    """A finished file is read whole."""
    write(tmp_path / "a.jsonl", 0, 1)
    write(tmp_path / "a.jsonl", 2, end=b"")
    assert Reader(tmp_path / "a.jsonl", follow=False).read() == [0, 1, 2]


def test_rotation_by_renaming_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """The old file goes on under its new name, the new one is a new content."""
    file, reader = tmp_path / "a.log", Reader(tmp_path / "a.log*")
    write(file, 0)
    assert reader.read() == [0]
    write(file, 1)
    file.rename(tmp_path / "a.log.1")
    write(file, 2)
    assert sorted(reader.read()) == [1, 2]


def test_rotation_by_copy_and_truncate(tmp_path: Path) -> None:
    """The copy is the same content and is not read again; what follows in the emptied file is new."""
    file, reader = tmp_path / "a.log", Reader(tmp_path / "a.log*")
    write(file, 0, 1)
    assert reader.read() == [0, 1]
    (tmp_path / "a.log.1").write_bytes(file.read_bytes())
    write(file, 2, mode="wb")
    assert reader.read() == [2]


def test_a_compressed_old_log_is_not_read_again(tmp_path: Path) -> None:
    """Its content id is that of what is inside."""
    file, reader = tmp_path / "a.log", Reader(tmp_path / "a.log*")
    write(file, 0, 1)
    assert reader.read() == [0, 1]
    (tmp_path / "a.log.1.gz").write_bytes(gzip.compress(file.read_bytes() + line(2) + b"\n"))
    file.unlink()
    assert reader.read() == [2], "only the line that was not read before"


def test_a_vanished_file_holds_nobody_up_and_is_then_given_up(tmp_path: Path) -> None:
    """It counts as read to its end, for nothing more can come, and is forgotten half a minute later."""
    file, reader = tmp_path / "a.log", Reader(tmp_path / "*.log")
    write(file, *range(20_000))
    reader.read()
    (key,) = reader.collector.lag()
    file.unlink()
    reader.read()
    assert (reader.collector.lag(), reader.lost) == ({key: 0}, [])
    reader.now_s += 40
    reader.read()
    assert (reader.collector.lag(), reader.lost) == ({}, [key])


def test_a_file_that_comes_back_goes_on(tmp_path: Path) -> None:
    """Moved out of sight for a moment, it is read on where it was left."""
    file, reader = tmp_path / "a.log", Reader(tmp_path / "*.log")
    write(file, 0, 1)
    assert reader.read() == [0, 1]
    file.rename(tmp_path / "away")
    assert reader.read() == []
    write(tmp_path / "away", 2)
    (tmp_path / "away").rename(tmp_path / "b.log")
    assert reader.read() == [2]


def test_a_restart_goes_on_at_the_stored_line(tmp_path: Path) -> None:
    """Lines are counted again, not read again."""
    file, log = tmp_path / "a.jsonl", MemoryEventLog()
    for numbers in ((0, 1, 2), (3, 4)):
        write(file, *numbers)
        source = FileCollector("src", [str(file)], follow=False)
        Ingester(source, native(), log, IngestSettings(), "me", lambda: 2 * 10**15, str).drain(threading.Event())
    assert [e.features for e in log.events] == [{"n": float(n)} for n in range(5)]


def test_parquet_rows_are_native_events(tmp_path: Path) -> None:
    """Struct features or feature: columns, times as timestamps; a restart goes on at the stored row."""
    rows = {
        "event_time": pa.array([1_767_225_600_000_000] * 3, pa.timestamp("us", "UTC")),
        "model": ["m"] * 3,
        "features": [{"n": 0}, {"n": 1}, {"n": 2}],
        "feature:country": ["QA", None, "DE"],
        "principal": ["a", None, "b"],
    }
    file = tmp_path / "events.parquet"
    pq.write_table(pa.table(rows), file)
    events = [native()(record)[0] for record in read_records(file, "src")]
    assert [getattr(e, "features", None) for e in events] == [
        {"n": 0.0, "country": "QA"}, {"n": 1.0, "country": None}, {"n": 2.0, "country": "DE"},
    ]  # fmt: skip
    assert [getattr(e, "event_time_us", 0) for e in events] == [1_767_225_600_000_000] * 3
    reader = Reader(file)
    key = (content_id(file) or "", 0)
    reader.places[key] = 2
    assert reader.read() == [2]


def test_reading_a_file_for_replay(tmp_path: Path) -> None:
    """Line numbers from 0, empty lines skipped, gzip as it is, the same id under any name."""
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.gz"
    plain.write_bytes(line(0) + b"\r\n\n  " + line(1))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    records = list(read_records(plain, "src"))
    assert [(r.offset, r.value) for r in records] == [(0, line(0)), (2, line(1))]
    assert list(read_records(packed, "src")) == records
    (tmp_path / "empty").write_bytes(b"")
    assert list(read_records(tmp_path / "empty", "src")) == []


def test_an_absurd_line_is_cut_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the longest line that is kept; the next line is read as ever."""
    monkeypatch.setattr("collectors.files.MAX_LINE_BYTES", 1000)
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"x" * 5000 + b"\n" + line(1) + b"\n")
    assert [(r.offset, len(r.value or b"")) for r in read_records(file, "src")] == [(0, 1000), (1, len(line(1)))]


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    """A folder or a broken Parquet file is a usage error with its path."""
    with pytest.raises(UsageError, match="nowhere"):
        list(read_records(tmp_path / "nowhere", "src"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1" + b"x" * 50 + b"PAR1")
    with pytest.raises(UsageError, match="broken"):
        list(read_records(broken, "src"))
