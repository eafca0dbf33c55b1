"""What looks like broken data behind a drift: another unit, a constant, a default value, values that no longer come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectors.binned import NUMBER, Binned, floats
from detectors.stats import Floats
from monitor.model import finite

UNITS: Final = (1000.0, 100.0, 60.0, 10.0)  # factors that a change of unit is known by, and their inverses
MISSING: Final = 0.05  # of the rows, more than three times as many as before
DEFAULT: Final = 0.2  # of the rows, more than before, with one and the same value
PART: Final = 0.05  # of the rows in another unit
NEW: Final = 0.05  # of the rows with values that the reference lacks


def causes(f: Binned, before: pa.Table, after: pa.Table) -> Iterator[dict[str, Any]]:
    """Each cause as {cause, share of rows, and value or factor}; none for the model's own answers.

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
    yield from (
        _number(floats(before, f.column), floats(after, f.column)) if f.kind == NUMBER else _category(f, before, after)
    )


def _missing(rows: pa.Table, f: Binned) -> float:
    if f.kind == NUMBER:
        return float(np.mean(~np.isfinite(floats(rows, f.column)))) if rows.num_rows else 0.0
    return float(rows[f.column].null_count / max(1, rows.num_rows)) if f.column in rows.column_names else 1.0


def _number(x: Floats, y: Floats) -> Iterator[dict[str, Any]]:
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if not len(x) or not len(y) or x.min() == x.max():
        return
    values, counts = np.unique(y, return_counts=True)
    top, share = float(values[np.argmax(counts)]), float(counts.max() / len(y))
    if len(values) == 1:
        yield {"cause": "constant", "value": finite(top), "share": 1.0}
        return
    if share - float(np.mean(x == top)) >= DEFAULT:
        yield {"cause": "default value", "value": finite(top), "share": finite(share)}
        y = y[y != top]
    factor, part = _unit(x, y)
    if part:
        yield {"cause": "unit", "factor": finite(factor), "share": finite(part)}


def _unit(x: Floats, y: Floats) -> tuple[float, float]:
    """The factor between values before and after, and the share of rows that it fits; 0 when none does.

    All rows: quartiles of the sizes agree. Some rows: values beyond the reference's range lie within its usual range once
    divided by the factor.
    """
    a, b = np.abs(x[x != 0]), np.abs(y[y != 0])
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
        if fits.mean() >= PART and fits.sum() >= 0.8 * beyond.sum():
            return u, float(fits.mean())
    return 0.0, 0.0


def _category(f: Binned, before: pa.Table, after: pa.Table) -> Iterator[dict[str, Any]]:
    column = after[f.column].cast(pa.string()).drop_null()
    if not len(column) or f.column not in before.column_names:
        return
    found = pc.value_counts(column).to_pylist()
    known = pc.unique(before[f.column].cast(pa.string()).drop_null()).to_pylist()
    if len(found) == 1 and len(known) > 1:
        yield {"cause": "constant", "value": found[0]["values"], "share": 1.0}
        return
    new = sorted((c for c in found if c["values"] not in set(known)), key=lambda c: (-c["counts"], c["values"]))
    share = sum(c["counts"] for c in new) / len(column)
    if new and share >= NEW:
        yield {"cause": "new values", "value": new[0]["values"], "share": finite(share)}
