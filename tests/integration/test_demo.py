"""`make demo`, as a newcomer runs it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from tests.servers import ROOT


def test_the_demo_tells_its_story_and_ends_cleanly() -> None:
    """Drift opens and clears, the attackers' incidents stand on the page, and no process is left behind."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.demo", "--exit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = done.stdout[done.stdout.index("The story is told") :]
    assert "FeatureDrift" in told and "cleared" in told
    assert told.count("AttackSuspected") == 2
    assert "Made up:" in done.stdout, "it says what is real and what is injected"
    assert left_behind() == []


def left_behind() -> list[str]:
    """Processes that still work in a demo's folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended while we looked
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [command] if "lanner-demo-" in command else []
    return found
