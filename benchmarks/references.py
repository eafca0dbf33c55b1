"""Memory while a reference is frozen, checked, cut into windows and used to calibrate all default detectors.

`python -m benchmarks.references ROWS` builds one from a Parquet file of so many rows, six numbers, four categories and an
answer over three weeks, out of order, and prints the peak above what the process holds after a first, small one (which
compiles the detectors), as one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import cpu, peak_rss_bytes, reset_peak_rss, rss_bytes
from monitor.config import load
from monitor.model import HOUR_US, SECOND_US, parse_time_us
from monitor.service.compose import open_service
from monitor.store import references

MODEL = "scores"
START_US = parse_time_us("2026-03-02T00:00:00Z")
HOURS = 21 * 24
BLOCK = 20_000
FIRST_ROWS = 20_000


def write(file: Path, rows: int) -> None:
    """Native events as Parquet, drawn over the whole time, so that no block is in order."""
    rng, writer = np.random.default_rng(1), None
    for at in range(0, rows, BLOCK):
        n = min(BLOCK, rows - at)
        seconds = rng.integers(0, HOURS * 3600, n)  # whole seconds: many tie
        x = rng.normal(size=(6, n))
        words = [rng.choice(list("abcdefgh"), n) for _ in range(4)]
        features = pa.StructArray.from_arrays(
            [*(pa.array(v) for v in x), *(pa.array(v) for v in words)], [f"f{i}" for i in range(10)]
        )
        p = 1 / (1 + np.exp(1 - x[0]))
        table = pa.table({
            "event_time": START_US // 1000 + seconds * 1000, "model": [MODEL] * n, "features": features,
            "principal": [f"c{i}" for i in rng.integers(0, 200, n).tolist()], "model_version": ["1"] * n,
            "prediction": np.where(p > 0.5, "yes", "no"), "scores": np.stack([1 - p, p], axis=1).tolist(),
            "class_names": [["no", "yes"]] * n,
        })  # fmt: skip
        writer = writer or pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def build(rows: int) -> dict[str, Any]:
    """Freeze and calibrate one reference of so many rows in a store of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "reference.parquet", rows)
        told = {"clock": "log", "privacy": {"principals": "plain"}, "store": {"path": "data"},
                "models": {MODEL: {"reference": {"file": "reference.parquet"}}}}  # fmt: skip
        (folder / "lanner.yaml").write_text(json.dumps(told))
        found = open_service(load(folder / "lanner.yaml"), "benchmark")
        pa.default_memory_pool().release_unused()
        before = rss_bytes()
        reset_peak_rss()
        with cpu() as used:
            began = time.monotonic()
            watched = found.watched(MODEL, START_US + HOURS * HOUR_US + SECOND_US)
        (row,) = references.of_model(found.engine, watched.model_id)
        found.close()
        return {
            "rows": row.rows, "above_mb": (peak_rss_bytes() - before) / 1e6, "cpu_s": used.seconds,
            "seconds": time.monotonic() - began, "monitors": len(watched.monitors), "refused": len(watched.refused),
            "calibrations": {m.name: m.calibration.hash for m in watched.monitors},
        }  # fmt: skip


def main() -> int:
    build(FIRST_ROWS)
    print(json.dumps(build(int(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
