"""`python -m benchmarks`: ingest, drift, replay and latency in one run on one machine, beside the stored baseline of drift's
false alarms and delays, which takes hours to measure (benchmarks.drift_null) and which tests hold against its bars.
"""

from __future__ import annotations

import sys

from benchmarks import drift, drift_table, ingest, latency, replay
from benchmarks.measure import machine, table


def main() -> int:
    """Measure all four, print one table and the stored ones, and fail when a goal is missed."""
    found = [
        *ingest.results(ingest.EVENTS, repeats=3),
        ingest.memory(ingest.LONG_EVENTS),
        *drift.results(drift.SIZES, repeats=3),
        *replay.results(),
        *latency.results(incidents=30),
    ]
    print(machine(), table(found), sep="\n\n")
    print("\nStored baseline of drift: streams, checks, false alarms, per 30 days, upper bound; delays; promises\n")
    print(*drift_table.lines(), sep="\n")
    return int(any(r.met is False for r in found))


if __name__ == "__main__":
    sys.exit(main())
