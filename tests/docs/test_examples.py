"""Every fenced example of README and docs runs; the convention stands in CONTRIBUTING.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from monitor.cli.config import registry_mistakes
from monitor.config import read
from tests.servers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("console", "yaml", "json", "python", "text")
COMMAND_S = 90  # the longest that one example may take
_BLOCK = re.compile(
    r"(?P<said>(?:^<!-- [^\n]* -->\n)*)^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_SAID = re.compile(r"<!-- (file|exit|shown|needs): (.*?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block with what the comments before it say."""

    page: str
    line: int
    language: str
    text: str
    said: dict[str, str]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for m in _BLOCK.finditer(text):
        said = dict(_SAID.findall(m["said"]))
        yield Block(page.name, text.count("\n", 0, m.start("language")) + 1, m["language"], m["text"], said)


@dataclass
class Scene:
    """Where the examples of one page run."""

    folder: Path
    env: dict[str, str]
    background: list[subprocess.Popen[str]]

    def run(self, block: Block) -> None:
        """Run the commands of a console block and compare what they print."""
        wanted = int(block.said.get("exit", "0"))
        for command, expected in commands(block.text):
            if command.startswith("make "):
                assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
                continue
            shell = {"shell": True, "cwd": self.folder, "env": self.env, "text": True, "stdin": subprocess.DEVNULL}
            if command.endswith("&"):
                log = (self.folder / "background.log").open("a")
                started = subprocess.Popen(
                    f"exec {command.rstrip('& ')}", stdout=log, stderr=log, start_new_session=True, **shell
                )  # type: ignore[call-overload]
                log.close()
                self.background.append(started)
                continue
            done = subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False, **shell)  # type: ignore[call-overload]
            where = f"{block.page}:{block.line}: {command}"
            assert done.returncode == wanted, f"{where}\n{done.stdout}{done.stderr}"
            if expected:
                pattern = "".join(
                    ".*" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", expected)
                )
                printed = (done.stdout + done.stderr).strip()
                assert re.fullmatch(pattern, printed, re.DOTALL), (
                    f"{where} printed\n{printed}\n--- expected\n{expected}"
                )

    def close(self) -> None:
        """Ctrl-C to what still runs, once it has said something; it must end by itself."""
        log = self.folder / "background.log"
        end = time.monotonic() + 120
        while self.background and not log.stat().st_size and time.monotonic() < end:
            time.sleep(0.1)
        for process in self.background:
            assert process.poll() is None, log.read_text()
            os.killpg(process.pid, signal.SIGINT)
        for process in self.background:
            assert process.wait(30) in (0, 130), log.read_text()


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, expected output) of a console block; a line that ends in a backslash goes on."""
    command = ""
    expected: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            if command:
                yield command, "\n".join(expected).strip()
            command, expected = line.removeprefix("$ ").split("  #")[0].strip(), []
        else:
            expected.append(line)
    yield command, "\n".join(expected).strip()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A folder with the repository's configurations in reach, and the installed commands on PATH."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    programs = str(Path(sys.executable).parent)
    env = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
    }
    made = Scene(tmp_path, env, [])
    try:
        yield made
    finally:
        for process in made.background:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_examples_of_a_page(page: Path, scene: Scene, request: pytest.FixtureRequest) -> None:
    """All examples of a page run in order and print what the page says."""
    if "<!-- needs: kafka -->" in page.read_text(encoding="utf-8"):
        scene.env["KAFKA"] = request.getfixturevalue("kafka")
    for block in blocks(page):
        where = f"{block.page}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: the fence needs one of {', '.join(LANGUAGES)}"
        if "file" in block.said:
            target = scene.folder / block.said["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        if "shown" in block.said or block.language == "text":
            continue
        if block.language == "console":
            scene.run(block)
        elif block.language == "python":
            run_python(block, scene)
        elif block.language == "json":
            json.loads(block.text)
        elif "models" in yaml.safe_load(block.text):
            check_configuration(block, scene)
    scene.close()


def run_python(block: Block, scene: Scene) -> None:
    """Run a Python block as a program, or as a doctest."""
    file = scene.folder / f"example_{block.line}.py"
    doctest = ">>> " in block.text
    file.write_text(f'r"""\n{block.text}"""\n' if doctest else block.text, encoding="utf-8")
    command = [sys.executable, "-W", "error", *(["-m", "doctest"] if doctest else []), str(file)]
    done = subprocess.run(
        command, cwd=scene.folder, env=scene.env, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stdout}{done.stderr}"


def check_configuration(block: Block, scene: Scene) -> None:
    """A configuration in the docs has no mistake; files that it names are made up when the page does not write them."""
    file = scene.folder / block.said.get("file", f"example_{block.line}.yaml")
    file.write_text(block.text, encoding="utf-8")
    for name in re.findall(r"(?:file|training|canaries|principals|key_file): ([\w./-]+)", block.text):
        if not (scene.folder / name).exists():
            (scene.folder / name).write_text("{}\n")
    loaded = read(file, env={})
    assert registry_mistakes(loaded) == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES[1:]], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures of a page exist."""
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_guide_names_what_exists() -> None:
    """Every file and folder that CONTRIBUTING.md names in back quotes exists."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|detectors|collectors|alerts|docs|config|monitor)/[\w./-]+)`", text)
    assert [n for n in named if "NAME" not in n and not (ROOT / n).exists()] == []
