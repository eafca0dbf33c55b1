"""Hours of the day, kinds of day and hours of the week are compared with themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from detectors.anomaly.volume import Volume
from detectors.conformal import QUARANTINE, History, Live
from detectors.drift.marginals import Marginals
from detectors.past import Past
from detectors.season import DAY_US, WEEK_DAYS, Calendar, without_season
from monitor.model import HOUR_US
from tests.judging import hours

DAY = 24
MONDAY_US = int(datetime(2026, 8, 31, tzinfo=UTC).timestamp()) * 1_000_000
QATAR = Calendar("Asia/Qatar", ("fri", "sat"), ("2026-10-08", "2026-10-13"))


def ends(count: int, length: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Ends of successive windows from a Monday in UTC on."""
    return MONDAY_US + np.arange(1, count // length + 1, dtype=np.int64) * length * HOUR_US


def test_a_weekend_of_other_days_is_known_by_the_calendar() -> None:
    """Fridays and Saturdays in Doha are quieter: the right calendar takes that out, the wrong one leaves it."""
    rng = np.random.default_rng(1)
    at = ends(29 * DAY)
    _, _, kind = QATAR.local(at - HOUR_US)
    x = (rng.normal(0, 1, len(at)) - 4.0 * (kind == 1))[:, None]
    k = 28 * DAY - 4 * DAY  # judged: the days after a Thursday
    right = without_season(x, at, k, HOUR_US, QATAR)[k:, 0]
    wrong = without_season(x, at, k, HOUR_US, Calendar())[k:, 0]
    off = kind[k:] == 1
    assert abs(right[off].mean() - right[~off].mean()) < 0.7
    assert wrong[off].mean() - wrong[~off].mean() < -2.5


def test_hours_of_the_week_are_told_apart_after_eight_weeks() -> None:
    """A job that runs on Tuesdays at nine only is usual then."""
    rng = np.random.default_rng(2)
    at = ends(73 * DAY)
    second, weekday, _ = Calendar().local(at - HOUR_US)
    job = (weekday == 1) & (second == 9 * 3600)
    x = (rng.normal(0, 1, len(at)) + 8.0 * job)[:, None]
    k = 66 * DAY
    left = without_season(x, at, k, HOUR_US)[k:, 0]
    assert job[k:].sum() >= 1
    assert (np.abs(left[job[k:]]) < 4).all()
    short = without_season(x[-30 * DAY :], at[-30 * DAY :], 30 * DAY - 6 * DAY, HOUR_US)[30 * DAY - 6 * DAY :, 0]
    assert (short[job[-6 * DAY :]] > 4).all()


def test_windows_of_a_day_know_weekends() -> None:
    """24-hour windows have no hours of the day, and still kinds of day."""
    rng = np.random.default_rng(3)
    at = ends(60 * DAY, DAY)
    _, _, kind = Calendar().local(at - DAY * HOUR_US)
    x = (rng.normal(0, 1, len(at)) + 5.0 * (kind == 1))[:, None]
    left = without_season(x, at, 55, DAY * HOUR_US)[55:, 0]
    assert kind[55:].sum() >= 1
    assert (np.abs(left) < 3.5).all()


def holiday_left(earlier: int, effect: float, weekend: tuple[str, ...] = ("sat", "sun"), length: int = 1) -> float:
    """What is left on average of a Wednesday's holiday after so many earlier ones, in units of the noise; holidays move by
    `effect`, Saturdays and Sundays by -4, and those are the calendar's `weekend` or not.
    """
    rng = np.random.default_rng(6)
    at = ends(59 * DAY, length)
    day = (at - length * HOUR_US - MONDAY_US) // (DAY * HOUR_US)
    off = [51 - 7 * i for i in range(earlier + 1)]
    dates = tuple((datetime(2026, 8, 31, tzinfo=UTC) + timedelta(days=d)).date().isoformat() for d in off)
    moved = np.where(np.isin(day, off), effect, np.where(day % 7 >= 5, -4.0, 0.0))
    x = (rng.normal(0, 1, len(at)) + moved)[:, None]
    today = np.flatnonzero(day == off[0])
    left = without_season(x, at, int(today[0]), length * HOUR_US, Calendar("UTC", weekend, dates))
    return float(left[today, 0].mean())


@pytest.mark.parametrize("length", [1, DAY])
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_holiday_with_few_earlier_ones_is_a_day_of_the_weekend(earlier: int, length: int) -> None:
    """A public holiday that behaves as weekends do is taken out, though none or one or two like it were ever seen."""
    usual = holiday_left(earlier, -4.0, length=length)
    assert abs(usual - holiday_left(earlier, 0.0, length=length) + 4.0) < 0.5  # all that differs is the holiday itself
    assert abs(usual) < (0.8 if length == 1 else 2.5)
    assert holiday_left(earlier, 0.0, length=length) > 2.0  # one that works as usual is not like the weekend


def test_holidays_that_were_seen_often_are_a_kind_of_their_own() -> None:
    """Four holidays that rise where weekends fall are known by themselves; without a weekend nothing is taken out."""
    assert abs(holiday_left(4, 6.0)) < 1.0
    assert holiday_left(1, 6.0) > 5.0
    assert holiday_left(1, -4.0, weekend=()) < -2.0


def test_an_outlier_in_the_past_does_not_bend_the_profile() -> None:
    """One broken hour among twenty: the next days' same hour is as usual."""
    rng = np.random.default_rng(4)
    at = ends(22 * DAY)
    second, _, _ = Calendar().local(at - HOUR_US)
    x = (3.0 * (second == 9 * 3600) + rng.normal(0, 0.5, len(at)))[:, None]
    x[9 + 5 * DAY] = 500.0
    k = 21 * DAY
    left = without_season(x, at, k, HOUR_US)
    assert abs(left[k + 9, 0]) < 2
    assert left[9 + 5 * DAY, 0] > 400  # and it stays what it was


def test_a_gap_of_weeks_is_no_history() -> None:
    """Two days, ten weeks of nothing, two days: nothing is known of hours or weeks, and windows stay as they are."""
    rng = np.random.default_rng(11)
    at = np.r_[ends(2 * DAY), ends(2 * DAY) + 70 * DAY_US]
    second, _, _ = Calendar().local(at - HOUR_US)
    x = (5.0 * (second == 9 * 3600) + rng.normal(0, 0.1, len(at)))[:, None]
    assert (without_season(x, at, len(at) - 1, HOUR_US) == x).all()


@pytest.mark.parametrize("length_us", [7 * HOUR_US, 36 * HOUR_US])
def test_other_lengths_have_no_season(length_us: int) -> None:
    """Windows that do not divide a day are left as they are."""
    x = np.random.default_rng(5).normal(size=(200, 2))
    at = MONDAY_US + np.arange(200, dtype=np.int64) * length_us
    assert (without_season(x.copy(), at, 190, length_us) == x).all()


def test_clock_changes_move_the_local_hour() -> None:
    """Nine o'clock in Berlin is seven hours after midnight UTC in summer and eight in winter."""
    berlin = Calendar("Europe/Berlin")
    summer = int(datetime(2026, 7, 1, 7, tzinfo=UTC).timestamp()) * 1_000_000
    winter = int(datetime(2026, 12, 1, 8, tzinfo=UTC).timestamp()) * 1_000_000
    assert berlin.local(np.array([summer, winter]))[0].tolist() == [9 * 3600, 9 * 3600]


def test_live_windows_alone_reach_back_far_enough_for_hours_of_the_week() -> None:
    """What a detector remembers of its own windows, less those in quarantine, comes to span eight weeks of hours and does
    not fall short of them again.
    """
    past = Past(Live(History.none(1)), History.none(1))
    spans = []
    for end_us in ends(60 * DAY).tolist():
        past = past.learn(History.of(np.array([1.0]), 0.0, end_us), suspicious=False, keep=Volume().keep)
        settled = past.live.settled.end_us
        spans.append((settled[-1] - settled[0]) / DAY_US if len(settled) else 0.0)
    reached = int(np.argmax(np.array(spans) >= WEEK_DAYS)) + 1
    assert reached == 56 * DAY + 1 + QUARANTINE
    assert min(spans[reached:]) >= WEEK_DAYS


def test_drift_knows_hours_of_the_week_four_weeks_after_its_reference() -> None:
    """Of a reference of eight weeks the last 30 days of hours are kept; live windows bring the rest."""
    weeks = hours(57 * DAY, 25, np.random.default_rng(7))
    reference = History.load(Marginals().calibrate(weeks, "r").arrays)
    assert len(reference) == Marginals().keep
    live, settled = Live(History.none(1)), reference.end_us
    for hour in range(1, 40 * DAY):
        newest = History.of(np.array([1.0]), 0.0, int(reference.end_us[-1]) + hour * HOUR_US)
        live = live.learn(newest, suspicious=False, others=len(reference), keep=Marginals().keep)
        settled = np.concatenate([reference.end_us, live.settled.end_us])
        if settled[-1] - settled[0] >= WEEK_DAYS * DAY_US:
            break
    assert 26 < hour / DAY < 28
