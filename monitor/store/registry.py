"""Configured models, their references and calibrations: what the state store knows of each before any event comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from monitor.model import UNREGISTERED, stable_id
from monitor.store.alertlog import insert_of
from monitor.store.engine import read, write
from monitor.store.eventlog import ModelTable
from monitor.store.features import FeatureSchema
from monitor.store.schema import calibrations, models


def register(engine: sa.Engine, environment: str, configured: Mapping[str, FeatureSchema]) -> dict[str, ModelTable]:
    """A row and a folder id for every configured model and for `_unregistered`; typed columns are only ever added.

    A feature keeps the type it was first stored with: old rows stay readable, and what no longer fits shows as a
    schema mismatch instead of silently changing its meaning.
    """
    tables: dict[str, ModelTable] = {}
    with write(engine) as conn:
        known = {r.name: r for r in conn.execute(sa.select(models)).all()}
        for name, schema in {**configured, UNREGISTERED: FeatureSchema((), ())}.items():
            row = known.get(name)
            if row is None:
                model_id = stable_id("model", environment, name)
                conn.execute(models.insert().values(model_id=model_id, name=name, schema=schema.to_json()))
                tables[name] = ModelTable(model_id, name, schema)
                continue
            merged = _grown(conn, row, schema)
            tables[name] = ModelTable(row.model_id, name, merged)
    return tables


def grow(engine: sa.Engine, name: str, schema: FeatureSchema) -> ModelTable:
    """The table of a registered model with the typed columns of one more schema."""
    with write(engine) as conn:
        row = conn.execute(sa.select(models).where(models.c.name == name)).one()
        return ModelTable(row.model_id, name, _grown(conn, row, schema))


def _grown(conn: sa.Connection, row: sa.Row[Any], schema: FeatureSchema) -> FeatureSchema:
    """The stored schema with what is new in another one; stored when it changed."""
    old = FeatureSchema.from_json(row.schema)
    merged = old.plus(schema)
    if merged != old:
        conn.execute(models.update().where(models.c.model_id == row.model_id).values(schema=merged.to_json()))
    return merged


def get_calibration(
    engine: sa.Engine, model_id: str, detector: str, params: Mapping[str, object], reference_hash: str
) -> bytes | None:
    """The stored calibration of this detector with these parameters on this reference, if there is one."""
    with read(engine) as conn:
        rows = conn.execute(
            sa.select(calibrations.c.body, calibrations.c.params).where(
                calibrations.c.model_id == model_id,
                calibrations.c.detector == detector,
                calibrations.c.reference_hash == reference_hash,
            )
        ).all()
        return next((bytes(r.body) for r in rows if r.params == dict(params)), None)


def put_calibration(
    engine: sa.Engine,
    model_id: str,
    detector: str,
    params: Mapping[str, object],
    reference_hash: str,
    calibration_hash: str,
    body: bytes,
    now_us: int,
) -> None:
    """Store a calibration, once for all parameters that give the same one: it is found by the last of them."""
    with write(engine) as conn:
        row = {"calibration_hash": calibration_hash, "model_id": model_id, "detector": detector, "params": dict(params),
               "reference_hash": reference_hash, "body": body, "created_us": now_us}  # fmt: skip
        insert = insert_of(conn)(calibrations).values(row)
        same = ["calibration_hash", "model_id"]
        conn.execute(insert.on_conflict_do_update(index_elements=same, set_={"params": dict(params)}))
