"""The command line: light to start, plain in its errors, exact in its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from monitor.cli import COMMANDS, load_command
from tests.servers import ROOT

LANNER = Path(sys.executable).with_name("lanner")
HEAVY = ("pandas", "scipy", "numpy", "pyarrow", "evidently", "sqlalchemy", "pydantic", "fastapi", "kafka")


def lanner(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a fresh process."""
    return subprocess.run(
        [str(LANNER), *map(str, arguments)], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def test_help_imports_nothing_heavy() -> None:
    """`lanner --help` lists the commands without importing what they use."""
    code = f"""
import sys
sys.argv = ["lanner", "--help"]
from monitor.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print([m for m in {HEAVY} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "check-config" in done.stdout


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda e: e.name)
def test_every_command_of_the_table_exists(entry: object) -> None:
    """Each line of the table leads to a command with a help text."""
    command = load_command(entry)  # type: ignore[arg-type]
    assert command.help or isinstance(command, typer.core.TyperGroup)


def test_version() -> None:
    """--version prints the installed version."""
    assert lanner("--version").stdout == f"lanner {version('lanner')}\n"


def test_unknown_command_is_a_usage_error() -> None:
    """Usage errors end with exit code 2."""
    assert lanner("fly").returncode == 2


def test_bad_configuration_exits_78(tmp_path: Path) -> None:
    """Mistakes go to stderr with file and line, and the exit code is 78."""
    bad = ROOT / "tests/unit/config/bad/two-at-once.yaml"
    done = lanner("check-config", bad)
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == ["4", "5", "7"]


def test_json_is_all_that_goes_to_stdout() -> None:
    """With --json the same mistakes are one JSON document."""
    done = lanner("check-config", "--json", ROOT / "tests/unit/config/bad/two-at-once.yaml")
    assert done.returncode == 78
    assert [m["line"] for m in json.loads(done.stdout)["mistakes"]] == [4, 5, 7]


def test_names_are_checked_against_the_registries(tmp_path: Path) -> None:
    """A detector, a parameter or a decoder that this build lacks is a mistake with its line."""
    file = tmp_path / "lanner.yaml"
    file.write_text(
        "models: {m: {}}\n"
        "monitors:\n"
        "  a: {model: m, detector: marginal}\n"
        "  b: {model: m, detector: volume, params: {sensitivity: 3}}\n"
        "sources:\n"
        "  s: {type: files, paths: [x], decoder: nativ}\n"
    )
    done = lanner("check-config", file)
    assert done.returncode == 78
    assert "3: monitors.a.detector: there is no detector `marginal`; did you mean `marginals`?" in done.stderr
    assert "4: monitors.b.params.sensitivity: there is no parameter of volume `sensitivity`" in done.stderr
    assert "6: sources.s.decoder: there is no decoder `nativ`; did you mean `native`?" in done.stderr


def test_example_passes_check_config() -> None:
    """The example configuration of the repository is accepted as it stands."""
    done = lanner("check-config", ROOT / "config/lanner.example.yaml")
    assert done.returncode == 0, done.stderr


def test_schema_is_json_schema() -> None:
    """`config schema` prints a schema that knows the sections and not the inner field."""
    schema = json.loads(lanner("config", "schema").stdout)
    assert {"models", "sources", "sinks"} <= set(schema["properties"])
    assert "folder" not in schema["properties"]


def test_doctor_reports_the_packages() -> None:
    """`doctor` names what it looked at, and nothing has failed on a machine that runs the tests."""
    found = json.loads(lanner("doctor", "--json").stdout)
    states = {f["what"]: f["state"] for f in found}
    assert states["packages"] == states["dependencies"] == states["crc32c"] == "ok"


def test_doctor_sees_servers_that_do_not_answer(tmp_path: Path) -> None:
    """With -c a broker that does not answer is named, and the exit code is 4."""
    file = tmp_path / "lanner.yaml"
    file.write_text("models: {m: {}}\nsources: {s: {type: kafka, topic: t, bootstrap: '127.0.0.1:1'}}\n")
    done = lanner("doctor", "-c", file)
    assert "127.0.0.1:1 does not answer" in done.stdout
    assert done.returncode == 4


def test_doctor_sees_alerts_that_nobody_would_get(tmp_path: Path) -> None:
    """Routes made for attacks alone leave drift and Lanner's own silence without a sink, which is a warning."""
    file = tmp_path / "lanner.yaml"
    routes = "[{sinks: [out], families: [anomaly, extraction, evasion, membership, inversion]}]"
    file.write_text(f"models: {{m: {{}}}}\nsinks: {{out: {{type: console}}}}\nroutes: {routes}\n")
    (found,) = [f for f in json.loads(lanner("doctor", "-c", file, "--json").stdout) if f["what"] == "routes"]
    assert found["state"] == "warn"
    assert "DetectorSilent" in found["says"]
    assert "AttackSuspected" not in found["says"]
    file.write_text("models: {m: {}}\nsinks: {out: {type: console}}\n")
    assert "every kind of alert has a sink" in lanner("doctor", "-c", file).stdout


def test_doctor_sees_secrets_that_others_can_read(tmp_path: Path) -> None:
    """A secret file with open permissions is a warning."""
    (tmp_path / "key").write_text("k")
    (tmp_path / "key").chmod(0o644)
    file = tmp_path / "lanner.yaml"
    file.write_text("models: {m: {}}\nprivacy: {key_file: key}\n")
    assert "can be read by others" in lanner("doctor", "-c", file).stdout


def test_start_refuses_a_shadowing_package(tmp_path: Path) -> None:
    """A folder named like one of the packages, found first, stops the service with a sentence that names it."""
    (tmp_path / "alerts").mkdir()
    (tmp_path / "alerts" / "__init__.py").write_text("")
    done = lanner("run", "-c", "nowhere.yaml", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f"alerts comes from {tmp_path / 'alerts'}" in done.stderr


def test_completion_knows_commands_and_options() -> None:
    """Shell completion offers commands and, for a command, its options."""
    done = lanner(_LANNER_COMPLETE="complete_bash", COMP_WORDS="lanner chec", COMP_CWORD="1")
    assert "check-config" in done.stdout.split()
    done = lanner(_LANNER_COMPLETE="complete_bash", COMP_WORDS="lanner check-config --", COMP_CWORD="2")
    assert "--json" in done.stdout.split()
