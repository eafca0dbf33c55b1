"""A look at the latest messages of a Kafka topic, outside any consumer group, leaving no trace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from collectors.base import Record
from collectors.kafka import KafkaCollector
from monitor.config import Source

POLLS: Final = 20  # of half a second each


def recent(name: str, source: Source, folder: Path, limit: int) -> Sequence[Record]:
    """The latest messages over all partitions, at most `limit`, in the order of their broker times."""
    collector = KafkaCollector(name, source.model_copy(update={"assign": source.assign or ()}), folder)
    out: list[Record] = []
    try:
        gained, _ = collector.changes()
        for key in gained:
            collector.seek(key, max(collector.edge(key) - limit, collector.edge(key, first=True)))
            collector.resume(key)
        for _ in itertools.repeat(None, POLLS):
            out += collector.poll(0.5)
            if all(behind == 0 for behind in collector.lag().values()):
                break
    finally:
        collector.close()
    return sorted(out, key=lambda r: r.timestamp_ms or 0)[-limit:]
