"""`lanner alerts ack`, `verdict`, `except`, `revoke`, `stats`, `lanner mark` and `maintain` over a real state store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monitor.cli.marks import maintain, mark
from monitor.cli.people import alerts, now_us
from monitor.cli.principals import principals
from monitor.config import directories, load
from monitor.errors import UsageError
from monitor.store import alertlog, people
from monitor.store.engine import migrate, open_state, read, write
from monitor.store.schema import audit
from tests.alerting import at, cleared, opened
from tests.integration.test_alert_commands import run

HOSTILE = "p<script>\x1b[2J\x00"


@pytest.fixture
def config(state_url: str, tmp_path: Path) -> Path:
    """A configuration over a store with an open and a cleared incident."""
    engine = open_state(state_url)
    migrate(engine)
    first, second = opened(HOSTILE, alert_id="a" * 36), opened("p2", opened_us=at(5), alert_id="b" * 36)
    made = [first, second, cleared(second)]
    with write(engine) as conn:
        alertlog.write(conn, [t.alert for t in made], made, at(100))
    engine.dispose()
    file = tmp_path / "lanner.yaml"
    file.write_text(f"models: {{m: {{}}, n: {{}}}}\nstore: {{database: '{state_url}'}}\n")
    return file


def said(app: Any, config: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    return json.loads(run(app, *words, "-c", str(config), "--json"))


def test_an_incident_is_taken_and_judged(config: Path) -> None:
    """Who, when and why stand beside the incident; the newest verdict counts, and all are kept."""
    done = said(alerts, config, "ack", "aaa", "--by", "ann", "--reason", "looking")
    assert (done["kind"], done["by"], done["why"], done["source"]) == ("ack", "ann", "looking", "cli")
    said(alerts, config, "verdict", "aaa", "undetermined", "--by", "bob", "--reason", "no logs", "--keep-open")
    said(alerts, config, "verdict", "aaa", "benign-true", "--by", "ann", "--reason", "a test <b>")
    said(alerts, config, "verdict", "aaa", "undetermined", "--by", "bob", "--reason", "still no logs")
    found = {a["alert_id"][0]: a for a in said(alerts, config, "list")["alerts"]}
    assert (found["a"]["verdict"]["verdict"], found["a"]["verdict"]["by"]) == ("benign-true", "ann")
    assert found["a"]["acknowledged"]["by"] == "bob"
    assert found["b"]["verdict"] is None
    shown = said(alerts, config, "show", "aaa")
    assert [x["verdict"] for x in shown["acts"]] == [None, "undetermined", "benign-true", "undetermined"]
    text = run(alerts, "show", "aaa", "-c", str(config)) + run(alerts, "list", "-c", str(config))
    assert "verdict benign-true by ann: a test \\x3cb\\x3e" in text
    assert "taken" in text
    assert not set("\x1b\x00") & set(text)


def test_a_verdict_waits_for_the_tick_that_applies_it(config: Path) -> None:
    """What closes is pending until then; what only says something is not."""
    said(alerts, config, "verdict", "aaa", "true", "--reason", "x", "--keep-open")
    assert _pending(config) == []
    said(alerts, config, "verdict", "aaa", "true", "--reason", "x")
    assert _pending(config) == ["a" * 36]


def _pending(config: Path) -> list[str]:
    url = config.read_text().split("'")[1]
    engine = open_state(url)
    with read(engine) as conn:
        found = [r.act.alert_id for r in people.pending(conn, "m")]
    engine.dispose()
    return found


def test_exceptions_are_made_listed_and_revoked(config: Path) -> None:
    """Narrow by default: the detectors of the incident, for thirty days; every step is audited."""
    made = said(alerts, config, "except", "aaa", "--reason", "monthly batch", "--max", "queries=5000", "--by", "ann")
    assert made["subject"] == {"kind": "principal", "id": HOSTILE}
    assert (made["detectors"], made["max"], made["by"]) == (["queries"], {"queries": 5000.0}, "ann")
    (held,) = said(alerts, config, "exceptions")["exceptions"]
    assert (held["exception_id"], held["hits"], held["revoked"]) == (made["exception_id"], 0, None)
    assert not set("\x1b\x00<") & set(run(alerts, "exceptions", "-c", str(config)))
    said(alerts, config, "revoke", made["exception_id"][:8], "--by", "bob")
    assert said(alerts, config, "exceptions")["exceptions"] == []
    (over,) = said(alerts, config, "exceptions", "--all")["exceptions"]
    assert over["revoked_by"] == "bob"
    engine = open_state(config.read_text().split("'")[1])
    with read(engine) as conn:
        trail = [(r.actor, r.action) for r in conn.execute(audit.select().order_by(audit.c.seq))]
    engine.dispose()
    assert trail == [("ann", "except"), ("bob", "revoke")]


def test_precision_is_told(config: Path) -> None:
    """Incidents of the period with their verdicts, per detector."""
    said(alerts, config, "verdict", "aaa", "false", "--reason", "x")
    found = said(alerts, config, "stats", "--days", "3660")
    assert found["models"] == 2
    (q,) = found["detectors"]
    assert (q["detector"], q["incidents"], q["precision"], q["verdicts"]["false"]) == ("queries", 2, 0.0, 1)
    assert "precision 0%" in run(alerts, "stats", "-c", str(config), "--days", "3660")


def test_marks_and_maintenance(config: Path) -> None:
    """A deploy is a moment, maintenance has an end; both are listed, and maintenance can end early."""
    deploy = said(mark, config, "add", "version 4 <b>", "--model", "m", "--by", "ci")
    assert (deploy["kind"], deploy["end"], deploy["by"]) == ("deploy", None, "ci")
    work = said(maintain, config, "start", "new disks", "--until", "2h")
    assert work["model"] is None
    assert [m["number"] for m in said(mark, config, "list")["marks"]] == [deploy["number"], work["number"]]
    assert [m["text"] for m in said(maintain, config, "list")["marks"]] == ["new disks"]
    assert said(maintain, config, "end", str(work["number"])) == {"ended": work["number"]}
    with pytest.raises(UsageError):
        run(maintain, "end", str(work["number"]), "-c", str(config))
    assert "<" not in run(mark, "list", "-c", str(config))


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (alerts, ("verdict", "zzz", "true", "--reason", "x")),
        (alerts, ("except", "aaa", "--reason", "x", "--for", "5y")),
        (alerts, ("except", "aaa", "--reason", "x", "--for", "800d")),
        (alerts, ("except", "aaa", "--reason", "x", "--max", "queries")),
        (alerts, ("except", "aaa", "--reason", "x", "--max", "queries=inf")),
        (alerts, ("revoke", "zzz")),
        (mark, ("add", "x", "--model", "nobody")),
        (mark, ("add", "x", "--kind", "maintenance")),
        (mark, ("add", "x", "--from", "yesterday")),
        (maintain, ("start", "x", "--until", "2020-01-01T00:00:00Z")),
    ],
)
def test_what_cannot_be_meant_is_refused(config: Path, app: Any, words: tuple[str, ...]) -> None:
    """A sentence and exit code 2; nothing is recorded."""
    with pytest.raises(UsageError):
        run(app, *words, "-c", str(config))
    assert _pending(config) == []


def test_uses_are_suggested_and_declared_by_whoever_writes_them_down(state_url: str, tmp_path: Path) -> None:
    """A caller whose incident looks like a tool, and one of whom a person said that there was a reason, become entries that
    the directory takes; an attack, and what somebody called a false alarm, do not. Names from logs stay what they are.
    """
    engine, now = open_state(state_url), now_us()
    migrate(engine)
    odd = HOSTILE.rstrip("\x00")
    tool = {"look_alike": {"profile": "explainer", "why": "84 of 97 strange queries are samples", "excused": 84}}
    like = {"look_alike": {"profile": "batch", "why_not": "it varies training rows"}}
    told = [(odd, tool), ("job", like), ("eve", like), ("thief", tool), ("nobody", tool)]
    made = [
        opened(who, alert_id=f"{i}" * 36, opened_us=now - 1000 - i, updated_us=now, evidence=said_of)
        for i, (who, said_of) in enumerate(told)
    ]
    with write(engine) as conn:
        alertlog.write(conn, [t.alert for t in made], made, now)
    engine.dispose()
    file = tmp_path / "lanner.yaml"
    file.write_text(f"models: {{m: {{}}}}\nstore: {{database: '{state_url}'}}\n")
    for place, verdict in ((1, "benign-true"), (3, "true"), (4, "false")):
        said(alerts, file, "verdict", str(place) * 4, verdict, "--by", "ann", "--reason", "monthly <b>")
    text = run(principals, "suggest", "m", "-c", str(file))
    assert "\x1b" not in text
    assert "verdict benign-true by ann: monthly \\x3cb\\x3e" in text
    (tmp_path / "principals.yaml").write_text(text)
    file.write_text("models: {m: {principals: principals.yaml}}\n")
    found = directories(load(file))["m"]
    assert {p.id: p.profile for p in found.principals} == {odd: "explainer", "job": "batch"}
    file.write_text(f"models: {{m: {{}}}}\nstore: {{database: '{state_url}'}}\n")
    assert [json.loads(line)["by"] for line in run(principals, "suggest", "m", "-c", str(file), "--json").splitlines()] == ["ann", None]  # fmt: skip
    with pytest.raises(UsageError, match="there is no model"):
        run(principals, "suggest", "x", "-c", str(file))
