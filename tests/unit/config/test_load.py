"""What a good configuration becomes: layers, variables, secrets, defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from monitor.config import Config, load
from tests.servers import ROOT

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file, and others beside it."""

    def write_file(text: str, **others: str) -> Path:
        for name, content in others.items():
            (tmp_path / name).write_text(content)
        file = tmp_path / "lanner.yaml"
        file.write_text(text)
        return file

    return write_file


def test_two_lines_are_a_configuration(write: Write) -> None:
    """The smallest configuration loads, with safe defaults and paths relative to its file."""
    file = write("models:\n  card-fraud: {reference: {file: reference}}\n", reference="{}")
    config = load(file, env={})
    assert config.path(Path("reference")) == file.parent / "reference"
    assert config.privacy.principals == "hmac"
    assert config.server.bind.startswith("127.0.0.1:")


def test_environment_wins_over_file_and_flag_over_environment(write: Write) -> None:
    """Flag, then environment, then file, then default."""
    file = write("models: {card-fraud: {tier: 3, owner: a, customer: c}}\n")
    env = {"LANNER_MODELS__CARD_FRAUD__TIER": "1", "LANNER_MODELS__CARD_FRAUD__OWNER": "b"}
    model = load(file, {"models": {"card-fraud": {"owner": "flag"}}}, env).models["card-fraud"]
    assert (model.tier, model.owner, model.customer) == (1, "flag", "c")


def test_secret_files_lie_between_environment_and_file(write: Write, tmp_path: Path) -> None:
    """A file of LANNER_SECRETS_DIR wins over the YAML file and loses to the environment."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "store__database").write_text("sqlite:///from-secret\n")
    (folder / "ENVIRONMENT").write_text("secret\n")
    file = write("models: {m: {}}\nenvironment: file\nstore: {database: 'sqlite:///from-file'}\n")
    config = load(file, env={"LANNER_SECRETS_DIR": str(folder), "LANNER_ENVIRONMENT": "variable"})
    assert config.store.database == SecretStr("sqlite:///from-secret")
    assert config.environment == "variable"


def test_lists_and_new_entries_come_as_variables(write: Write) -> None:
    """A variable may add an entry; lists and mappings are JSON."""
    env = {
        "LANNER_SINKS": '{"out": {"type": "console"}}',
        "LANNER_SOURCES__LOGS__TYPE": "files",
        "LANNER_SOURCES__LOGS__PATHS": '["a.jsonl", "b.jsonl"]',
    }
    config = load(write("models: {m: {}}\n"), env=env)
    assert config.sources["logs"].paths == ("a.jsonl", "b.jsonl")
    assert config.sinks["out"].type == "console"


def test_test_variables_are_let_through(write: Write) -> None:
    """LANNER_TEST_ variables are the tests' own."""
    assert load(write("models: {m: {}}\n"), env={"LANNER_TEST_KAFKA": "127.0.0.1:9092"}).models


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${SITE}", "Doha"),
        ("at ${SITE}!", "at Doha!"),
        ("${UNSET:-Lab}", "Lab"),
        ("${EMPTY:-Lab}", "Lab"),
        ("'${UNSET:-}x'", "x"),
        ("${SITE:?needed}", "Doha"),
        ("$${SITE}", "${SITE}"),
    ],
)
def test_variables_in_values(write: Write, text: str, value: str) -> None:
    """${VAR} stands for its value, :- gives a default, $${ is the text itself."""
    file = write(f"models: {{m: {{}}}}\nenvironment: {text}\n")
    assert load(file, env={"SITE": "Doha", "EMPTY": ""}).environment == value


def test_yaml_means_what_it_looks_like(write: Write) -> None:
    """no, on, 12:30 and dates are text; unquoted variables may be numbers."""
    file = write("models: {NO: {classes: [ok, no, on, 2026-11-22]}, m: {tier: '${TIER:-1}'}}\n")
    config = load(file, env={})
    assert config.models["NO"].classes == ("ok", "no", "on", "2026-11-22")
    assert config.models["m"].tier == 1


def test_secrets_are_read_from_files_and_never_printed(write: Write) -> None:
    """A *_file is read into its secret, and no form of printing shows it."""
    text = "models: {m: {}}\nsinks: {soc: {type: alerta, url: 'http://127.0.0.1:1', key_file: alerta-key}}\n"
    config = load(write(text, **{"alerta-key": "s3cret\n"}), env={})
    key = config.sinks["soc"].key
    assert key is not None
    assert key.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(config) + str(config) + config.model_dump_json()


def test_environment_secret_wins_over_secret_file(write: Write) -> None:
    """A secret in the environment replaces the one that the file points to."""
    text = "models: {m: {}}\nstore: {database_file: nowhere}\n"
    config = load(write(text), env={"LANNER_STORE__DATABASE": "sqlite:///x"})
    assert config.store.database == SecretStr("sqlite:///x")


def test_configuration_is_frozen(write: Write) -> None:
    """Nothing can be set on a loaded configuration."""
    with pytest.raises(ValidationError):
        load(write("models: {m: {}}\n"), env={}).environment = "x"


def _settings(section: type[BaseModel], seen: set[type]) -> set[str]:
    """The names of all settings from this section down."""
    names = set(section.model_fields)
    seen.add(section)
    for field in section.model_fields.values():
        todo: list[Any] = [field.annotation]
        while todo:
            at = todo.pop()
            todo += getattr(at, "__args__", ())
            if isinstance(at, type) and issubclass(at, BaseModel) and at not in seen:
                names |= _settings(at, seen)
    return names


def test_example_is_complete_and_passes_without_environment() -> None:
    """The example names every setting, and loads with no variable set."""
    file = ROOT / "config" / "lanner.example.yaml"
    assert load(file, env={}).models
    text = file.read_text()
    assert [n for n in sorted(_settings(Config, set()) - {"folder"}) if f"{n}:" not in text] == []


def test_commented_settings_of_the_example_are_right_too(tmp_path: Path) -> None:
    """What the example shows as comments is valid once the comment signs are gone."""
    lines = (ROOT / "config" / "lanner.example.yaml").read_text().splitlines()
    shown = [line.replace("#~ ", "", 1) if line.lstrip().startswith("#~ ") else line for line in lines]
    for name in ("reference.jsonl", "training.parquet", "canaries.jsonl", "alerta-key", "token",
                 "siem-ca.pem", "lanner.pem", "lake-key", "lake-ca.pem", "chat-address"):  # fmt: skip
        (tmp_path / name).write_text("x")
    (tmp_path / "kafka-password").write_text("x")
    (tmp_path / "principals.yaml").write_text("- {id: svc-batch-*, profile: batch}")
    (tmp_path / "database-url").write_text("postgresql+psycopg://lanner@db/lanner")
    file = tmp_path / "lanner.yaml"
    file.write_text("\n".join(shown))
    assert load(file, env={}).sources["house"].password is not None


def test_schema_accepts_the_example() -> None:
    """The JSON Schema describes the file as people write it: durations and budgets as text, no inner fields."""
    schema = Config.model_json_schema()
    assert schema["$defs"]["Budgets"]["properties"]["drift"]["type"] == "string"
    assert json.dumps(schema)
    written = yaml.safe_load((ROOT / "config" / "lanner.example.yaml").read_text())
    assert set(written) <= set(schema["properties"])
