"""What labels say about a model, as page and report show it: by event time, by label time and estimated, never mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.store.queries import DetectionRow


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way to see how good answers are. `way` says which; accuracy and band are shares or None."""

    way: str
    span: Sequence[str]
    events: int
    accuracy: float | None
    band: Sequence[float]
    note: str


def outcomes(found: Sequence[DetectionRow]) -> list[Outcome]:
    """The newest window that labels spoke about, oldest first in `found`; nothing before labels came."""
    rows = [d for d in found if d.detector == "performance" and "by" in d.evidence]
    if not rows:
        return []
    told = rows[-1].evidence
    hours = float(told.get("labels_known_after_s", 0)) / 3600
    delay = f"labels known {hours:g} h after the window ({told.get('delay')})"
    made = [
        _one(
            "events of the window, by event time",
            told,
            "events_of",
            f"{delay}, coverage {_share(told.get('coverage'))}",
        )
    ]
    if given := told.get("by_label_time"):
        made.append(_one("labels given in the window, by label time", given, "labels_given_in", "events of any time"))
    estimate = told.get("estimate") or {}
    if estimate.get("told"):
        note = f"assumes that {estimate['assumes']}; checked in {estimate['check']['windows']} windows"
        made.append(_one("estimated from scores, without labels", estimate, "events_of", note + _rates(estimate)))
    elif estimate:
        made.append(
            Outcome(
                "estimated from scores, without labels",
                (),
                0,
                None,
                (),
                f"off: {estimate.get('reason')}{_rates(estimate)}",
            )
        )
    return made


def _one(way: str, told: Mapping[str, Any], span: str, note: str) -> Outcome:
    return Outcome(
        way, told.get(span) or (), int(told.get("labelled") or 0), told.get("accuracy"), told.get("band") or (), note
    )


def _rates(estimate: Mapping[str, Any]) -> str:
    """Precision and the like of the rarer class, those that are told, and which are off."""
    found = estimate.get("metrics") or {}
    told = [
        f"{m} {_share(x['value'])} ({_share(x['band'][0])} to {_share(x['band'][1])})"
        for m, x in found.items()
        if x["told"]
    ]
    off = [m for m, x in found.items() if not x["told"]]
    words = [*told, *([f"off: {', '.join(off)}"] if off else [])]
    return f"; of {estimate.get('positive')}: {'; '.join(words)}" if words else ""


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
