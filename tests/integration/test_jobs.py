"""Batch jobs and replay at the command line: exit codes, JSON, reproducibility, gaps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from alerts.text import number
from benchmarks.traffic import victim
from monitor.config import load
from monitor.service.compose import open_service
from monitor.store.schema import ledger
from tests.stories import MODEL, story, write_config, write_jsonl

LANNER = Path(sys.executable).parent / "lanner"


def lanner(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user calls it."""
    return subprocess.run([LANNER, *map(str, args)], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with a file source that holds the story."""
    where = tmp_path_factory.mktemp("jobs")
    write_config(
        where,
        clock="log",
        privacy={"principals": "plain"},
        sources={"old": {"type": "files", "paths": ["log.jsonl"], "follow": False}},
    )
    write_jsonl(where / "log.jsonl", story().log)
    return where


def test_collect_check_and_exit_codes(folder: Path) -> None:
    """`collect --once` reads the files; `check` judges them once and exits 3 when asked to fail on what it finds, again and again."""
    assert lanner("collect", "--once", cwd=folder).returncode == 0
    first = lanner("check", "--json", "--fail-on", "minor", cwd=folder)
    assert first.returncode == 3, first.stderr
    report = json.loads(first.stdout)["models"][MODEL]
    assert report["judged_now"] > 300
    assert {a["event"] for a in report["alerts"]} >= {"FeatureDrift", "AttackSuspected"}
    second = lanner("check", "--json", "--fail-on", "minor", cwd=folder)
    again = json.loads(second.stdout)["models"][MODEL]
    assert (second.returncode, again["judged_now"], again["alerts"]) == (3, 0, report["alerts"])
    quiet = lanner("check", "--json", "--fail-on", "minor", "--to", "2026-03-03T00:00:00Z", cwd=folder)
    assert quiet.returncode == 0
    assert json.loads(quiet.stdout)["models"][MODEL]["alerts"] == []


def test_backfill_fills_gaps_and_opens_nothing(folder: Path) -> None:
    """Windows that the ledger holds as gaps are judged on counts rebuilt from the event log; incidents stay as they were."""
    assert lanner("collect", "--once", cwd=folder).returncode == 0
    before = json.loads(lanner("check", "--json", cwd=folder).stdout)["models"][MODEL]
    service = open_service(load(folder / "lanner.yaml"), "test")
    with service.engine.begin() as conn:
        ends = sorted(set(conn.scalars(sa.select(ledger.c.end_us).where(ledger.c.monitor == "marginals"))))[5:9]
        conn.execute(
            ledger.update().where(ledger.c.end_us.in_(ends), ledger.c.monitor == "marginals").values(outcome="gap", n=0)
        )
    service.close()
    done = lanner("backfill", "--from", "2026-03-02T00:00:00Z", "--to", "2026-03-04T00:00:00Z", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["models"][MODEL]
    assert report["judged_now"] == 4
    assert [w["detail"] for w in report["windows"]].count("backfilled") == 4
    assert "gap" not in {w["outcome"] for w in report["windows"]}
    after = json.loads(lanner("check", "--json", cwd=folder).stdout)["models"][MODEL]
    assert after["alerts"] == before["alerts"]


def test_replay_is_the_same_byte_for_byte(folder: Path) -> None:
    """Two replays print the same lines; shuffled rows do too; JSON alone is on stdout and the throughput on stderr."""
    one = lanner("replay", "--json", "log.jsonl", cwd=folder)
    two = lanner("replay", "--json", "log.jsonl", cwd=folder)
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout != ""
    assert "events/s" in one.stderr
    lines = [json.loads(x) for x in one.stdout.splitlines()]
    assert set(lines[0]) == {
        "time", "action", "alert_id", "event", "family", "severity", "model", "subject", "detector", "statistic", "threshold",
        "p_value", "log_e", "n", "window", "techniques", "text", "evidence",
    }  # fmt: skip
    assert [x["time"] for x in lines] == sorted(x["time"] for x in lines)
    attack = next(x for x in lines if x["event"] == "AttackSuspected")
    assert attack["subject"] == {"kind": "principal", "id": "mallory"}
    assert attack["evidence"]["principals"] == ["mallory"]
    assert attack["evidence"]["detectors"]
    drift = next(x for x in lines if x["event"] == "FeatureDrift")
    assert abs(sum(f["share"] for f in drift["evidence"]["features"]) - 1) < 0.2
    moved = {c["name"]: c for c in drift["evidence"]["changes"]}[victim(MODEL).columns[3].name]
    assert moved["measure"] == "mean"
    assert moved["in_sd"] > 1.0
    assert f"mean {number(moved['before'])} to {number(moved['after'])}" in drift["text"]
    assert drift["evidence"]["explained_by"] is None  # all clients moved
    assert drift["evidence"]["score"]


def test_replay_reads_parquet_and_delta(folder: Path) -> None:
    """The same events as Parquet, and the event log's own Delta table, replay to the same incidents as JSON lines."""
    expected = lanner("replay", "--json", "log.jsonl", cwd=folder).stdout
    pq.write_table(pa.Table.from_pylist(list(story().log)), folder / "log.parquet")
    parquet = lanner("replay", "--json", "log.parquet", cwd=folder)
    assert parquet.stdout == expected, parquet.stderr
    assert lanner("collect", "--once", cwd=folder).returncode == 0
    lanner("check", cwd=folder)
    tables = [p.parent for p in (folder / "lanner-data" / "events").glob("*/_delta_log")]
    (table,) = [t for t in tables if any(t.rglob("*.parquet"))]
    delta = lanner("replay", "--json", table, cwd=folder)
    assert key(delta.stdout) == key(expected), delta.stderr


def key(output: str) -> list[Any]:
    """What a replay found, without the free text."""
    return [
        (x["time"], x["action"], x["event"], x["subject"], x["statistic"]) for x in map(json.loads, output.splitlines())
    ]


def test_replay_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    """A missing file is a usage error; undecodable lines are counted by reason; unknown models raise one incident per source."""
    missing = lanner("replay", "nowhere.jsonl", cwd=folder)
    assert missing.returncode == 2
    assert "nowhere.jsonl" in missing.stderr
    stray = {**story().log[0], "model": "shadow"}
    write_jsonl(folder / "odd.jsonl", [*story().log[:50], stray, stray])
    with (folder / "odd.jsonl").open("a") as out:
        out.write("{broken\n")
    odd = lanner("replay", "--json", "odd.jsonl", cwd=folder)
    assert odd.returncode == 0, odd.stderr
    assert "1 failed (bad_json)" in odd.stderr
    (line,) = [json.loads(x) for x in odd.stdout.splitlines()]
    assert (line["event"], line["subject"]["kind"]) == ("UnregisteredModel", "source")
    assert line["evidence"]["models"] == [{"name": "shadow", "events": 2}]
    assert lanner("replay", "-c", tmp_path / "none.yaml", "log.jsonl", cwd=folder).returncode == 78
