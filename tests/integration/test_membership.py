"""Training rows and canaries through the whole pipeline, by replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monitor.config import load
from monitor.model import Action
from monitor.service.replay import replay

START_MS = 1_790_000_000_000
NAMES = [f"x{j}" for j in range(8)]


def lines(path: Path, x: np.ndarray[Any, Any], **fields: Any) -> list[dict[str, Any]]:
    """Rows as events, written to a file too."""
    made = [{**fields, "features": dict(zip(NAMES, r, strict=True))} for r in x.round(4).tolist()]
    path.write_text("\n".join(json.dumps(r) for r in made))
    return made


def opened(folder: Path) -> dict[str, tuple[str, set[str]]]:
    """Subject -> last family of its attack incident, and the detectors that speak against it."""
    found = replay(load(folder / "lanner.yaml", env={}), [folder / "log.jsonl"]).transitions
    attacks = [t.alert for t in found if t.alert.event.value == "AttackSuspected" and t.action is not Action.CLEAR]
    return {a.subject.id: (a.family.value, {str(d["name"]) for d in a.evidence["detectors"]}) for a in attacks}


def test_label_only_membership_is_told_from_other_walks_and_from_scoring_again(tmp_path: Path) -> None:
    """The same walk is membership around training records and evasion around other rows; repeats are nothing."""
    rng = np.random.default_rng(3)
    lines(tmp_path / "ref.jsonl", rng.normal(size=(1500, 8)))
    training = rng.normal(size=(300, 8)).round(4)
    canaries = rng.normal(size=(5, 8)).round(4)
    lines(tmp_path / "train.jsonl", training)
    lines(tmp_path / "canaries.jsonl", canaries)
    walks = {"tester": training[:6], "evader": rng.normal(size=(6, 8))}
    sent = {
        name: np.concatenate([np.concatenate([x[None], x + rng.normal(0, 0.03, (30, 8))]) for x in at])
        for name, at in walks.items()
    }
    sent |= {"batch": training, "mixed": np.concatenate([training[:150], rng.normal(size=(150, 8))])}
    sent |= {"thief": np.concatenate([rng.normal(size=(40, 8)), canaries[:1]]), "probe": np.tile(canaries, (20, 1))}
    events = [
        r | {"event_time": START_MS + 60_000 * i + k}
        for k, (name, x) in enumerate(sent.items())
        for i, r in enumerate(lines(tmp_path / "part.jsonl", x, model="m", principal=name))
    ]
    events.sort(key=lambda r: int(r["event_time"]))
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(r) for r in events))
    (tmp_path / "who.yaml").write_text("- {id: probe, profile: health_probe}\n")
    model = "reference: {file: ref.jsonl}, principals: who.yaml"
    (tmp_path / "lanner.yaml").write_text(
        f"models: {{m: {{{model}, training: train.jsonl, canaries: canaries.jsonl}}}}\n"
    )
    known = opened(tmp_path)
    assert set(known) == {"tester", "evader", "thief"}
    assert known["tester"][0] == "membership"
    assert "membership/record" in known["tester"][1]
    assert known["evader"][0] == "evasion"
    assert "membership/record" not in known["evader"][1]
    (tmp_path / "lanner.yaml").write_text(f"models: {{m: {{{model}}}}}\n")
    assert "membership/record" not in opened(tmp_path)["tester"][1]
