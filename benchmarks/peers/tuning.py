"""One threshold per peer that spends a given number of false alarms.

Features score in their own units, so each is first put on the scale of its own null windows: how far above the level that
one window in a hundred passes, in mean excesses over it. That is the feature's null rank, carried on past the windows at
hand by an exponential tail; ranks alone would end before an alarm in 720 checks is shared by 23 features. A window's score is its
strangest feature's, and one threshold on it serves all features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

CHECKS: Final = 720  # 30 days of hourly windows, in which the budget is one alarm
UPPER: Final = 0.01  # share of a feature's null windows that its scale is fitted to
SMALL: Final = 1e-9  # a step where no window passes the level: whatever does then is an alarm
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scale:
    """Per feature the `level` that UPPER of null windows pass, and the `step` by which those pass it on average."""

    level: Floats
    step: Floats

    def of(self, scores: Floats) -> Floats:
        """Scores (..., features) in steps above the level."""
        return np.asarray((scores - self.level) / self.step)

    def at(self, limit: float) -> Floats:
        """The same limit on all features, in each one's own unit."""
        return np.asarray(self.level + limit * self.step)


def fitted(scores: Floats) -> Scale:
    """The scale of null windows (n, features).

    >>> found = fitted(np.arange(1000.0)[:, None])
    >>> found.level, found.step, found.of(np.array([999.0]))
    (array([989.]), array([5.5]), array([1.81818182]))
    """
    level = np.quantile(scores, 1 - UPPER, axis=0, method="lower")
    over = scores > level
    excess = np.where(over, scores - level, 0.0).sum(axis=0) / np.maximum(1, over.sum(axis=0))
    return Scale(level, np.maximum(excess, SMALL))


def alarms(inside: Bools) -> int:
    """Runs of alarming windows in streams (streams, windows): like an incident, an alarm that lasts counts once.

    >>> alarms(np.array([[1, 1, 0, 1], [1, 0, 0, 0]], dtype=bool))
    3
    """
    before = np.pad(inside, ((0, 0), (1, 0)))[:, :-1]
    return int((inside & ~before).sum())


def threshold(strangest: Floats, allowed: int) -> float:
    """The lowest score to alarm at without more than `allowed` alarms in these streams; inf where equal scores forbid any.

    >>> null = np.array([[1.0, 9.0, 8.0, 2.0, 3.0, 1.0, 7.0]])
    >>> threshold(null, 1), threshold(null, 2)
    (8.0, 7.0)
    """
    found = np.inf
    for limit in np.unique(strangest)[::-1]:
        if alarms(strangest >= limit) > allowed:
            break
        found = float(limit)
    return found


def searched(count: Callable[[float], int], allowed: int, low: float, high: float, tries: int = 24) -> float:
    """The same where alarms can only be counted at one threshold after the other, between `low` and `high`; the nearest
    stricter one where no try has exactly `allowed`.

    >>> int(1000 / searched(lambda limit: int(1000 / limit), 10, 1.0, 1000.0))
    10
    """
    for _ in range(tries):
        middle = (low + high) / 2
        some = count(middle)
        if some == allowed:
            return middle
        low, high = (middle, high) if some > allowed else (low, middle)
    return high


def rate(found: int, windows: int) -> dict[str, float]:
    """Alarms per CHECKS windows with the exact Poisson 95 % interval.

    >>> {k: round(v, 2) for k, v in rate(10, 7200).items()}
    {'alarms': 10, 'windows': 7200, 'per_720': 1.0, 'lower_95': 0.48, 'upper_95': 1.84}
    """
    lower = float(chi2.ppf(0.025, 2 * found) / 2) if found else 0.0
    upper = float(chi2.ppf(0.975, 2 * (found + 1)) / 2)
    each = CHECKS / windows
    return {
        "alarms": found, "windows": windows, "per_720": found * each, "lower_95": lower * each, "upper_95": upper * each,
    }  # fmt: skip
