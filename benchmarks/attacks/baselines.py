"""Two published detectors on the same traffic, for comparison: PRADA and window MMD.

PRADA (Juuti, Szyller, Marchal and Asokan, EuroS&P 2019), as in the authors' code: per predicted class a growing set, the
distance of every query to its class's set, Shapiro-Wilk's W over the distances within three standard deviations, tested
every ten queries from 100 distances on; alarm when W < DELTA. MMD (Liu, Guo and Dong, 2026): unbiased squared maximum mean
discrepancy between tumbling windows of a client and the reference, Gaussian kernels of four widths around the median
distance, alarm above the 95 % quantile of benign windows. Against the paper: windows of 500 instead of 1,500 (streams
here have 1,000 to 2,000 rows), one reference sample of 1,000 rows instead of 20 draws, 300 benign windows instead of
1,000. Rows are what models take (benchmarks.traffic.victim.dense): scaled numbers and one column per frequent category.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.actors import Stream
from benchmarks.attacks.judge import Log
from benchmarks.traffic.victim import Matrix, dense

DELTA: Final = 0.95
WINDOW: Final = 500
DRAWS: Final = 300
Floats32 = NDArray[np.float32]


def shapiro_series(x: Floats32, labels: NDArray[np.int64]) -> list[tuple[int, float]]:
    """PRADA's (query number, W) pairs over a stream of rows and their predicted classes."""
    from scipy.stats import shapiro

    kept: dict[int, Floats32] = {}
    count: dict[int, int] = {}
    own: dict[int, list[float]] = {}  # distances of the rows that were kept, per class
    limit: dict[int, float] = {}
    distances: dict[int, list[float]] = {}
    out: list[tuple[int, float]] = []
    for i, (row, c) in enumerate(zip(x, labels.tolist(), strict=True)):
        if c not in kept:
            kept[c], count[c], own[c], limit[c], distances[c] = np.empty(x.shape, np.float32), 1, [], 0.0, []
            kept[c][0] = row
            continue
        d = float(np.sqrt(((kept[c][: count[c]] - row) ** 2).sum(axis=1).min()))
        distances[c].append(d)
        if d > limit[c]:
            kept[c][count[c]] = row
            count[c] += 1
            own[c].append(d)
            limit[c] = max(limit[c], float(np.mean(own[c]) - np.std(own[c])))
        if i % 10 == 9:
            pooled = np.array([v for vs in distances.values() if len(vs) >= 10 for v in vs])
            pooled = pooled[np.abs(pooled - pooled.mean()) < 3 * pooled.std()] if len(pooled) else pooled
            if len(pooled) > 100 and np.ptp(pooled) > 0:
                out.append((i + 1, float(shapiro(pooled).statistic)))
    return out


def _kernels(a: Floats32, b: Floats32, scale: float) -> Floats32:
    """Mean of Gaussian kernels with widths sigma * (0.5, 1, 2, 4), where scale = 2 sigma^2."""
    d2 = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T, 0)
    u = np.exp(-d2 / np.float32(16 * scale))
    out = u.copy()
    for _ in range(3):
        u = u**4
        out += u
    return np.asarray(out / 4, dtype=np.float32)


@dataclass(frozen=True)
class Baselines:
    """Both, calibrated on one victim's reference. prada: W below which a stream alarms when calibrated instead."""

    prepare: Callable[[Matrix], Matrix]
    sample: Floats32
    scale: float
    within: float
    limit: float
    window: int
    prada: float

    @classmethod
    def fit(cls, reference: Log, seed: int) -> Baselines:
        rng = np.random.default_rng(seed)
        prepare = dense(reference.victim.columns, reference.rows)
        x = prepare(reference.rows).astype(np.float32)
        order = rng.permutation(len(x))
        window = min(WINDOW, len(x) // 4)
        cut = min(1_000, len(x) // 2)
        sample, rest = x[order[:cut]], x[order[cut:]]
        some = sample[:300]
        d2 = ((some[:, None, :] - some[None, :, :]) ** 2).sum(axis=2)
        scale = 2 * float(np.median(d2[d2 > 0]))
        inner = _kernels(sample, sample, scale)
        within = float((inner.sum() - np.trace(inner)) / (cut * (cut - 1)))
        base = cls(prepare, sample, scale, within, np.inf, window, 0.0)
        null = [base.mmd(rest[rng.choice(len(rest), window, replace=False)]) for _ in range(DRAWS)]
        lowest = []
        labels = np.argmax(reference.scores, axis=1)
        for _ in range(20):
            picks = rng.permutation(len(x))[:1_000]
            lowest.append(min((w for _, w in shapiro_series(x[picks], labels[picks])), default=1.0))
        return cls(prepare, sample, scale, within, float(np.quantile(null, 0.95)), window, min(lowest))

    def mmd(self, x: Floats32) -> float:
        """Unbiased squared MMD of one window against the reference sample."""
        own = _kernels(x, x, self.scale)
        mine = (own.sum() - np.trace(own)) / (len(x) * (len(x) - 1))
        return float(mine + self.within - 2 * _kernels(x, self.sample, self.scale).mean())

    def alarms(self, stream: Stream) -> Mapping[str, int | None]:
        """Queries from the onset of the attack (from the start for honest clients) to each baseline's first alarm.

        An alarm on an attacker's honest history counts as none. A stream of many principals is judged as one, which is
        kinder to the baselines than life.
        """
        x = self.prepare(stream.rows).astype(np.float32)
        first = int(np.argmax(stream.attack)) if stream.attack.any() else 0
        series = shapiro_series(x, np.argmax(stream.scores, axis=1))
        ends = range(self.window, len(x) + 1, self.window)
        high = [n for n in ends if self.mmd(x[n - self.window : n]) > self.limit]
        found = {
            "prada": [n for n, w in series if w < DELTA],
            "prada-calibrated": [n for n, w in series if w < self.prada],
            "mmd": high,
        }
        return {k: ns[0] - first if ns and ns[0] > first else None for k, ns in found.items()}
