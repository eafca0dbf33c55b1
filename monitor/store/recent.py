"""The newest rows of one caller, and of everybody else beside them, without reading the whole log.

The log is read backwards in pieces of time that grow while they are cheap, until the caller's rows are enough, the time
is through, or so many rows were looked at that it must do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitor.model import SECOND_US
from monitor.store.eventlog import EventLog

MINE: Final = 2_000
OTHERS: Final = 10_000
SCANNED: Final = 400_000  # rows looked at; the last piece may go beyond it
PIECE_US: Final = 900 * SECOND_US
PIECE_ROWS: Final = 40_000  # a piece with more rows is not followed by a longer one


@dataclass(frozen=True, slots=True)
class Recent:
    """Rows by time. mine, others: complete from `mine_since_us` and `others_since_us` on. whole: nothing was left out."""

    mine: pa.Table
    others: pa.Table
    mine_since_us: int
    others_since_us: int
    end_us: int
    whole: bool


def recent(log: EventLog, model_id: str, principal: str, start_us: int, end_us: int, columns: Sequence[str]) -> Recent:
    """The newest MINE rows of a caller and OTHERS rows of others in [start_us, end_us); both columns may be absent."""
    wanted = list(dict.fromkeys(["event_time", "principal", *columns]))
    mine: list[pa.Table] = []
    others: list[pa.Table] = []
    scanned, upto, piece = 0, end_us, PIECE_US
    while upto > start_us and scanned < SCANNED and sum(t.num_rows for t in mine) < MINE:
        since, here = max(start_us, upto - piece), 0
        own, strange = _newest(mine, MINE), _newest(others, OTHERS)
        for table in log.read_window(model_id, since, upto, wanted):
            here += table.num_rows
            same = pc.fill_null(pc.equal(table["principal"], principal), False)
            own.append(table.filter(same))
            strange.append(table.filter(pc.and_(pc.invert(same), pc.is_valid(table["principal"]))))
            own, strange = _newest(own, MINE), _newest(strange, OTHERS)
        mine, others, scanned, upto = own, strange, scanned + here, since
        piece = piece * 2 if here < PIECE_ROWS else piece
    first, kept = _joined(mine, wanted), _joined(others, wanted)
    since_mine = _first_us(first) if first.num_rows == MINE else upto
    since_others = _first_us(kept) if kept.num_rows == OTHERS else upto
    whole = upto <= start_us and first.num_rows < MINE
    return Recent(first, kept, since_mine, since_others, end_us, whole)


def _newest(tables: list[pa.Table], most: int) -> list[pa.Table]:
    """The newest rows of these tables, as a list that can be added to."""
    rows = sum(t.num_rows for t in tables)
    if rows <= most:
        return [t for t in tables if t.num_rows]
    table = pa.concat_tables(tables, promote_options="permissive")
    order = np.argsort(np.asarray(table["event_time"]), kind="stable")[-most:]
    return [table.take(pa.array(np.sort(order)))]


def _joined(tables: list[pa.Table], columns: Sequence[str]) -> pa.Table:
    if not tables:
        return pa.table({c: pa.array([], pa.int64() if c == "event_time" else pa.null()) for c in columns})
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.take(pa.array(np.argsort(np.asarray(table["event_time"]), kind="stable")))


def _first_us(table: pa.Table) -> int:
    return int(table["event_time"][0].as_py())
