"""What holds an incident open: rules count evaluations, deciders weigh evidence themselves. Each has a slot of its own.

A slot is plain JSON in the counters of the alert pipeline. Of a rule it has hits (its last evaluations, "1" fired),
clean (those in a row) and on; of the deciders, which stand together under one name, only on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from alerts.policy import Persistence
from monitor.model import Decision

DECIDED: Final = "decided"


@dataclass
class Holds:
    """The slots of every problem that somebody has said something about."""

    slots: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    def load(cls, counters: Mapping[str, Any]) -> Holds:
        """From the counters that the step before handed back, which stay as they were."""
        return cls({k: {n: dict(slot) for n, slot in own.items()} for k, own in counters.get("slots", {}).items()})

    def to_json(self) -> dict[str, Any]:
        """Only what is not empty."""
        return {k: own for k, own in sorted(self.slots.items()) if own}

    def decided(self, key: str, *, firing: bool) -> str | None:
        """A weighed decision counts at once; it only clears when no rule still holds the incident open."""
        own = self.slots.setdefault(key, {})
        if firing:
            own[DECIDED] = {"on": True}
            return None
        own.pop(DECIDED, None)
        return "still_firing" if self.on(key) else None

    def counted(self, key: str, d: Decision, rule: Persistence) -> str | None:
        """Count one evaluation of a rule; the reason to wait, or None when it counts."""
        own = self.slots.setdefault(key, {})
        slot = own.setdefault(d.detector, {"hits": "", "clean": 0, "on": False})
        slot["hits"] = (slot["hits"] + ("1" if d.firing else "0"))[-rule.of :]
        over = d.statistic is not None and d.threshold is not None and d.statistic > rule.lower * d.threshold
        slot["clean"] = 0 if d.firing or over else slot["clean"] + 1
        if d.firing:
            slot["on"] = slot["on"] or slot["hits"].count("1") >= rule.fired
            return None if slot["on"] else "not_yet"
        if slot["clean"] >= rule.clean or not (slot["on"] or "1" in slot["hits"]):
            del own[d.detector]
        elif slot["on"]:
            return "not_clean"
        return "still_firing" if self.on(key) else None

    def on(self, key: str) -> bool:
        """Whether anybody holds the problem open."""
        return any(slot["on"] for slot in self.slots.get(key, {}).values())

    def end(self, key: str) -> None:
        """The incident is over for everybody."""
        self.slots.pop(key, None)

    def only(self, running: Collection[str]) -> None:
        """Forget the rules of detectors that run no more: nothing would ever take their word back."""
        self.slots = {k: {n: s for n, s in v.items() if n == DECIDED or n in running} for k, v in self.slots.items()}
