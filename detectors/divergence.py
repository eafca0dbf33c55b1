"""The frozen baseline against the adaptive one: how far what a model has learnt from live windows has left its reference.

Windows are ranked against the reference's and against live ones. A change that is slow enough, or somebody who teaches a
monitor a little every day, becomes its own history bit by bit, and where the reference has few windows or none nothing
alarms. What was learnt is therefore compared with what a person approved. It is told and never alarms: a reference that is
a sample of other traffic differs for good.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from detectors import conformal
from detectors.binned import NUMBER
from detectors.conformal import DAY_US, MIN_HISTORY, History
from detectors.directions import Layout
from detectors.profile import Profile
from detectors.stats import Floats

WEEK_US: Final = 7 * DAY_US  # whole weeks have no season
ERRORS: Final = 4.0  # standard errors of the difference that it must exceed
SPREADS: Final = 1.0  # and spreads of a window: less than what one window does by itself is nothing


def divergence(layout: Layout, reference: Profile, live: History) -> dict[str, tuple[float, float]]:
    """Per feature that has left the reference: (by how much, in spreads of a window), both with a sign.

    Numbers in their own unit, as far as their normal scores tell; categories in shares of the rows, of the value that
    moved most. Means over events, of the whole reference and of the newest whole weeks of live windows; nothing before a
    week and MIN_HISTORY windows are known. Standard errors are those of rows, windows or days, whichever is largest.

    >>> from detectors.profile import Bins
    >>> import pyarrow as pa
    >>> rng = np.random.default_rng(3)
    >>> rows = pa.table({"feature:x": rng.normal(100, 10, 20_000)})
    >>> bins = Bins.fit(rows, ("x",), ())
    >>> known = bins.count(rows)
    >>> from detectors.directions import lay_out
    >>> from detectors.dependence import between, relate
    >>> varied = between(relate(bins, known.counts, known.cross, np.zeros(len(known.cross))), [])
    >>> layout = lay_out(bins.to_bytes(), known.counts.tobytes(), known.cross.tobytes(), varied.tobytes(), 500)
    >>> def hour(i, mean):
    ...     profile = bins.count(pa.table({"feature:x": rng.normal(mean, 10, 500)}))
    ...     values = layout.values(profile, 20_000, inside=False, min_rows=20)
    ...     return History.of(values, 1 / 500, (i + 1) * 3_600_000_000)
    >>> def week(mean):
    ...     past = hour(0, mean)
    ...     for i in range(1, 169):
    ...         past = past.plus(hour(i, mean))
    ...     return past
    >>> {k: round(v[0]) for k, v in divergence(layout, known, week(104)).items()}, divergence(layout, known, week(100))
    ({'x': 4}, {})
    """
    if len(live) < MIN_HISTORY or (weeks := int(np.ptp(live.end_us)) // WEEK_US) < 1:
        return {}
    live = live.rows(slice(int(np.searchsorted(live.end_us, live.end_us[-1] - weeks * WEEK_US, side="right")), None))
    d = layout.directions
    values, rows = live.values[:, :d].astype(np.float64), 1 / live.inverse_n[:, None]
    known = np.isfinite(values)
    held = np.maximum(np.where(known, rows, 0.0).sum(axis=0), 1.0)
    now = np.where(known, values * rows, 0.0).sum(axis=0) / held
    before = layout.values(reference, layout.rows, inside=False, min_rows=1)[:d]
    varies = conformal.spread(values, live.inverse_n, layout.row_variance)
    error = np.sqrt(layout.row_variance * (1 / held + 1 / layout.rows) + 2 * varies / np.maximum(known.sum(axis=0), 1))
    error = np.maximum(error, np.sqrt(2) * _by_days(live, values))
    one = np.sqrt(layout.row_variance * float(np.median(live.inverse_n)) + varies)
    gap = np.where(known.any(axis=0), now - before, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spreads = np.where(one > 0, gap / one, 0.0)
    left = np.isfinite(gap) & (np.abs(gap) > ERRORS * error) & (np.abs(spreads) > SPREADS)
    out: dict[str, tuple[float, float]] = {}
    for f in layout.bins.features:
        kinds = ("/location",) if f.kind == NUMBER else ("/share of ",)
        own = [
            j for j in range(d) if left[j] and layout.blame[j] == f.name and layout.names[j][len(f.name) :].startswith(kinds)
        ]  # fmt: skip
        if own:
            j = max(own, key=lambda i: abs(spreads[i]))
            size = gap[j] / layout.deviation[j] * f.spread if f.kind == NUMBER else gap[j]
            out[f.name] = float(size), float(spreads[j])
    return out


def _by_days(live: History, values: Floats) -> Floats:
    """Standard error of the mean if days are what is independent: hours of one day share its weather and its campaigns."""
    day = (live.end_us - 1) // DAY_US
    day = np.unique(day, return_inverse=True)[1]
    known = np.isfinite(values)
    sums, held = (np.zeros((int(day[-1]) + 1, values.shape[1])) for _ in range(2))
    np.add.at(sums, day, np.where(known, values, 0.0))
    np.add.at(held, day, known)
    means = np.where(held > 0, sums / np.maximum(held, 1), np.nan)
    days = np.maximum(np.isfinite(means).sum(axis=0), 2)
    center = np.nansum(means, axis=0) / days
    return np.asarray(np.sqrt(np.nansum((means - center) ** 2, axis=0) / (days - 1) / days))
