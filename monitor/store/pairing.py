"""Joining halves that did not meet in one collector's buffer: they wait as rows, one leased pairer takes them.

A pass writes the joined events as a segment and, in one transaction, records it and deletes the halves, so a half is
in the event log or still waiting, never both. A caller may send one id for ever: an id is no identity, so within one
id a response goes with the latest request that is not younger than itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from monitor import telemetry
from monitor.errors import FencedOut
from monitor.intake import Placed
from monitor.model import SECOND_US, Half, InferenceEvent, joined
from monitor.store import leases
from monitor.store.engine import read, write
from monitor.store.eventlog import EventLog
from monitor.store.ingest import count_unregistered, discard, registered, write_events
from monitor.store.schema import halves
from monitor.store.segments import Segment, record

LEASE: Final = "pair"
LEASE_US: Final = 30 * SECOND_US
GROUPS: Final = 2000  # ids per pass
DEPTH: Final = 1000  # halves of one id per pass, oldest first: a pinned id must not fill the memory
PASSES: Final = 50
CHUNK: Final = 500
LONELY: Final = frozenset({"missing_request", "missing_response"})

_event = msgspec.msgpack.Decoder(InferenceEvent)


def pair(log: EventLog, now_us: int, timeout_us: int, owner: str) -> int:
    """Write what has met and what has waited longer than `timeout_us`; how many events that made.

    A request whose time is up becomes an event with status "unanswered" and flag "missing_response", a response one
    with flag "missing_request". Returns 0 while another pairer holds the lease; raises FencedOut when it loses its own
    (nothing was written then).
    """
    with read(log.engine) as conn:
        if conn.execute(sa.select(halves.c.id).limit(1)).one_or_none() is None:
            return 0
    epoch = leases.acquire(log.engine, LEASE, owner, now_us, LEASE_US)
    if epoch is None:
        return 0
    written = 0
    for _ in range(PASSES):
        taken, events = _pass(log, now_us, now_us - timeout_us, owner, epoch)
        written += events
        if not taken:
            break
    with read(log.engine) as conn:
        pending = conn.scalar(sa.select(sa.func.count()).select_from(halves))
    telemetry.gauge("pairs_pending", int(pending or 0))
    return written


def _pass(log: EventLog, now_us: int, expired_us: int, owner: str, epoch: int) -> tuple[int, int]:
    """One transaction's worth: (halves taken, events written)."""
    taken: list[int] = []
    lonely = 0
    made: dict[str, dict[str, list[Placed]]] = defaultdict(lambda: defaultdict(list))
    for (source, _, _), group in groupby(
        _candidates(log.engine, expired_us), lambda h: (h.source, h.pair_key, h.row_index)
    ):
        ids, placed = _settle(list(group), expired_us)
        taken += ids
        for one in placed:
            assert isinstance(one.part, InferenceEvent)
            made[source][one.part.model].append(one)
            lonely += not LONELY.isdisjoint(one.part.quality)
    if not taken:
        return 0, 0
    written: list[Segment] = []
    for source, events in made.items():
        written += write_events(log.files, log.models, events, source, now_us)
    log.at("file_written")
    try:
        with write(log.engine) as conn:
            leases.confirm(conn, LEASE, owner, epoch)
            for first in range(0, len(taken), CHUNK):
                some = taken[first : first + CHUNK]
                if conn.execute(halves.delete().where(halves.c.id.in_(some))).rowcount != len(some):
                    raise FencedOut("another pairer has taken these halves")
            record(conn, written)
            for source, events in made.items():
                unknown = Counter({n: len(placed) for n, placed in events.items() if not registered(n, log.models)})
                count_unregistered(conn, source, unknown, now_us)
            log.at("in_transaction")
    except FencedOut:
        discard(log.files, written)
        raise
    log.at("after_transaction")
    telemetry.count("pairs_expired_total", lonely)
    return len(taken), sum(segment.rows for segment in written)


def _candidates(engine: sa.Engine, expired_us: int) -> Sequence[Any]:
    """The halves, oldest first, of ids of which both sides are here or one has expired."""
    c = halves.c
    key = (c.source, c.pair_key, c.row_index)
    ripe = (
        sa.select(*key)
        .group_by(*key)
        .having((sa.func.min(c.side) != sa.func.max(c.side)) | (sa.func.min(c.received_us) <= expired_us))
        .order_by(sa.func.min(c.received_us), *key)
        .limit(GROUPS)
        .subquery()
    )
    nth = sa.func.row_number().over(partition_by=key, order_by=(c.event_us, c.id)).label("nth")
    same = (c.source == ripe.c.source) & (c.pair_key == ripe.c.pair_key) & (c.row_index == ripe.c.row_index)
    numbered = sa.select(halves, nth).join_from(halves, ripe, same).subquery()
    order = (numbered.c.source, numbered.c.pair_key, numbered.c.row_index, numbered.c.event_us, numbered.c.id)
    with read(engine) as conn:
        return conn.execute(sa.select(numbered).where(numbered.c.nth <= DEPTH).order_by(*order)).all()


def _settle(group: Sequence[Any], expired_us: int) -> tuple[list[int], list[Placed]]:
    """Of the halves of one id: the ids of rows that are done with, and the events that they make."""
    done: list[int] = []
    placed: list[Placed] = []
    seen: set[tuple[str, bytes]] = set()
    open_requests: list[Any] = []
    open_responses: list[Any] = []

    def join(request: Any, response: Any) -> None:
        done.extend((request.id, response.id))
        placed.append(_placed(request, joined(_half(request), _half(response))))

    for half in sorted(group, key=lambda h: (h.event_us, h.side == "response", h.id)):
        if (half.side, half.body) in seen:  # a producer's duplicate: same side, time and content at another offset
            done.append(half.id)
            continue
        seen.add((half.side, half.body))
        if half.side == "request":
            open_requests.append(half)
        elif open_requests:
            join(open_requests.pop(), half)
        else:
            open_responses.append(half)
    # A response older than its request: clocks differ. Certain when they are alone, likely once the time is up.
    alone = len(open_requests) == len(open_responses) == 1 and not placed
    while open_requests and open_responses and (alone or _expired((*open_requests, *open_responses), expired_us)):
        join(open_requests.pop(0), open_responses.pop(0))
    for half in (*open_requests, *open_responses):
        if half.received_us <= expired_us:
            done.append(half.id)
            placed.append(_placed(half, _lonely(half)))
    return done, placed


def _expired(waiting: Sequence[Any], expired_us: int) -> bool:
    return any(half.received_us <= expired_us for half in waiting)


def _half(row: Any) -> Half:
    return Half(side=row.side, pair_key=row.pair_key, event=_event.decode(row.body))


def _lonely(row: Any) -> InferenceEvent:
    event = _event.decode(row.body)
    flag = "missing_response" if row.side == "request" else "missing_request"
    status = "unanswered" if row.side == "request" and event.status == "ok" else event.status
    return msgspec.structs.replace(event, quality=sorted({*event.quality, flag}), status=status)


def _placed(row: Any, event: InferenceEvent) -> Placed:
    return Placed(row.topic, row.partition, row.offset, event)
