"""A new caller of a declared kind is tolerated no more strange queries than its settled peers, until it has a past of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.anomaly.own import SETTLED
from detectors.anomaly.queries import Queries
from detectors.base import Caller, Feedback
from tests.judging import Court, Rows, cut, events, mixed, numbers, sent
from tests.unit.detectors.test_pools import calibration

SERVICES = {n: Caller(kind="service", group="web") for n in ("a", "b", "c", "new")}


@dataclass(frozen=True)
class Told(Rows):
    """A stretch whose callers the directory declares."""

    directory: Any = None

    def callers(self) -> dict[str, Caller]:
        return dict(self.directory)


def stretch(table: pa.Table, directory: Any = SERVICES) -> Told:
    times = np.asarray(table["event_time"])
    return Told("m", int(times[0]), int(times[-1]), table, None, directory)


def usual(names: str, rows: int, seed: int = 1) -> pa.Table:
    """Honest rows of several callers, one after the other in turns."""
    rng = np.random.default_rng(seed)
    made = [sent(numbers(t := events(rows, rng)), t, n, start_us=i, every_s=1.0) for i, n in enumerate(names)]
    return mixed(*made)


def newcomer(seed: int = 2) -> pa.Table:
    """A new name, one in ten of whose rows breaks rules; it begins when the others have settled."""
    rng = np.random.default_rng(seed)
    table = events(400, rng)
    x = numbers(table)
    x[::10, 1:5] += 70
    return sent(x, table, "new", start_us=10**10, every_s=1.0)


def found_after(before: pa.Table, directory: Any = SERVICES, pieces: int = 1) -> int | None:
    """Queries of the newcomer until its incident."""
    court = Court(Queries(), calibration())
    for part in cut(pa.concat_tables([before, newcomer()]), np.random.default_rng(pieces), pieces - 1):
        if part.num_rows:
            court.stretch(stretch(part, directory))
    return (court.decisions[0].time_us - 10**10) // 10**6 + 1 if court.decisions else None


def test_settled_peers_make_strict() -> None:
    """With three settled peers the newcomer is found sooner; with two, or of another kind, as if there were none."""
    rows = SETTLED + 700
    three = found_after(usual("abc", rows))
    two = found_after(usual("ab", rows))
    others = found_after(usual("abc", rows), {**SERVICES, "new": Caller(kind="user")})
    short = found_after(usual("abc", SETTLED - 200))
    assert three is not None
    assert two is not None
    assert three < two
    assert (others, short) == (two, two)


@pytest.mark.parametrize("pieces", [2, 7])
def test_where_the_log_is_cut_does_not_matter(pieces: int) -> None:
    """Blocks of peers count from the row after the one that closes them, wherever that lies."""
    before = usual("abc", SETTLED + 700)
    assert found_after(before, pieces=pieces) == found_after(before)


def test_suspects_are_no_peers() -> None:
    """While an incident is open against one of three peers there are only two."""
    court = Court(Queries(), calibration())
    court.stretch(stretch(usual("abc", SETTLED + 700)))
    state = court.detector.measure(court.calibration, None, stretch(usual("abc", SETTLED + 700))).state
    _, of = state.meta["peers"][0]
    assert sorted(p for p, _ in of) == ["a", "b", "c"]
    later = (
        Queries().measure(court.calibration, state, stretch(usual("ab", 10)), Feedback(suspects=frozenset({"c"}))).state
    )
    assert sorted(p for p, _ in later.meta["peers"][0][1]) == ["a", "b"]
