"""What tools send is excused only while it looks like a tool's in more than one way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors.anomaly.queries import Queries
from detectors.base import LOOK_ALIKES
from tests.judging import Court, Rng, as_log, events, numbers, sent
from tests.unit.detectors.test_queries import calibration, tied, tied_calibration

Matrix = np.ndarray[Any, np.dtype[np.float64]]
SEEDS = range(3)


def looks(rows: Matrix, rng: Rng) -> dict[str, float]:
    """Share of the rows that look like each of LOOK_ALIKES."""
    found = Queries().measure(tied_calibration(), None, as_log(sent(rows, tied(len(rows), rng), "client"))).evidence
    assert found is not None
    assert found.alike is not None
    return dict(zip(LOOK_ALIKES, np.bincount(found.alike, minlength=5)[1:] / len(rows), strict=True))


def around(cases: Matrix, size: Matrix, rng: Rng, rows: int = 100) -> Matrix:
    """Each case as it is, then with noise on every number, values that stay valid."""
    out = np.repeat(cases, rows, axis=0)
    out += rng.normal(size=out.shape) * size * (np.arange(len(out)) % rows > 0)[:, None]
    return valid(out)


def valid(rows: Matrix) -> Matrix:
    """Cents and whole codes as the reference has them."""
    rows[:, 6], rows[:, 7] = np.round(np.abs(rows[:, 6]), 2), np.clip(np.round(rows[:, 7]), 1, 5)
    return rows


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_over_whole_ranges_are_no_noise_around_a_case(seed: int) -> None:
    """Noise has the reference's variance; what is drawn over whole ranges has more, wherever it is looked at from."""
    rng = np.random.default_rng([41, seed])
    known = numbers(tied(600, rng))
    assert looks(around(known[:4], known.std(axis=0), rng), rng)["explainer"] > 0.55
    low, high = np.quantile(known, [0.005, 0.995], axis=0)
    assert looks(valid(rng.uniform(low, high, (400, 8))), rng)["explainer"] < 0.25


def test_an_explainer_may_explain_an_unusual_case() -> None:
    """After usual cases one that breaks rules and what hangs together: copies of it are still an explainer's; without the
    usual ones before, not.
    """
    rng = np.random.default_rng(43)
    known = numbers(tied(600, rng))
    cases = known[:3].copy()
    cases[2, :5] = [2.5, -2.5, 2.5, -2.5, -2.5]
    rows = around(cases, known.std(axis=0), rng)
    rows[200, 6:] = 0.1234, 9
    after, alone = looks(rows, np.random.default_rng(1)), looks(rows[200:], np.random.default_rng(1))
    assert after["explainer"] > 0.7
    assert alone["explainer"] < 0.4


def swapped(known: Matrix, ends: float, rng: Rng) -> Matrix:
    """A case with numbers of other rows: six or seven, or, in a share of the rows, one or two, as SHAP sends them."""
    out = np.repeat(known[:1], len(known), axis=0)
    for i in range(1, len(known)):
        k = int(rng.choice([1, 2])) if rng.random() < ends else int(rng.integers(6, 8))
        taken = rng.permutation(8)[:k]
        out[i, taken] = known[i, taken]
    return out


def test_whoever_swaps_values_swaps_one_as_often() -> None:
    """SHAP changes one field, or keeps one, in most rows; rows that share some fields with a case by chance never do."""
    rng = np.random.default_rng(44)
    known = numbers(tied(300, rng))
    found = []
    for ends in (0.6, 0.0):
        log = as_log(sent(swapped(known, ends, rng), tied(1, rng), "client"))
        state = Queries().measure(tied_calibration(), None, log).state
        found.append(int(state.arrays["whims"][0]))
    assert found[0] > 0
    assert found[1] < 0


def slopes(case: Matrix, fields: list[int], steps: int, start: float = 0.05) -> Matrix:
    """A case, then one number after the other up and down by growing amounts."""
    out = [case]
    for k in range(steps):
        for f in fields:
            for sign in (1, -1):
                row = case.copy()
                row[f] += sign * start * (k + 1)
                out.append(row)
    return np.array(out)


def test_steps_up_and_down_in_several_numbers_measure_slopes() -> None:
    """Central differences in four numbers of a case are flagged, as a warning that says what tool it may be; in one number
    they are a what-if.
    """
    rng = np.random.default_rng(45)
    case = numbers(events(1, rng))[0]
    found = {}
    for fields in ([0, 1, 2, 3], [2]):
        rows = slopes(case, fields, 40 // len(fields))
        court = Court(Queries(), calibration())
        court.stretch(as_log(sent(rows, events(1, rng), "client")))
        found[len(fields)] = court.decisions
    assert found[1] == []
    told = found[4][-1].evidence["look_alike"]
    assert told["profile"] == "what_if"
    assert "ZOO" in told["why"]
    assert found[4][-1].severity is not None
    assert found[4][-1].severity.value == "warning"
