"""`lanner decode` and `lanner deadletter` over files, a real topic, and a real state store."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import typer
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from typer.testing import CliRunner, Result

from collectors.base import IngestSettings
from collectors.decode import decoder_for
from collectors.files import FileCollector
from collectors.ingest import Ingester
from monitor.cli import ingest as ingest_commands
from monitor.cli.ingest import deadletter
from monitor.config import load
from monitor.errors import FencedOut, UsageError
from monitor.service.compose import open_service
from monitor.store import deadletters, schema
from monitor.store.engine import migrate, open_state

GOOD = {"ts": 1_767_225_600, "in": {"amount": 3, "note": "\x1b[31mred"}, "who": "ann"}
STATE_US = 1_767_225_700_000_000


def configured(folder: Path, state_url: str, features: str = "/in") -> Path:
    """A configuration of one source of a house format."""
    file = folder / "lanner.yaml"
    file.write_text(
        f"""
models: {{m: {{}}}}
store: {{database: '{state_url}', path: '{folder / "store"}'}}
privacy: {{principals: plain}}
sources:
  house: {{type: files, paths: ['*.jsonl'], decoder: field_map, follow: false, max_poison: 1.0}}
decoders:
  field_map:
    house: {{model: 'const:m', event_time: {{from: /ts, unit: s}}, features: {features}, principal: /who}}
"""
    )
    return file


@pytest.fixture
def config(tmp_path: Path, state_url: str) -> Path:
    """The same over an empty state store of each kind."""
    engine = open_state(state_url)
    migrate(engine)
    engine.dispose()
    return written(tmp_path, state_url)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A configuration whose state store is never opened."""
    return written(tmp_path, "sqlite:////nowhere/state.db")


def written(tmp_path: Path, state_url: str) -> Path:
    """Three messages of a house format: two that the map reads, one that it does not."""
    lines = [GOOD, {**GOOD, "in": None, "input": {"amount": 4}}, {**GOOD, "who": "bob"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    return configured(tmp_path, state_url)


def decode(*words: str, stdin: str | None = None) -> Result:
    """`lanner decode` with these words."""
    alone = typer.Typer()
    alone.command()(ingest_commands.decode)
    return CliRunner().invoke(alone, list(words), input=stdin, catch_exceptions=False)


def letters(*words: str, code: int = 0) -> str:
    """What a `lanner deadletter` command prints on stdout."""
    result = CliRunner().invoke(deadletter, list(words), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


def ingest(config: Path) -> None:
    """Reads the source into the store, as the service does."""
    loaded = load(config)
    service = open_service(loaded, "test")
    source = FileCollector("house", [str(config.parent / "*.jsonl")], follow=False)
    settings = IngestSettings(max_poison=1.0)
    reader = Ingester(source, decoder_for("house", loaded), service.log, settings, "test", lambda: STATE_US, str)
    reader.drain(threading.Event())
    reader.close()
    service.engine.dispose()


def test_decode_shows_what_becomes_of_a_sources_messages(sample: Path) -> None:
    """Each message on its line, the failing one with its reason, and nothing that a terminal would obey."""
    result = decode("-c", str(sample))
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 3
    assert "model=m principal=ann features(amount=3.0" in lines[0]
    assert "FAILED missing_field: the message holds no features" in lines[1]
    assert "\x1b" not in result.output
    assert "3 messages, 2 decoded, 1 not; missing_field 1" in result.stderr


def test_decode_speaks_json(sample: Path) -> None:
    """One object a message: its parts, or its error."""
    found = [json.loads(line) for line in decode("-c", str(sample), "--json", "--limit", "2").stdout.splitlines()]
    assert found[0]["parts"][0]["features"]["amount"] == 3.0
    assert found[0]["parts"][0]["event_time"] == "2026-01-01T00:00:00.000Z"
    assert found[1]["error"]["reason"] == "missing_field"
    assert [f["offset"] for f in found] == [0, 1]


def test_decode_reads_stdin_and_fails_when_nothing_decodes(sample: Path) -> None:
    """A recent message can be piped in; exit code 1 when no message at all becomes an event."""
    result = decode("-c", str(sample), "--json", "-", stdin='{"ts": "x", "in": {"a": 1}}\n\nnot json\n')
    assert result.exit_code == 1
    assert [json.loads(line)["error"]["reason"] for line in result.stdout.splitlines()] == ["bad_time", "bad_json"]


def test_decode_names_what_it_does_not_know(sample: Path) -> None:
    """A source or a file that is not there is a usage error."""
    for words in (["--source", "hause"], ["nowhere.jsonl"]):
        with pytest.raises(UsageError, match=r"hause|nowhere"):
            decode("-c", str(sample), *words)


def test_decode_looks_at_a_topic(kafka: str, tmp_path: Path) -> None:
    """Without files the latest messages of the topic itself are shown."""
    topic = f"look-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic(topic, 2, 1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=kafka)
    for n in range(8):
        event = {"event_time": "2026-01-01T00:00:00Z", "model": "m", "features": {"n": n}}
        producer.send(topic, json.dumps(event).encode(), partition=n % 2, timestamp_ms=1_767_225_600_000 + n)
    producer.flush()
    producer.close()
    file = tmp_path / "lanner.yaml"
    file.write_text(f"models: {{m: {{}}}}\nsources: {{log: {{type: kafka, topic: {topic}, bootstrap: '{kafka}'}}}}\n")
    shown = [json.loads(line) for line in decode("-c", str(file), "--json", "--limit", "3").stdout.splitlines()]
    assert [m["parts"][0]["features"]["n"] for m in shown] == [5, 6, 7]


def test_a_dead_letter_is_listed_shown_and_redriven_once(config: Path, state_url: str) -> None:
    """After the map is mended the message becomes an event, in the same transaction that marks it."""
    ingest(config)
    (listed,) = [json.loads(line) for line in letters("list", "-c", str(config), "--json").splitlines()]
    assert (listed["source"], listed["offset"], listed["reason"], listed["state"]) == (
        "house",
        1,
        "missing_field",
        "new",
    )
    assert "missing_field" in letters("list", "-c", str(config))
    shown = letters("show", str(listed["id"]), "-c", str(config))
    assert '"input": {"amount": 4}' in shown
    assert "\x1b" not in shown

    again = json.loads(letters("redrive", str(listed["id"]), "-c", str(config), "--json", code=1))
    assert again == {"redriven": [], "failed": {str(listed["id"]): {"reason": "missing_field", "detail": "the message holds no features"}}}  # fmt: skip
    configured(config.parent, state_url, features="/input")
    assert json.loads(letters("redrive", "--all", "-c", str(config), "--json")) == {
        "redriven": [listed["id"]],
        "failed": {},
    }
    assert letters("list", "-c", str(config), "--json") == ""
    assert json.loads(letters("list", "-c", str(config), "--state", "redriven", "--json"))["id"] == listed["id"]

    engine = open_state(state_url)
    with engine.connect() as conn:
        assert conn.scalar(sa.select(sa.func.sum(schema.segments.c.rows))) == 3
        assert conn.scalar(sa.select(schema.partitions.c.next_offset)) == 3, "no offset moves"
    engine.dispose()
    with pytest.raises(UsageError, match="dealt with already"):
        letters("redrive", str(listed["id"]), "-c", str(config))


def test_two_people_redriving_one_letter_make_one_event(config: Path, state_url: str) -> None:
    """The second one is refused whole, whatever it read before the first one stored."""
    from collectors.base import IngestBatch  # only this test writes a batch by hand

    ingest(config)
    configured(config.parent, state_url, features="/input")
    with closing(open_service(load(config), "late")) as late:
        (stored,) = deadletters.find(late.engine)
        letters("redrive", "--all", "-c", str(config))
        with pytest.raises(FencedOut, match="somebody else"):
            late.log.append(IngestBatch("house", STATE_US, [], redriven=[stored.id]))


@pytest.mark.parametrize("words", [["redrive"], ["redrive", "1", "--all"], ["show", "99"], ["list", "--state", "old"]])
def test_commands_that_do_not_fit_are_refused(config: Path, words: list[str]) -> None:
    """With what to write instead."""
    with pytest.raises(UsageError):
        letters(*words, "-c", str(config))
