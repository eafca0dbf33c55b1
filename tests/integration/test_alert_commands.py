"""`lanner alerts` and `lanner outbox` over a real state store."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alerts.console import Console
from monitor.cli.alerts import alerts, outbox
from monitor.errors import UsageError
from monitor.model import Action, Event, OutboxState, Severity, Transition
from monitor.store import alertlog
from monitor.store import outbox as store
from monitor.store.engine import migrate, open_state, write
from monitor.store.outbox import SqlOutbox
from tests import scenes
from tests.alerting import at, cleared, opened, updated

HOSTILE = "p<script>\x1b[2J\x00"


@pytest.fixture
def config(state_url: str, tmp_path: Path) -> Path:
    """A configuration over a store with one open, one cleared and one hostile alert, and two dead deliveries."""
    engine = open_state(state_url)
    migrate(engine)
    first, second, third = opened("p1"), opened("p2", opened_us=at(5)), opened(HOSTILE, opened_us=at(9))
    made = [first, second, updated(first, evidence={"queries": 5000, "principals": ["p1"]}), cleared(second), third]
    with write(engine) as conn:
        alertlog.write(conn, [t.alert for t in made], made, at(100))
        alertlog.write(conn, [t.alert for t in made[:1]], made[:1], at(200))  # a repeat changes nothing
        store.enqueue(conn, [first, third], lambda _: ["soc"], at(100))
    box = SqlOutbox(engine)
    for row in box.lease("me", at(100), 1_000_000, 10):
        box.settle(row.row_id, "me", OutboxState.DEAD, now_us=at(100), error="403: <b>bad</b> environment")
    engine.dispose()
    file = tmp_path / "lanner.yaml"
    file.write_text(f"models: {{m: {{}}}}\nstore: {{database: '{state_url}'}}\n")
    return file


def run(app: Any, *words: str) -> str:
    """What a command prints on stdout; its errors come up."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_incidents_are_listed_and_shown(config: Path) -> None:
    """The list has every incident in its newest state; show prints one with all its steps."""
    found = json.loads(run(alerts, "list", "-c", str(config), "--json"))["alerts"]
    assert [(a["subject"]["id"], a["open"], a["seq"]) for a in sorted(found, key=lambda a: a["opened"])] == [
        ("p1", True, 2), ("p2", False, 2), (HOSTILE, True, 1),
    ]  # fmt: skip
    assert len(json.loads(run(alerts, "list", "-c", str(config), "--json", "--open"))["alerts"]) == 2
    (chosen,) = [a for a in found if a["subject"]["id"] == "p1"]
    shown = json.loads(run(alerts, "show", chosen["alert_id"][:12], "-c", str(config), "--json"))
    assert [t["action"] for t in shown["transitions"]] == ["open", "update"]
    assert shown["alert"]["evidence"]["queries"] == 5000
    assert [(d["sink"], d["state"], d["error"]) for d in shown["deliveries"]] == [
        ("soc", "dead", "403: <b>bad</b> environment"),
    ]  # fmt: skip
    sheet = run(alerts, "show", chosen["alert_id"], "-c", str(config))
    for words in (
        "nobody is on it", "soc: state 1 dead (403: \\x3cb", "AML.T0024.002  Extract AI Model", '"queries": 5000',
        f"lanner alerts ack {chosen['alert_id'][:8]}",
    ):  # fmt: skip
        assert words in sheet


def test_a_limit_counts_only_what_fits(config: Path, state_url: str) -> None:
    """A limit hides nothing behind incidents that a filter leaves out, for every filter of the list."""

    def found(*words: str) -> list[str]:
        listed = json.loads(run(alerts, "list", "-c", str(config), "--limit", "1", "--json", *words))["alerts"]
        return [a["subject"]["id"] for a in listed]

    engine = open_state(state_url)
    kinds: list[dict[str, Any]] = [
        {"severity": Severity.CRITICAL, "updated_us": at(1)},
        {"model": "other", "updated_us": at(2)},
        {"event": Event.FEATURE_DRIFT, "updated_us": at(3)},
    ]
    older = [opened(f"older{i}", **kind) for i, kind in enumerate(kinds)]
    closing = cleared(opened("newest"), 900)
    with write(engine) as conn:
        alertlog.write(conn, [t.alert for t in [*older, closing]], [], at(1000))
    engine.dispose()
    assert found() == ["newest"]
    assert found("--min-severity", "critical") == ["older0"]
    assert found("--model", "other") == ["older1"]
    assert found("--event", "FeatureDrift") == ["older2"]
    assert found("--open") == ["older2"]


def test_a_terminal_is_shown_nothing_active(config: Path) -> None:
    """Names from logs and errors from servers are printed as harmless text."""
    out = run(alerts, "list", "-c", str(config)) + run(outbox, "list", "-c", str(config))
    assert "\\x3cscript\\x3e" in out
    assert not set("\x1b\x00<") & set(out)


def test_a_hostile_scene_is_harmless_in_every_command(state_url: str, tmp_path: Path) -> None:
    """Names from logs and from the configuration, the owner's too: no markup and no control on terminal and console."""
    engine = open_state(state_url)
    migrate(engine)
    scenes.seed(engine, windows=2, hostile=True)
    found = alertlog.find(engine)
    engine.dispose()
    file = tmp_path / "hostile.yaml"
    told = {"models": {m.name: {"owner": scenes.HOSTILE} for m in scenes.MODELS}, "store": {"database": state_url}}
    file.write_text(json.dumps(told))
    printed = [run(app, "list", "-c", str(file)) for app in (alerts, outbox)]
    printed += [run(alerts, "show", a.alert_id, "-c", str(file)) for a in found]
    printed += [run(alerts, "show", a.alert_id, "-c", str(file), "--json") for a in found]
    stream = StringIO()
    for a in found:
        Console(stream=stream).send(Transition(Action.UPDATE, a.updated_us, a), timeout_s=1)
    assert stream.getvalue().count("owner: \\x3cimg src") == len(found) == 3
    for text in (*printed, stream.getvalue()):
        assert not {c for c in text if not c.isprintable()} - {"\n"}
    for text in (*printed[: 2 + len(found)], stream.getvalue()):
        assert "<" not in text.split("evidence\n")[0]
        assert not [line for line in text.splitlines() if line.startswith("CLEARED")]


def test_dead_letters_are_listed_and_redriven(config: Path) -> None:
    """Dead rows show their reason; redrive makes them go out again."""
    rows = json.loads(run(outbox, "list", "-c", str(config), "--state", "dead", "--json"))["outbox"]
    assert len(rows) == 2
    assert rows[0]["error"] == "403: <b>bad</b> environment"
    assert json.loads(run(outbox, "redrive", rows[0]["row_id"][:13], "-c", str(config), "--json")) == {"redriven": 1}
    assert json.loads(run(outbox, "redrive", "--sink", "soc", "-c", str(config), "--json")) == {"redriven": 1}
    assert json.loads(run(outbox, "redrive", "--all", "-c", str(config), "--json")) == {"redriven": 0}
    assert len(json.loads(run(outbox, "list", "-c", str(config), "--state", "pending", "--json"))["outbox"]) == 2


def test_what_cannot_be_meant_is_said(config: Path, tmp_path: Path) -> None:
    """No such id, no choice, no store: each gets a sentence and exit code 2, and nothing is created."""
    for app, words in ((alerts, ("show", "zzz")), (outbox, ("redrive",)), (outbox, ("redrive", "zzz"))):
        with pytest.raises(UsageError):
            run(app, *words, "-c", str(config))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "lanner.yaml").write_text("models: {m: {}}\n")
    with pytest.raises(UsageError, match="nothing has been stored yet"):
        run(alerts, "list", "-c", str(empty / "lanner.yaml"))
    assert [p.name for p in empty.iterdir()] == ["lanner.yaml"]
