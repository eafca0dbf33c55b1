"""The victim as the attacker sees it: rows of the unit cube in, probabilities out, until his budget is spent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.traffic.victim import Matrix, Victim

Rng = np.random.Generator
MODES: Final = ("free", "valid", "snap")


class Spent(Exception):
    """The attacker's budget of queries is used up."""


class Oracle:
    """Answers queries and records what was sent.

    mode: *free* sends any number; *valid* rounds to the decimals of real rows, stays in their range and leaves those
    fields empty that the current target has empty; *snap* also moves every number to the nearest one that occurs in real rows.
    noise: this share of each query's fields is replaced by values of random real rows, as an attacker does who wants no
    two queries to resemble each other (in the spirit of OARS, Feng et al. 2023); he sees the answers to what he sent.
    """

    def __init__(
        self, victim: Victim, budget: int, *, mode: str = "free", noise: float = 0.0, rng: Rng | None = None
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r}: one of {', '.join(MODES)}")
        self.victim, self.budget, self.mode, self.noise = victim, budget, mode, noise
        self._rng = rng if rng is not None else np.random.default_rng(0)
        self._span = np.where(victim.high > victim.low, victim.high - victim.low, 1.0)
        self._sent: list[Matrix] = []
        self._n = 0
        self._empty = np.zeros(len(victim.columns), dtype=bool)

    @property
    def d(self) -> int:
        return len(self.victim.columns)

    @property
    def left(self) -> int:
        """Queries that may still be sent."""
        return self.budget - self._n

    def predict(self, unit: NDArray[Any]) -> Matrix:
        """Answer; past the budget, raise after the last row that still fits."""
        rows = self._disguise(self.victim.low + np.asarray(unit, dtype=np.float64).reshape(len(unit), -1) * self._span)
        room = self.left
        self._sent.append(rows[:room])
        self._n += len(rows[:room])
        if len(rows) > room or room == 0:
            raise Spent
        return self.victim.answer(rows)

    def labels(self, unit: NDArray[Any]) -> NDArray[np.int64]:
        """The answered classes only."""
        return np.asarray(self.predict(unit).argmax(axis=1), dtype=np.int64)

    def _disguise(self, rows: Matrix) -> Matrix:
        v = self.victim
        if self.noise:
            swap = self._rng.random(rows.shape) < self.noise
            rows = np.where(swap, mixed(v, len(rows), self._rng), rows)
        if self.mode == "free":
            return v.sent(rows)
        rows = v.valid(rows)
        if self.mode == "snap":
            for j, known in enumerate(v.occurring):
                if not v.columns[j].categories:
                    rows[:, j] = _nearest(rows[:, j], known)
        rows[:, self._empty] = np.nan
        return rows

    def unit(self, rows: Matrix) -> NDArray[np.float32]:
        """Real rows in the attacker's coordinates."""
        return ((rows - self.victim.low) / self._span).astype(np.float32)

    def sent(self) -> Matrix:
        """All rows sent so far."""
        return np.concatenate(self._sent) if self._sent else np.empty((0, self.d))

    def targets(self, rng: Rng) -> Iterator[NDArray[np.float32]]:
        """One real case after the other, as an array of one row; its gaps are filled, and kept empty in valid queries."""
        cases = self.victim.complete()
        while True:
            i = int(rng.integers(len(cases)))
            self._empty = np.isnan(self.victim.pool[i])
            yield self.unit(cases[i : i + 1])


def _nearest(x: Matrix, known: Matrix) -> Matrix:
    at = np.clip(np.searchsorted(known, x), 1, max(1, len(known) - 1))
    if len(known) == 1:
        return np.full_like(x, known[0])
    below, above = known[at - 1], known[at]
    return np.where(x - below <= above - x, below, above)


def mixed(victim: Victim, n: int, rng: Rng) -> Matrix:
    """Rows whose every field comes from another real row: right column by column, wrong together."""
    cases = victim.complete()
    picks = rng.integers(len(cases), size=(n, cases.shape[1]))
    return np.asarray(cases[picks, np.arange(cases.shape[1])], dtype=np.float64)
