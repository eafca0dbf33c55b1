"""A fresh event log to write to, and rows to write: what the tests of the store share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from monitor.intake import Advance, Claim, DeadLetter, IngestBatch, IngestResult, Placed
from monitor.model import InferenceEvent, stable_id
from monitor.store.columns import FeatureSchema
from monitor.store.engine import migrate, open_state
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.publish import Publisher

NOON_US = 1_700_049_600_000_000  # 2023-11-15T12:00:00Z
MODEL = ModelTable(stable_id("model", "fraud"), "fraud", FeatureSchema(("amount",), ("country",)))


def event(number: int, **fields: Any) -> InferenceEvent:
    """The n-th event, one millisecond after the one before it."""
    usual: dict[str, Any] = {
        "event_time_us": NOON_US + number * 1000,
        "model": "fraud",
        "request_id": f"r-{number}",
        "features": {"amount": float(number), "country": "QA"},
    }
    return InferenceEvent(**{**usual, **fields})


@dataclass
class Store:
    """An event log with its publisher, and one partition that is written to."""

    engine: sa.Engine
    root: Path
    log: EventLog
    publisher: Publisher
    claim: Claim
    next_offset: int | None = None
    now_us: int = NOON_US
    source: str = "s"
    points: list[str] = field(default_factory=list)

    def batch(self, parts: Sequence[Any], dead: Sequence[DeadLetter] = (), **fields: Any) -> IngestBatch:
        """The next flush of the partition ("t", 0): one message a part."""
        first = self.next_offset or 0
        placed = [Placed("t", 0, first + i, part) for i, part in enumerate(parts)]
        step = Advance("t", 0, self.claim.epoch, self.next_offset, first + len(placed), None)
        usual: dict[str, Any] = {"source": self.source, "received_us": self.now_us, "parts": placed}
        return IngestBatch(**{**usual, "dead_letters": dead, "advances": (step,), **fields})

    def append(self, parts: Sequence[Any], **fields: Any) -> IngestResult:
        """Append and move on."""
        batch = self.batch(parts, **fields)
        result = self.log.append(batch)
        self.next_offset = batch.advances[0].next_offset
        return result

    def publish(self) -> int:
        """Publish the model's segments."""
        return self.publisher.publish(MODEL.model_id, self.now_us)

    def read(self, *columns: str, after: int = 0, max_rows: int = 50_000) -> pa.Table:
        """All published rows after a batch, in log order."""
        upto = self.log.latest_batch(MODEL.model_id)
        tables = list(self.log.read_log(MODEL.model_id, after, upto, columns, max_rows))
        return pa.concat_tables(tables) if tables else pa.table({})

    def files(self) -> set[str]:
        """Parquet files of the model's table."""
        folder = self.root / MODEL.model_id
        return {str(path.relative_to(folder)) for path in folder.rglob("*.parquet") if "_delta_log" not in str(path)}


@contextmanager
def store(url: str, folder: Path) -> Iterator[Store]:
    """A fresh store on this database."""
    engine = open_state(url)
    migrate(engine)
    points: list[str] = []
    root = folder / "events"
    log = EventLog(engine, root, {"fraud": MODEL}, points.append)
    claim = log.claim("s", "me", [("t", 0)])["t", 0]
    yield Store(engine, root, log, Publisher(engine, root, "me", points.append), claim, points=points)
    engine.dispose()
