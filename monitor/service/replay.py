"""Back-testing: logs through the real pipeline on a simulated clock, into a temporary store, nothing leaves the machine.

Rows are sorted by (event time, file order). Input larger than memory is fine: it is spooled to disk by day, and at most
one day of decoded events is held at a time. The output depends on the input and the configuration alone.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from collectors import files
from collectors.base import Advance, Decoder, IngestBatch, Part, Placed, Record
from collectors.decode import decoder_for
from collectors.pairing import pair as pair_in_memory
from monitor.config import Config, Privacy, StoreConfig
from monitor.errors import DecodeError, UsageError
from monitor.model import SECOND_US, FeedbackEvent, Half, InferenceEvent, Mark, Transition
from monitor.service.compose import Service, open_service
from monitor.service.system import system_tick
from monitor.store import pairing
from monitor.store.deltasource import delta_rows
from monitor.store.held import held_back
from monitor.store.queries import DetectionRow, one_model

BATCH_ROWS = 20_000
DAY_US = 86_400 * SECOND_US
SOURCE = "replay"


@dataclass
class Replayed:
    """What a replay read and found. Counts go to stderr, transitions to stdout. held: by model, what was found in callers that
    look like tools, without an incident.
    """

    events: int = 0
    feedback: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    transitions: list[Transition] = field(default_factory=list)
    held: list[tuple[str, DetectionRow]] = field(default_factory=list)


def replay(
    config: Config,
    paths: Sequence[Path],
    *,
    source: str | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Replayed:
    """Run the files through collect, publish, tick; every transition in time order.

    `source` names a configured source whose decoder reads them; without it they are native events.
    """
    result = Replayed()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lanner-replay-") as folder:
        service = open_service(simulated(config, Path(folder)), owner=SOURCE)
        name = source or "native"
        if source is not None and source not in config.sources:
            raise UsageError(
                f"--source {source}: no such source; configured are {', '.join(sorted(config.sources)) or 'none'}"
            )
        decode = decoder_for(name, config)
        spool = Spool(Path(folder) / "spool")
        for record in records(paths, name, service):
            decode_into(record, decode, spool, result)
            if record.offset % 5_000 == 0:
                progress(result.events)
        timeout_s = max((s.pairing_timeout for s in config.sources.values()), default=900.0)
        finish(service, ingest(service, spool, result, round(timeout_s * SECOND_US)), result)
        service.close()
    result.seconds = time.perf_counter() - begun
    return result


def simulated(config: Config, folder: Path) -> Config:
    """The same configuration on a temporary store, a log clock, plain principals, and nobody to send anything to."""
    return config.model_copy(
        update={
            "clock": "log",
            "store": StoreConfig(path=folder / "store"),
            "privacy": Privacy(principals="plain"),
            "sources": {},
            "sinks": {},
            "routes": (),
        }
    )


def records(paths: Sequence[Path], source: str, service: Service) -> Iterator[Record]:
    """Records of JSONL and Parquet files and of Delta tables (folders with a _delta_log)."""
    for path in paths:
        if (path / "_delta_log").is_dir():
            schemas = {name: table.schema for name, table in service.tables.items()}
            for number, row in enumerate(delta_rows(path, schemas)):
                yield Record(source, str(path), 0, number, None, row)
        elif path.is_file():
            yield from files.read_records(path, source)
        else:
            raise UsageError(f"{path}: no such file; give JSONL or Parquet files, or the folder of a Delta table")


class Spool:
    """Decoded parts on disk by day of their event time, in file order within a day."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.pending: dict[int, list[tuple[int, str, bytes]]] = {}
        self.held = 0
        self.count = 0

    def add(self, time_us: int, part: Part) -> None:
        kind = type(part).__name__
        self.pending.setdefault(time_us // DAY_US, []).append((time_us, kind, msgspec.msgpack.encode(part)))
        self.count += 1
        self.held += 1
        if self.held >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        for day, rows in self.pending.items():
            with (self.folder / f"{day}.spool").open("ab") as stream:
                for row in rows:
                    body = msgspec.msgpack.encode(row)
                    stream.write(len(body).to_bytes(4, "big") + body)
        self.pending.clear()
        self.held = 0

    def days(self) -> Iterator[list[tuple[int, Part]]]:
        """One day at a time, sorted by (event time, file order)."""
        self.flush()
        kinds: dict[str, msgspec.msgpack.Decoder[Part]] = {
            "InferenceEvent": msgspec.msgpack.Decoder(InferenceEvent),
            "Half": msgspec.msgpack.Decoder(Half),
            "FeedbackEvent": msgspec.msgpack.Decoder(FeedbackEvent),
            "Mark": msgspec.msgpack.Decoder(Mark),
        }
        row = msgspec.msgpack.Decoder(tuple[int, str, bytes])
        for day in sorted(int(f.stem) for f in self.folder.glob("*.spool")):
            file = self.folder / f"{day}.spool"
            parts: list[tuple[int, Part]] = []
            raw, at = file.read_bytes(), 0
            while at < len(raw):
                size = int.from_bytes(raw[at : at + 4], "big")
                time_us, kind, body = row.decode(raw[at + 4 : at + 4 + size])
                parts.append((time_us, kinds[kind].decode(body)))
                at += 4 + size
            parts.sort(key=lambda p: p[0])  # stable: file order decides between equal times
            yield parts
            file.unlink()


def decode_into(record: Record, decode: Decoder, spool: Spool, result: Replayed) -> None:
    """Decode one record; what cannot be decoded is counted by reason and does not stop the replay."""
    try:
        parts = decode(record)
    except DecodeError as error:
        result.failed[error.reason] += 1
        return
    for part in parts:
        if isinstance(part, FeedbackEvent):
            spool.add(part.label_time_us, part)
            result.feedback += 1
        elif isinstance(part, Mark):
            spool.add(part.start_us, part)
        else:
            spool.add(part.event.event_time_us if isinstance(part, Half) else part.event_time_us, part)
            result.events += 1


def ingest(service: Service, spool: Spool, result: Replayed, timeout_us: int) -> int:
    """Append, publish and tick batch by batch; the sorted stream is one partition whose offset counts parts.

    Returns the time of the last event, which is the replay's last moment.
    """
    epoch = service.log.claim(SOURCE, SOURCE, [(SOURCE, 0)])[SOURCE, 0].epoch
    offset, high_us = 0, 0
    batch: list[Placed] = []
    for time_us, part in (p for day in spool.days() for p in day):
        batch.append(Placed(SOURCE, 0, offset + len(batch), part))
        high_us = high_us if isinstance(part, Mark) else max(high_us, time_us)
        if len(batch) >= BATCH_ROWS:
            _append(service, epoch, batch, high_us, timeout_us)
            offset += len(batch)
            batch = []
            tick_all(service, high_us, result)
    if batch:
        _append(service, epoch, batch, high_us, timeout_us)
    return high_us


def _append(service: Service, epoch: int, batch: Sequence[Placed], high_us: int, timeout_us: int) -> None:
    first, after = batch[0].offset, batch[-1].offset + 1
    step = Advance(SOURCE, 0, epoch, first or None, after, high_us)
    parts = pair_in_memory(batch)
    service.log.append(IngestBatch(source=SOURCE, received_us=high_us, parts=parts, advances=[step], ordered=True))
    pairing.pair(service.log, high_us, timeout_us, SOURCE)
    publisher = service.publisher()
    for table in service.tables.values():
        publisher.publish(table.model_id, high_us)


def tick_all(service: Service, now_us: int, result: Replayed, *, close: bool = False) -> None:
    for name in sorted(service.config.models):
        live = service.model(name, now_us)
        live.tick(SOURCE, now_us, clock="log", close=close)
        result.transitions += live.committed


def finish(service: Service, last_us: int, result: Replayed) -> None:
    """Close every window that ended before the last event, put all transitions in time order, and see who is held back."""
    tick_all(service, last_us, result, close=True)
    result.transitions += system_tick(service, last_us, clock="log")
    result.transitions.sort(key=lambda t: (t.time_us, t.alert.opened_us, t.alert.alert_id, t.alert.seq))
    for name in sorted(service.config.models):
        model = one_model(service.engine, name, last_us, clock="log", grace_us=0)
        result.held += (
            [(name, d) for d in held_back(service.engine, model, 0, last_us + 1)] if model is not None else []
        )
