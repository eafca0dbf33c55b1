"""The recorded run: docs/attacks.md between its markers, and benchmarks/attacks.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks import exposure, report
from benchmarks.attacks.cost import Cost, cost
from benchmarks.attacks.exposure import Reading
from benchmarks.attacks.score import Outcome
from benchmarks.attacks.split import SPLITS
from benchmarks.measure import machine

BEGIN: Final = "<!-- attacks:begin (written by make bench-attacks) -->"
END: Final = "<!-- attacks:end -->"
COST: Final = "### Cost"


def publish(root: Path, found: Mapping[str, Sequence[Outcome]], gauges: Mapping[str, Sequence[Reading]]) -> int:
    """Write both files; 1 when a number of the judging split misses its bar."""
    spent = cost()
    page = root / "docs" / "attacks.md"
    page.write_text(inserted(page.read_text(encoding="utf-8"), generated(found, gauges, spent)), encoding="utf-8")
    kept: dict[str, Any] = {"machine": machine(), "cost": asdict(spent)}
    for name, outcomes in found.items():
        near = dict(zip(("within", "of"), exposure.within(gauges[name]), strict=True))
        kept[name] = {**report.record(outcomes), "exposure": near}
    (root / "benchmarks" / "attacks.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return int(any(x.met is False for x in report.numbers(found["judging"])))


def generated(found: Mapping[str, Sequence[Outcome]], gauges: Mapping[str, Sequence[Reading]], spent: Cost) -> str:
    """What stands between the markers: the splits from the last to the first."""
    parts = []
    for name in reversed(list(found)):
        split, mine = SPLITS[name], found[name]
        victims = ", ".join(f"{d} ({f})" for d, f in split.victims.items())
        parts.append(f"### {name.capitalize()} split\n{len(mine)} actors on {victims}.\n\n{report.markdown(mine)}")
        parts.append(
            f"Exposure gauge against copies trained on the answers given:\n\n{exposure.markdown(gauges[name])}"
        )
    return "\n\n".join([*parts, priced(spent)])


def priced(spent: Cost) -> str:
    """The last section: what detection costs."""
    flood = "\n".join(f"| {n:,} | {b / 1e6:,.0f} | {spent.peak_mb[n]:,.0f} |" for n, b in spent.state_bytes.items())
    speeds = ", ".join(f"{n} {v:,.0f}" for n, v in spent.parts.items())
    kinds = ", ".join(f"{n} {v:,.0f}" for n, v in spent.kinds.items())
    return (
        f"{COST}\n{machine()}\n\n{spent.events_per_s:,.0f} events a second and core with {spent.features} features "
        f"({speeds}); by traffic: {kinds}. {spent.bytes_per_principal / 1000:,.1f} kB of state per active principal.\n\n"
        f"| principals with three rows each | state, MB | peak memory of the process, MB |\n|---|---|---|\n{flood}"
    )


def recost(root: Path) -> int:
    """Measure the cost alone, on a machine that does nothing else, and put it in the place of the recorded one."""
    spent = cost()
    page, record = root / "docs" / "attacks.md", root / "benchmarks" / "attacks.json"
    text = page.read_text(encoding="utf-8")
    kept = text.split(BEGIN)[1].split(END)[0].split(COST)[0].strip()
    page.write_text(inserted(text, f"{kept}\n\n{priced(spent)}"), encoding="utf-8")
    known = json.loads(record.read_text(encoding="utf-8")) | {"machine": machine(), "cost": asdict(spent)}
    record.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0


def inserted(page: str, text: str) -> str:
    """The page with everything between its markers replaced.

    >>> inserted(f"a\\n{BEGIN}\\nold\\n{END}\\nb", "new") == f"a\\n{BEGIN}\\n\\nnew\\n\\n{END}\\nb"
    True
    """
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"
