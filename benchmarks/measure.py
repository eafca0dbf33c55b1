"""How the benchmarks measure: CPU seconds of child processes, medians of interleaved repeats, ratios within one run.

Wall time on a shared machine says little, so nothing here reports it but where people wait (latency). Every measured
piece of work runs in a fresh Python of its own and reports its own CPU time, threads and children included.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. `ratio` is what counts; `goal` says what it should be, in words."""

    name: str
    ours: str
    theirs: str
    ratio: float | None
    unit: str  # of the ratio, e.g. "x the CPU"
    goal: str
    met: bool | None  # None: no goal, for orientation


class Cpu:
    """CPU seconds of this process, its threads and its ended children, since `start`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = self._now()

    @staticmethod
    def _now() -> float:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    def stop(self) -> float:
        self.seconds = self._now() - self._start
        return self.seconds


@contextlib.contextmanager
def cpu() -> Iterator[Cpu]:
    """CPU seconds of the block, in `.seconds` after it."""
    clock = Cpu()
    yield clock
    clock.stop()


def rss_bytes() -> int:
    """Resident memory of this process now; Linux."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process since `reset_peak_rss`; Linux."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def reset_peak_rss() -> None:
    """Begin the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(module: str, *arguments: object) -> dict[str, Any]:
    """Run `python -m module ARGUMENTS` and read the JSON object on the last line of its output."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def median(values: Sequence[float]) -> float:
    """The middle one: one disturbed repeat does not move it."""
    return statistics.median(values)


def machine() -> str:
    """Where these numbers come from, without naming the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores ({platform.machine()}), Python {platform.python_version()}, {platform.system()}"


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | Lanner | compared with | ratio | goal | |", "|---|---|---|---|---|---|"]
    for r in results:
        ratio = "" if r.ratio is None else f"{r.ratio:.3g} {r.unit}"
        met = {True: "met", False: "**missed**", None: ""}[r.met]
        lines.append(f"| {r.name} | {r.ours} | {r.theirs} | {ratio} | {r.goal} | {met} |")
    return "\n".join(lines)
