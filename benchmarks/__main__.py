"""`python -m benchmarks`: ingest, drift and latency as ratios in one run on one machine."""

from __future__ import annotations

import sys

from benchmarks import drift, ingest, latency
from benchmarks.measure import machine, table


def main() -> int:
    """Measure all three, print one table, and fail when a goal is missed."""
    found = [
        *ingest.results(ingest.EVENTS, repeats=3),
        ingest.memory(ingest.LONG_EVENTS),
        *drift.results(drift.SIZES, repeats=3),
        *latency.results(incidents=30),
    ]
    print(machine(), table(found), sep="\n\n")
    return int(any(r.met is False for r in found))


if __name__ == "__main__":
    sys.exit(main())
