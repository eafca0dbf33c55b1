"""What page and reports read, on both state stores; the report command; Evidently in its child process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from monitor.model import HOUR_US
from monitor.reports import evidently
from monitor.store import held, lookups, queries, references
from monitor.store.engine import migrate, open_state
from monitor.store.queries import Status
from tests import scenes


@pytest.fixture
def seeded(state_url: str) -> Iterator[sa.Engine]:
    """The scene, once on SQLite and once on PostgreSQL."""
    engine = open_state(state_url)
    migrate(engine)
    scenes.seed(engine, windows=30)
    yield engine
    engine.dispose()


def test_reads_are_the_same_on_both_stores(seeded: sa.Engine) -> None:
    """Models, windows, detections, counts, incidents, sources: every read of the page works and agrees with the scene."""
    models = queries.all_models(seeded, scenes.NOW_US, clock="wall", grace_us=0)
    assert [(m.name, m.status) for m in models] == [
        ("credit-limit", Status.ATTACK), ("card-fraud", Status.INCIDENT), ("churn", Status.HEALTHY),
    ]  # fmt: skip
    fraud = models[1]
    assert fraud.open == {"major": 1}
    assert fraud.judged_us == scenes.END_US
    assert fraud.lag_us == scenes.NOW_US - scenes.END_US
    assert len(fraud.volume) == len(fraud.evidence) == 30
    start = scenes.END_US - 10 * HOUR_US
    assert len(queries.windows(seeded, fraud.model_id, start, scenes.END_US)) == 20
    assert len(queries.windows(seeded, fraud.model_id, start, scenes.END_US, monitor="volume")) == 10
    assert len(queries.drift_detections(seeded, fraud.model_id, start, scenes.END_US)) == 10
    others = queries.other_detections(seeded, fraud.model_id, start, scenes.END_US)
    assert {(d.monitor, d.verdict) for d in others} == {("traffic", "ok"), ("feedback", "ok")}
    assert len(queries.counts(seeded, fraud.model_id, fraud.reference_hash, start, scenes.END_US)) == 10
    told = held.held_back(seeded, models[0], scenes.END_US - 4 * HOUR_US, scenes.END_US)
    assert [(held.callers(h), h.n) for h in told] == [(["svc-a", "svc-b"], 900)]
    told = held.held_back(seeded, models[0], 0, scenes.NOW_US)
    assert [(held.callers(h), h.n) for h in told[1:]] == [(["svc-lime"], 1024), (["svc-a"], 32)]
    assert [h.n for h in held.held_back(seeded, models[0], 0, scenes.NOW_US, "svc-a")] == [900, 32]
    assert held.held_back(seeded, fraud, 0, scenes.NOW_US) == []
    reference = references.reference(seeded, fraud.model_id, fraud.reference_hash)
    assert reference is not None
    assert reference.rows == 12_000
    assert [m.kind for m in queries.model_marks(seeded, "card-fraud", 0, scenes.NOW_US)] == ["deploy"]
    assert queries.model_marks(seeded, "churn", 0, scenes.NOW_US) == []
    assert lookups.open_counts(seeded) == {"critical": 1, "major": 1}
    assert {(s.sink, s.sent, s.dead) for s in lookups.sinks(seeded)} == {
        ("chat", 0, 6),
        ("console", 6, 0),
        ("soc", 6, 0),
    }
    dead = lookups.dead_letter_counts(seeded)[0]
    assert (dead.reason, dead.messages) == ("bad_json", 2)
    assert len(lookups.dead_letters_of(seeded, source="gateway", reason="bad_json")) == 2
    assert lookups.unregistered_names(seeded)[0].events == 1204
    assert len(lookups.all_partitions(seeded)) == 4
    assert lookups.backlog(seeded).unpublished_rows == 0
    assert [b.name for b in lookups.beats(seeded)] == ["publisher", "scheduler", "tick:card-fraud"]


def test_incidents_are_filtered_and_paged(seeded: sa.Engine) -> None:
    """State, severity, event, model and text narrow the list; wildcards in a text are letters."""

    def events(**wanted: object) -> list[str]:
        return [i.event for i in lookups.incidents(seeded, **wanted)[0]]  # type: ignore[arg-type]

    assert events() == ["AttackSuspected", "FeatureDrift", "TrafficAnomaly"]
    assert events(open=False) == ["TrafficAnomaly"]
    assert events(min_severity="critical") == ["AttackSuspected"]
    assert events(model="card-fraud") == events(event="FeatureDrift") == ["FeatureDrift"]
    assert events(text="c-7F3a") == ["AttackSuspected"]
    assert events(text="%") == events(text="_") == []
    first, cursor = lookups.incidents(seeded, limit=2)
    rest, end = lookups.incidents(seeded, limit=2, cursor=cursor)
    assert [i.event for i in (*first, *rest)] == events()
    assert end is None


def test_evidently_reports_in_a_child_without_network() -> None:
    """Evidently's page is made from a sample whose hostile names and values are spelled out."""
    rng = np.random.default_rng(1)
    w = scenes.Watched("m", {scenes.HOSTILE: (0, 1)}, {"c": (scenes.HOSTILE, "b")}, 1, (scenes.HOSTILE,))
    html = evidently.report(scenes.rows(w, 200, rng), scenes.rows(w, 200, rng, 1.0))
    assert "onerror=alert" not in html
    assert "x3cimg" in html


def test_the_report_command_writes_a_file_and_prints_only_json(tmp_path: Path) -> None:
    """`lanner report` writes one small file; with --json stdout is one JSON document with the page's numbers."""
    (tmp_path / "lanner-data").mkdir()
    engine = open_state(f"sqlite:///{tmp_path / 'lanner-data' / 'state.db'}")
    migrate(engine)
    scenes.seed(engine, windows=30)
    engine.dispose()
    (tmp_path / "lanner.yaml").write_text("models: {card-fraud: {owner: cards-ml}, churn: {}}\n")

    def lanner(*args: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "lanner"), "report", *args, "--no-evidently"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = lanner("card-fraud", "--out", "reports", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["report"] == "reports/card-fraud-report.html"
    assert said["features"]["amount"]["psi"] > 0
    assert "cards-ml" in (tmp_path / said["report"]).read_text()
    assert lanner("nothing").returncode == 2
    assert lanner("churn", "--from", "yesterday").returncode == 2
