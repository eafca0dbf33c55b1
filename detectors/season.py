"""What belongs to the hour of the day and the kind of day, taken out of windows before they are ranked."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from detectors.stats import Floats
from monitor.model import HOUR_US, SECOND_US

DAY_US: Final = 24 * HOUR_US
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOURS_DAYS: Final = 7  # days of history from which hours of the day are compared with themselves
KINDS_DAYS: Final = 14  # from which workdays, weekends and holidays are
WEEK_DAYS: Final = 56  # from which every hour of the week is
LONGEST_GAP_US: Final = 7 * DAY_US  # between windows that makes no history
HOLIDAY: Final = 2  # kind of day; 0 workday, 1 weekend
MIN_SEEN: Final = 3  # windows of a kind that make a profile
OUTLIER: Final = 3.0  # robust standard deviations beyond which a past window no longer pulls its profile


@dataclass(frozen=True)
class Calendar:
    """Which local day and hour a time is, and which days are days off.

    timezone: IANA name. weekend: mon ... sun. holidays: days such as 2026-12-18.

    >>> noon = 1_766_059_200_000_000  # Thursday 2025-12-18, 12:00 UTC
    >>> Calendar("Asia/Qatar", ("fri", "sat"), ("2025-12-18",)).local(np.array([noon]))
    (array([54000]), array([3]), array([2]))
    """

    timezone: str = "UTC"
    weekend: tuple[str, ...] = ("sat", "sun")
    holidays: tuple[str, ...] = ()

    @classmethod
    def parse(cls, timezone: str, weekend: str, holidays: str) -> Calendar:
        """From detector parameters: lists with commas."""
        return _parsed(timezone, weekend, holidays)

    @functools.cached_property
    def _off(self) -> tuple[ZoneInfo, frozenset[int], frozenset[date]]:
        days = frozenset(DAYS.index(d) for d in self.weekend)
        return ZoneInfo(self.timezone), days, frozenset(date.fromisoformat(d) for d in self.holidays)

    def local(self, times_us: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Local second of the day, weekday (0 Monday) and kind of day (0 workday, 1 weekend, 2 holiday) of each time."""
        found = np.array([self._one(t) for t in times_us.tolist()], dtype=np.int64).reshape(-1, 3)
        return found[:, 0], found[:, 1], found[:, 2]

    @functools.lru_cache(maxsize=50_000)  # noqa: B019 - calendars are few and live as long as the process
    def _one(self, time_us: int) -> tuple[int, int, int]:
        zone, weekend, holidays = self._off
        at = datetime.fromtimestamp(time_us // SECOND_US, UTC).astimezone(zone)
        weekday = at.weekday()
        second = at.hour * 3600 + at.minute * 60 + at.second
        return second, weekday, HOLIDAY if at.date() in holidays else int(weekday in weekend)


@functools.lru_cache(maxsize=64)
def _parsed(timezone: str, weekend: str, holidays: str) -> Calendar:
    def words(text: str) -> tuple[str, ...]:
        return tuple(w.strip() for w in text.split(",") if w.strip())

    return Calendar(timezone, words(weekend), words(holidays))


def days_known(times_us: NDArray[np.int64]) -> float:
    """Days from the first time to the last, without gaps of more than a week, in which nothing was learnt.

    >>> week = np.arange(7 * 24) * HOUR_US
    >>> days_known(np.r_[week, week + 70 * DAY_US]) < 14 < days_known(np.r_[week, week + 10 * DAY_US])
    True
    """
    if not len(times_us):
        return 0.0
    steps = np.diff(np.sort(times_us))
    return float(steps[steps <= LONGEST_GAP_US].sum()) / DAY_US


def without_season(
    values: Floats, ends: NDArray[np.int64], k: int, length_us: int, calendar: Calendar = Calendar()
) -> Floats:
    """Subtract robust profiles learnt from the first k rows: hour of the day, then kind of day, then hour of the week.

    Each profile is fitted to what the one before left over, starts once the history is long enough for it, and is
    shrunk per column to nothing where slots do not differ. A past window is compared with the others of its slot only
    (leave one out), so that past and new residuals vary alike. Windows that do not divide a day are left as they are.
    A holiday is a kind of its own once MIN_SEEN earlier ones are known, and until then a day of the weekend.
    """
    if length_us <= 0 or DAY_US % length_us or k == 0:
        return values
    span = days_known(ends[:k])
    if span < HOURS_DAYS:
        return values
    per_day = int(DAY_US // length_us)
    second, weekday, kind = calendar.local(ends - length_us)
    slot = second * SECOND_US // length_us
    if per_day > 1:
        values = _without(values, k, slot, per_day)
    if span >= KINDS_DAYS:
        values = _without(values, k, _of_kind(kind, slot, k, per_day), 3 * per_day)
    if span >= WEEK_DAYS:
        values = _without(values, k, weekday * per_day + slot, 7 * per_day)
    return values


def _of_kind(kind: NDArray[np.int64], slot: NDArray[np.int64], k: int, per_day: int) -> NDArray[np.int64]:
    """The hour of the kind of day that each window is compared with.

    Isolated holidays are too rare for a profile: they share the weekend's, where the first k windows hold one.
    """
    own = kind * per_day + slot
    size = np.bincount(own[:k], minlength=3 * per_day)
    weekend = per_day + slot
    lonely = (kind == HOLIDAY) & (size[own] < MIN_SEEN) & (size[weekend] >= MIN_SEEN)
    return np.where(lonely, weekend, own)


def _without(values: Floats, k: int, slot: NDArray[np.int64], slots: int) -> Floats:
    """Values less the profile over `slot`."""
    size = np.bincount(slot[:k], minlength=slots).astype(np.float64)
    seen = size >= MIN_SEEN
    if seen.sum() < 2:
        return values
    order = np.argsort(slot[:k], kind="stable")
    starts = np.concatenate([[0], np.cumsum(size.astype(np.int64))[:-1]])
    past = _tamed(values[:k], slot[:k], order, starts, size)
    total = np.zeros((slots, values.shape[1]))
    total[size > 0] = np.add.reduceat(past[order], starts[size > 0], axis=0)
    mean = total / np.maximum(size, 1)[:, None]
    known = seen[slot[:k]]
    noise = ((past - mean[slot[:k]])[known] ** 2).sum(axis=0) / max(1.0, known.sum() - seen.sum())
    between = np.average(mean[seen] ** 2, axis=0, weights=size[seen])
    expected = noise * np.average(1 / size[seen], weights=size[seen])
    with np.errstate(divide="ignore", invalid="ignore"):
        shrink = np.where(between > 2 * expected, 1 - expected / between, 0.0)  # below twice its noise it is noise
    profile = np.where(seen[:, None], mean, 0.0) * shrink
    out: Floats = values - profile[slot]
    m = np.maximum(size[slot[:k]], 2)[:, None]
    left_out = values[:k] - shrink * (m * mean[slot[:k]] - past) / (m - 1)
    out[:k] = np.where(known[:, None], left_out, values[:k])
    return out


def _tamed(
    past: Floats, slot: NDArray[np.int64], order: NDArray[np.int64], starts: NDArray[np.int64], size: Floats
) -> Floats:
    """Past values with outliers pulled to OUTLIER robust standard deviations from their slot's median.

    `order` sorts the values by slot, whose own begin at `starts` and are `size`.
    """
    count = size.astype(np.int64)
    block = np.full((len(size), int(count.max()), past.shape[1]), np.inf)
    block[slot[order], np.arange(len(order)) - starts[slot[order]]] = past[order]
    block.sort(axis=1)
    rows = np.arange(len(size))
    low, high = block[rows, np.maximum(count - 1, 0) // 2], block[rows, count // 2]
    middle = np.where(count[:, None] > 0, (low + high) / 2, 0.0)[slot]
    gap = past - middle
    scale = 1.4826 * np.median(np.abs(gap), axis=0)
    limit = np.where(scale > 0, OUTLIER * scale, np.inf)
    return np.asarray(middle + np.clip(gap, -limit, limit), dtype=np.float64)
