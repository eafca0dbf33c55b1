"""The list of callers that are held back: one row each, with what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.store.held import callers
from monitor.store.queries import DetectionRow


@dataclass(frozen=True, slots=True)
class HeldRow:
    """A caller of whom nobody was told. look_alike: the tool and why it is taken for one, or why not quite, as stored;
    others: callers that are one with it, whose queries are counted too; time_us: when it was said last.
    """

    principal: str
    others: int
    look_alike: Mapping[str, Any]
    queries: int
    flagged: int
    onset_us: int
    time_us: int


def held_rows(found: Sequence[DetectionRow]) -> list[HeldRow]:
    """One row per caller, by what was said last of it, in the order of `found`: newest first."""
    rows: dict[str, HeldRow] = {}
    for h in found:
        names, e = callers(h), h.evidence
        for name in names:
            told = HeldRow(name, len(names) - 1, e["look_alike"], h.n, e["flagged"], h.start_us, h.end_us)
            rows.setdefault(name, told)
    return list(rows.values())
