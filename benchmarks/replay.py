"""`lanner replay` of a log of 50,000 events and 30 callers with every default detector on, wall clock: who waits is a person.

Real loans; 26 callers send natural rows, one runs what-ifs without having said so; three attack at different hours:
theft with made-up rows, a climb to a score, a search along lines. The incidents of family `extraction`, `inversion` or
`evasion` (any AttackSuspected) must name these three and nobody else. `python -m benchmarks.replay`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.measure import Result
from benchmarks.traffic import attack, benign, interleave, log, natural, poisson_times, times, victim
from monitor.model import SECOND_US

EVENTS: Final = 50_000
HONEST: Final = 26
ATTACKS: Final = {"knockoff_random": 2_000, "inversion": 800, "line_search": 800}
WHAT_IFS: Final = 1_000
START_US: Final = 1_764_547_200_000_000  # 2025-12-01
DAYS: Final = 10
GOAL_S: Final = 60.0
DAY_US: Final = 86_400 * SECOND_US


def _write(folder: Path) -> list[str]:
    """The reference, the log and the configuration; the names of the attackers."""
    v, rng = victim("loans"), np.random.default_rng(11)
    desks = [f"desk-{i:02d}" for i in range(HONEST)]
    with (folder / "reference.jsonl").open("w") as out:
        when = poisson_times(10_000, START_US - 14 * DAY_US, 14 * 86_400 / 10_000, rng)
        out.writelines(json.dumps(e) + "\n" for e in log(v, natural(v, 10_000, rng), when, desks, rng))
    n = EVENTS - WHAT_IFS - sum(ATTACKS.values())
    when = poisson_times(n, START_US, DAYS * 86_400 / n, rng)
    parts = [log(v, natural(v, n, rng), when, desks, rng)]
    parts.append(
        log(v, benign(v, "what_if", WHAT_IFS, rng), times(WHAT_IFS, START_US + DAY_US, 30.0), ["analyst"], rng)
    )
    for at, (kind, queries) in enumerate(ATTACKS.items()):
        rows = attack(v, kind, queries, rng)
        parts.append(log(v, rows, times(len(rows), START_US + (3 + 2 * at) * DAY_US, 20.0), [f"mallory-{kind}"], rng))
    with (folder / "log.jsonl").open("w") as out:
        out.writelines(json.dumps(e) + "\n" for e in interleave(*parts))
    (folder / "lanner.yaml").write_text(
        f"models:\n  {v.name}: {{reference: {{file: reference.jsonl}}}}\n"
        "sources:\n  log: {type: files, paths: [log.jsonl]}\n"
        "privacy: {principals: plain}\n"
    )
    return [f"mallory-{kind}" for kind in ATTACKS]


def results() -> list[Result]:
    """Seconds of one replay in a process of its own, and whom it named."""
    with tempfile.TemporaryDirectory(prefix="lanner-bench-") as name:
        folder = Path(name)
        attackers = _write(folder)
        lanner = Path(sys.executable).with_name("lanner")
        begin = time.monotonic()
        done = subprocess.run(
            [lanner, "replay", "--json", "log.jsonl"], cwd=folder, check=True, capture_output=True, text=True
        )
        took = time.monotonic() - begin
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    named = {p for x in lines if x["event"] == "AttackSuspected" for p in x["evidence"]["principals"]}
    right = named == set(attackers)
    words = "names the three attackers and nobody else" if right else f"names {', '.join(sorted(named)) or 'nobody'}"
    label = f"lanner replay, {EVENTS:,} events of {HONEST + 1 + len(ATTACKS)} callers, all default detectors"
    return [Result(label, f"{took:.0f} s, {words}", "", None, "", f"< {GOAL_S:.0f} s", right and took < GOAL_S)]


if __name__ == "__main__":
    from benchmarks.measure import machine, table

    print(machine(), table(results()), sep="\n\n")
