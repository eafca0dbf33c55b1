"""Which windows are due: pure functions of schedule, ledger, watermark and now.

Times are microseconds UTC. Windows are aligned to multiples of their length since 1970. A window is judged once, when
the watermark has passed its end by the allowed lateness.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from monitor.store.ledger import PartitionProgress


@dataclass(frozen=True, slots=True)
class Due:
    """One window of one monitor that has to be judged, or recorded as a gap because it was missed for too long."""

    end_us: int
    monitor: str
    start_us: int
    gap: bool = False


def watermark(
    partitions: Sequence[PartitionProgress],
    *,
    held_us: int | None,
    previous_us: int | None,
    now_us: int,
    idle_us: int,
    clock: str,
    files: Collection[str] = (),
) -> int | None:
    """The event time up to which everything has been read, or None while nothing is known. It never goes back.

    It is the minimum over the partitions that are not idle: idle means read to the end, silent for `idle_us` of wall
    time, and still owned by a live collector. A partition that is behind or has lost its owner holds it. When all are
    idle the wall clock's watermark is now - idle; the log clock's stands where the partitions stopped.

    >>> behind = PartitionProgress("s", 50, None, 100)
    >>> idle = PartitionProgress("s", 10, 0, 100)
    >>> watermark([behind, idle], held_us=None, previous_us=None, now_us=100, idle_us=60, clock="wall")
    50
    >>> watermark([idle], held_us=None, previous_us=None, now_us=100, idle_us=60, clock="wall")
    40
    >>> watermark([idle], held_us=5, previous_us=None, now_us=100, idle_us=60, clock="wall")
    5
    """
    if not partitions:
        return previous_us
    live = [p for p in partitions if not _idle(p, now_us, idle_us, files)]
    if live:
        known = [p.max_event_us for p in live]
        # A partition that is behind and has not shown any event yet may still bring the oldest one.
        mark = None if any(k is None for k in known) else min(k for k in known if k is not None)
    elif clock == "wall":
        mark = now_us - idle_us
    else:
        mark = max((p.max_event_us for p in partitions if p.max_event_us is not None), default=None)
    if mark is not None and clock == "wall":
        mark = min(mark, now_us)
    if mark is not None and held_us is not None:
        mark = min(mark, held_us)
    if mark is None or (previous_us is not None and mark < previous_us):
        return previous_us
    return mark


def _idle(p: PartitionProgress, now_us: int, idle_us: int, files: Collection[str]) -> bool:
    owned = now_us - p.updated_us < 2 * idle_us or p.source in files
    return owned and p.caught_up_since_us is not None and now_us - p.caught_up_since_us >= idle_us


def following(last_us: int, length_us: int) -> int:
    """The end of the window after one that ended then: a whole number of lengths, also where the length was another.

    >>> following(20, 10), following(25, 10)
    (30, 30)
    """
    return (last_us // length_us + 1) * length_us


def due(
    monitors: Mapping[str, int],
    last_end_us: Mapping[str, int],
    *,
    first_event_us: int | None,
    watermark_us: int | None,
    lateness_us: int,
    catch_up_us: int,
) -> list[Due]:
    """Windows to judge now, by end and monitor name. `monitors` maps each to its window length.

    A monitor without ledger rows begins with the window that holds the first event. Windows that were missed for more
    than `catch_up_us` of event time are gaps: recorded, not judged.

    >>> due({"d": 10}, {}, first_event_us=12, watermark_us=34, lateness_us=2, catch_up_us=100)
    [Due(end_us=20, monitor='d', start_us=10, gap=False), Due(end_us=30, monitor='d', start_us=20, gap=False)]
    >>> due({"d": 10}, {"d": 30}, first_event_us=12, watermark_us=34, lateness_us=2, catch_up_us=100)
    []
    """
    found: list[Due] = []
    if watermark_us is None:
        return found
    for name, length in monitors.items():
        last = last_end_us.get(name)
        if last is None:
            if first_event_us is None:
                continue
            last = first_event_us // length * length
        ripe = (watermark_us - lateness_us) // length * length
        found += [
            Due(end, name, end - length, gap=watermark_us - lateness_us - end > catch_up_us)
            for end in range(following(last, length), ripe + 1, length)
        ]
    return sorted(found, key=lambda d: (d.end_us, d.monitor))
