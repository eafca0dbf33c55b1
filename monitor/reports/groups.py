"""Versions and busy callers of a model: their share of the events, and in what their rows differ from all others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from detectors import groups
from detectors.base import Calibration
from detectors.profile import Bins, Profile, compare, merged
from monitor.store.queries import CountRow

BUCKETS: Final = 168  # the newest ones are looked at: a week of hours
WORDS: Final = {"version": "version", "caller": "caller"}
FEW_ROWS: Final = 200  # on a side, below which distances say nothing


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A version or caller over the newest buckets in which it had counts of its own.

    events and share: of those buckets' events; input, answer: the feature and the answer that differ most from all other
    rows of the same buckets, with the Jensen-Shannon distance; None without enough rows on both sides.
    """

    kind: str
    name: str
    events: int
    share: float
    buckets: int
    input: tuple[str, float] | None
    answer: tuple[str, float] | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        far = {
            k: None if v is None else {"name": v[0], "js": v[1]}
            for k, v in (("input", self.input), ("answer", self.answer))
        }
        return {
            "kind": self.kind,
            "name": self.name,
            "events": self.events,
            "share": self.share,
            "buckets": self.buckets,
            **far,
        }


def group_rows(calibration: bytes | None, counts: Sequence[CountRow]) -> list[GroupRow]:
    """Versions, then callers, the busiest first; at most the newest BUCKETS are read. Distances are sizes, not tests."""
    if calibration is None:
        return []
    bins = Bins.from_bytes(Calibration.from_bytes(calibration).meta["bins"])
    stored = [(r.start_us, r.body, r.groups) for r in counts[-BUCKETS:] if r.groups is not None]
    made = []
    for axis in groups.AXES:
        own: dict[str, dict[int, groups.Group]] = {}
        for start, g in groups.each(axis, stored, bins):
            own.setdefault(g.name, {})[start] = g
        rows = [_row(bins, axis, name, mine, stored) for name, mine in own.items()]
        made += sorted(rows, key=lambda r: (-r.events, r.name))[: groups.MOST[axis]]
    return made


def _row(
    bins: Bins, axis: str, name: str, mine: dict[int, groups.Group], stored: Sequence[tuple[int, bytes, bytes]]
) -> GroupRow:
    whole = merged(Profile.from_bytes(body, bins) for start, body, _ in stored if start in mine)
    own = merged(g.counts for g in mine.values())
    assert whole is not None
    assert own is not None
    rest = replace(own, n=whole.n - own.n, counts=whole.counts - own.counts)
    far: dict[bool, tuple[str, float] | None] = {True: None, False: None}
    if min(own.n, rest.n) >= FEW_ROWS:
        distances = compare(bins, rest, own)
        for f in bins.features:
            js, known = distances[f.name]["js"], far[f.is_output]
            if js is not None and (known is None or js > known[1]):
                far[f.is_output] = (f.name, js)
    return GroupRow(axis, name, own.n, own.n / max(whole.n, 1), len(mine), far[False], far[True])
