"""What answer a row's inputs let expect: how two sets of rows with other inputs are compared as if their inputs were alike.

Fitted once to the reference: an additive function of the inputs' bins for one answer of the model (the score or value that
varies most, else how often the most frequent label is given). Its quantiles cut rows into parts of like expectation;
within a part, answers of two model versions can be compared, whatever mix of parts each of them was asked (Hansen 2008,
prognostic scores). What an additive function misses stays in: the comparison says how much of the answer it tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.binned import NUMBER
from detectors.profile import Bins, Coded
from detectors.stats import Floats

CUTS: Final = (0.01, 0.025, *(k / 20 for k in range(1, 20)), 0.975, 0.99)  # shares of the reference below each cut
PARTS: Final = len(CUTS) + 1
FIT_ROWS: Final = 20_000
ROUNDS: Final = 20
SHRINK: Final = 5.0  # rows of the average that stand in every bin


@dataclass(frozen=True)
class Expected:
    """output: the answer's name, "" where the model gives none; effect: per slot of a profile what it adds; edges: cuts of
    the sum; told: share of the answer's variation that the sum tells of.
    """

    output: str
    effect: Floats
    edges: Floats
    told: float

    def parts(self, coded: Coded) -> NDArray[np.int64]:
        """The part of each row, in [0, PARTS)."""
        if not self.output:
            return np.zeros(coded.n, dtype=np.int64)
        total = np.zeros(coded.n)
        for i, f in enumerate(coded.bins.features):
            if not f.is_output:
                total += self.effect[coded.codes[i]]
        return np.searchsorted(self.edges, total, side="right")


def fit(bins: Bins, rows: pa.Table) -> Expected:
    """Backfitting of bin means on at most FIT_ROWS evenly spaced rows of the reference.

    >>> x = np.linspace(0, 1, 400)
    >>> rows = pa.table({"feature:x": x, "prediction_value": 2 * x})
    >>> e = fit(Bins.fit(rows, ["x"], []), rows)
    >>> e.output, e.told > 0.9
    ('prediction', True)
    """
    if rows.num_rows > FIT_ROWS:
        rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, FIT_ROWS).astype(np.int64)))
    coded, size = bins.code(rows), int(bins.offsets[-1])
    name, y = _answer(coded)
    known = np.flatnonzero(np.isfinite(y))
    if not name or len(known) < PARTS:
        return Expected("", np.zeros(size), np.zeros(PARTS - 1), 0.0)
    y, codes = y[known] - y[known].mean(), coded.codes[:, known]
    inputs = [i for i, f in enumerate(bins.features) if not f.is_output]
    effect, total = np.zeros(size), np.zeros(len(known))
    for _ in range(ROUNDS):
        for i in inputs:
            own = effect[codes[i]]
            there = slice(int(bins.offsets[i]), int(bins.offsets[i + 1]))
            n = np.bincount(codes[i], minlength=size)[there]
            effect[there] = np.bincount(codes[i], weights=y - total + own, minlength=size)[there] / (n + SHRINK)
            total += effect[codes[i]] - own
    told = 1 - float(np.var(y - total)) / max(float(np.var(y)), 1e-300)
    return Expected(name, effect, np.quantile(total, CUTS), max(0.0, told))


def _answer(coded: Coded) -> tuple[str, Floats]:
    """The answer that is followed and its value per row; "" for a model without answers that vary."""
    found = [(i, f) for i, f in enumerate(coded.bins.features) if f.is_output]
    numbers = [(float(f.spread), -i) for i, f in found if f.kind == NUMBER and len(f.edges) > 1 and f.spread > 0]
    if numbers:
        i = -max(numbers)[1]
        return coded.bins.features[i].name, coded.values[i]
    for i, f in found:
        code = coded.codes[i] - coded.bins.offsets[i]
        if len(f.categories) > 1:
            return f.name, np.where(code < f.slots - 1, (code == 0).astype(float), np.nan)
    return "", np.full(coded.n, np.nan)
