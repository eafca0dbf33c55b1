"""An event log and a calibration for one model of the scene: one caller searches the model, others use it as usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from detectors.anomaly.queries import Queries
from detectors.base import Calibration
from detectors.profile import Bins
from monitor.intake import Advance, IngestBatch, Placed
from monitor.model import HOUR_US, SECOND_US, InferenceEvent, stable_id
from monitor.service.windows import Stretch
from monitor.store.engine import write
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.features import FeatureSchema
from monitor.store.publish import Publisher
from monitor.store.schema import calibrations
from tests import scenes

MODEL = scenes.MODELS[1]
KEY = stable_id("model", "Production", MODEL.name)
DIGEST = stable_id("reference", MODEL.name).replace("-", "")
ATTACKER = "c-7f3a91"
QUERIES = 150
PEERS = 6
PER_PEER = 40
Rng = np.random.Generator


def calibration(w: scenes.Watched, rng: Rng) -> tuple[Calibration, pa.Table]:
    """What the query detector learns from honest rows, and those rows."""
    table = scenes.rows(w, 1_500, rng)
    table = table.append_column("event_time", pa.array(np.zeros(table.num_rows, np.int64)))
    table = table.append_column("principal", pa.array([f"honest-{i % 15}" for i in range(table.num_rows)]))
    bins = Bins.fit(table, list(w.numeric), list(w.categorical))
    return Queries().calibrate([Stretch(w.name, 0, 0, table, bins.count(table))], DIGEST), table


def events(w: scenes.Watched, attacker: str, rng: Rng) -> list[InferenceEvent]:
    """The attacker walks in small steps through values that nobody sends; its peers send rows like the reference's."""
    usual = scenes.rows(w, PEERS * PER_PEER, rng).to_pylist()
    made = [
        _event(w, row, f"peer-{i % PEERS}", scenes.END_US - 2 * HOUR_US + i * 20 * SECOND_US)
        for i, row in enumerate(usual)
    ]
    row = dict(scenes.rows(w, 1, rng).to_pylist()[0])
    spread = {f"feature:{k}": sd for k, (_, sd) in w.numeric.items()}
    for i in range(QUERIES):
        row |= {k: float(np.nan_to_num(row[k]) + rng.normal(0, 0.2) * sd) for k, sd in spread.items()}
        row[next(iter(spread))] = -9e6 - i  # out of every range
        p = 0.5 + 0.01 * float(rng.normal())
        row |= {"scores": [1 - p, p], "prediction_label": "yes" if p > 0.5 else "no"}
        made.append(_event(w, row, attacker, scenes.END_US - HOUR_US + i * SECOND_US))
    return sorted(made, key=lambda e: e.event_time_us)


def _event(w: scenes.Watched, row: dict[str, Any], principal: str, time_us: int) -> InferenceEvent:
    features = {k.removeprefix("feature:"): v for k, v in row.items() if k.startswith("feature:") and not _missing(v)}
    return InferenceEvent(
        event_time_us=time_us, model=w.name, principal=principal, request_id=f"={principal}-{time_us}",
        features=features, prediction=row["prediction_label"], scores=row["scores"],
    )  # fmt: skip


def _missing(value: object) -> bool:
    return isinstance(value, float) and np.isnan(value)


def seed(engine: sa.Engine, folder: Path, *, hostile: bool = False) -> EventLog:
    """Fill the event log of the scene's second model and store the calibration of its reference."""
    rng = np.random.default_rng(11)
    bad = scenes.HOSTILE if hostile else None
    w = MODEL if bad is None else scenes.spoiled(MODEL, bad)
    cal, table = calibration(w, rng)
    with write(engine) as conn:
        conn.execute(
            calibrations.insert().values(
                calibration_hash=cal.hash, model_id=KEY, detector="queries", params={}, reference_hash=DIGEST,
                body=cal.to_bytes(), created_us=scenes.END_US,
            )
        )  # fmt: skip
    (folder / "references").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "references" / "reference.parquet")
    model = ModelTable(KEY, w.name, FeatureSchema(tuple(w.numeric), tuple(w.categorical)))
    log = EventLog(engine, folder / "events", {w.name: model})
    claim = log.claim("s", "me", [("t", 0)])["t", 0]
    placed = [Placed("t", 0, i, e) for i, e in enumerate(events(w, bad or ATTACKER, rng))]
    step = Advance("t", 0, claim.epoch, None, len(placed), None)
    log.append(IngestBatch(source="s", received_us=scenes.END_US, parts=placed, dead_letters=(), advances=(step,)))
    Publisher(engine, folder / "events", "me").publish(KEY, scenes.END_US)
    return log
