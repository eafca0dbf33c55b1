"""Scores without distributional assumptions: a window's values ranked against the windows before it.

History is a table of values, one row per earlier window. Values are made comparable first: windows of different size
by their expected variance (rows within a window plus a between-window part estimated from the history), hours of the
day and kinds of day by their own robust profile where the history is long enough (detectors.season), successive windows
by AR(1) whitening. Then the rank of the
newest residual, ties broken at random, is a p-value that is exact when windows are exchangeable (Vovk 2021), and
z = Phi^-1(1 - p) is what detectors bet on: e = exp(lambda (z - kappa) - lambda^2 / 2).

What still hangs together over a day or a week (weather, a campaign) makes many windows say the same thing once. Sums of
z then vary more than bets assume, so z is divided by the square root of that excess (`persistence`): n windows count as
n / persistence, as in any mean of correlated values (Newey and West 1987).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from detectors.base import Arrays
from detectors.season import Calendar, without_season
from detectors.stats import Floats

LAMBDAS: Final = (0.5, 1.0, 1.5, 2.0)
MIN_HISTORY: Final = 50  # windows before anything may alarm
QUARANTINE: Final = 12  # newest windows that nothing is ranked against yet: a shift must not become its own history
MAX_PHI: Final = 0.95
DAY_US: Final = 86_400_000_000
SPANS_DAYS: Final = (0.25, 1.0, 7.0)  # over which windows may hang together
HANG: Final = 0.15  # share of columns beyond twice their standard error; about .03 when windows are independent
MIN_SPANS: Final = 4  # that the history must hold before they are judged


@dataclass(frozen=True)
class History:
    """Earlier windows, oldest first. values (K, D) float32, NaN where a window had no value; inverse_n (K,) = 1 / rows."""

    values: NDArray[np.float32]
    inverse_n: Floats
    end_us: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.end_us)

    @classmethod
    def of(cls, values: Floats, inverse_n: float, end_us: int) -> History:
        """One window."""
        row = values.astype(np.float32)[None, :]
        return cls(row, np.array([inverse_n]), np.array([end_us], dtype=np.int64))

    @classmethod
    def none(cls, columns: int) -> History:
        """No windows."""
        return cls(np.empty((0, columns), np.float32), np.empty(0), np.empty(0, np.int64))

    @classmethod
    def load(cls, arrays: Arrays, prefix: str = "") -> History:
        """From the arrays of a calibration or state."""
        values, inverse_n, end_us = (np.asarray(arrays[prefix + k]) for k in ("values", "inverse_n", "end_us"))
        return cls(values, inverse_n, end_us)

    def save(self, prefix: str = "") -> Arrays:
        """As arrays of a calibration or state."""
        return {f"{prefix}values": self.values, f"{prefix}inverse_n": self.inverse_n, f"{prefix}end_us": self.end_us}

    def rows(self, which: slice) -> History:
        """Some of the windows."""
        return History(self.values[which], self.inverse_n[which], self.end_us[which])

    def plus(self, other: History) -> History:
        """Both one after the other."""
        return History(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.inverse_n, other.inverse_n]),
            np.concatenate([self.end_us, other.end_us]),
        )


@dataclass(frozen=True)
class Live:
    """Live windows that may be learnt from; the last `pending` of them are still in quarantine."""

    windows: History
    pending: int = 0

    @property
    def settled(self) -> History:
        return self.windows.rows(slice(0, len(self.windows) - self.pending))

    def learn(self, newest: History, *, suspicious: bool, others: int, keep: int) -> Live:
        """With the newest window in quarantine. While anything is suspicious it is not learnt, and neither are those
        still in quarantine, which may hold the onset. `others`: windows of the reference; quarantine starts once
        MIN_HISTORY windows are known.
        """
        if suspicious and others + len(self.windows) >= MIN_HISTORY:
            return Live(self.settled)
        windows = self.windows.plus(newest).rows(slice(-keep, None))
        room = max(0, others + len(windows) - MIN_HISTORY)
        return Live(windows, min(self.pending + 1, QUARANTINE, room))


@dataclass(frozen=True)
class Scored:
    """The newest window against its history. z: signed score, NaN without value; p: share of history at or above;
    gain: what a lasting shift of the value by one adds to z, on average; ceiling: the largest z there can be.
    """

    z: Floats
    p: Floats
    gain: Floats
    ceiling: Floats


def score(
    history: History, window: History, length_us: int, rng: np.random.Generator, calendar: Calendar = Calendar()
) -> Scored:
    """Rank the last row of `window` (one row, or two when the window just before is known) against the history.

    Rows within a window are taken to share one distribution with variance proportional to inverse_n; the columns'
    values must be on that scale (see `spread`). Exact for exchangeable windows of equal size; otherwise approximate,
    which is why false-alarm rates are measured (docs/detectors.md).
    """
    k = len(history)
    both = np.concatenate([history.values, window.values]).astype(np.float64)
    gone = ~np.isfinite(both)
    seen = np.maximum((~gone[:k]).sum(axis=0), 1)
    center = np.where(gone[:k], 0.0, both[:k]).sum(axis=0) / seen
    both = np.where(gone, center, both) - center
    ends = np.concatenate([history.end_us, window.end_us])
    both = without_season(both, ends, k, length_us, calendar)
    residual, phi = _whitened(both, ends, k, length_us)
    now, past = residual[-1], np.where(gone[:k], np.nan, residual[:k])
    spread = np.sqrt(np.where(gone[:k], 0.0, residual[:k] ** 2).sum(axis=0) / seen)
    above = (past > now).sum(axis=0)
    same = (past == now).sum(axis=0)
    size = (~gone[:k]).sum(axis=0)
    p = (above + rng.random(len(now)) * (same + 1)) / (size + 1)
    steady = 1 / np.sqrt(persistence(past, history.end_us, rng))
    gain = np.where(spread > 0, (1 - phi) / np.maximum(spread, 1e-12), 0.0) * steady
    z = ndtri(1 - np.clip(p, 1e-9, 1 - 1e-9)) * steady
    return Scored(np.where(gone[-1], np.nan, z), np.where(gone[-1], np.nan, p), gain, ndtri(size / (size + 1)) * steady)


def persistence(residual: Floats, ends: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """How many times more the sums of successive scores vary than if windows were independent, per column at least 1.

    residual (K, D), NaN where there was no value; its ranks are what is summed, since that is what bets see: slow and
    wild stretches that balance in the values need not balance in the ranks. Sums run over a quarter of a day, a day and
    a week, each from the time on that the history holds four of it. Two things count: their mean square, beyond twice
    its standard error, which is added; and the square of the largest, beyond what the largest of as many independent
    ones would be (2 log 2K): a stormy day in fifty is nothing new, and yet hides in the mean square. Where more than
    HANG of the columns hang together over a span, the others are taken to do so as far as their sums allow, and
    records to be broken by two fifths.

    >>> rng = np.random.default_rng(1)
    >>> days = np.repeat(rng.normal(size=60), 24) + rng.normal(size=1440)
    >>> found = persistence(np.column_stack([days, rng.normal(size=1440)]), np.arange(1440) * 3_600_000_000, rng)
    >>> bool(found[0] > 10), float(found[1])
    (True, 1.0)
    """
    k, columns = residual.shape
    out = np.ones(columns)
    days = float(np.ptp(ends)) / DAY_US if k else 0.0
    sizes = [round(k / days * span) for span in SPANS_DAYS] if days > 0 else []
    sizes = [s for s in sizes if 2 <= s <= k / MIN_SPANS]
    if not sizes:
        return out
    dealt = rng.permutation(k)  # so that equal values come in any order
    order = dealt[np.argsort(residual[dealt].astype(np.float32), axis=0)]
    size = np.isfinite(residual).sum(axis=0)
    scores = np.repeat(ndtri((np.arange(k) + 0.5) / k)[:, None], columns, axis=1)
    for j in np.flatnonzero(size < k).tolist():  # NaN is sorted last, and says nothing
        scores[:, j] = 0.0
        scores[: size[j], j] = ndtri((np.arange(size[j]) + 0.5) / size[j])
    power = np.maximum(np.mean(scores**2, axis=0), 1e-9)
    total = np.zeros((k + 1, columns))
    np.put_along_axis(total[1:], order, scores, axis=0)
    np.cumsum(total, axis=0, out=total)
    for span in sizes:
        error = np.sqrt(2 / (1.5 * k / span))  # of the mean square of overlapping sums
        squares = (total[span:] - total[:-span]) ** 2 / (span * power)
        excess = squares.mean(axis=0)
        clear = excess > 1 + 2 * error
        all_do = bool(clear.sum() > 2 + HANG * columns)
        out = np.maximum(out, np.where(clear | all_do, excess * (1 + error), 1.0))
        out = np.maximum(out, squares.max(axis=0) / (2 * np.log(2 * k)) * (2 if all_do else 1))
    return out


def even(some: History, past: History) -> History:
    """Means over events of windows of any size on one scale: less their center, over their standard deviation.

    Values come in three blocks of columns: the mean, the variance of one event, and one over the events behind it (NaN
    where there is none). Center, variance and what windows vary by beyond it are the history's (`past`).
    """
    old, now = past.values.astype(np.float64), some.values.astype(np.float64)
    c = old.shape[1] // 3
    mean, inverse = old[:, :c], np.nan_to_num(old[:, 2 * c : 3 * c])
    known = np.isfinite(mean)
    size = np.maximum(known.sum(axis=0), 1)
    center = np.where(known, mean, 0).sum(axis=0) / size
    row = np.where(known, np.nan_to_num(old[:, c : 2 * c]), 0).sum(axis=0) / size
    between = spread(mean, np.ones(len(old)), row * inverse)
    scale = np.sqrt(np.maximum(row * np.nan_to_num(now[:, 2 * c : 3 * c]) + between, 1e-12))
    return History(((now[:, :c] - center) / scale).astype(np.float32), some.inverse_n, some.end_us)


def spread(values: Floats, inverse_n: Floats, row_variance: Floats) -> Floats:
    """Variance between windows beyond what their finite rows explain, per column (method of moments, at least 0)."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    center = np.where(known, values, 0).sum(axis=0) / count
    excess = np.where(known, (values - center) ** 2 - row_variance * inverse_n[:, None], 0).sum(axis=0) / count
    return np.asarray(np.maximum(excess, 0.0), dtype=np.float64)


def bets(z: Floats, kappa: float | Floats) -> Floats:
    """Log e-values (len(LAMBDAS), D) of betting that z is above `kappa`; 0 where there is no score."""
    lam = np.array(LAMBDAS)[:, None]
    return np.asarray(np.where(np.isfinite(z), lam * (np.nan_to_num(z) - kappa) - lam * lam / 2, 0.0), dtype=np.float64)


def _whitened(values: Floats, ends: NDArray[np.int64], k: int, length_us: int) -> tuple[Floats, Floats]:
    """Residuals and coefficient of an AR(1) whose coefficient comes from the history, 0 where it is within noise (2 / sqrt(k)).

    A window whose predecessor is unknown keeps its value, scaled to the residuals' variance.
    """
    none = np.zeros(values.shape[1])
    if len(values) < 2 or k < MIN_HISTORY:
        return values, none
    follows = np.concatenate([[False], np.diff(ends) == length_us])
    pairs = np.flatnonzero(follows[:k])
    if len(pairs) < MIN_HISTORY:
        return values, none
    before, after = values[pairs - 1], values[pairs]
    power = (before**2).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        phi = np.where(power > 0, (before * after).mean(axis=0) / power, 0.0)
    phi = np.where(phi > 2 / np.sqrt(k), np.minimum(phi, MAX_PHI), 0.0)
    out = values * np.sqrt(1 - phi**2)
    out[1:] = np.where(follows[1:, None], values[1:] - phi * values[:-1], out[1:])
    return np.asarray(np.where(phi > 0, out, values), dtype=np.float64), np.asarray(phi, dtype=np.float64)
