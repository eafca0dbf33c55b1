"""Configured models, their references and calibrations: what the state store knows of each before any event comes."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from monitor.model import stable_id
from monitor.store.engine import read, write
from monitor.store.eventlog import ModelTable
from monitor.store.features import FeatureSchema
from monitor.store.schema import calibrations, models, references

UNREGISTERED = "_unregistered"


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
            old = FeatureSchema.from_json(row.schema)
            taken = {*old.numeric, *old.categorical}
            merged = FeatureSchema(
                (*old.numeric, *(f for f in schema.numeric if f not in taken)),
                (*old.categorical, *(f for f in schema.categorical if f not in taken)),
                tuple(dict.fromkeys((*old.coded, *schema.coded))),
            )
            if merged != old:
                conn.execute(models.update().where(models.c.model_id == row.model_id).values(schema=merged.to_json()))
            tables[name] = ModelTable(row.model_id, name, merged)
    return tables


def put_reference(
    engine: sa.Engine,
    model_id: str,
    reference_hash: str,
    *,
    path: str,
    rows: int,
    origin: str,
    approved_by: str | None,
    now_us: int,
) -> None:
    """Record a frozen reference once and make it the model's current one."""
    with write(engine) as conn:
        same = (references.c.model_id == model_id) & (references.c.reference_hash == reference_hash)
        if conn.execute(sa.select(references.c.version).where(same)).one_or_none() is None:
            newest = conn.execute(
                sa.select(sa.func.max(references.c.version)).where(references.c.model_id == model_id)
            ).scalar()
            conn.execute(
                references.insert().values(
                    reference_hash=reference_hash,
                    model_id=model_id,
                    version=(newest or 0) + 1,
                    path=path,
                    rows=rows,
                    origin=origin,
                    approved_by=approved_by,
                    created_us=now_us,
                )
            )
        conn.execute(models.update().where(models.c.model_id == model_id).values(reference_hash=reference_hash))


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
    """Store a calibration; storing the same one again changes nothing."""
    with write(engine) as conn:
        same = (calibrations.c.model_id == model_id) & (calibrations.c.calibration_hash == calibration_hash)
        if conn.execute(sa.select(calibrations.c.detector).where(same)).one_or_none() is None:
            conn.execute(
                calibrations.insert().values(
                    calibration_hash=calibration_hash,
                    model_id=model_id,
                    detector=detector,
                    params=dict(params),
                    reference_hash=reference_hash,
                    body=body,
                    created_us=now_us,
                )
            )
