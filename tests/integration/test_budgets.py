"""Declared budgets on models whose answers are no labels, through a real event log and real ticks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from monitor.cli import app
from monitor.model import InferenceEvent
from tests import smalllogs


def regression(events: list[InferenceEvent]) -> list[InferenceEvent]:
    """The same events, answered with numbers."""
    return [
        msgspec.structs.replace(e, prediction=3.0 * float((e.features or {})["x"] or 0), scores=None, class_names=None)
        for e in events
    ]


@pytest.mark.parametrize("budget", [{"kappa": 0.5, "distinct_rows": 40}, {"kappa": 0.5}, {"distinct_rows": 40}])
def test_a_regression_model_keeps_its_budget_on_rows(tmp_path: Path, budget: dict[str, Any]) -> None:
    """A caller of a regression model who passes `distinct_rows` alarms; doctor says of `kappa` that it cannot."""
    smalllogs.jsonl(tmp_path / "ref.jsonl", regression(smalllogs.made(range(-48, 0))))
    (tmp_path / "principals.yaml").write_text(json.dumps([{"id": "thief*", "group": "partner", "budget": budget}]))
    run = smalllogs.service(tmp_path, {"reference": {"file": "ref.jsonl"}, "principals": "principals.yaml"})
    thieves = [smalllogs.made(range(3), 10, seed=i, caller=f"thief{i}") for i in (7, 8)]
    events = regression(sum(thieves, smalllogs.made(range(3), seed=2)))
    events.sort(key=lambda e: e.event_time_us)
    smalllogs.feed(run, events)
    opened = run.model(smalllogs.MODEL, smalllogs.START_US).committed
    found = [t.alert for t in opened if t.alert.event.value == "AttackSuspected"]
    assert bool(found) == ("distinct_rows" in budget)
    if found:
        assert found[0].family.value == "extraction"
    run.close()
    says = CliRunner().invoke(app, ["doctor", "-c", str(tmp_path / "lanner.yaml")]).output
    assert ("a declared kappa budget cannot alarm: the reference has 0 distinct rows" in says) == ("kappa" in budget)
    assert "a declared distinct_rows budget cannot alarm" not in says


def test_a_budget_that_no_monitor_reads_is_said(tmp_path: Path) -> None:
    """Where `exposure` is switched off, doctor says so of every declared budget."""
    smalllogs.jsonl(tmp_path / "ref.jsonl", smalllogs.made(range(-48, 0)))
    (tmp_path / "principals.yaml").write_text('[{"id": "c*", "budget": {"distinct_rows": 40}}]')
    off = {"e": {"model": smalllogs.MODEL, "detector": "exposure", "enabled": False}}
    model = {"reference": {"file": "ref.jsonl"}, "principals": "principals.yaml"}
    run = smalllogs.service(tmp_path, model, monitors=off)
    smalllogs.feed(run, smalllogs.made(range(3), seed=2))
    run.close()
    says = CliRunner().invoke(app, ["doctor", "-c", str(tmp_path / "lanner.yaml")]).output
    assert "a declared distinct_rows budget cannot alarm: no monitor runs exposure" in says
