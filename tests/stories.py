"""Logs with a plot, and configurations to watch them with: what tests of the whole path share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.traffic import DRIFTS, attack, interleave, log, natural, poisson_times, reference, victim
from monitor.model import HOUR_US, parse_time_us

DAY_US = 24 * HOUR_US
START_US = parse_time_us("2026-03-02T00:00:00Z")
MODEL = "breast_cancer"


@dataclass(frozen=True)
class Story:
    """A reference, a log, and what happens in it."""

    reference: tuple[dict[str, Any], ...]
    log: tuple[dict[str, Any], ...]
    drift_us: tuple[int, int]
    attack_us: int
    attacker: str


@lru_cache(maxsize=1)
def story() -> Story:
    """Four weeks of benign reference; then eight quiet days in which one feature shifts for two and a client attacks."""
    v, rng = victim(MODEL), np.random.default_rng(20)
    before = tuple(reference(v, 14_000, rng, start_us=START_US - 28 * DAY_US, every_s=170, clients=20))
    when = poisson_times(4_000, START_US, 170, rng)
    rows = natural(v, 4_000, rng)
    drift_us = (START_US + 3 * DAY_US, START_US + 5 * DAY_US)
    changed = (when >= drift_us[0]) & (when < drift_us[1])
    feature = v.columns[3].name
    rows[changed] = DRIFTS["mean_shift"](v, rows[changed], feature, 2.0, rng)
    callers = [f"client-{i:02d}" for i in rng.integers(20, size=4_000)]
    attack_us = START_US + 6 * DAY_US
    queries = attack(v, "hop_skip_jump", 300, rng)
    hostile = log(v, queries, poisson_times(len(queries), attack_us, 5.0, rng), ["mallory"], rng)
    events = tuple(interleave(log(v, rows, when, callers, rng), hostile))
    return Story(before, events, drift_us, attack_us, "mallory")


def write_jsonl(file: Path, events: Iterable[dict[str, Any]]) -> Path:
    """Events, one JSON object a line."""
    with file.open("w") as out:
        for e in events:
            out.write(json.dumps(e, separators=(",", ":")) + "\n")
    return file


def write_config(folder: Path, **sections: Any) -> Path:
    """The two-line model of the story with further top-level sections beside it; JSON is YAML."""
    write_jsonl(folder / "reference.jsonl", story().reference)
    file = folder / "lanner.yaml"
    file.write_text(json.dumps({"models": {MODEL: {"reference": {"file": "reference.jsonl"}}}, **sections}))
    return file
