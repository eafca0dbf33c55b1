"""Rows of a Delta table as native events, for back-testing on tables: any table of native columns, or our own event log.

In our own tables features stand in typed columns under safe names (docs/event-log.md); they get their names back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from deltalake import DeltaTable

from monitor.errors import UsageError
from monitor.store.features import FeatureSchema, categorical_column, numeric_column

OURS: Final = frozenset({"event_time", "segment", "position", "prediction_label", "prediction_value", "extra"})
NOT_EVENT: Final = frozenset(  # where a row stood, and what is said in another way below
    {"segment", "position", "source", "topic", "partition", "offset", "ingest_time", "mismatched", "prediction_label",
     "prediction_value", "extra", "day"}
)  # fmt: skip


def delta_rows(path: Path, schemas: Mapping[str, FeatureSchema]) -> Iterator[bytes]:
    """Every row as the JSON text of a native event. `schemas` are those of the configured models, by name.

    Raises UsageError when the folder is no readable Delta table.
    """
    try:
        dataset = DeltaTable(path).to_pyarrow_dataset()
    except Exception as error:  # delta-rs raises several unrelated kinds
        raise UsageError(f"{path} is not a readable Delta table: {error}") from error
    ours = set(dataset.schema.names) >= OURS
    names: dict[str, str] = {}
    for schema in schemas.values():
        names |= {numeric_column(f): f for f in schema.numeric} | {categorical_column(f): f for f in schema.categorical}
    for batch in dataset.to_batches(batch_size=5_000):
        for row in batch.to_pylist(maps_as_pydicts="lossy"):
            event = _own(row, names) if ours else {k: v for k, v in row.items() if v is not None}
            yield msgspec.json.encode(event, enc_hook=str)


def _own(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    extra = msgspec.json.decode(row["extra"]) if row["extra"] else {}
    event = {k: v for k, v in row.items() if v is not None and k not in NOT_EVENT and k[:2] not in ("n_", "c_")}
    event |= {k: v for k, v in extra.items() if k not in ("features", "mismatch", "attributes")}
    event |= extra.get("attributes") or {}
    event["event_time"] = row["event_time"].isoformat()
    prediction = row["prediction_label"] if row["prediction_value"] is None else row["prediction_value"]
    if prediction is not None:
        event["prediction"] = prediction
    features = {names.get(k, k[2:]): v for k, v in row.items() if k[:2] in ("n_", "c_") and v is not None}
    features |= extra.get("features") or {}
    if features:
        event["features"] = features
    return event
