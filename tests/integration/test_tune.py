"""`lanner tune`: history judged again under several budgets; nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from detectors.profile import Profile
from monitor.cli import COMMANDS
from monitor.cli.tune import tune
from monitor.errors import UsageError
from monitor.model import HOUR_US, parse_time_us
from monitor.service import renewal
from monitor.service import tune as tuning
from monitor.store import counts, ledger
from monitor.store.schema import metadata
from tests.smalllogs import MODEL, START_US, feed, jsonl, made, service

import typer  # isort: skip


def command() -> typer.Typer:
    """The command as an application of its own."""
    app = typer.Typer()
    app.command()(tune)
    return app


def rows(engine: sa.Engine) -> dict[str, int]:
    """Rows of every table, leases and what calibrating stores left out."""
    with engine.connect() as conn:
        return {
            t.name: conn.execute(sa.select(sa.func.count()).select_from(t)).scalar_one()
            for t in metadata.sorted_tables
            if t.name != "leases"
        }


def test_budgets_are_compared_and_nothing_is_written(tmp_path: Path) -> None:
    """A drift that a generous budget finds early a strict one finds later; the service's own budget finds what it found."""
    assert "tune" in {e.name for e in COMMANDS}
    jsonl(tmp_path / "a.jsonl", made(range(-150, 0)))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    feed(found, made(range(60), seed=2) + made(range(60, 100), seed=3, shift=0.8) + made(range(100, 101), seed=4))
    drift = ("PredictionDrift", "FeatureDrift")  # the scores follow x: either may come first
    (opened,) = [t for t in found.live[MODEL].committed if t.action == "open" and t.alert.event in drift]
    before = rows(found.engine)
    words = [MODEL, "-c", str(tmp_path / "lanner.yaml")]
    done = CliRunner().invoke(command(), [*words, "--json"], catch_exceptions=False)
    said = json.loads(done.stdout)
    by = {t["budget"]: t for t in said["budgets"]}
    assert list(by) == ["1/7d", "1/30d", "1/90d", "1/365d"]
    drifts = {b: [i for i in t["incidents"] if i["event"] in drift] for b, t in by.items()}
    times = [parse_time_us(d[0]["opened"]) for d in drifts.values()]
    assert times == sorted(times)
    assert times[0] < times[-1]
    assert times[0] > START_US + 60 * HOUR_US
    (own,) = drifts["1/30d"]
    last = [t for t in found.live[MODEL].committed if t.alert.alert_id == opened.alert.alert_id][-1]
    assert (parse_time_us(own["opened"]), own["severity"]) == (opened.time_us, last.alert.severity.value)
    assert {f["name"] for f in own["features"]} >= {"x", "score:yes"}
    assert by["1/30d"]["judged"] > 60
    assert rows(found.engine) == before
    text = CliRunner().invoke(command(), [*words, "--budget", "1/30d", "--attacks"], catch_exceptions=False).stdout
    assert "windows could be judged" in text
    assert text.count(own["event"]) == 1
    assert rows(found.engine) == before
    with pytest.raises(UsageError, match="not a budget"):
        CliRunner().invoke(command(), [*words, "--budget", "often"], catch_exceptions=False)
    found.close()


def test_history_is_counted_anew_when_the_segments_change(tmp_path: Path) -> None:
    """A model that gets segments is tuned on all its windows, before history is counted on them and after; no hour of
    the change is judged as empty, and what ticks counted since stays.
    """
    jsonl(tmp_path / "a.jsonl", made(range(-60, 0)))
    given = {"reference": {"file": "a.jsonl"}}
    found = service(tmp_path, given)
    feed(found, made(range(70), seed=2) + made(range(70, 71), seed=3)[:10])
    watched = found.model(MODEL, 1).watched
    assert renewal.rebuilt_since(found.engine, watched) is None
    renewal.attend(found, MODEL, 1)
    since_us = renewal.rebuilt_since(found.engine, watched)
    assert since_us is not None
    assert since_us <= START_US + 71 * HOUR_US - renewal.HISTORY_US
    found.close()

    found = service(tmp_path, {**given, "segments": ["c"]})
    feed(found, made(range(70, 71), seed=3)[10:] + made(range(71, 75), seed=4))
    watched, span = found.model(MODEL, 2).watched, (START_US, START_US + 75 * HOUR_US)
    (hour,) = (w for w in ledger.ledger_rows(found.engine, watched.model_id, *span) if w.monitor == "volume" and w.end_us == START_US + 71 * HOUR_US)  # fmt: skip
    assert hour.n == 20
    assert renewal.rebuilt_since(found.engine, watched) is None
    before = rows(found.engine)
    told = tuning.tune(found, MODEL, {"1/30d": 1 / (30 * 86_400)}, span, 3)
    assert rows(found.engine) == before
    assert renewal.rebuild(found, watched, 4) == 75
    assert renewal.rebuild(found, watched, 5) == 0
    assert tuning.tune(found, MODEL, {"1/30d": 1 / (30 * 86_400)}, span, 6) == told
    assert not told[0].incidents
    per_hour = [Profile.from_bytes(b) for b in counts.load(found.engine, watched.model_id, watched.reference_hash, *span).values()]  # fmt: skip
    assert {(p.n, p.key) for p in per_hour} == {(20, watched.bins.key)}
    found.close()
    found = service(tmp_path, given)
    plain = tuning.tune(found, MODEL, {"1/30d": 1 / (30 * 86_400)}, span, 7)
    assert plain[0].judged == told[0].judged
    found.close()


def test_time_before_what_was_rebuilt_is_counted_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a new reference, windows older than the counts that were rebuilt on it are judged on their rows, not as empty."""
    for name, seed in (("a", 1), ("b", 5)):
        jsonl(tmp_path / f"{name}.jsonl", made(range(-60, 0), seed=seed))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    feed(found, made(range(70), seed=2))
    found.close()
    found = service(tmp_path, {"reference": {"file": "b.jsonl"}})
    feed(found, made(range(70, 73), seed=3))
    monkeypatch.setattr(renewal, "HISTORY_US", 10 * HOUR_US)
    renewal.attend(found, MODEL, 1)
    watched, span = found.model(MODEL, 2).watched, (START_US, START_US + 73 * HOUR_US)
    since_us = renewal.rebuilt_since(found.engine, watched)
    assert since_us is not None
    assert since_us > START_US
    assert len(counts.load(found.engine, watched.model_id, watched.reference_hash, *span)) < 73
    (told,) = tuning.tune(found, MODEL, {"1/7d": 1 / (7 * 86_400)}, span, 3)
    (replayed,) = tuning.tune(found, MODEL, {"1/7d": 1 / (7 * 86_400)}, span, 4, attacks=True)
    assert (told.windows, told.judged) == (replayed.windows, replayed.judged)
    assert not [i for i in told.incidents if i.event == "TrafficAnomaly"]
    found.close()
