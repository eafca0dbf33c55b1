"""Ticks whose windows are strange by themselves, and models whose shortest window changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.profile import Profile
from monitor.model import HOUR_US, Action, Event, Severity
from monitor.service import renewal
from monitor.store import alertlog, counts, ledger
from tests.smalllogs import MODEL, START_US, feed, jsonl, made, service


def test_a_break_of_one_window_opens_as_a_warning_and_clears(tmp_path: Path) -> None:
    """Through ticks with `breaks: 3`: the hour that is another's opens a warning, the next ends it; drift stays silent."""
    jsonl(tmp_path / "a.jsonl", made(range(-100, 0), 60))
    monitors = {"drift": {"model": MODEL, "detector": "marginals", "window": "1h", "params": {"breaks": 3}}}
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}}, monitors=monitors)
    said = []
    for hour in range(8):
        feed(found, made([hour], 60, seed=50 + hour, shift=3.0 if hour == 3 else 0.0))
        said += [
            (hour, t.action, t.alert.severity)
            for t in found.live[MODEL].committed
            if t.alert.event is Event.DISTRIBUTION_BREAK
        ]
    assert said == [(4, Action.OPEN, Severity.WARNING), (5, Action.CLEAR, Severity.WARNING)]
    (alert,) = [a for a in alertlog.find(found.engine) if a.event is Event.DISTRIBUTION_BREAK]
    assert not alert.open
    assert alert.window_us[0] >= START_US + 3 * HOUR_US
    found.close()


@pytest.mark.parametrize("first", ["1h", "30m"])
def test_a_shorter_or_longer_shortest_window_counts_every_row_once(tmp_path: Path, first: str) -> None:
    """A monitor of half an hour comes or goes while an hour is under way: windows hold their rows once, and so do the
    stored buckets, which all have the new length when history has been counted anew.
    """
    jsonl(tmp_path / "a.jsonl", made(range(-60, 0)))
    model, half = (
        {"reference": {"file": "a.jsonl"}},
        {"half": {"model": MODEL, "detector": "marginals", "window": "30m"}},
    )
    hourly = {"half": {"model": MODEL, "detector": "marginals", "window": "1h"}}
    events = made(range(8), 40, seed=2)
    found = service(tmp_path, model, monitors=half if first == "30m" else hourly)
    cut = next(i for i, e in enumerate(events) if e.event_time_us > START_US + 4 * HOUR_US + 40 * 60_000_000)
    feed(found, events[:cut])
    found.close()
    found = service(tmp_path, model, monitors=hourly if first == "30m" else half)
    feed(found, events[cut : cut + 5])
    feed(found, events[cut + 5 :])
    renewal.rebuild(found, found.live[MODEL].watched, 1)
    watched = found.live[MODEL].watched
    rows = ledger.ledger_rows(found.engine, watched.model_id, START_US, START_US + 7 * HOUR_US)
    assert {r.n for r in rows if r.monitor == "volume"} == {40}
    stored = counts.load(found.engine, watched.model_id, watched.reference_hash, START_US, START_US + 8 * HOUR_US)
    assert {e - s for s, e in stored} == {watched.bucket_us}
    assert watched.bucket_us == (HOUR_US if first == "30m" else HOUR_US // 2)
    assert sum(counts_of(body) for body in stored.values()) == len(events)
    found.close()


def counts_of(body: bytes) -> int:
    """Events of a stored bucket."""
    return Profile.from_bytes(body).n
