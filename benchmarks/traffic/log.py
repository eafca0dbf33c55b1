"""From rows to the native JSON objects that a model server logs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.traffic.benign import natural
from benchmarks.traffic.victim import Matrix, Victim
from monitor.model import rfc3339

Rng = np.random.Generator
Event = dict[str, Any]
Times = NDArray[np.int64]
_BATCH = 20_000  # rows answered at once: the model is fast in batches, memory stays small


def times(n: int, start_us: int, every_s: float) -> Times:
    """n event times at a steady pace."""
    return start_us + (np.arange(n) * every_s * 1e6).astype(np.int64)


def poisson_times(n: int, start_us: int, every_s: float, rng: Rng) -> Times:
    """n event times of a Poisson stream with a mean gap of `every_s`."""
    return start_us + (np.cumsum(rng.exponential(every_s, n)) * 1e6).astype(np.int64)


def log(
    victim: Victim,
    rows: Matrix,
    times_us: Times,
    principals: Sequence[str],
    rng: Rng,
    *,
    returned: str = "scores",
) -> Iterator[Event]:
    """One event per row in the order given. Callers are drawn from `principals` unless it holds one name per row."""
    callers = principals if len(principals) == len(rows) else rng.choice(list(principals), len(rows)).tolist()
    latency = np.round(rng.gamma(4.0, 2.0, len(rows)), 2)
    for first in range(0, len(rows), _BATCH):
        part = victim.sent(rows[first : first + _BATCH])
        scores = np.round(victim.answer(part), 6)
        named = _features(victim, part)
        for i, (features, score) in enumerate(zip(named, scores.tolist(), strict=True), start=first):
            yield {
                "kind": "inference",
                "event_time": rfc3339(int(times_us[i])),
                "model": victim.name,
                "model_version": "1",
                "request_id": rng.bytes(8).hex(),
                "principal": callers[i],
                "features": features,
                "prediction": victim.classes[max(range(len(score)), key=score.__getitem__)],
                "scores": score,
                "class_names": list(victim.classes),
                "returned": returned,
                "latency_ms": float(latency[i]),
                "status": "ok",
            }


def _features(victim: Victim, rows: Matrix) -> Iterator[Event]:
    names = [c.name for c in victim.columns]
    columns: list[list[Any]] = []
    for j, column in enumerate(victim.columns):
        values: list[Any] = rows[:, j].tolist()
        if column.categories:
            columns.append([None if math.isnan(v) else column.categories[int(v)] for v in values])
        else:
            columns.append([None if math.isnan(v) else int(v) if column.integer and v == int(v) else v for v in values])
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


def reference(victim: Victim, n: int, rng: Rng, *, start_us: int, every_s: float, clients: int = 40) -> Iterator[Event]:
    """Benign history with times: natural rows from `clients` callers of very different size (Zipf-like)."""
    share = 1.0 / np.arange(1, clients + 1)
    callers = [f"client-{i:02d}" for i in rng.choice(clients, n, p=share / share.sum())]
    yield from log(victim, natural(victim, n, rng), poisson_times(n, start_us, every_s, rng), callers, rng)


def interleave(*logs: Iterable[Event]) -> Iterator[Event]:
    """Several logs as one, by event time."""
    return heapq.merge(*logs, key=lambda e: e["event_time"])
