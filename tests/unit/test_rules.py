"""House rules that no linter knows."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import ROOT

PACKAGES = ("monitor", "collectors", "detectors", "alerts")
MODULE_LINES = 400
FUNCTION_LINES = 60
# Modules and functions that are longer, each with its reason.
LONGER_MODULES = {
    "monitor/model.py": "the nouns that all packages share stand in one place",
    "monitor/store/migrations/versions/v0001_the_first_tables.py": "a list of tables, written by Alembic",
}
LONGER_FUNCTIONS = {
    "detectors/search.py:follow": "one compiled loop whose parts share a dozen running values",
    "monitor/store/migrations/versions/v0001_the_first_tables.py:upgrade": "a list of tables, written by Alembic",
    "monitor/store/migrations/versions/v0001_the_first_tables.py:downgrade": "a list of tables, written by Alembic",
}


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """(path, text) of every Python file below these folders."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")


def test_modules_are_small() -> None:
    """A module has at most 400 lines, or a reason."""
    long = {path: text.count("\n") for path, text in sources(*PACKAGES) if text.count("\n") > MODULE_LINES}
    assert {p: n for p, n in long.items() if p not in LONGER_MODULES} == {}
    assert set(LONGER_MODULES) <= set(long)


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_functions_are_short() -> None:
    """A function has at most 60 lines, or a reason."""
    long = {}
    for path, text in sources(*PACKAGES):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)][1:]
                lines = _length(node) - sum(_length(n) for n in inner)  # what is defined inside is counted by itself
                if lines > FUNCTION_LINES:
                    long[f"{path}:{node.name}"] = lines
    assert {f: n for f, n in long.items() if f not in LONGER_FUNCTIONS} == {}
    assert set(LONGER_FUNCTIONS) <= set(long)


def test_every_test_says_what_it_shows() -> None:
    """Every test has a docstring that states the behaviour."""
    silent = [
        f"{path}:{node.lineno} {node.name}"
        for path, text in sources("tests")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []


def test_modules_say_what_they_are() -> None:
    """Every module of the four packages has a docstring."""
    silent = [p for p, text in sources(*PACKAGES) if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert [p for p in silent if "/migrations/" not in p] == []


def test_nothing_is_left_for_later() -> None:
    """No unfinished marks, no skipped tests, no inner workings of a workplace."""
    words = ("TO" + "DO", "FIX" + "ME", "pytest." + "skip", "mark." + "skip", "/wo" + "rk/")
    found = [
        f"{path}: {word}" for path, text in sources(*PACKAGES, "tests", "benchmarks") for word in words if word in text
    ]
    assert found == []


def test_lock_names_no_registry() -> None:
    """The lock file holds hashes and no address."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--hash=sha256:" in text


def shipped() -> list[str]:
    """Every file of the four packages but what Python itself leaves behind."""
    files = (f for p in PACKAGES for f in (ROOT / p).rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return sorted(str(f.relative_to(ROOT)) for f in files)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    copy = folder / "source"
    for name in [*shipped(), "pyproject.toml", "README.md", "LICENSE"]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", *build, str(copy)], check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return archive.namelist()


def test_wheel_holds_the_four_packages(wheel: list[str]) -> None:
    """The wheel ships monitor, collectors, detectors and alerts, and nothing else."""
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == set(PACKAGES)


def test_wheel_holds_every_data_file(wheel: list[str]) -> None:
    """Templates, styles, scripts and rules that stand beside the code are shipped with it."""
    assert sorted(set(shipped()) - set(wheel)) == []
    assert any(Path(name).suffix == ".py" for name in wheel)
