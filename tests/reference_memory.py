"""A frozen reference of many rows, checked, cut and calibrated on: `python -m tests.reference_memory ROWS` prints the peak."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import peak_rss_bytes, reset_peak_rss, rss_bytes
from detectors.reference import check
from detectors.registry import DEFAULTS, REGISTRY
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US
from monitor.service.frozen import fit_bins, rows_of
from monitor.service.ordered import by_time
from monitor.service.windows import reference_windows
from monitor.store.features import FeatureSchema

BLOCK = 20_000
HOURS = 10 * 24
NUMBERS, CATEGORIES = tuple(f"x{i}" for i in range(10)), ("c0", "c1")


def blocks(rows: int) -> Iterator[pa.Table]:
    """Rows in no order, drawn over ten days in whole seconds, so that many tie."""
    rng, callers = np.random.default_rng(5), pa.array([f"caller {i}" for i in range(300)])
    for at in range(0, rows, BLOCK):
        n = min(BLOCK, rows - at)
        yield pa.table({
            "event_time": 1_000 * HOUR_US + rng.integers(0, HOURS * 3600, n) * 1_000_000,
            "principal": callers.take(pa.array(rng.integers(0, 300, n))),
            "prediction_label": pa.array(rng.choice(["yes", "no"], n)),
            **{f"feature:{x}": rng.normal(size=n) for x in NUMBERS},
            **{f"feature:{c}": pa.array(rng.choice(["alpha", "beta", "gamma"], n)) for c in CATEGORIES},
        })  # fmt: skip


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "frozen.parquet"
        first = next(blocks(1))
        with pq.ParquetWriter(file, first.schema) as writer:
            for block in blocks(int(sys.argv[1])):
                writer.write_table(block)
        pa.default_memory_pool().release_unused()
        before = rss_bytes()
        reset_peak_rss()
        rows = rows_of(file)
        bins = fit_bins(rows, FeatureSchema(NUMBERS, CATEGORIES))
        check(rows, bins)
        with by_time(rows.tables(), Path(name)) as ordered:
            windows = reference_windows("m", ordered, bins)
            for detector in (REGISTRY[d]() for d in DEFAULTS if REGISTRY[d].reads == "windows"):
                try:
                    detector.calibrate(windows, "reference")
                except CalibrationRefused:
                    continue
        print(json.dumps({"above_mb": (peak_rss_bytes() - before) / 1e6}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
