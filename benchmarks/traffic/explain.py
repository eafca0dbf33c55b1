"""Explanation tools as clients: what they send for one case after the other."""

from __future__ import annotations

import numpy as np

from benchmarks.traffic.ranges import RANGES, Ranges, whole
from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator


def lime(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """LIME for tabular data (Ribeiro et al. 2016): per case a cloud of normal noise around it, categories redrawn.

    One tool in two rounds numbers that are whole, as a tool does that knows the schema.
    """
    neighbours, spread = whole(ranges, "neighbours", rng), np.nanstd(victim.pool, axis=0)
    cases = victim.complete()[rng.integers(len(victim.pool), size=-(-n // neighbours))]
    tidy = rng.random() < 0.5
    out: list[Matrix] = []
    for case in cases:
        cloud = case + rng.normal(size=(neighbours, len(case))) * spread
        for j, column in enumerate(victim.columns):
            if column.categories:
                known = victim.pool[~np.isnan(victim.pool[:, j]), j]
                cloud[:, j] = rng.choice(known, neighbours)
        cloud[0] = case
        out.append(victim.valid(cloud) if tidy else cloud)
    return victim.sent(np.concatenate(out)[:n])


def lime_columns(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """LIME as it comes: per case, rows whose columns are drawn each by itself, numbers by quartile and then normally
    inside it. Where the case lies does not matter to them.
    """
    neighbours, pool = whole(ranges, "neighbours", rng), victim.complete()
    tidy = rng.random() < 0.5
    cloud = np.empty((n, pool.shape[1]), dtype=pool.dtype)
    for j, column in enumerate(victim.columns):
        drawn = rng.choice(pool[:, j], n)
        if not column.categories:
            edges = np.unique(np.quantile(pool[:, j], [0.25, 0.5, 0.75]))
            own, held = np.searchsorted(edges, drawn), np.searchsorted(edges, pool[:, j])
            for q in np.unique(own):
                inside = pool[held == q, j]
                values = rng.normal(inside.mean(), inside.std(), int((own == q).sum()))
                drawn[own == q] = np.clip(values, inside.min(), inside.max())
        cloud[:, j] = drawn
    cloud[::neighbours] = pool[rng.integers(len(pool), size=-(-n // neighbours))]
    return victim.sent(victim.valid(cloud) if tidy else cloud)


def kernel_shap(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """KernelSHAP (Lundberg and Lee 2017): fields of a case are exchanged, in random sets, for those of a background row."""
    neighbours = whole(ranges, "neighbours", rng)
    background = victim.pool[
        rng.choice(len(victim.pool), min(len(victim.pool), int(rng.integers(1, 20))), replace=False)
    ]
    d = len(victim.columns)
    out: list[Matrix] = []
    for _ in range(-(-n // neighbours)):
        case = victim.pool[rng.integers(len(victim.pool))]
        size = np.where(
            rng.random(neighbours) < 0.6, rng.choice([1, d - 1], neighbours), rng.integers(1, d, neighbours)
        )
        rank = np.argsort(np.argsort(rng.random((neighbours, d)), axis=1), axis=1)
        kept = rank < size[:, None]
        rows = np.where(kept, case, background[np.arange(neighbours) % len(background)])
        rows[0] = case
        out.append(rows)
    return np.concatenate(out)[:n]


def ice(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """Partial dependence and ICE (Goldstein et al. 2015): one field after the other over its quantiles, on many cases."""
    cases = victim.pool[rng.choice(len(victim.pool), min(len(victim.pool), int(rng.integers(5, 60))), replace=False)]
    out: list[Matrix] = []
    total = 0
    while total < n:
        j = int(rng.integers(len(victim.columns)))
        known = victim.occurring[j]
        points = known[np.unique(np.linspace(0, len(known) - 1, int(rng.integers(8, 30))).astype(int))]
        rows = np.repeat(cases, len(points), axis=0)
        rows[:, j] = np.tile(points, len(cases))
        if rng.random() < 0.5:  # libraries differ: grid outside, cases inside
            rows = rows.reshape(len(cases), len(points), -1).transpose(1, 0, 2).reshape(len(rows), -1)
        out.append(rows)
        total += len(rows)
    return np.concatenate(out)[:n]
