"""Counts by model version and busy caller, from the event log: when a bucket has ended, and when history is counted anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from detectors import groups
from detectors.binned import sampled
from detectors.groups import Group, Key
from monitor.service.watch import Watched
from monitor.service.work import Work
from monitor.store.eventlog import EventLog

BUCKETS: Final = 24  # counted at once
HELD_ROWS: Final = 200_000
NAMES: Final = ("event_time", "sampling_fraction", *groups.AXES.values())


def ended(work: Work, watched: Watched) -> list[int]:
    """Buckets whose groups a tick has to count: those that it has judged, and judged ones that late rows amended."""
    size, known = watched.bucket_us, {m.name: m.window_us for m in watched.monitors}
    judged = [r for r in work.ledger if r.outcome != "gap" and known.get(r.monitor) == size]
    upto = min(work.last_end.values(), default=0)
    late = {b for b in work.touched if b + size <= upto}
    return sorted(late | {r.start_us for r in judged})


def of_buckets(log: EventLog, watched: Watched, buckets: Sequence[int], upto: int) -> dict[int, bytes]:
    """Groups of these buckets that have rows, as of a batch of the log; neighbours are read together."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(buckets):
        end = at + 1
        while end < len(buckets) and end - at < BUCKETS and buckets[end] == buckets[end - 1] + watched.bucket_us:
            end += 1
        found |= _counted(log, watched, (buckets[at], buckets[end - 1] + watched.bucket_us), upto)
        at = end
    return found


def _counted(log: EventLog, watched: Watched, span_us: tuple[int, int], upto: int) -> dict[int, bytes]:
    """Groups of every bucket of a time: in one pass while its rows fit into HELD_ROWS, else in two streaming ones."""
    size, columns = watched.bucket_us, [*dict.fromkeys((*NAMES, "latency_ms", *watched.bins.columns))]

    def read(wanted: Sequence[str]) -> Iterator[pa.Table]:
        return log.read_window(watched.model_id, *span_us, wanted, upto=upto)

    held, whole = _held(read(columns))
    tallied: dict[int, dict[Key, tuple[int, int]]] = {}
    rows_of, events_of = dict[int, int](), dict[int, int]()
    for start, rows in _by_bucket(held if whole else read(NAMES), size):
        weight = sampled(rows)
        rows_of[start] = rows_of.get(start, 0) + rows.num_rows
        events_of[start] = events_of.get(start, 0) + (rows.num_rows if weight is None else int(weight.sum()))
        known = tallied.setdefault(start, {})
        for key, (n, events) in groups.tally(rows, weight).items():
            before = known.get(key, (0, 0))
            known[key] = (before[0] + n, before[1] + events)
    wanted = {start: groups.chosen(t, rows_of[start]) for start, t in tallied.items()}
    made: dict[int, dict[Key, Group]] = {start: {} for start in wanted}
    for start, rows in _by_bucket(held if whole else read(columns), size):
        own = groups.count(watched.bins.code(rows), rows, watched.expected, wanted[start])
        made[start] = groups.merged([*made[start].values(), *own])
    return {start: groups.save(list(g.values()), events_of[start]) for start, g in made.items()}


def _held(tables: Iterator[pa.Table]) -> tuple[list[pa.Table], bool]:
    """These rows, and whether they are all; else none of them."""
    found, n = [], 0
    for rows in tables:
        n += rows.num_rows
        if n > HELD_ROWS:
            return [], False
        found.append(rows)
    return ([pa.concat_tables(found)] if found else []), True


def _by_bucket(tables: Iterable[pa.Table], size: int) -> Iterator[tuple[int, pa.Table]]:
    for rows in tables:
        ordered = rows.take(pc.sort_indices(rows["event_time"]))
        starts = ordered["event_time"].to_numpy() // size * size
        edges = [0, *((starts[1:] != starts[:-1]).nonzero()[0] + 1).tolist(), len(starts)]
        for a, b in pairwise(edges):
            if b > a:
                yield int(starts[a]), ordered.slice(a, b - a)
