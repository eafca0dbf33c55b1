"""Which windows are due, and how far time has come."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.service.due import Due, due, watermark
from monitor.store.ledger import PartitionProgress

S = 1_000_000


def progress(max_event_s: int | None, caught_up_s: int | None = None, updated_s: int = 1000) -> PartitionProgress:
    """One partition, times in seconds."""
    return PartitionProgress(
        "s",
        None if max_event_s is None else max_event_s * S,
        None if caught_up_s is None else caught_up_s * S,
        updated_s * S,
    )


def mark(
    *parts: PartitionProgress, held_s: int | None = None, previous_s: int | None = None, clock: str = "wall"
) -> int | None:
    """The watermark in seconds at 1000 s of wall time with 60 s of idleness."""
    found = watermark(
        parts,
        held_us=None if held_s is None else held_s * S,
        previous_us=None if previous_s is None else previous_s * S,
        now_us=1000 * S,
        idle_us=60 * S,
        clock=clock,
    )
    return None if found is None else found // S


@pytest.mark.parametrize(
    ("parts", "options", "expected"),
    [
        ([progress(900), progress(950)], {}, 900),
        ([progress(900), progress(100, caught_up_s=900)], {}, 900),
        ([progress(900), progress(100, caught_up_s=990)], {}, 100),
        ([progress(900, caught_up_s=900)], {}, 940),
        ([progress(900, caught_up_s=900)], {"clock": "log"}, 900),
        ([progress(900, caught_up_s=900, updated_s=100)], {}, 900),
        ([progress(None)], {"previous_s": 7}, 7),
        ([progress(None, caught_up_s=900), progress(800)], {}, 800),
        ([progress(900)], {"held_s": 500}, 500),
        ([progress(900)], {"held_s": 500, "previous_s": 600}, 600),
        ([progress(5000)], {}, 1000),
        ([progress(5000)], {"clock": "log"}, 5000),
        ([], {"previous_s": 3}, 3),
    ],
)
def test_watermark(parts: list[PartitionProgress], options: dict[str, object], expected: int | None) -> None:
    """The slowest partition that may still bring events holds time; idle and unowned ones are told apart."""
    assert mark(*parts, **options) == expected  # type: ignore[arg-type]  # options of one case


def test_every_window_once_whatever_the_steps() -> None:
    """However the watermark advances, each window of each monitor falls due exactly once and in order."""
    rng = np.random.default_rng(7)
    monitors = {"hour": 3600 * S, "day": 86_400 * S}
    for _ in range(20):
        ends: dict[str, int] = {}
        seen: list[Due] = []
        at = 0
        while at < 5 * 86_400 * S:
            at += int(rng.integers(1, 40_000)) * S
            found = due(
                monitors, ends, first_event_us=5000 * S, watermark_us=at, lateness_us=300 * S, catch_up_us=10**15
            )
            seen += found
            ends |= {d.monitor: d.end_us for d in found}
        hours = [d.end_us for d in seen if d.monitor == "hour"]
        assert hours == list(range(7200 * S, hours[-1] + 1, 3600 * S))
        assert len({(d.monitor, d.end_us) for d in seen}) == len(seen)


def test_missed_for_too_long_is_a_gap() -> None:
    """Windows older than the catch-up limit are listed as gaps, younger ones are judged."""
    found = due({"m": 10}, {"m": 0}, first_event_us=0, watermark_us=100, lateness_us=0, catch_up_us=35)
    assert [d.gap for d in found] == [True] * 6 + [False] * 4


def test_a_finished_file_needs_no_owner() -> None:
    """A file read to its end is idle though its collector has gone; a topic in the same state holds time."""
    gone = progress(900, caught_up_s=100, updated_s=100)
    options = {"held_us": None, "previous_us": None, "now_us": 1000 * S, "idle_us": 60 * S, "clock": "wall"}
    assert watermark([gone], files={"s"}, **options) == 940 * S  # type: ignore[arg-type]  # options of this case
    assert watermark([gone], **options) == 900 * S  # type: ignore[arg-type]
