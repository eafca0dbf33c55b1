"""Halves that meet in one buffer become whole events without a detour through the store.

What finds no partner here waits in the store for its other half, which may come from another partition or later.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from collectors.base import Part, Placed
from monitor.model import Half, alone, joined

_part = attrgetter("part")


def pair(parts: Sequence[Placed]) -> Sequence[Placed]:
    """The same parts with requests and responses joined; a joined event stands at its request's place.

    A caller may send one id for ever, so an id is no identity: a response goes with the latest request of its
    (pair_key, row_index) that is not younger than itself and still free. A producer's duplicate of a half (same side,
    id, row, time and content at another offset) is dropped. Parts that are no halves pass unchanged and in order.
    """
    if Half not in set(map(type, map(_part, parts))):  # most sources have none, and this look costs next to nothing
        return parts
    waiting: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, placed in enumerate(parts):
        if type(placed.part) is Half:
            waiting[placed.part.pair_key, placed.part.event.row_index].append(index)
    out: list[Placed | None] = list(parts)
    for indexes in waiting.values():
        if len(indexes) > 1:
            _pair_one(indexes, parts, out)
    return [placed for placed in out if placed is not None]


def _pair_one(indexes: list[int], parts: Sequence[Placed], out: list[Placed | None]) -> None:
    """Pairs the halves of one id and row by time: a stack of open requests, each response takes the newest."""
    seen: set[bytes] = set()
    halves: list[tuple[int, bool, int, Half]] = []
    for index in indexes:
        half = parts[index].part
        assert isinstance(half, Half)
        body = msgspec.msgpack.encode(half)
        if body in seen:
            out[index] = None
            continue
        seen.add(body)
        halves.append((half.event.event_time_us, half.side == "response", index, half))
    halves.sort(key=lambda h: h[:3])
    free: list[tuple[int, Half]] = []
    for _, is_response, index, half in halves:
        if not is_response:
            free.append((index, half))
        elif free:
            request_index, request = free.pop()
            out[request_index] = parts[request_index]._replace(part=joined(request, half))
            out[index] = None


def pair_sorted(parts: Iterable[tuple[int, Part]], timeout_us: int) -> Iterator[tuple[int, Part]]:
    """The same for a stream sorted by time (replay): whole events, each at its request's time, still sorted.

    A half waits `timeout_us` of stream time for its partner and then goes alone, so the order of the input between
    equal times is kept and at most that much of the stream is held back.
    """
    held: deque[_Waiting] = deque()
    free: dict[tuple[str, int], deque[_Waiting]] = defaultdict(deque)
    for time_us, part in parts:
        while held and (held[0].done or held[0].time_us + timeout_us < time_us):
            yield _leave(held.popleft(), free)
        if not isinstance(part, Half):
            held.append(_Waiting(time_us, part, done=True))
            continue
        key = (part.pair_key, part.event.row_index)
        requests = free[key]
        if part.side == "response" and requests:
            asked = requests.pop()
            assert isinstance(asked.part, Half)
            asked.part, asked.done = joined(asked.part, part), True
        elif part.side == "response":
            held.append(_Waiting(time_us, alone(part), done=True))  # sorted input: its request can no longer come
        else:
            held.append(_Waiting(time_us, part))
            requests.append(held[-1])
        if not requests:
            del free[key]
    while held:
        yield _leave(held.popleft(), free)


@dataclass(slots=True, eq=False)
class _Waiting:
    """One part of a sorted stream; a request is done when its response has come."""

    time_us: int
    part: Part
    done: bool = False


def _leave(waiting: _Waiting, free: dict[tuple[str, int], deque[_Waiting]]) -> tuple[int, Part]:
    part = waiting.part
    if isinstance(part, Half):
        key = (part.pair_key, part.event.row_index)
        free[key].popleft()  # the oldest open request of its key, as everything leaves in order
        if not free[key]:
            del free[key]
        part = alone(part)
    return waiting.time_us, part
