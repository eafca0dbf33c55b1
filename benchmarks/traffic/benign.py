"""What honest clients send: ordinary rows, and the kinds that look like attacks to naive detectors.

Every function takes (victim, n, rng) and returns n rows (n, d) in the order in which the client sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator


def natural(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Real rows without repeats as far as the data set has them."""
    return victim.pool[rng.choice(len(victim.pool), n, replace=n > len(victim.pool))]


def segment(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Real rows of one segment only: one category, or the upper quarter of one number."""
    words = [j for j, c in enumerate(victim.columns) if 2 <= len(c.categories) <= 20]
    if words:
        j = int(rng.choice(words))
        code = float(rng.choice(victim.pool[~np.isnan(victim.pool[:, j]), j]))
        chosen = np.flatnonzero(victim.pool[:, j] == code)
    else:
        j = int(rng.integers(len(victim.columns)))
        chosen = np.flatnonzero(victim.pool[:, j] >= np.nanquantile(victim.pool[:, j], 0.75))
    picked: Matrix = victim.pool[rng.choice(chosen, n, replace=n > len(chosen))]
    return picked


def batch(victim: Victim, n: int, rng: Rng) -> Matrix:
    """A nightly re-scoring: real rows sorted by three columns, so neighbours resemble each other."""
    rows = natural(victim, n, rng)
    keys = rng.choice(rows.shape[1], 3, replace=False)
    order = np.lexsort([rows[:, k] for k in keys])
    return rows[order]


def probe(victim: Victim, n: int, rng: Rng) -> Matrix:
    """A health check: one and the same row for ever."""
    return np.repeat(natural(victim, 1, rng), n, axis=0)


def retries(victim: Victim, n: int, rng: Rng) -> Matrix:
    """A client behind a bad line: one row in five is sent again, up to three times."""
    rows = natural(victim, n, rng)
    again = np.where(rng.random(n) < 0.2, rng.integers(2, 5, n), 1)
    return np.repeat(rows, again, axis=0)[:n]


def what_if(victim: Victim, n: int, rng: Rng) -> Matrix:
    """An analyst who varies one or two fields of a case over 5 to 40 values that occur, then takes the next case."""
    out: list[Matrix] = []
    total = 0
    while total < n:
        fields = rng.choice(len(victim.columns), int(rng.integers(1, 3)), replace=False)
        steps = int(rng.integers(5, 41))
        rows = np.repeat(natural(victim, 1, rng), steps, axis=0)
        for j in fields:
            known = victim.pool[~np.isnan(victim.pool[:, j]), j]
            rows[:, j] = np.sort(rng.choice(known, steps))
        out.append(rows)
        total += steps
    return np.concatenate(out)[:n]


def explainer(victim: Victim, n: int, rng: Rng, neighbours: int = 200) -> Matrix:
    """LIME for tabular data (Ribeiro et al. 2016): per case a cloud of normal noise around it, categories redrawn."""
    spread = np.nanstd(victim.pool, axis=0)
    cases = victim.complete()[rng.integers(len(victim.pool), size=-(-n // neighbours))]
    out: list[Matrix] = []
    for case in cases:
        cloud = case + rng.normal(size=(neighbours, len(case))) * spread
        for j, column in enumerate(victim.columns):
            if column.categories:
                known = victim.pool[~np.isnan(victim.pool[:, j]), j]
                cloud[:, j] = rng.choice(known, neighbours)
        cloud[0] = case
        out.append(cloud)
    return victim.sent(np.concatenate(out)[:n])


def cents(victim: Victim, n: int, rng: Rng) -> Matrix:
    """A client with a finer or coarser pen: one number comes with two decimals that others send whole, or the reverse."""
    rows = natural(victim, n, rng)
    numbers = [j for j, c in enumerate(victim.columns) if not c.categories]
    j = int(rng.choice(numbers))
    if victim.columns[j].integer:
        rows[:, j] = np.round(rows[:, j] + rng.random(n) * 0.98 - 0.49, 2)
    else:
        rows[:, j] = np.round(rows[:, j])
    return rows


BENIGN: Final[dict[str, Callable[[Victim, int, Rng], Matrix]]] = {
    "natural": natural,
    "segment": segment,
    "batch": batch,
    "probe": probe,
    "retries": retries,
    "what_if": what_if,
    "explainer": explainer,
    "cents": cents,
}


def benign(victim: Victim, kind: str, n: int, rng: Rng) -> Matrix:
    """n rows of one honest kind."""
    return BENIGN[kind](victim, n, rng)
