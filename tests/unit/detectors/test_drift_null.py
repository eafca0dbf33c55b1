"""The measured false-alarm rate and delay of the drift engine against the stored baseline (benchmarks/drift_null.json).

The long form is `python -m benchmarks.drift_null`; these short forms run the same code on fewer windows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import drift_null

BASELINE = json.loads((Path(drift_null.__file__).parent / "drift_null.json").read_text(encoding="utf-8"))
WINDOWS = 200  # judged per stream here


@pytest.fixture(scope="module")
def flights() -> drift_null.Rows:
    """A year of real flights."""
    return drift_null.flights()


def test_baseline_keeps_the_bar() -> None:
    """Stored with it: at most half a false alarm in 720 checks on every null stream, at most one in its upper bound."""
    for stream in ("synthetic", "iid", "block"):
        assert BASELINE["null"][stream]["windows"] >= 7200
        assert BASELINE["null"][stream]["per_720"] <= 0.5
        assert BASELINE["null"][stream]["upper_95"] <= 1.0


@pytest.mark.parametrize("kind", ["iid", "block"])
def test_nothing_changed_on_real_rows(flights: drift_null.Rows, kind: str) -> None:
    """Shuffled rows and shuffled days: no more than one opening in 200 windows, which the baseline makes unlikely."""
    table = drift_null.shuffled(flights, kind, np.random.default_rng(21))
    found = drift_null.openings(drift_null.run(table.slice(0, (100 + WINDOWS) * drift_null.ROWS), flights, 100))
    assert len(found) <= 1


def test_delay_on_real_rows(flights: drift_null.Rows) -> None:
    """A quarter of a standard deviation in one of 23 features, a tenth of the carriers' mix: within the baseline + 2."""
    for feature, size in (("distance", 0.25), ("carrier", 0.1)):
        found = drift_null.delay(flights, "iid", 100, feature, size, 1, 22, limit=20)
        assert found <= BASELINE["delay_iid_100"][f"{feature} {size}"] + 2
