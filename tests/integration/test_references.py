"""References as objects: built, checked, proposed, approved, compared; what is under suspicion stays out."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from monitor.cli.reference import reference
from monitor.errors import StoreError, UsageError
from monitor.model import HOUR_US, Alert, Event, Family, Subject, rfc3339
from monitor.service import frozen, health, references, renewal
from monitor.service.compose import open_service
from monitor.store import alertlog, ledger, queries
from monitor.store import references as store
from monitor.store.engine import write
from tests.alerting import opened
from tests.integration.test_alert_commands import run
from tests.smalllogs import MODEL, START_US, feed, jsonl, made, service


def said(folder: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    return json.loads(run(reference, *words, "-c", str(folder / "lanner.yaml"), "--json"))


def test_learn_observes_proposes_and_a_person_approves(state_url: str, tmp_path: Path) -> None:
    """After the time it was given Lanner proposes, once; rules run meanwhile; the approved one is judged by from the next tick."""
    found = service(tmp_path, {"reference": {"learn": "55h"}}, url=state_url)
    feed(found, made(range(50)))
    assert not found.live[MODEL].watched.bins.features
    renewal.attend(found, MODEL, 1)
    assert store.of_model(found.engine, found.tables[MODEL].model_id) == []
    feed(found, made(range(50, 60), seed=2))
    running = {m.name for m in found.live[MODEL].watched.monitors}
    for _ in range(2):
        renewal.attend(found, MODEL, 2)
    (row,) = store.of_model(found.engine, found.tables[MODEL].model_id)
    assert (row.state, row.version, row.approved_by) == ("proposed", 1, None)
    assert row.schema.numeric == ("x", "y")
    assert 1090 <= row.rows <= 1110
    assert found.live[MODEL].watched.reference_hash == references.NO_REFERENCE

    done = said(tmp_path, "approve", MODEL, "--by", "ann", "--reason", "a quiet week")
    assert (done["state"], done["current"]) == ("approved", True)
    assert done["approvals"][0]["by"] == "ann"
    feed(found, made(range(60, 63), seed=3))
    watched = found.live[MODEL].watched
    assert watched.reference_hash == row.reference_hash
    assert {m.name for m in watched.monitors} > running
    # History is counted on the new bins, the window under way whole, and judged from there on.
    counts = queries.counts(found.engine, watched.model_id, row.reference_hash, START_US, START_US + 62 * HOUR_US)
    assert {c.n for c in counts} == {20}
    assert len(counts) >= 60
    rows = [r for r in ledger.ledger_rows(found.engine, watched.model_id, 0, 1 << 60) if r.monitor == "marginals"]
    assert [(r.outcome, r.n) for r in rows][-1] == ("judged", 20)
    assert min(r.start_us for r in rows) == START_US + 48 * HOUR_US  # the longest window under way is a day's
    found.close()


def accused(model: str, event: Event, family: Family, subject: Subject, alert_id: str, **fields: Any) -> Alert:
    """An incident as a tick leaves it."""
    t = opened(subject.id, alert_id=alert_id)
    return replace(t.alert, model=model, event=event, family=family, subject=subject, **fields)


def test_nothing_under_suspicion_enters(tmp_path: Path) -> None:
    """Rows of the time of an incident and of accused callers are left out, counted and named, unless a person called it benign."""
    found = service(tmp_path, {"reference": {"learn": "500d"}})
    feed(found, made(range(60)) + made(range(60, 61), caller="mallory"))
    at = START_US + 10 * HOUR_US
    drift = accused(MODEL, Event.FEATURE_DRIFT, Family.DRIFT, Subject("model", MODEL), "a" * 36, opened_us=at, window_us=(at, at + HOUR_US),
                    cleared_us=START_US + 20 * HOUR_US, open=False)  # fmt: skip
    theft = accused(MODEL, Event.ATTACK_SUSPECTED, Family.EXTRACTION, Subject("principal", "mallory"), "b" * 36,
                    opened_us=at, window_us=(at, at), cleared_us=None)  # fmt: skip
    with write(found.engine) as conn:
        alertlog.write(conn, [drift, theft], [], at)
    until = rfc3339(START_US + 61 * HOUR_US)
    built = said(tmp_path, "build", MODEL, "--since", rfc3339(START_US), "--until", until)
    assert (built["rows"], built["state"], built["current"]) == (50 * 20, "built", False)
    assert built["excluded"] == {
        "rows": 11 * 20, "incidents": ["a" * 36, "b" * 36], "callers": 1,
        "times": [[rfc3339(at), rfc3339(START_US + 20 * HOUR_US)]],
    }  # fmt: skip
    frozen = pq.read_table(found.references / found.tables[MODEL].model_id / f"{built['hash']}.parquet")
    assert "mallory" not in frozen["principal"].to_pylist()
    with pytest.raises(UsageError, match="not proposed"):
        run(reference, "approve", MODEL, "-c", str(tmp_path / "lanner.yaml"))

    from monitor.cli.people import alerts  # the verdict brings the time back, not the caller

    run(alerts, "verdict", "aaa", "benign-true", "--reason", "a new product", "-c", str(tmp_path / "lanner.yaml"))
    again = said(tmp_path, "build", MODEL, "--since", rfc3339(START_US), "--until", until)
    assert (again["rows"], again["version"], again["excluded"]["incidents"]) == (60 * 20, 2, ["b" * 36])
    moved = said(tmp_path, "compare", MODEL)
    assert (moved["old"], moved["new"], {f["name"] for f in moved["features"]} >= {"x", "y", "c"}) == (1, 2, True)
    found.close()


def test_means_of_a_sampled_reference_are_those_of_its_traffic(tmp_path: Path) -> None:
    """Of the large x of a second reference a tenth is logged and says so: compared with the first its mean has not moved."""
    rng, all_of_them = np.random.default_rng(3), made(range(60), 40, seed=2)
    values = [float(str((e.features or {})["x"])) for e in all_of_them]
    kept = [i for i, x in enumerate(values) if x < 0 or rng.random() < 0.1]
    few = [msgspec.structs.replace(all_of_them[i], sampling_fraction=1.0 if values[i] < 0 else 0.1) for i in kept]
    jsonl(tmp_path / "a.jsonl", made(range(60), 40))
    jsonl(tmp_path / "b.jsonl", few)
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    found.model(MODEL, 1)
    said(tmp_path, "build", MODEL, "--file", str(tmp_path / "b.jsonl"))
    (x,) = (f for f in said(tmp_path, "compare", MODEL, "2", "1")["features"] if f["name"] == "x")
    assert x["mean"] == pytest.approx([0.0, 0.0], abs=0.12)
    assert np.mean([values[i] for i in kept]) < -0.5
    found.close()


def test_tier_one_needs_two_persons(tmp_path: Path) -> None:
    """The first approval changes nothing, the same person's second counts once, the second person's does it."""
    jsonl(tmp_path / "a.jsonl", made(range(60)))
    found = service(tmp_path, {"tier": 1, "reference": {"file": "a.jsonl"}})
    first = found.model(MODEL, 1).watched.reference_hash
    told = {d.subject.id: d for d in health.references(found, 1)}
    assert told[f"reference {MODEL}"].firing
    assert "version 1 waits" in told[f"reference {MODEL}"].evidence["reason"]
    (row,) = store.of_model(found.engine, found.tables[MODEL].model_id)
    assert (row.state, row.approved_by) == ("proposed", "configuration")  # used at once: there is no other, and said so
    jsonl(tmp_path / "b.jsonl", made(range(60), shift=1.0))
    other = said(tmp_path, "build", MODEL, "--file", str(tmp_path / "b.jsonl"))
    assert row.compared is None  # there was nothing before it
    assert other["compared"]["old"] == 1
    assert "x" in [f["name"] for f in other["compared"]["features"][:2]]
    proposed = run(reference, "propose", MODEL, "2", "--by", "ann", "--reason", "after the release", "-c", str(tmp_path / "lanner.yaml"))  # fmt: skip
    for words in (proposed, run(reference, "show", MODEL, "2", "-c", str(tmp_path / "lanner.yaml"))):
        assert re.search(
            r"most changed against version 1:\n(    .+\n)?    x: JS 0\.\d+, PSI .+, mean .+ to .+\n", words
        )
    for by, current in (("bob", False), ("bob", False), ("cem", True)):
        done = said(tmp_path, "approve", MODEL, "2", "--by", by)
        assert done["current"] is current
    assert [a["by"] for a in done["approvals"]] == ["bob", "cem"]
    assert not any(d.firing for d in health.references(found, 2))
    assert found.stale(MODEL)
    assert found.model(MODEL, 2).watched.reference_hash == other["hash"] != first
    # The configuration has said nothing new: a restart keeps what people approved.
    service(tmp_path, {"tier": 1, "reference": {"file": "a.jsonl"}}).close()
    restarted = open_service(found.config, "again")
    assert restarted.model(MODEL, 3).watched.reference_hash == other["hash"]
    restarted.close()
    # A file that the configuration names anew waits for the second person.
    jsonl(tmp_path / "c.jsonl", made(range(61)))
    third = service(tmp_path, {"tier": 1, "reference": {"file": "c.jsonl"}})
    assert third.model(MODEL, 4).watched.reference_hash == other["hash"]
    said(tmp_path, "approve", MODEL, "3", "--by", "ann")
    assert third.stale(MODEL)
    listed = said(tmp_path, "list")["references"]
    assert [(r["version"], r["current"]) for r in listed] == [(3, True), (2, False), (1, False)]
    third.close()
    found.close()


def test_a_table_and_a_time_of_the_log(tmp_path: Path) -> None:
    """A Delta table, a folder of Parquet and a time of the log are frozen when first read, and stand still while they grow."""
    events = made(range(60))
    names = ("event_time", "model", "principal", "prediction", "scores", "class_names", "features")
    rows = [json.loads(line) for line in jsonl(tmp_path / "rows.jsonl", events).read_text().splitlines()]
    table = pa.Table.from_pylist([{k: r[k] for k in names} for r in rows])
    write_deltalake(tmp_path / "delta", table)
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "1.parquet")
    for folder in ("delta", "parquet"):
        (tmp_path / f"run-{folder}").mkdir()
        given = {"reference": {"table": str(tmp_path / folder)}}
        found = service(tmp_path / f"run-{folder}", given)
        before = found.model(MODEL, 1).watched
        assert set(before.table.schema.numeric) == {"x", "y"}
        if folder == "delta":
            write_deltalake(tmp_path / folder, table, mode="append")
            again = service(tmp_path / f"run-{folder}", given)
            assert again.model(MODEL, 2).watched.reference_hash == before.reference_hash
            assert said(tmp_path / f"run-{folder}", "build", MODEL)["rows"] == 2 * len(rows)
            again.close()
        found.close()

    until_us = START_US + 55 * HOUR_US
    found = service(tmp_path, {"reference": {"since": rfc3339(START_US), "until": rfc3339(until_us)}})
    feed(found, made(range(54)))
    assert found.live[MODEL].watched.reference_hash == references.NO_REFERENCE  # its time is not over
    feed(found, made(range(54, 58), seed=2))
    renewal.attend(found, MODEL, 3)
    row = store.reference(
        found.engine, found.tables[MODEL].model_id, store.standing(found.engine, found.tables[MODEL].model_id).current
    )
    assert row is not None
    assert (row.rows, row.approved_by, row.state) == (55 * 20, "configuration", "approved")
    feed(found, made(range(58, 60), seed=3))
    assert found.live[MODEL].watched.reference_hash == row.reference_hash
    found.close()


def test_a_check_tells_findings_and_an_exit_code(tmp_path: Path) -> None:
    """`check` names what the rows lack; with --fail-on it exits 3; a model without references is a usage error."""
    jsonl(tmp_path / "a.jsonl", made(range(30)))
    found = service(tmp_path, {"reference": {"file": "a.jsonl"}})
    with pytest.raises(UsageError, match="no reference yet"):
        said(tmp_path, "show", MODEL)
    found.model(MODEL, 1)
    checked = said(tmp_path, "check", MODEL)
    assert {f["code"] for f in checked["findings"]} == {"few_rows", "short", "season"}
    text = run(reference, "show", MODEL, "-c", str(tmp_path / "lanner.yaml"))
    assert "alarms need 50 of history" in text
    words = ["check", MODEL, "-c", str(tmp_path / "lanner.yaml"), "--fail-on"]
    assert CliRunner().invoke(reference, [*words, "warn"]).exit_code == 3
    assert CliRunner().invoke(reference, [*words, "fail"]).exit_code == 0
    (copy,) = found.references.rglob("*.parquet")
    copy.write_bytes(copy.read_bytes() + b" ")
    with pytest.raises(StoreError, match="is not what was frozen"):
        said(tmp_path, "check", MODEL)
    copy.unlink()
    with closing(open_service(found.config, "again")) as other, pytest.raises(StoreError, match="is gone"):
        other.model(MODEL, 2)
    with pytest.raises(UsageError, match="versions fit"):
        said(tmp_path, "show", MODEL, "7")
    found.close()


def test_a_frozen_file_is_not_read_again_at_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features of a file that was frozen stand in the store; another file is read, and a new field that the configuration
    names gets its column all the same.
    """
    jsonl(tmp_path / "a.jsonl", made(range(30)))
    jsonl(tmp_path / "b.jsonl", made(range(40)))
    with closing(service(tmp_path, {"reference": {"file": "a.jsonl"}})) as first:
        first.model(MODEL, 1)
        before = first.tables
    monkeypatch.setattr(frozen, "reference_events", None)  # what cannot be called is not called
    with closing(open_service(first.config, "again")) as again:
        assert again.tables == before
    named = {"reference": {"file": "a.jsonl"}, "features": {"z": {"type": "number"}}}
    with closing(service(tmp_path, named)) as more:
        assert more.tables[MODEL].schema.numeric == ("x", "y", "z")
    with pytest.raises(TypeError):
        service(tmp_path, {"reference": {"file": "b.jsonl"}})
