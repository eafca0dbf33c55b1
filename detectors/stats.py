"""Small statistics over counts and evidence that several detectors share. Plain arrays in, plain numbers out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]

SMOOTHING: Final = 0.5  # counts added to every bin where a logarithm or a division needs a share above zero


def seeded(*parts: object) -> np.random.Generator:
    """A random generator that depends on nothing but its arguments, the same on every machine.

    >>> int(seeded("card-fraud", "marginals", "ab12").integers(1000)) == int(seeded("card-fraud", "marginals", "ab12").integers(1000))
    True
    """
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def smoothed(counts: NDArray[np.int64], smoothing: float = SMOOTHING) -> Floats:
    """Shares of the bins with `smoothing` counts added to each, so that no share is zero.

    >>> smoothed(np.array([0, 3])).tolist()
    [0.125, 0.875]
    """
    c = counts.astype(np.float64) + smoothing
    return np.asarray(c / c.sum(), dtype=np.float64)


def psi(reference: NDArray[np.int64], current: NDArray[np.int64], smoothing: float = SMOOTHING) -> float:
    """Population stability index, sum((q - p) log(q / p)), over one feature's bins; 0 for equal shares.

    Unitless. It grows with the number of bins over the number of rows even when nothing changed (about
    bins * (1/n + 1/m)), so it says how large a change is, never whether there is one.

    >>> psi(np.array([50, 50]), np.array([50, 50])), round(psi(np.array([50, 50]), np.array([90, 10])), 3)
    (0.0, 0.853)
    """
    p, q = smoothed(reference, smoothing), smoothed(current, smoothing)
    return float(np.sum((q - p) * np.log(q / p)))


def jensen_shannon(reference: NDArray[np.int64], current: NDArray[np.int64]) -> float:
    """Jensen-Shannon distance (square root of the divergence, base 2): 0 equal, 1 disjoint. Lin 1991.

    >>> jensen_shannon(np.array([1, 0]), np.array([0, 1])), jensen_shannon(np.array([2, 2]), np.array([1, 1]))
    (1.0, 0.0)
    """
    p, q = _shares(reference), _shares(current)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log2(p / m), 0.0)
        right = np.where(q > 0, q * np.log2(q / m), 0.0)
    return float(np.sqrt(max(0.0, (left.sum() + right.sum()) / 2)))


def kolmogorov_smirnov(reference: NDArray[np.int64], current: NDArray[np.int64]) -> float:
    """Largest gap between the two cumulative shares over ordered bins; never above the statistic of the raw values.

    >>> kolmogorov_smirnov(np.array([5, 5]), np.array([10, 0]))
    0.5
    """
    gap = np.abs(np.cumsum(_shares(reference)) - np.cumsum(_shares(current)))
    return float(gap.max(initial=0.0))


def wasserstein(reference: NDArray[np.int64], current: NDArray[np.int64], centers: Floats, spread: float) -> float:
    """Earth mover's distance between two histograms on ordered `centers`, in units of `spread` (0 where that is 0).

    >>> wasserstein(np.array([10, 0]), np.array([0, 10]), np.array([0.0, 3.0]), 2.0)
    1.5
    """
    if spread <= 0 or len(centers) < 2:
        return 0.0
    gap = np.abs(np.cumsum(_shares(reference)) - np.cumsum(_shares(current)))[:-1]
    return float(np.sum(gap * np.diff(centers)) / spread)


def _shares(counts: NDArray[np.int64]) -> Floats:
    total = counts.sum()
    return np.asarray(counts / total if total else np.zeros(len(counts)), dtype=np.float64)


def normal_scores(counts: NDArray[np.int64]) -> Floats:
    """Normal quantile of each ordered bin's mid-rank: the value a bin stands for, free of units and outliers.

    >>> [float(round(s, 2)) for s in normal_scores(np.array([25, 50, 25]))]
    [-1.13, 0.0, 1.13]
    """
    c = counts.astype(np.float64)
    middle = (np.cumsum(c) - c / 2 + 0.5) / (c.sum() + 1)
    return np.asarray(ndtri(middle), dtype=np.float64)


def wilson(hits: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Band of a share of n independent rows, 95 % by default; (0, 1) for none. Wilson 1927.

    >>> [round(x, 3) for x in wilson(9, 10)], wilson(0, 0)
    ([0.596, 0.982], (0.0, 1.0))
    """
    if n <= 0:
        return 0.0, 1.0
    p, w = hits / n, z * z / n
    half = z * float(np.sqrt(p * (1 - p) / n + w / (4 * n)))
    return (p + w / 2 - half) / (1 + w), (p + w / 2 + half) / (1 + w)


def log_sum_exp(values: Floats, weights: Floats | None = None) -> float:
    """log(sum(weights * exp(values))) without overflow; -inf for nothing.

    >>> round(log_sum_exp(np.array([0.0, 0.0])), 4), log_sum_exp(np.array([]))
    (0.6931, -inf)
    """
    v = values if weights is None else values + np.log(np.maximum(weights, 1e-300))
    top = float(np.max(v, initial=-np.inf))
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.sum(np.exp(v - top))))


def blame(names: Sequence[str], log_parts: Floats) -> dict[str, float]:
    """Each name's share of sum(exp(log_parts)), largest first.

    >>> blame(["a", "b", "a"], np.log([1.0, 1.0, 2.0]))
    {'a': 0.75, 'b': 0.25}
    """
    total = log_sum_exp(log_parts)
    shares: dict[str, float] = {}
    if np.isfinite(total):
        for name, part in zip(names, np.exp(log_parts - total).tolist(), strict=True):
            shares[name] = shares.get(name, 0.0) + part
    return dict(sorted(shares.items(), key=lambda kv: (-kv[1], kv[0])))
