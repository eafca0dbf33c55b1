"""Rows of any number in order of time, in bounded memory: sorted in runs, the runs merged, all of it in unnamed files.

What is held at once is a run (RUN_BYTES), and as much again while it is sorted. Rows of equal time keep their order.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

RUN_BYTES: Final = 8 << 20
FAN: Final = 16  # runs that are merged at once, each with a FAN-th of its rows in memory
PIECE_ROWS: Final = 8_192  # that are read at once

Piece = Callable[[int, tuple[str, ...]], pa.Table]


@dataclass(frozen=True)
class Ordered:
    """Rows in order of time, read by their places. starts: where each piece begins, and the end; piece: its columns."""

    starts: Sequence[int]
    names: tuple[str, ...]
    piece: Piece

    @classmethod
    def of(cls, table: pa.Table) -> Ordered:
        """Rows at hand.

        >>> rows = Ordered.of(pa.table({"event_time": [2, 1, 3], "x": ["a", "b", "c"]}))
        >>> rows.n, rows.read(0, 2, ["x", "y"]).to_pydict()
        (3, {'x': ['b', 'a']})
        """
        rows = _sorted(table)
        return cls((0, rows.num_rows), tuple(rows.column_names), lambda i, columns: rows.select(columns))

    @property
    def n(self) -> int:
        return self.starts[-1]

    def read(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """The rows in [start, stop), with those of the columns that there are."""
        wanted = tuple(c for c in columns if c in self.names)
        first = min(int(np.searchsorted(self.starts, start, side="right")), len(self.starts) - 1) - 1
        last = max(first + 1, int(np.searchsorted(self.starts, stop)))
        parts = [
            self.piece(i, wanted).slice(max(0, start - at), max(0, stop - max(start, at)))
            for i, at in zip(range(first, last), self.starts[first:last], strict=False)
        ]
        return pa.concat_tables(parts)


@contextmanager
def by_time(tables: Iterable[pa.Table], folder: Path) -> Iterator[Ordered]:
    """These rows in order of time, as long as the context lasts. folder: on the disk that holds them meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        runs, last, in_order = list[IO[bytes]](), np.zeros(0, np.int64), True
        for run in map(_sorted, _gathered(tables)):
            times = np.asarray(run["event_time"])
            in_order, last = in_order and bool((last <= times[:1]).all()), times[-1:]
            runs.append(_written(files, [run], folder))
        while not in_order and len(runs) > FAN:
            some = [runs[i : i + FAN] for i in range(0, len(runs), FAN)]
            runs = [_written(files, _merged(part), folder) for part in some]
        whole = chain.from_iterable(map(_tables, runs)) if in_order else _merged(runs)
        yield _opened(runs[0] if len(runs) == 1 else _written(files, whole, folder))


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """As many rows at once as RUN_BYTES hold."""
    waiting, size = list[pa.Table](), 0
    for table in tables:
        if table.num_rows or not waiting:
            waiting.append(table)
            size += table.nbytes
        if size >= RUN_BYTES:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _sorted(table: pa.Table) -> pa.Table:
    times = np.asarray(table["event_time"])
    if (times[1:] >= times[:-1]).all():  # rows that are in order already are not held twice
        return table
    return table.take(pc.sort_indices(table, sort_keys=[("event_time", "ascending")]))  # stable


def _merged(runs: Sequence[IO[bytes]]) -> Iterator[pa.Table]:
    """Sorted runs as one; of equal times those of earlier runs first."""
    rest = [_tables(run) for run in runs]
    heads = {i: head for i, tables in enumerate(rest) if (head := next(tables, None)) is not None}
    while heads:
        times = {i: np.asarray(head["event_time"]) for i, head in heads.items()}
        first = min(heads, key=lambda i: (times[i][-1], i))  # whose head is used up before all others
        parts = []
        for i, head in heads.items():
            cut = int(np.searchsorted(times[i], times[first][-1], side="right" if i <= first else "left"))
            parts.append(head.slice(0, cut))
            heads[i] = head.slice(cut)
        yield _sorted(pa.concat_tables(parts))
        following = next(rest[first], None)
        if following is None:
            del heads[first]
        else:
            heads[first] = following


def _written(files: ExitStack, tables: Iterable[pa.Table], folder: Path) -> IO[bytes]:
    """Tables in a file without a name, in pieces of which FAN fit in RUN_BYTES."""
    file: IO[bytes] = files.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - the stack closes it
    writer = None
    for table in tables:
        writer = writer or pa.ipc.new_file(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        rows = max(1, table.num_rows * RUN_BYTES // FAN // max(1, table.nbytes))
        for batch in table.combine_chunks().to_batches(max_chunksize=min(PIECE_ROWS, rows)):
            writer.write_batch(batch)
    if writer is not None:
        writer.close()
    return file


def _tables(file: IO[bytes]) -> Iterator[pa.Table]:
    """The pieces of a file one after the other."""
    file.seek(0)
    reader = pa.ipc.open_file(file)
    for i in range(reader.num_record_batches):
        yield pa.Table.from_batches([reader.get_batch(i)])


def _opened(file: IO[bytes]) -> Ordered:
    """The pieces of a file by their places; the newest two stay in memory."""
    file.seek(0)
    names = tuple(pa.ipc.open_file(file).schema.names)

    @functools.lru_cache(maxsize=2)
    def reader(columns: tuple[str, ...]) -> Any:
        fields = [names.index(c) for c in columns] or [names.index("event_time")]  # without any all would be read
        file.seek(0)
        return pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))

    @functools.lru_cache(maxsize=2)
    def piece(i: int, columns: tuple[str, ...]) -> pa.Table:
        return pa.Table.from_batches([reader(columns).get_batch(i)]).select(columns)

    sizes = [t.num_rows for t in map(reader(()).get_batch, range(reader(()).num_record_batches))]
    return Ordered((0, *np.cumsum(sizes, dtype=np.int64).tolist()), names, piece)
