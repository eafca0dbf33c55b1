"""The tables of docs/detectors.md from what is stored beside this file: `python -m benchmarks.drift_table`.

A test holds every line of them against the page, so the page cannot tell other numbers than were measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.drift_null import BROKEN_UP, MIXES, NUMBERS
from benchmarks.drift_texts import MOVES

FOLDER: Final = Path(__file__).parent
NULLS: Final = {
    "null/synthetic": "synthetic, 20 features",
    "null/iid": "iid",
    "null/block": "block",
    "hours/rows": "true hours, rows dealt to hours of the same weekday and hour",
    "hours/days": "true hours, days dealt to days of the same weekday",
    "hours/weeks": "true hours, whole weeks shuffled",
    "hours/lasting": "made-up hours whose levels wander for hours to a week",
    "day/weeks": "true days, whole weeks shuffled (checks: 30 of a day)",
}
BARS: Final = {
    "number": "7 / 4 / 4; block 14 / 7 / 6; breaks 2 / 1 at 0.25 / 0.5",
    "mix": "5 / 4; block 8 / 6",
    "broken": "4 iid",
}
SLOW: Final = {
    "hours_delay/weeks": "true hours, whole weeks shuffled",
    "day_delay/weeks": "true days, whole weeks shuffled",
}
TEXTS: Final = {
    "texts/iid": "texts, the same mix of topics",
    "texts/wandering": "texts, topics that wander for hours",
    "embeddings/iid": "embeddings, the same mix of topics",
    "embeddings/wandering": "embeddings, topics that wander for hours",
}
RARE: Final = {
    "predicted": "the predicted class",
    "scores": "only the end of the score (no score reaches the threshold)",
    "real": "real crashes with deaths at that rate, scored by boosted trees",
    "labels": "labels (`performance`, 100 windows of history)",
}
Found = Mapping[str, Any]


def stored(name: str) -> dict[str, Any]:
    """What was measured by a benchmark of this name."""
    known: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return known


def nulls(found: Found) -> Iterator[str]:
    """A line per stream without any change."""
    for part, words in NULLS.items():
        if part in found:
            yield null_line(words, found[part])


def null_line(words: str, x: Found) -> str:
    """Windows, alarms, alarms in 30 days and their upper bound, breaks where they were counted."""
    month = next(v for k, v in x.items() if k.startswith("per_"))
    breaks = f"{x['breaks_per_720']:.2g}" if "breaks" in x else ""
    return f"| {words} | {x['windows']:,} | {x['alarms']} | {month:.2g} | {x['upper_95']:.2g} | {breaks} |"


def delays(found: Found) -> Iterator[str]:
    """A line per feature and kind of change: its delays iid and on block, and those of the break lane."""
    changes: dict[tuple[str, str], list[float]] = {}
    for kind, all_of in (("number", NUMBERS), ("mix", MIXES), ("broken", BROKEN_UP)):
        for feature, size in all_of:
            changes.setdefault((kind, feature), []).append(size)
    for (kind, feature), sizes in changes.items():
        cells = [
            " / ".join(_count(found[part][f"{feature} {s}"][lane]) for s in sizes)
            for part, lane in (
                ("delay_iid_336", "drift"), ("delay_block_100", "drift"), ("delay_iid_336", "break"), ("delay_block_100", "break"),
            )
        ]  # fmt: skip
        points = " / ".join(f"{100 * s:.0f}" for s in sizes) if kind == "mix" else ""
        words = {
            "number": f"{feature} moved by {' / '.join(f'{s:g}' for s in sizes)} sd",
            "mix": f"{feature} mix moved by {points} points",
            "broken": f"{feature} broken off from the others",
        }[kind]
        yield f"| {words} | {BARS[kind]} | {' | '.join(cells)} |"


def promises(found: Found) -> Iterator[str]:
    """Incidents that stay and that end, smallest shifts, and delays on true hours and days."""
    for kind in ("iid", "block"):
        for change, x in _changes(found[f"endless/{kind}"]):
            feature, size = change.split()
            words = (
                f"{feature} moved by {size} sd for 400 windows, {kind}: most transitions in {x['runs']} runs (bar 1)"
            )
            yield f"| {words} | {x['most_transitions']} |"
        ended = dict(_changes(found[f"ended/{kind}"]))
        names = sorted(ended)
        cells = " / ".join(_count(ended[n]["cleared"]) + _of(ended[n]["found"], ended[n]["runs"]) for n in names)
        words = f"a shift of 1.7 between-window sd ends, {kind}: median windows until the incident clears (bar 6)"
        yield f"| {words}: {' / '.join(names)} | {cells} |"
    for feature, x in _changes(found["smallest/block"]):
        words = f"block: {feature} is said to need {x['sd']:.2g} sd; moved by as much it was found after (median of {x['told']}; bar 24)"
        yield f"| {words} | {_count(x['drift'])} |"
    for part, words in SLOW.items():
        for change, x in _changes(found.get(part, {})):
            feature, size = change.split()
            moved = (
                f"{100 * float(size):.0f} points of {feature}"
                if feature == "carrier"
                else f"{feature} moved by {size} sd"
            )
            yield f"| {words}: {moved}, median checks to the alarm ({x['runs']} runs) | {_count(x['drift'])} |"


def parts(found: Found) -> Iterator[str]:
    """Segments and context; segments found automatically."""
    yield null_line("shuffled rows with segments and context", found["null"])
    for change, x in found["delay"].items():
        yield f"| {change} | {_count(x['median'])} | {x['opened']} of {x['of']} |"
    yield null_line("shuffled rows with segments found automatically", found["auto_iid"])
    yield null_line("shuffled days with segments found automatically", found["auto_block"])
    for column, x in found["auto_delay"].items():
        cells = [f"{x[k]['opened']} of {x['of']} | {_count(x[k]['median'])}" for k in ("auto", "none")]
        yield f"| {column} | {x['chosen']} of {x['of']} | {' | '.join(cells)} |"


def rare(found: Found) -> Iterator[str]:
    """Rows until a class that doubles is found."""
    for name, words in RARE.items():
        x = found[name]
        seen = sorted(r for r in x["rows"] if r is not None)
        late = len(x["rows"]) - len(seen)
        span = f"{seen[0]:,} to {seen[-1]:,}" if seen else ""
        more = f", {late} not in 80,000" if late and seen else ""
        middle = (
            f"{x['median']:,.0f} ({span}{more})" if x["median"] else f"- ({span}{more})" if seen else "not in 80,000"
        )
        yield f"| {words} | {middle} | {x['null']['alarms']} |"


def texts(found: Found) -> Iterator[str]:
    """Texts and embeddings: nothing changed, and rows that turn to one topic."""
    for part, words in TEXTS.items():
        if part in found:
            yield null_line(words, found[part])
    for part, words in TEXTS.items():
        if x := found.get(part.replace("/", "_delay/")):
            cells = [_count(m["drift"]) + _of(m["found"], m["runs"]) for m in (x[f"{move:g}"] for move in MOVES)]
            yield f"| {words} | {' | '.join(cells)} |"


def _changes(part: Found) -> Iterator[tuple[str, Found]]:
    return ((k, v) for k, v in sorted(part.items()) if k != "cpu_s")


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _of(some: int, runs: int) -> str:
    return "" if some == runs else f" ({some} of {runs} found)"


def lines() -> list[str]:
    """All tables, one after the other."""
    found = stored("drift_null")
    others = [*parts(stored("drift_parts")), *rare(stored("rare")), *texts(stored("drift_texts"))]
    return [*nulls(found), *delays(found), *promises(found), *others]


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
