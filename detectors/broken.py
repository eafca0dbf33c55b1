"""What looks like broken data behind a drift: another unit, a constant, a default value, values that no longer come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectors.binned import NUMBER, Binned, floats, frequent, stands_for
from detectors.stats import Floats
from monitor.model import finite

UNITS: Final = (1000.0, 100.0, 60.0, 10.0)  # factors that a change of unit is known by, and their inverses
MISSING: Final = 0.05  # of the events, more than three times as many as before
DEFAULT: Final = 0.2  # of the events, more than before, with one and the same value
PART: Final = 0.05  # of the events in another unit
NEW: Final = 0.05  # of the events with values that the reference lacks


def causes(f: Binned, before: pa.Table, after: pa.Table) -> Iterator[dict[str, Any]]:
    """Each cause as {cause, share of events, and value or factor}; none for the model's own answers.

    >>> x = np.arange(1.0, 201.0)
    >>> old, new = (pa.table({"feature:x": v}) for v in (x, x * 100))
    >>> list(causes(Binned("x", "feature:x", "number"), old, new))
    [{'cause': 'unit', 'factor': 100.0, 'share': 1.0}]
    """
    if f.is_output or f.column not in after.column_names or not after.num_rows:
        return
    was, now = (_missing(t, f) for t in (before, after))
    if now > MISSING and now > 3 * was:
        yield {"cause": "missing", "share": finite(now), "share_before": finite(was)}
    yield from _number(f, before, after) if f.kind == NUMBER else _category(f, before, after)


def _missing(rows: pa.Table, f: Binned) -> float:
    if not rows.num_rows or f.column not in rows.column_names:
        return float(rows.num_rows > 0)
    absent = ~np.isfinite(floats(rows, f.column)) if f.kind == NUMBER else np.asarray(rows[f.column].is_null())
    return float(np.average(absent, weights=stands_for(rows)))


def _number(f: Binned, before: pa.Table, after: pa.Table) -> Iterator[dict[str, Any]]:
    (x, v), (y, w) = ((floats(t, f.column), stands_for(t)) for t in (before, after))
    known, now = np.isfinite(x), np.isfinite(y)
    x, v, y, w = x[known], v[known], y[now], w[now]
    if not len(x) or not len(y) or x.min() == x.max():
        return
    values, place = np.unique(y, return_inverse=True)
    counts = np.bincount(place, weights=w)
    top, share = float(values[np.argmax(counts)]), float(counts.max() / w.sum())
    if len(values) == 1:
        yield {"cause": "constant", "value": finite(top), "share": 1.0}
        return
    if share - float(np.average(x == top, weights=v)) >= DEFAULT:
        yield {"cause": "default value", "value": finite(top), "share": finite(share)}
        y, w = y[y != top], w[y != top]
    factor, part = _unit(x, y, w)
    if part:
        yield {"cause": "unit", "factor": finite(factor), "share": finite(part)}


def _unit(x: Floats, y: Floats, events: Floats) -> tuple[float, float]:
    """The factor between values before and after, and the share of the events after that it fits; 0 when none does.

    All rows: quartiles of the sizes agree. Some rows: values beyond the reference's range lie within its usual range once
    divided by the factor.
    """
    a, b, events = np.abs(x[x != 0]), np.abs(y[y != 0]), events[y != 0]
    if len(a) < 4 or len(b) < 4:
        return 0.0, 0.0
    old, new = (np.quantile(z, [0.25, 0.5, 0.75]) for z in (a, b))
    for u in (*UNITS, *(1 / u for u in UNITS)):
        if np.all(np.abs(np.log(new / old / u)) < 0.25):
            return u, 1.0
    low, high = np.quantile(a, [0.01, 0.99])
    for u in (*UNITS, *(1 / u for u in UNITS)):
        beyond = b > a.max() if u > 1 else b < a.min()
        fits = beyond & (b / u >= low) & (b / u <= high)
        part = float(np.average(fits, weights=events))
        if part >= PART and fits.sum() >= 0.8 * beyond.sum():
            return u, part
    return 0.0, 0.0


def _category(f: Binned, before: pa.Table, after: pa.Table) -> Iterator[dict[str, Any]]:
    if after[f.column].null_count == after.num_rows or f.column not in before.column_names:
        return
    found = frequent(after, f.column)
    known = pc.unique(before[f.column].cast(pa.string()).drop_null()).to_pylist()
    if len(found) == 1 and len(known) > 1:
        yield {"cause": "constant", "value": found[0][0], "share": 1.0}
        return
    new = [(word, events) for word, events in found if word not in set(known)]
    share = sum(events for _, events in new) / sum(events for _, events in found)
    if new and share >= NEW:
        yield {"cause": "new values", "value": new[0][0], "share": finite(share)}
