"""Ranks against history: exact when windows are exchangeable, season and correlation removed."""

from __future__ import annotations

import numpy as np
from scipy.stats import kstest

from detectors.conformal import LAMBDAS, History, bets, persistence, score, spread
from monitor.model import HOUR_US


def history(values: np.ndarray[tuple[int, int], np.dtype[np.float64]], first: int = 0) -> History:
    """Hourly windows with these values."""
    ends = (first + 1 + np.arange(len(values), dtype=np.int64)) * HOUR_US
    return History(values.astype(np.float32), np.full(len(values), 0.001), ends)


def test_p_values_are_uniform_for_exchangeable_windows() -> None:
    """Whatever the distribution: here heavy-tailed values and values with many ties."""
    rng = np.random.default_rng(1)
    p = []
    for _ in range(300):
        x = np.column_stack([rng.standard_cauchy(101), rng.integers(0, 3, 101)])
        p.append(score(history(x[:100]), history(x[100:], 100), HOUR_US, rng).p)
    for column in np.array(p).T:
        assert kstest(column, "uniform").pvalue > 0.01


def test_a_bet_wins_nothing_on_average_when_nothing_changed() -> None:
    """The mean e-value is at most one."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 1))
    z = np.array(
        [score(history(x[i : i + 100]), history(x[i + 100 : i + 101], 100), HOUR_US, rng).z[0] for i in range(1900)]
    )
    means = np.exp(bets(z, 0.2)).mean(axis=1)
    assert means.shape == (len(LAMBDAS),)
    assert (means < 1.0).all()


def test_correlated_windows_are_whitened() -> None:
    """After an AR(1) of .8 is removed, successive scores are no longer alike."""
    rng = np.random.default_rng(3)
    x = np.zeros((1000, 1))
    for i in range(1, 1000):
        x[i] = 0.8 * x[i - 1] + rng.normal()
    z = np.array([score(history(x[:i]), history(x[i - 1 : i + 1], i - 1), HOUR_US, rng).z[0] for i in range(300, 1000)])
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 0.1
    assert abs(np.corrcoef(x[301:1000, 0], x[300:999, 0])[0, 1]) > 0.7


def test_hours_of_the_day_are_compared_with_themselves() -> None:
    """A daily wave as large as the noise leaves scores that do not follow it."""
    rng = np.random.default_rng(4)
    hour = np.arange(24 * 24)
    x = (3 * np.sin(hour / 24 * 2 * np.pi) + rng.normal(size=len(hour)))[:, None]
    k = 14 * 24
    z = np.array([score(history(x[:i]), history(x[i : i + 1], i), HOUR_US, rng).z[0] for i in range(k, len(hour))])
    assert abs(np.corrcoef(z, np.sin(hour[k:] / 24 * 2 * np.pi))[0, 1]) < 0.15
    assert 0.8 < z.std() < 1.2


def test_missing_values_say_nothing() -> None:
    """A window without a value has no score and its bets stand at zero."""
    rng = np.random.default_rng(5)
    found = score(history(rng.normal(size=(60, 2))), history(np.array([[np.nan, 9.0]]), 60), HOUR_US, rng)
    assert np.isnan(found.z[0])
    assert found.z[1] > 2
    assert (bets(found.z, 0.2)[:, 0] == 0).all()


def test_spread_is_what_rows_do_not_explain() -> None:
    """Windows of 100 independent rows have no spread of their own; windows with levels of their own do."""
    rng = np.random.default_rng(6)
    steady = rng.normal(0, 0.1, 400)
    wild = rng.normal(0, np.sqrt(0.01 + 0.25), 400)
    found = spread(np.column_stack([steady, wild]), np.full(400, 0.01), np.ones(2))
    assert found[0] < 0.002
    assert 0.2 < found[1] < 0.3


def test_values_that_are_often_missing_are_ranked_among_themselves() -> None:
    """Four windows in five without a value: the p-values of the others are uniform all the same."""
    rng = np.random.default_rng(7)
    p = []
    for _ in range(400):
        x = np.where(rng.random(301) < 0.8, np.nan, rng.normal(size=301))[:, None]
        x[-1] = rng.normal()
        p.append(score(history(x[:300]), history(x[300:], 300), HOUR_US, rng).p[0])
    assert kstest(p, "uniform").pvalue > 0.01


def test_windows_that_say_the_same_for_a_day_count_less() -> None:
    """Days of a level of their own: sums of scores over days vary no more than bets assume, where they did by far."""
    rng = np.random.default_rng(8)
    days = np.repeat(rng.normal(size=60), 24)[:, None] + rng.normal(size=(1440, 1))
    k = 1200
    z = np.array(
        [score(history(days[:k]), history(days[i - 1 : i + 1], i - 1), HOUR_US, rng).z[0] for i in range(k, 1440)]
    )
    daily = z.reshape(-1, 24).sum(axis=1)
    assert daily.std() < 1.3 * np.sqrt(24)
    whole = np.repeat(rng.normal(size=60), 24)
    assert persistence(whole[:, None], history(days).end_us, rng)[0] > 15


def test_one_wild_day_in_fifty_counts() -> None:
    """Rare storms hardly change the mean square of sums; the largest sum tells them."""
    rng = np.random.default_rng(9)
    hours = rng.normal(size=(1200, 200))
    calm = persistence(hours, history(hours).end_us, rng)
    assert np.mean(calm > 1) < 0.2
    hours[480:504] += 3.0
    stormy = persistence(hours, history(hours).end_us, rng)
    assert np.median(stormy) > 3
    assert np.median(calm) == 1
