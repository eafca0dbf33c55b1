"""The past of a detector that compares a window with its own earlier windows: a few numbers of every live one.

Nothing is taken from the reference. `Past` is what such a detector carries from one window to the next; `wagers` turns
the scores of its numbers into bets for budget().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from detectors import conformal, stats
from detectors.base import Arrays, Calibration, State, Streams, Window, own_state
from detectors.conformal import LAMBDAS, MIN_HISTORY, History, Live, Scored
from detectors.season import Calendar
from detectors.stats import Floats

# Windows remembered: of hours the eight weeks from which every hour of the week is compared with itself, and a day more,
# since the newest are in quarantine and time is counted from end to end.
KEEP: Final = 57 * 24


@dataclass(frozen=True)
class Past:
    """Windows known so far. last: the one just before, learnt from or not; rebuilt: what was known before is of no use."""

    live: Live
    last: History
    rebuilt: bool = False

    @classmethod
    def load(cls, state: State | None, cal: Calibration, version: int, columns: int) -> Past:
        """From a detector's state, if it belongs to this calibration; else from nothing. `columns`: numbers of a window.

        >>> cal = Calibration("volume", 1, "ab", {})
        >>> past = Past.load(None, cal, 1, 1)
        >>> len(past), past.learning, past.rebuilt
        (0, 'learning: 0 of 50 windows', False)
        >>> past = past.learn(History.of(np.array([2.0]), 0.0, 1), suspicious=False, keep=KEEP)
        >>> len(Past.load(past.state("volume", 1, cal), cal, 1, 1))
        1
        """
        own, nothing = own_state(state, cal, version), History.none(columns)
        if own is None:
            return cls(Live(nothing), nothing, rebuilt=state is not None)
        return cls(Live(History.load(own.arrays), int(own.meta["pending"])), History.load(own.arrays, "last_"))

    def __len__(self) -> int:
        return len(self.live.settled)

    @property
    def learning(self) -> str:
        """Why nothing is judged yet; empty once it is."""
        return f"learning: {len(self)} of {MIN_HISTORY} windows" if len(self) < MIN_HISTORY else ""

    def told(self) -> dict[str, Any]:
        """What evidence says about it."""
        return {"history": len(self), **({"rebuilt": True} if self.rebuilt else {})}

    def afresh(self) -> Past:
        """The same with nothing known: earlier windows cannot be compared with later ones."""
        nothing = self.last.rows(slice(0, 0))
        return replace(self, live=Live(nothing), last=nothing)

    def score(self, newest: History, window: Window, cal: Calibration, calendar: Calendar, *, means: bool) -> Scored:
        """Rank the newest window's numbers. `means`: they are means over events with variances and counts, as
        conformal.even reads them.
        """
        past, both = self.live.settled, self.last.plus(newest)
        if means:
            past, both = conformal.even(past, past), conformal.even(both, past)
        rng = stats.seeded(window.model, cal.detector, cal.hash, window.end_us)
        return conformal.score(past, both, window.end_us - window.start_us, rng, calendar)

    def learn(self, newest: History, *, suspicious: bool, keep: int) -> Past:
        """With one more window; it stays in quarantine, and out while anything is suspicious."""
        return replace(self, live=self.live.learn(newest, suspicious=suspicious, others=0, keep=keep), last=newest)

    def state(self, detector: str, version: int, cal: Calibration, more: Arrays | None = None) -> State:
        """As the state of a detector, with `more` arrays of its own."""
        arrays = {**self.live.windows.save(), **self.last.save("last_"), **(more or {})}
        return State(detector, version, cal.hash, {"pending": self.live.pending}, arrays)


def wagers(bets: Sequence[str], blame: Sequence[str], weight: Floats, z: Floats, kappa: float) -> Streams:
    """Every bet (a number and the side it bets on, with its score there) once per LAMBDAS, its weight divided among them.

    >>> made = wagers(["events/+", "events/-"], ["volume"] * 2, np.full(2, 0.5), np.array([1.0, -1.0]), 0.4)
    >>> made.names[:2], len(made.names), float(made.weight.sum())
    (('events/+/0.5', 'events/-/0.5'), 8, 1.0)
    """
    each = len(LAMBDAS)
    return Streams(
        tuple(f"{b}/{lam}" for lam in LAMBDAS for b in bets), tuple(blame) * each, np.tile(weight / each, each),
        conformal.bets(z, kappa).ravel(), np.tile(z, each),
    )  # fmt: skip


def best_p(p: Floats) -> float | None:
    """Smallest of several p-values, times how many there are; None for none.

    >>> best_p(np.array([0.01, np.nan, 0.5]))
    0.02
    """
    known = p[np.isfinite(p)]
    return min(1.0, float(known.min()) * len(known)) if len(known) else None
