"""A baseline that was taught bit by bit is compared with the reference that a person approved."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from detectors.drift.marginals import Marginals
from detectors.profile import Bins
from monitor.model import HOUR_US
from tests.judging import Court, Rows

ROWS = 300
HOURS = 720


def taught(by: float, seed: int, *, references: int = 1) -> Court:
    """30 days of hours in which x0 moves by so many standard deviations, a little every hour; the reference has no times."""
    rng = np.random.default_rng(seed)

    def table(n: int, shift: float) -> pa.Table:
        x = rng.normal(size=(n, 4))
        x[:, 0] += shift
        words = pa.array(rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])).dictionary_encode()
        return pa.table({**{f"feature:x{j}": x[:, j] for j in range(4)}, "feature:c": words})

    known = table(20_000, 0.0)
    bins = Bins.fit(known, [f"x{j}" for j in range(4)], ["c"])
    court = Court(Marginals(), Marginals().calibrate([Rows("m", 0, 0, known, bins)], "ref"))
    for i in range(HOURS):
        court.window(Rows("m", i * HOUR_US, (i + 1) * HOUR_US, table(ROWS, by * i / HOURS), bins))
    return court


def left(court: Court) -> dict[str, dict[str, float]]:
    """What the newest detection says of features that have left the reference."""
    newest = court.detections[-1]
    return {r["name"]: r["since_reference"] for r in newest.evidence["features"] if "since_reference" in r}


def test_what_was_taught_slowly_alarms_nobody_and_is_told() -> None:
    """A quarter of a standard deviation over 30 days become their own history; the reference tells how far it went."""
    court = taught(0.25, 1)
    assert court.decisions == []
    (name, told), *others = left(court).items()
    assert (name, others) == ("x0", [])
    assert 0.09 < told["size"] < 0.18  # of the newest four weeks: half of the way
    assert told["spreads"] > 1.2


def test_nothing_is_told_where_nothing_moved() -> None:
    """Two streams of 30 days without any change."""
    assert [left(taught(0.0, seed)) for seed in (2, 3)] == [{}, {}]
