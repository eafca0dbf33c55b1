"""Access, abuse and the directory of principals through the whole pipeline, by replay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monitor.config import load
from monitor.model import Action
from monitor.service.replay import Replayed, replay

START_MS = 1_790_000_000_000 // 3_600_000 * 3_600_000
HOUR_MS = 3_600_000
WHO = "- {id: 'loader-*', owner: qa, profile: load_test}\n"


def log(rng: np.random.Generator, later: int = 0) -> list[dict[str, object]]:
    """Nine days of six clients; in the last half day one roams, one floods, and a declared load test runs. For so many hours
    after it the others go on, and the roaming one comes back in the last of them.
    """
    rows: list[dict[str, object]] = []

    def call(hour: int, name: str, times: int, address: str = "10.0.0.1") -> None:
        rows.extend(
            {
                "event_time": START_MS + hour * HOUR_MS + int(rng.integers(HOUR_MS)), "model": "m", "principal": name,
                "credential_id": f"key-{name}", "source_ip": address, "features": {"x": float(rng.normal())},
            }
            for _ in range(times)
        )  # fmt: skip

    for hour in range(9 * 24):
        for name in ("svc-a", "svc-b", "svc-c", "svc-d", "svc-e", "loader-1"):
            call(hour, name, 1)
    for hour in range(204, 216):
        call(hour, "svc-b", 2, f"198.51.{hour}.7")
        call(hour, "svc-c", 300)
        call(hour, "loader-1", 300)
    for hour in range(216, 216 + later):
        for name in ("svc-a", "svc-d", "svc-e", *(["svc-b"] if hour == 215 + later else [])):
            call(hour, name, 1)
    return sorted(rows, key=lambda r: int(str(r["event_time"])))


def test_who_leaves_its_habits_is_told_of_and_who_is_declared_is_not(tmp_path: Path) -> None:
    """One incident each, of the right kind; the load test and the usual clients have none."""
    found = told(tmp_path, log(np.random.default_rng(4)))
    assert opened(found) == {("AccessAnomaly", "access", "svc-b"), ("AbuseSuspected", "abuse", "svc-c")}


def test_being_absent_and_back_opens_and_ends_nothing(tmp_path: Path) -> None:
    """The gauge of absences only tells: an incident of a caller that falls silent goes on."""
    found = told(tmp_path, log(np.random.default_rng(4), later=20))
    assert opened(found) == {("AccessAnomaly", "access", "svc-b"), ("AbuseSuspected", "abuse", "svc-c")}
    ended = {t.alert.subject.id for t in found.transitions if t.action is Action.CLEAR}
    assert not ended & {"svc-b", "svc-c"}


@pytest.mark.acceptance
def test_use_that_creeps_up_is_one_warning(tmp_path: Path) -> None:
    """Through months of a little more every week: one incident of that caller, open to the end, and none of the others."""
    rng, rows = np.random.default_rng(6), list[dict[str, object]]()
    for day in range(7 * 22):
        much = round(90 * 2 ** min(1, max(0, day - 60) / 50))
        for name, times in (("svc-a", 80), ("svc-b", 80), ("svc-c", much)):
            at = START_MS + day * 24 * HOUR_MS + rng.integers(2 * HOUR_MS, size=times)
            rows += [{"event_time": int(t), "model": "m", "principal": name, "features": {"x": 0.5}} for t in at]
    found = told(tmp_path, sorted(rows, key=lambda r: int(str(r["event_time"]))))
    (only,) = [t for t in found.transitions if t.alert.subject.kind == "principal"]
    assert (only.action, only.alert.event.value, only.alert.subject.id) == (Action.OPEN, "TrafficAnomaly", "svc-c")
    assert only.alert.severity.value == "warning"
    assert only.alert.evidence["fold"] >= 1.5


def told(tmp_path: Path, rows: list[dict[str, object]]) -> Replayed:
    """What a replay of the log tells."""
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (tmp_path / "ref.jsonl").write_text("\n".join(json.dumps(r) for r in rows[:300]))
    (tmp_path / "who.yaml").write_text(WHO)
    (tmp_path / "lanner.yaml").write_text("models: {m: {reference: {file: ref.jsonl}, principals: who.yaml}}\n")
    return replay(load(tmp_path / "lanner.yaml", env={}), [tmp_path / "log.jsonl"])


def opened(found: Replayed) -> set[tuple[str, str, str]]:
    """Incidents of callers."""
    return {
        (t.alert.event.value, t.alert.family.value, t.alert.subject.id)
        for t in found.transitions
        if t.action is Action.OPEN and t.alert.subject.kind == "principal"
    }
