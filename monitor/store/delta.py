"""The Delta Lake log of one model's table: what Spark, Trino and DuckDB see of the event log.

It follows the state store and never leads it. One commit adds a batch; the commit carries the batch number as an
application transaction, so after a crash the publisher can tell whether the batch is in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from monitor.errors import FencedOut, StoreError
from monitor.store.columns import ORDER
from monitor.store.segments import Files

APP: Final = "publish"
SETTINGS: Final[dict[str, str | None]] = {
    "delta.logRetentionDuration": "interval 7 days",
    "delta.checkpointInterval": "100",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file with what the Delta log says about it."""

    path: str
    size: int
    rows: int
    min_event_us: int
    max_event_us: int


class DeltaLog:
    """One table. Not safe to share between threads; a failed commit makes it unusable: open another."""

    def __init__(self, files: Files, model_id: str) -> None:
        self._uri = files.table_uri(model_id)
        self._local = files.local
        try:
            self._table: DeltaTable | None = DeltaTable(self._uri)
        except TableNotFoundError:
            self._table = None
        except DeltaError as e:
            raise StoreError(f"the Delta log of {model_id} cannot be read ({e}): see docs/event-log.md, Repair") from e

    def version(self) -> int:
        """The newest batch that was committed; 0 when there is none."""
        found = self._table.transaction_version(APP) if self._table else None
        return found or 0

    def paths(self) -> dict[str, int]:
        """Every file of the table with its size in bytes."""
        if self._table is None:
            return {}
        actions = self._table.get_add_actions()
        return dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))

    def commit(
        self,
        schema: pa.Schema,
        add: Sequence[DataFile],
        remove: Mapping[str, int],
        batch: int,
        now_us: int,
        *,
        data_change: bool = True,
    ) -> None:
        """Add and remove files in one commit that carries the batch number. `schema`: what the added files hold.

        Raises FencedOut when another publisher has been here, StoreError when nobody knows whether it stands.
        """
        try:
            table = self._with_columns(schema)
            actions: list[AddAction | RemoveAction] = [_add(file, now_us, data_change) for file in add]
            actions += [
                RemoveAction(path, data_change, now_us // 1000, size, {"day": _day(path)})
                for path, size in remove.items()
            ]
            table.create_write_transaction(
                actions,
                mode="append",
                schema=table.schema(),
                partition_by=["day"],
                commit_properties=CommitProperties(app_transactions=[Transaction(APP, batch, now_us // 1000)]),
            )
            table.update_incremental()
            self._sync(table)
        except CommitFailedError as e:
            raise FencedOut(f"another publisher has written to {self._uri}: {e}") from e
        except (DeltaError, OSError) as e:
            raise StoreError(f"the Delta log {self._uri} cannot be written: {e}") from e

    def _with_columns(self, schema: pa.Schema) -> DeltaTable:
        """The table, made when it does not exist, with every column of the schema: a commit does not add columns."""
        if self._table is None:
            whole = pa.schema(
                [*ORDER.items(), *schema, ("day", pa.string())] if "batch" not in schema.names else schema
            )
            self._table = DeltaTable.create(
                self._uri, Schema.from_arrow(whole), mode="ignore", partition_by=["day"], configuration=SETTINGS
            )
            self._sync(self._table)
            return self._table
        held = {field.name for field in self._table.schema().fields}
        missing: list[Field] = [f for f in Schema.from_arrow(schema).fields if f.name not in held]
        if missing:
            self._table.alter.add_columns(missing)
            self._table.update_incremental()
        return self._table

    def _sync(self, table: DeltaTable) -> None:
        """delta-rs does not sync: after a power cut a commit may be gone or torn, so it is made durable here."""
        if not self._local:
            return
        folder = Path(self._uri) / "_delta_log"
        for name in (folder / f"{table.version():020d}.json", folder, folder.parent, folder.parent.parent):
            descriptor = os.open(name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _day(path: str) -> str:
    return path.partition("/")[0].removeprefix("day=")


def _add(file: DataFile, now_us: int, data_change: bool) -> AddAction:
    stats = {
        "numRecords": file.rows,
        "minValues": {"event_time": _text(file.min_event_us)},
        "maxValues": {"event_time": _text(file.max_event_us)},
        "nullCount": {"event_time": 0},
    }
    return AddAction(
        file.path, file.size, {"day": _day(file.path)}, now_us // 1000, data_change, msgspec.json.encode(stats).decode()
    )


def _text(time_us: int) -> str:
    """A time as Delta statistics want it: ISO 8601 with all microseconds, so that no row lies outside."""
    return (_EPOCH + timedelta(microseconds=time_us)).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def merged_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of several segments, in the order of their first appearance."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema.remove_metadata():
            fields.setdefault(field.name, field)
    return pa.schema(list(fields.values()))
