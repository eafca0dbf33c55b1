"""Labels that come late through the whole pipeline, by replay: nothing about them is configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monitor.config import load
from monitor.model import Action
from monitor.service.replay import replay

START_MS = 1_790_000_000_000 // 3_600_000 * 3_600_000
HOUR_MS = 3_600_000


def log(hours: int, worse_from: int, rng: np.random.Generator) -> list[tuple[int, dict[str, Any]]]:
    """40 events an hour of a model that is right nine times in ten, then half the time; labels come three hours later."""
    rows: list[tuple[int, dict[str, Any]]] = []
    for hour in range(hours):
        for k in range(40):
            at, who = START_MS + hour * HOUR_MS + k * HOUR_MS // 40, f"r-{hour}-{k}"
            x = float(rng.normal())
            said = "fraud" if x > 1 else "ok"
            right = rng.random() < (0.9 if hour < worse_from else 0.5)
            truth = said if right else "ok" if said == "fraud" else "fraud"
            rows.append(
                (at, {"event_time": at, "model": "m", "request_id": who, "features": {"x": x}, "prediction": said})
            )
            label = {"kind": "feedback", "model": "m", "target": {"request_id": who}, "name": "label", "value": truth}
            rows.append((at + 3 * HOUR_MS, {**label, "label_time": at + 3 * HOUR_MS}))
    return sorted(rows, key=lambda r: r[0])


def test_decay_is_found_without_a_word_about_labels(tmp_path: Path) -> None:
    """Two lines of configuration: the delay of three hours is learnt, the decay opens one incident and says how it looked."""
    rows = [row for _, row in log(110, 95, np.random.default_rng(4))]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "ref.jsonl").write_text(
        "\n".join(json.dumps(r) for r in rows if "features" in r and rows.index(r) < 500)
    )
    (tmp_path / "lanner.yaml").write_text("models: {m: {reference: {file: ref.jsonl}}}\n")
    found = replay(load(tmp_path / "lanner.yaml", env={}), [tmp_path / "log.jsonl"])
    opened = [t for t in found.transitions if t.action is Action.OPEN and t.alert.event.value == "PerformanceDecay"]
    assert len(opened) == 1
    assert {f["name"] for f in opened[0].alert.evidence["features"]} >= {"error"}
    onset_h = (opened[0].alert.window_us[0] // 1000 - START_MS) / HOUR_MS
    assert 95 <= onset_h <= 101
    judged_after_h = (opened[0].time_us - opened[0].alert.window_us[1]) / 1000 / HOUR_MS
    assert round(judged_after_h, 3) == round(4 + 5 / 60, 3)
