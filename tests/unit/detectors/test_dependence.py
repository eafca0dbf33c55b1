"""Changes of how numbers move together, which no feature shows by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from detectors.dependence import between, relate
from detectors.drift.marginals import Marginals
from detectors.profile import MAX_CROSSED, Bins
from monitor.model import HOUR_US
from tests.judging import Court, Rows

NAMES = ("a", "b", "c", "d")


def table(n: int, rng: np.random.Generator, rho: float) -> pa.Table:
    """Four normal numbers of which a and b have the correlation rho; one in ten values of c is missing."""
    x = rng.normal(size=(n, 4))
    x[:, 1] = rho * x[:, 0] + np.sqrt(1 - rho**2) * x[:, 1]
    columns: dict[str, Any] = {f"feature:{name}": x[:, j] for j, name in enumerate(NAMES)}
    columns["feature:c"] = pa.array(x[:, 2], mask=rng.random(n) < 0.1)
    return pa.table(columns)


def windows(count: int, rows: int, rng: np.random.Generator, rho: float, first: int, bins: Bins) -> list[Rows]:
    """Hourly windows of `table`."""
    return [
        Rows("m", (first + i) * HOUR_US, (first + i + 1) * HOUR_US, table(rows, rng, rho), bins) for i in range(count)
    ]


def test_products_add_up_exactly_and_give_the_correlation() -> None:
    """However the rows are cut; the correlation of normal scores is near that of normal numbers."""
    rng = np.random.default_rng(1)
    t = table(4000, rng, 0.7)
    bins = Bins.fit(t, NAMES, ())
    cut = bins.count(t.slice(0, 7)).merge(bins.count(t.slice(7, 2900))).merge(bins.count(t.slice(2907)))
    whole = bins.count(t)
    assert (cut.cross == whole.cross).all()
    found = relate(bins, whole.counts, whole.cross, np.zeros(6)).usual
    assert abs(found[0] - 0.7) < 0.05
    assert (np.abs(found[1:]) < 0.05).all()


def test_a_break_of_dependence_alone_is_found_and_names_both() -> None:
    """No feature's own distribution changes. Fourteen days of history: four checks."""
    rng = np.random.default_rng(2)
    bins = Bins.fit(table(20_000, rng, 0.6), NAMES, ())
    reference = windows(336, 500, rng, 0.6, 0, bins)
    court = Court(Marginals(), Marginals().calibrate(reference, "ref"))
    for w in [*windows(30, 500, rng, 0.6, 336, bins), *windows(6, 500, rng, 0.0, 366, bins)]:
        court.window(w)
    opened = court.decisions[0]
    assert opened.time_us // HOUR_US - 366 <= 4
    assert {"a", "b"} <= {f["name"] for d in court.decisions for f in d.evidence["features"]}
    assert opened.evidence["bets"]["a"].startswith("a/dependence")


def test_windows_whose_relations_vary_by_nature_are_no_break() -> None:
    """Days with a correlation of their own: what pairs vary by between windows is measured and allowed for."""
    rng = np.random.default_rng(3)
    bins = Bins.fit(table(20_000, rng, 0.5), NAMES, ())
    made = [windows(1, 500, rng, float(rng.uniform(0.2, 0.8)), i, bins)[0] for i in range(300)]
    profiles = [p for w in made[:150] if (p := w.profile()) is not None]
    total = bins.empty()
    for p in profiles:
        total = total.merge(p)
    varied = between(relate(bins, total.counts, total.cross, np.zeros(6)), profiles)
    assert 0.015 < varied[0] < 0.05  # the variance of uniform(.2, .8) is .03
    assert varied[3] < 0.002
    court = Court(Marginals(), Marginals().calibrate(made[:150], "ref"))
    for w in made[150:]:
        court.window(w)
    assert court.decisions == []


def test_size_is_bounded_whatever_the_number_of_features() -> None:
    """Sixty numbers: the products of 32 of them, a constant not among them, answers always."""
    rng = np.random.default_rng(4)
    columns = {f"feature:x{j}": rng.normal(size=200) for j in range(60)}
    t = pa.table({**columns, "feature:x0": np.ones(200), "prediction_value": rng.normal(size=200)})
    bins = Bins.fit(t, [f"x{j}" for j in range(60)], ())
    names = [bins.features[i].name for i in bins.crossed]
    assert len(names) == MAX_CROSSED
    assert "x0" not in names
    assert "prediction" in names
    assert len(bins.count(t).cross) == MAX_CROSSED * (MAX_CROSSED - 1) // 2
