"""The tables of peers in docs/benchmarks.md from what is stored in benchmarks/peers.json: `python -m benchmarks.peers.table`.

A test holds every line of them against the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.drift_streams import BROKEN
from benchmarks.peers.tuning import CHECKS

FILE: Final = Path(__file__).parents[1] / "peers.json"
SHIFTS: Final = (
    ("distance", 0.1), ("distance", 0.25), ("distance", 0.5), ("carrier", 0.05), ("carrier", 0.1), ("humid", BROKEN),
)  # fmt: skip
KINDS: Final = {"iid": "shuffled rows", "block": "shuffled days"}
NAMES: Final = {  # contender -> what it is called, and what it does by default
    "lanner": ("Lanner", ""),
    "evidently": ("Evidently 0.7.23, any column", ""),
    "nannyml": ("NannyML 0.13.1 univariate, Jensen-Shannon", " (mean + 3 sd of 100 chunks)"),
    "alibi": ("alibi-detect 0.13.0 TabularDrift", " (p < .05, Bonferroni)"),
    "scipy": ("scipy 1.17.1 KS and chi-square", " (p < .05)"),
    "adwin": ("river 0.26.1 ADWIN per number", ""),
    "page_hinkley": ("river 0.26.1 PageHinkley per number, standardised", ""),
}
DATASET: Final = "Evidently 0.7.23, dataset (half the columns)"
Found = Mapping[str, Mapping[str, Any]]


def rates(found: Found) -> Iterator[str]:
    """How exactly each peer's threshold met the budget: on the windows it was tuned on, and on others."""
    cells = [f"{words}: tuned on | judged on | per {CHECKS}" for words in KINDS.values()]
    yield f"| alarms where nothing changed | {' | '.join(cells)} |"
    yield "|---" * (1 + 3 * len(KINDS)) + "|"
    for peer, (name, _) in NAMES.items():
        if peer not in found:
            continue
        row = []
        for kind in KINDS:
            told = found[peer][kind]["default" if peer == "lanner" else "tuned"]
            before = _alarms(told["tuning"]) if "tuning" in told else ""
            row += [before, _alarms(told), _per(told)]
        yield f"| {name} | {' | '.join(row)} |"


def delays(found: Found, kind: str) -> Iterator[str]:
    """Checks to the alarm on the changed feature, at defaults and at the threshold tuned to the budget."""
    names = ["mix" if f == "carrier" else f for f, _ in SHIFTS]
    sizes = ["broken" if s == BROKEN else f"{s:g}" for _, s in SHIFTS]
    head = [f"{n} {s}" for n, s in zip(names, sizes, strict=True)]
    yield f"| {KINDS[kind]} | FA per {CHECKS} | {' | '.join(head)} |"
    yield "|---" * (len(head) + 2) + "|"
    for how in ("default", "dataset", "tuned"):
        for peer, (name, rule) in NAMES.items():
            if how not in found.get(peer, {}).get(kind, {}):
                continue
            told = found[peer][kind][how]
            label = {"default": name + rule, "dataset": DATASET, "tuned": f"{name}, tuned"}[how]
            often = f"{CHECKS * told['share']:.3g}" if how != "tuned" and "share" in told else _per(told)
            cells = ["-" if told[f"{f} {s}"] is None else f"{told[f'{f} {s}']:.0f}" for f, s in SHIFTS]
            yield f"| {label} | {often} | {' | '.join(cells)} |"


def _alarms(told: Mapping[str, Any]) -> str:
    return f"{told['alarms']} in {told['windows']:,}"


def _per(told: Mapping[str, Any]) -> str:
    return f"{told['per_720']:.2g} ({told['lower_95']:.2g} to {told['upper_95']:.2g})"


def written(found: Found) -> list[str]:
    """All tables, one after the other."""
    return [*rates(found), "", *(line for kind in KINDS for line in (*delays(found, kind), ""))]


def stored() -> dict[str, Any]:
    """What was measured."""
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return known


if __name__ == "__main__":
    sys.stdout.write("\n".join(written(stored())) + "\n")
