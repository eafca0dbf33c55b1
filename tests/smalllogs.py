"""Small made-up logs through a real event log and real ticks: what tests of references, reports and tuning share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collectors.base import Advance, IngestBatch, Placed
from monitor.config import load
from monitor.model import HOUR_US, FeedbackEvent, InferenceEvent, parse_time_us
from monitor.service.compose import Service, open_service
from monitor.store.engine import migrate, open_state

START_US = parse_time_us("2026-03-02T00:00:00Z")
MODEL = "scores"


def made(
    hours: Iterable[int],
    per_hour: int = 20,
    *,
    seed: int = 1,
    shift: float = 0.0,
    version: str = "1",
    caller: str | None = None,
) -> list[InferenceEvent]:
    """Events of these hours since START_US: two numbers (x moved by `shift`), a category, an answer with its scores."""
    rng, out = np.random.default_rng(seed), []
    for hour in hours:
        for at in np.sort(rng.integers(0, HOUR_US, per_hour)).tolist():
            x, y = float(rng.normal() + shift), float(rng.exponential())
            p = round(float(1 / (1 + np.exp(1 - x))), 4)
            out.append(InferenceEvent(
                event_time_us=START_US + hour * HOUR_US + at, model=MODEL, principal=caller or f"c{rng.integers(9)}",
                features={"x": round(x, 4), "y": round(y, 4), "c": str(rng.choice(["a", "b"]))}, model_version=version,
                prediction="yes" if p > 0.5 else "no", scores=[1 - p, p], class_names=["no", "yes"],
            ))  # fmt: skip
    return out


def jsonl(file: Path, events: Iterable[InferenceEvent]) -> Path:
    """Events as a file of native ones."""
    with file.open("w") as out:
        for e in events:
            row = {"event_time": e.event_time_us // 1000, "model": e.model, "principal": e.principal, "features": e.features,
                   "model_version": e.model_version, "prediction": e.prediction, "scores": e.scores, "class_names": e.class_names, "sampling_fraction": e.sampling_fraction}  # fmt: skip
            out.write(json.dumps(row) + "\n")
    return file


def service(folder: Path, model: dict[str, Any], *, url: str | None = None, **sections: Any) -> Service:
    """A service of one model over a store in the folder; the log is its clock."""
    store = {"path": "data"} | ({} if url is None else {"database": url})
    told = {"clock": "log", "privacy": {"principals": "plain"}, "store": store, "models": {MODEL: model}, **sections}
    file = folder / "lanner.yaml"
    file.write_text(json.dumps(told))
    if url is not None:
        engine = open_state(url)
        migrate(engine)
        engine.dispose()
    return open_service(load(file), "test")


def feed(run: Service, events: Sequence[InferenceEvent | FeedbackEvent], *, tick: bool = True) -> None:
    """Append, publish and tick."""
    claim = run.log.claim("s", "test", [("t", 0)])["t", 0]
    at, high = claim.next_offset or 0, max(e.event_time_us for e in events if isinstance(e, InferenceEvent))
    placed = [Placed("t", 0, at + i, e) for i, e in enumerate(events)]
    step = Advance("t", 0, claim.epoch, at or None, at + len(events), high)
    run.log.append(IngestBatch(source="s", received_us=high, parts=placed, advances=[step]))
    run.publisher().publish(run.tables[MODEL].model_id, high)
    if tick:
        run.model(MODEL, high).tick("test", high, clock="log")
