"""What honest clients send: ordinary rows, and the kinds that look like attacks to naive detectors.

Every function takes (victim, n, rng, ranges) and returns n rows (n, d) in the order in which the client sends them. What
makes one client of a kind differ from the next is drawn from `ranges`, by name; `RANGES` are the ones used when none are
given. Explainers are in `explain.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from benchmarks.traffic import explain
from benchmarks.traffic.ranges import RANGES, Ranges, share, whole
from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator


def natural(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """Real rows without repeats as far as the data set has them."""
    picked: Matrix = victim.pool[rng.choice(len(victim.pool), n, replace=n > len(victim.pool))]
    return picked


def segment(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
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


def one_class(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A client all of whose cases are of one class, say a collections department."""
    label = int(rng.choice(victim.labels))
    chosen = np.flatnonzero(victim.labels == label)
    picked: Matrix = victim.pool[rng.choice(chosen, n, replace=n > len(chosen))]
    return picked


def ordered(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """Real rows sorted by one to three columns, so neighbours resemble each other."""
    rows = natural(victim, n, rng)
    keys = rng.choice(rows.shape[1], int(rng.integers(1, 4)), replace=False)
    order = np.lexsort([rows[:, k] for k in keys])
    return rows[order]


def batch(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A nightly re-scoring of one book of sorted rows: night after night the same rows, a few fields of some changed."""
    nights = int(rng.integers(2, 6))
    book = ordered(victim, -(-n // nights), rng)
    out = [book]
    for _ in range(nights - 1):
        book = out[-1].copy()
        moved = rng.random(book.shape) < share(ranges, "jitter", rng)
        fresh = natural(victim, len(book), rng)
        book[moved] = fresh[moved]
        out.append(book)
    return np.concatenate(out)[:n]


def probe(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A health check: one and the same row for ever."""
    return np.repeat(natural(victim, 1, rng), n, axis=0)


def load_test(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A few rows over and over, as fast as they go."""
    rows = natural(victim, whole(ranges, "load_rows", rng), rng)
    return rows[np.arange(n) % len(rows)] if rng.random() < 0.5 else rows[rng.integers(len(rows), size=n)]


def retries(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A client behind a bad line: a share of the rows is sent again, up to three times."""
    rows = natural(victim, n, rng)
    again = np.where(rng.random(n) < share(ranges, "resent", rng), rng.integers(2, 5, n), 1)
    return np.repeat(rows, again, axis=0)[:n]


def rescored(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """The bank itself scores its training rows again, in their order or mixed with others."""
    rows = victim.training[rng.choice(len(victim.training), n, replace=n > len(victim.training))]
    mix = rng.random(n) < rng.choice([0.0, 0.5])
    rows[mix] = natural(victim, int(mix.sum()), rng)
    return rows


def gaps(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A client whose forms are filled in badly: some fields are often missing, in real rows or never."""
    rows = natural(victim, n, rng)
    fields = rng.random(rows.shape[1]) < 0.3
    rows[(rng.random(rows.shape) < share(ranges, "missing", rng)) & fields] = np.nan
    return rows


def drifting(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """The client's customers change slowly: towards the end rows of one end of a number come more and more often."""
    j = int(rng.choice([j for j, c in enumerate(victim.columns) if not c.categories]))
    final, order = share(ranges, "drift", rng), np.argsort(np.nan_to_num(victim.pool[:, j]), kind="stable")
    upper = order[int(0.8 * len(order)) :]
    picks = rng.choice(len(victim.pool), n, replace=n > len(victim.pool))
    late = rng.random(n) < np.linspace(0, final, n)
    picks[late] = rng.choice(upper, int(late.sum()), replace=late.sum() > len(upper))
    return victim.pool[picks]


def cents(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A client with a finer or coarser pen: one number comes with two decimals that others send whole, or the reverse."""
    rows = natural(victim, n, rng)
    numbers = [j for j, c in enumerate(victim.columns) if not c.categories]
    j, hit = int(rng.choice(numbers)), rng.random(n) < share(ranges, "cents", rng)
    if victim.columns[j].integer:
        rows[hit, j] = np.round(rows[hit, j] + rng.random(int(hit.sum())) * 0.98 - 0.49, 2)
    else:
        rows[hit, j] = np.round(rows[hit, j])
    return rows


def units(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """A client that sends one number in another unit (times 1000, 100, 2.54 or the reverse), in some or all rows."""
    rows = natural(victim, n, rng)
    j = int(rng.choice([j for j, c in enumerate(victim.columns) if not c.categories]))
    hit = rng.random(n) < share(ranges, "cents", rng)
    rows[hit, j] *= float(rng.choice([1000.0, 100.0, 2.54, 0.01, 0.001]))
    return rows


def sweep(victim: Victim, n: int, rng: Rng, fields: int, steps: int) -> Matrix:
    """One case after the other, `fields` of it varied together over `steps` values that occur; up, down or at random."""
    out: list[Matrix] = []
    total = 0
    while total < n:
        rows = np.repeat(natural(victim, 1, rng), steps, axis=0)
        for j in rng.choice(len(victim.columns), min(fields, len(victim.columns)), replace=False):
            known = victim.occurring[j]
            values = np.sort(rng.choice(known, min(steps, len(known)), replace=False))
            if (
                not victim.columns[j].categories and rng.random() < 0.5
            ):  # a slider: even steps, whole where they must be
                places = victim.decimals[j]
                values = np.round(np.linspace(values[0], values[-1], steps), 6 if places is None else places)
            values = np.resize(values, steps)
            rows[:, j] = values[:: int(rng.choice([-1, 1]))] if rng.random() < 0.8 else rng.permutation(values)
        out.append(rows)
        total += steps
    return np.concatenate(out)[:n]


def what_if(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """An analyst who varies one or two fields of a case over some values that occur, then takes the next case."""
    return sweep(victim, n, rng, whole(ranges, "sweep_fields", rng), whole(ranges, "sweep_values", rng))


def what_if_many(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """The same with three or more fields at once."""
    return sweep(victim, n, rng, 1 + whole(ranges, "grid_fields", rng), whole(ranges, "sweep_values", rng))


def grid(victim: Victim, n: int, rng: Rng, ranges: Ranges = RANGES) -> Matrix:
    """Every combination of a few values of two or more fields, case after case."""
    out: list[Matrix] = []
    total = 0
    count = whole(ranges, "grid_fields", rng)
    while total < n:
        fields = rng.choice(len(victim.columns), min(count, len(victim.columns)), replace=False)
        values = [
            rng.choice(victim.occurring[j], min(len(victim.occurring[j]), int(rng.integers(3, 8))), replace=False)
            for j in fields
        ]
        cells = np.stack(np.meshgrid(*[np.sort(v) for v in values], indexing="ij"), axis=-1).reshape(-1, len(fields))
        rows = np.repeat(natural(victim, 1, rng), len(cells), axis=0)
        rows[:, fields] = cells
        out.append(rows)
        total += len(rows)
    return np.concatenate(out)[:n]


Kind = Callable[[Victim, int, Rng, Ranges], Matrix]

BENIGN: Final[dict[str, Kind]] = {
    "natural": natural,
    "segment": segment,
    "one_class": one_class,
    "sorted": ordered,
    "batch": batch,
    "probe": probe,
    "load_test": load_test,
    "retries": retries,
    "rescored": rescored,
    "gaps": gaps,
    "drifting": drifting,
    "cents": cents,
    "units": units,
    "what_if": what_if,
    "what_if_many": what_if_many,
    "grid": grid,
    "explainer": explain.lime,
    "shap": explain.kernel_shap,
    "ice": explain.ice,
    "explainer_columns": explain.lime_columns,
}


def benign(victim: Victim, kind: str, n: int, rng: Rng, ranges: Mapping[str, tuple[float, float]] = RANGES) -> Matrix:
    """n rows of one honest kind."""
    return BENIGN[kind](victim, n, rng, ranges)
