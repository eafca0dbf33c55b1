"""Rows that are read table by table and never held whole, and what can be said of them so in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

KEPT = 1 << 16  # hashes: how many distinct ones there are is told within 1 / sqrt(KEPT), 0.4 %


@dataclass(frozen=True)
class Streamed:
    """`read` gives all rows in one order, at least one table, with those of the named columns (None: all) that there are.

    >>> rows = Streamed.of(pa.table({"event_time": [5, 3, 9], "x": [1.0, 2.0, 3.0]}))
    >>> rows.num_rows, rows.span(), rows.sample(2, ["x"])["x"].to_pylist()
    (3, (3, 9), [1.0, 3.0])
    """

    num_rows: int
    read: Callable[[Sequence[str] | None], Iterator[pa.Table]]

    @classmethod
    def of(cls, rows: pa.Table | Streamed) -> Streamed:
        """A table at hand, as one piece."""
        if isinstance(rows, Streamed):
            return rows

        def read(columns: Sequence[str] | None) -> Iterator[pa.Table]:
            held = set(rows.column_names)
            yield rows if columns is None else rows.select([c for c in columns if c in held])

        return cls(rows.num_rows, read)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """These columns, or all."""
        return self.read(columns or None)

    def map(self, change: Callable[[pa.Table], pa.Table]) -> Streamed:
        """The same rows, each table changed."""
        return Streamed(self.num_rows, lambda columns: map(change, self.read(columns)))

    def sample(self, most: int, columns: Sequence[str] | None = None) -> pa.Table:
        """At most so many evenly spaced rows."""
        return evenly(self.read(columns), self.num_rows, most)

    def times(self) -> Iterator[NDArray[np.int64]]:
        """Event times, 0 where rows have none."""
        for table in self.tables("event_time"):
            yield np.asarray(table["event_time"], dtype=np.int64)

    def span(self) -> tuple[int, int]:
        """The first event time and the last; zeros where there are none."""
        ends = [(int(t.min()), int(t.max())) for t in self.times() if len(t)]
        return (min(a for a, _ in ends), max(b for _, b in ends)) if ends else (0, 0)

    def words(
        self, column: str, events: Callable[[pa.Table], NDArray[np.float64]] | None = None
    ) -> Mapping[str, float]:
        """The words of a column with their rows, or the events that these stand for, in order of appearance."""
        found: dict[str, float] = {}
        for table in self.tables(column, *(("sampling_fraction",) if events else ())):
            if column not in table.column_names:
                continue
            coded = table[column].cast(pa.string()).combine_chunks().dictionary_encode()
            known = np.asarray(coded.is_valid())
            place = coded.indices.filter(pa.array(known)).to_numpy(zero_copy_only=False)
            weight = None if events is None else events(table)[known]
            counts = np.bincount(place, weight, minlength=len(coded.dictionary)).tolist()
            for word, n in zip(coded.dictionary.to_pylist(), counts, strict=True):
                found[word] = found.get(word, 0) + n
        return found


def evenly(tables: Iterable[pa.Table], rows: int, most: int) -> pa.Table:
    """At most so many evenly spaced rows of tables that hold `rows` together."""
    places = np.linspace(0, rows - 1, most).astype(np.int64) if rows > most else None
    kept, at = [], 0
    for table in tables:
        if places is None:
            kept.append(table)
        else:
            first, last = np.searchsorted(places, [at, at + table.num_rows])
            kept.append(table.take(pa.array(places[first:last] - at)))
        at += table.num_rows
    return pa.concat_tables(kept, promote_options="default")


@dataclass
class Distinct:
    """How many distinct hashes there are, from the smallest KEPT of them: exactly so far, within 0.4 % beyond.

    >>> few = Distinct(); few.add(np.array([7, 7, 9], np.uint64)); few.count()
    2
    """

    smallest: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Some more of them."""
        if len(self.smallest) == KEPT:
            hashes = hashes[hashes < self.smallest[-1]]
        self.smallest = np.unique(np.concatenate([self.smallest, hashes]))[:KEPT]

    def count(self) -> int:
        """Bar-Yossef et al. 2002."""
        n = len(self.smallest)
        return n if n < KEPT else round((n - 1) * 2.0**64 / float(self.smallest[-1]))
