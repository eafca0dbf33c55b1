"""Evidence made by hand, and stretches of it judged by fuse() one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detectors import decide
from detectors.base import Detection, Evidence, State
from detectors.signals import bernoulli_bets
from monitor.model import SECOND_US, Alert, Decision, Event, Family
from tests.judging import incident

LEVEL = decide.FuseSettings(1e6)


def evidence(
    who: Sequence[str],
    flag: Sequence[bool],
    times_us: Sequence[int] | None = None,
    first_row: int = 0,
    detector: str = "queries",
) -> Evidence:
    """Evidence of one detector that tolerates a flag in a hundred events."""
    names = tuple(sorted(set(who)))
    n = len(who)
    flags = np.array(flag, dtype=bool)
    times = np.array(
        times_us if times_us is not None else [(first_row + i) * SECOND_US for i in range(n)], dtype=np.int64
    )
    return Evidence(
        detector=detector, family=Family.ANOMALY, principals=names, code=np.array([names.index(w) for w in who], dtype=np.int32),
        row=np.arange(n), time_us=times, log_e=bernoulli_bets(flags, 0.01), flag=flags,
        details={int(i): {"signals": ["near"], "row": int(i) + first_row} for i in np.flatnonzero(flags)},
    )  # fmt: skip


class Log:
    """Stretches judged one after the other, with the incidents they open."""

    def __init__(self, settings: decide.FuseSettings = LEVEL) -> None:
        self.settings = settings
        self.state: State | None = None
        self.open: dict[str, Alert] = {}
        self.decisions: list[Decision] = []
        self.held: dict[str, Detection] = {}
        self.rows = 0

    def __call__(self, *found: Evidence) -> list[Decision]:
        decided = decide.fuse(self.state, found, tuple(self.open.values()), self.settings, "m")
        self.state = State.from_bytes(decided.state.to_bytes())
        for d in decided.decisions:
            if d.firing:
                self.open[d.subject.id] = incident(d)
            else:
                del self.open[d.subject.id]
        self.decisions += decided.decisions
        self.held |= {d.subject.id: d for d in decided.held}
        attacked = [a for a in self.open.values() if a.event is Event.ATTACK_SUSPECTED]
        open_now, held = (
            {p for x in some for p in x.evidence["principals"]} for some in (attacked, self.held.values())
        )
        assert open_now <= decided.feedback.suspects <= open_now | held
        return list(decided.decisions)
