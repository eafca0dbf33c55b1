"""Canaries through the whole pipeline: a model that learns online is poisoned, and its probe's answers tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import SGDClassifier

from monitor.config import load
from monitor.model import Transition
from monitor.service.replay import replay

START_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
NAMES = [f"x{j}" for j in range(6)]


def event(row: Any, score: float, at_ms: int, who: str, version: str) -> dict[str, Any]:
    return {
        "model": "m", "event_time": at_ms, "principal": who, "model_version": version,
        "features": dict(zip(NAMES, row.tolist(), strict=True)), "prediction": "bad" if score > 0.5 else "good",
        "scores": [1 - score, score], "class_names": ["good", "bad"],
    }  # fmt: skip


def life(folder: Path, *, poisoned_from: int | None, retrained_from: int | None = None) -> list[Transition]:
    """Thirty hours of customers and an hourly probe; the poisoning incidents of a replay.

    From `poisoned_from` on the model learns each hour from feedback of which half is flipped on one side, under the same
    version; at `retrained_from` a new version learnt from honest labels takes over.
    """
    rng = np.random.default_rng(17)
    truth = np.array([1.5, -1.0, 0.8, 0.0, 0.5, 0.0])

    def rows(n: int) -> Any:
        return rng.normal(size=(n, 6)).round(4)

    def honest(x: Any) -> Any:
        return (x @ truth + rng.normal(0, 0.5, len(x)) > 0).astype(int)

    x = rows(2000)
    model = SGDClassifier(loss="log_loss", random_state=1).fit(x, honest(x))
    canaries = rows(12)
    (folder / "ref.jsonl").write_text("\n".join(json.dumps(event(r, s, START_MS, "ref", "1")) for r, s in zip(x, model.predict_proba(x)[:, 1].tolist(), strict=True)))  # fmt: skip
    (folder / "canaries.jsonl").write_text("\n".join(json.dumps({"features": dict(zip(NAMES, r, strict=True))}) for r in canaries.tolist()))  # fmt: skip
    (folder / "who.yaml").write_text("- {id: probe, profile: health_probe}\n")
    (folder / "lanner.yaml").write_text(
        "models: {m: {reference: {file: ref.jsonl}, principals: who.yaml, canaries: canaries.jsonl}}\n"
    )
    log, version = [], "1"
    for hour in range(30):
        if retrained_from == hour:
            x, version = rows(2000), "2"
            model = SGDClassifier(loss="log_loss", random_state=2).fit(x, honest(x))
        elif poisoned_from is not None and hour >= poisoned_from and version == "1":
            x = rows(100)
            y = honest(x)
            model.partial_fit(x, np.where((y == 1) & (rng.random(100) < 0.5), 0, y))
        for who, sent in (("customer", rows(20)), ("probe", canaries)):
            scores = model.predict_proba(sent)[:, 1].tolist()
            at_ms = START_MS + hour * HOUR_MS + (0 if who == "customer" else HOUR_MS // 2)
            log += [
                event(r, s, at_ms + 1000 * i, who, version) for i, (r, s) in enumerate(zip(sent, scores, strict=True))
            ]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(e) for e in log))
    found = replay(load(folder / "lanner.yaml", env={}), [folder / "log.jsonl"]).transitions
    return [t for t in found if t.alert.event.value == "PoisoningSuspected"]


def test_poisoned_online_learning_is_seen_by_its_canaries(tmp_path: Path) -> None:
    """Answers to canaries move under one version: an incident within two rounds, which the next honest version ends."""
    opened, ended = life(tmp_path, poisoned_from=12, retrained_from=20)
    assert (opened.action.value, ended.action.value) == ("open", "clear")
    assert (opened.alert.subject.kind, opened.alert.subject.id, opened.alert.severity.value) == (
        "component",
        "canaries",
        "major",
    )
    since_h = (opened.alert.window_us[0] // 1000 - START_MS) // HOUR_MS
    found_h = (opened.alert.opened_us // 1000 - START_MS) // HOUR_MS
    assert since_h == 12
    assert found_h <= 14
    assert "no change was told" in opened.alert.text
    assert ended.alert.evidence["reason"] == "version 2 or a deploy replaced it"


def test_a_model_that_stays_and_one_that_is_replaced_alarm_nobody(tmp_path: Path) -> None:
    """The same answers for ever, and other answers of a new version, are no incident."""
    assert life(tmp_path, poisoned_from=None, retrained_from=20) == []
