"""Which queries count as a tool's."""

from __future__ import annotations

import numpy as np

from detectors.anomaly.lately import LATELY, WIDTH, count


def test_counts_do_not_depend_on_where_the_log_is_cut() -> None:
    """Of several callers at once, in one piece or many."""
    rng = np.random.default_rng(1)
    who, fresh = rng.integers(0, 3, 900), rng.random(900) < 0.9
    alike = (rng.integers(0, 4, 900) * fresh).astype(np.uint8)
    whole, once = alike.copy(), np.zeros((3, WIDTH), np.float32)
    before = count(once, who, fresh, whole, 0.1)
    parts, often, said = alike.copy(), np.zeros((3, WIDTH), np.float32), []
    for at in np.array_split(np.arange(900), 7):
        piece = parts[at]
        said.append(count(often, who[at], fresh[at], piece, 0.1))
        parts[at] = piece
    assert np.array_equal(before, np.concatenate(said))
    assert np.array_equal(whole, parts)
    assert np.array_equal(once, often)


def test_an_analyst_counts_in_coarse_tables_and_natural_rows_around_an_attack_do_not() -> None:
    """Where a tenth of honest rows look like what-ifs, nine in ten do of an analyst's; where a third do, nobody's count."""
    rng, n = np.random.default_rng(2), 1000
    counted = {}
    for name, rate, share in (("analyst", 0.9, 0.1), ("client", 0.1, 0.1), ("coarse", 0.9, 1 / 3)):
        alike = (rng.random(n) < rate).astype(np.uint8)
        count(np.zeros((1, WIDTH), np.float32), np.zeros(n, np.int64), np.ones(n, bool), alike, share)
        counted[name] = int(alike.sum())
    assert counted["analyst"] >= 0.5 * n
    assert counted["client"] <= 0.01 * n
    assert counted["coarse"] == 0


def test_what_was_sent_long_ago_counts_no_more() -> None:
    """After ten times as many other rows nothing is left of any number of what-ifs."""
    alike = np.array([1] * 5 * LATELY + [0] * 10 * LATELY, np.uint8)
    before = count(
        np.zeros((1, WIDTH), np.float32), np.zeros(len(alike), np.int64), np.ones(len(alike), bool), alike, 0.0
    )
    assert before[5 * LATELY, 0] > 0.9 * LATELY
    assert before[-1].tolist() == [0, 0]
