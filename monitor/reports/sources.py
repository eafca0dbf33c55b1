"""Where a model's traffic and labels came from: how many callers, networks and labelers, and how much the busiest sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from monitor.store.queries import DetectionRow

TOLD: Final = (  # words, detector that counts them, its names for how many and for the busiest
    ("Callers", "volume", "callers", "busiest_caller"),
    ("Networks", "volume", "networks", "busiest_network"),
    ("Labelers", "feedback", "labelers", "busiest"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Of the newest window that has some: how many there are, and the busiest with its share."""

    words: str
    end_us: int
    count: int
    busiest: str
    share: float


def sources(found: Sequence[DetectionRow]) -> list[Source]:
    """What the newest of these detections tell. It alarms nobody: what share is too much depends on the model."""
    made = []
    newest = sorted(found, key=lambda d: -d.end_us)
    for words, detector, count, name in TOLD:
        for d in (d for d in newest if d.detector == detector):
            told = d.evidence.get("sources") if detector == "volume" else d.evidence
            if isinstance(told, Mapping) and told.get(count) and isinstance(told.get(f"{name}_share"), int | float):
                made.append(Source(words, d.end_us, int(told[count]), str(told[name]), float(told[f"{name}_share"])))
                break
    return made
