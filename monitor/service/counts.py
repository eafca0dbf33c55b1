"""Counts of past windows on the model's present bins: stored ones where they are on these bins, else from the event log."""

from __future__ import annotations

from collections.abc import Mapping

from detectors.profile import key_of
from monitor.service.references import recount
from monitor.service.watch import Watched
from monitor.store import counts as stored_counts
from monitor.store.eventlog import EventLog
from monitor.store.queries import Engine


def stored(
    engine: Engine, log: EventLog, watched: Watched, start_us: int, end_us: int, upto: int | None
) -> Mapping[int, bytes]:
    """Profiles of the buckets that start in [start_us, end_us), by start; with `upto` as of that batch of the log.

    What was counted before the model's segments, context or shortest window changed is on other bins or in buckets of
    another length, and cannot be added up with what follows: that time is counted anew, as an hour that looks empty would
    be judged as one.
    """
    size = watched.bucket_us
    found = stored_counts.load(engine, watched.model_id, watched.reference_hash, start_us, end_us)
    good = {
        s: body
        for (s, e), body in found.items()
        if e - s == size and key_of(body) == watched.bins.key and start_us <= s < end_us
    }
    old = [(s, e) for (s, e), body in found.items() if e - s != size or key_of(body) != watched.bins.key]
    if not old:
        return good
    first, last = min(s for s, _ in old) // size * size, -(-max(e for _, e in old) // size) * size
    span_us = (max(first, start_us // size * size), min(last, -(-end_us // size) * size))  # whole buckets
    return {**good, **counted(log, watched, span_us, upto)}


def counted(log: EventLog, watched: Watched, span_us: tuple[int, int], upto: int | None = None) -> dict[int, bytes]:
    """Profiles of a time by bucket from the event log alone, in one streaming pass."""
    found = recount(log, watched.model_id, watched.bins, watched.columns, watched.bucket_us, span_us, upto=upto)
    return {start: p.to_bytes() for start, p in found.items()}
