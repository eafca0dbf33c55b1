"""Rows of a reference: read from wherever they are, written once as Parquet under the hash of what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from collectors import files
from collectors.base import Placed, Record
from collectors.decode import decoder_for
from detectors.profile import FIT_ROWS, Bins
from detectors.streamed import Streamed
from monitor.config import Config, ModelConfig
from monitor.errors import ConfigError, DecodeError, Mistake, UsageError
from monitor.model import HOUR_US, InferenceEvent, rfc3339
from monitor.store.columns import to_table, view
from monitor.store.deltasource import delta_rows
from monitor.store.eventlog import ModelTable
from monitor.store.features import FeatureSchema

CHUNK_ROWS: Final = 20_000
BATCH_ROWS: Final = 8_192  # of a frozen reference that are read at once
ANSWERS: Final = (
    "prediction_label",
    "prediction_value",
    "scores",
    "class_names",
    "extra",
)  # and texts, to cut beside features
LONGEST_US: Final = (
    50 * 366 * 24 * HOUR_US
)  # from the first to the last row: longer are mistakes, and every hour is a window
UNTIMED_MS: Final = 100_000_000_000  # what decoders take for a time and no log holds: the first moment that they accept

BASE_COLUMNS: Final = (  # what detectors may ask for beside the features
    "event_time", "segment", "position", "principal", "credential_id", "source_ip", "session_id", "request_id", "model_version",
    "prediction_label", "prediction_value", "scores", "class_names", "returned", "status", "http_status", "latency_ms",
    "tokens_in", "tokens_out",
    "quality", "mismatched", "sampling_fraction", "extra",
)  # fmt: skip


def read_columns(schema: FeatureSchema) -> list[str]:
    """Columns of the event log that ticks and references hold."""
    return [*BASE_COLUMNS, *(f"feature:{f}" for f in (*schema.numeric, *schema.categorical))]


def reference_events(config: Config, name: str, file: Path) -> Iterator[InferenceEvent]:
    """Events of a reference file or table. Rows need neither a model nor a time: a reference says what is normal, not when.

    A table is the folder of a Delta table or of Parquet files, which are taken by name. Raises ConfigError naming the
    line of the first row that cannot be read, or whose time is decades from another's: a broken reference calibrates nothing.
    """
    decode, first, last = decoder_for("native", config), 0, 0
    for record in _records(file):
        try:
            for event in decode(_complete(record, name)):
                if isinstance(event, InferenceEvent):
                    if event.event_time_us == UNTIMED_MS * 1000:
                        event.event_time_us = 0
                    elif (now := event.event_time_us) and not first <= now <= last:
                        first, last = min(first or now, now), max(last, now)
                        if last - first > LONGEST_US:
                            raise _unusable(file, record, _apart(now, first, last))
                    yield event
        except DecodeError as error:
            raise _unusable(file, record, str(error)) from error


def _unusable(file: Path, record: Record, why: str) -> ConfigError:
    return ConfigError([Mistake(str(file), record.offset + 1, f"this reference row cannot be used: {why}")])


def _apart(now: int, first: int, last: int) -> str:
    other = rfc3339(last if now == first else first)
    return (
        f"its event_time {rfc3339(now)} is more than 50 years from {other} of an earlier row; correct or leave out the wrong "
        "one, or leave event_time out of all rows where times do not matter"
    )


def _complete(record: Record, name: str) -> Record:
    """A reference row with the model's name and, where it has none, the time that stands for none."""
    value = record.value or b""
    if b'"event_time"' in value and b'"model"' in value:
        return record
    try:
        row = msgspec.json.decode(value)
    except msgspec.DecodeError:
        return record  # the decoder says what is wrong with it
    return (
        record._replace(value=msgspec.json.encode({"event_time": UNTIMED_MS, "model": name, **row}))
        if isinstance(row, dict)
        else record
    )


def _records(file: Path) -> Iterator[Record]:
    if (file / "_delta_log").is_dir():
        for number, row in enumerate(delta_rows(file, {})):
            yield Record("reference", str(file), 0, number, None, row)
    elif file.is_dir():
        for part in _parts(file):
            yield from files.read_records(part, "reference")
    else:
        yield from files.read_records(file, "reference")


def _parts(folder: Path) -> list[Path]:
    """The Parquet files of a folder; names that begin with a dot or an underline are somebody's own business."""
    found = [p for p in sorted(folder.rglob("*.parquet")) if not any(x[0] in "._" for x in p.relative_to(folder).parts)]
    if not found:
        raise UsageError(f"{folder} holds neither a Delta table nor Parquet files")
    return found


def file_hash(file: Path) -> str:
    """SHA-256 of the file's bytes: the name of a frozen reference."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def reference_schema(
    config: Config, name: str, model: ModelConfig, known: Mapping[str, FeatureSchema]
) -> FeatureSchema:
    """Typed features of a model before it has tables: of the file that its configuration names, overruled by what it says.

    `known`: those of references that were frozen, by hash. A file among them is not read again: every start would wait.
    """
    declared = {f: c.type for f, c in model.features.items() if c.type}
    if model.reference is None or model.reference.file is None:
        return FeatureSchema.infer((), declared)
    file = config.path(model.reference.file)
    if known and (held := known.get(file_hash(file))) is not None:
        return held.plus(FeatureSchema.infer((), declared))
    return FeatureSchema.infer(reference_events(config, name, file), declared)


def write_events(path: Path, events: Iterator[InferenceEvent], table: ModelTable) -> int:
    """Write events as readers of the log see them; the number of rows."""
    return write_rows(path, (_rows(chunk, table) for chunk in _chunks(events)), table.schema)


def write_rows(path: Path, tables: Iterator[pa.Table], schema: FeatureSchema) -> int:
    """Write tables with the columns of `read_columns`; the number of rows."""
    rows = 0
    with pq.ParquetWriter(path, empty(schema).schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(writer.schema))
            rows += table.num_rows
    return rows


def rows_of(file: Path) -> Streamed:
    """The rows of a frozen reference, read from its copy piece by piece."""
    with pq.ParquetFile(file) as source:
        rows, blank = source.metadata.num_rows, source.schema_arrow.empty_table()

    def read(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        wanted = [c for c in blank.column_names if columns is None or c in columns]
        if not rows:
            yield blank.select(wanted)
        with pq.ParquetFile(file) as source:
            for i in range(source.num_row_groups):  # what reads all at once keeps all in memory
                for batch in source.iter_batches(BATCH_ROWS, row_groups=[i], columns=wanted, use_threads=False):
                    yield pa.Table.from_batches([batch]).select(wanted)

    return Streamed(rows, read)


def fit_bins(rows: Streamed, schema: FeatureSchema) -> Bins:
    """Where a reference cuts its features, from as many evenly spaced rows as `Bins.fit` looks at."""
    columns = [c for c in read_columns(schema) if c.startswith("feature:") or c in ANSWERS]
    return Bins.fit(rows.sample(FIT_ROWS, columns), schema.numeric, schema.categorical)


def empty(schema: FeatureSchema) -> pa.Table:
    """No rows, with the columns of a reference."""
    return view(to_table([], schema, "", 0), schema, read_columns(schema))


def _chunks(events: Iterator[InferenceEvent]) -> Iterator[list[Placed]]:
    chunk: list[Placed] = []
    for i, event in enumerate(events):
        chunk.append(Placed("reference", 0, i, event))
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _rows(chunk: Sequence[Placed], table: ModelTable) -> pa.Table:
    return view(to_table(chunk, table.schema, "", 0), table.schema, read_columns(table.schema))
