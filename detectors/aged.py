"""State of very many principals, most of them silent: a small part for those of late, a large one that is left alone.

Whoever is heard moves to the young part; when that has grown to a share of the old part, both are put together. So a
stretch of the log costs what its own principals cost, however many are remembered (O'Neil et al. 1996, log-structured
merge). Nothing here changes: parts pass from state to state as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SHARE: Final = 8  # the young part is put to the old one when it has a share of so much of it,
LEAST: Final = 4_096  # and more than so many principals


class Ids(list[str]):
    """Names that stay as they are, with their places, found once."""

    @cached_property
    def place(self) -> Mapping[str, int]:
        return {p: i for i, p in enumerate(self)}


@dataclass(frozen=True)
class Part:
    """Principals with a row each of the arrays `each`, and `length` rows each of the arrays `rows`, one after the other.

    >>> part = Part(Ids(["a", "b"]), {"seen": np.array([7, 8])}, np.array([2, 1]), {"x": np.array([1, 2, 3])})
    >>> one = part.take(np.array([1])); one.ids, one.each["seen"].tolist(), one.rows["x"].tolist()
    (['b'], [8], [3])
    """

    ids: Ids
    each: Mapping[str, NDArray[Any]]
    length: NDArray[np.int64]
    rows: Mapping[str, NDArray[Any]]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.asarray(np.cumsum(self.length) - self.length)

    def find(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Places of those of the names that are here."""
        place = self.ids.place
        return np.array([place[n] for n in names if n in place], dtype=np.int64)

    def take(self, places: NDArray[np.int64]) -> Part:
        """Some of the principals, in the order given."""
        length = self.length[places]
        rows = spans(self._starts, places, length)
        return Part(
            Ids(self.ids[i] for i in places.tolist()), {k: a[places] for k, a in self.each.items()}, length,
            {k: a[rows] for k, a in self.rows.items()},
        )  # fmt: skip

    def plus(self, other: Part) -> Part:
        """Both, with what `other` knows of those that are in both."""
        gone = np.zeros(len(self.ids), dtype=bool)
        gone[self.find(other.ids)] = True
        mine = self.take(np.flatnonzero(~gone)) if gone.any() else self
        return Part(
            Ids([*mine.ids, *other.ids]), {k: np.concatenate([a, other.each[k]]) for k, a in mine.each.items()},
            np.concatenate([mine.length, other.length]),
            {k: np.concatenate([a, other.rows[k]]) for k, a in mine.rows.items()},
        )  # fmt: skip

    def save(self) -> tuple[Ids, dict[str, NDArray[Any]]]:
        """As names and plain arrays."""
        return self.ids, {f"old_{k}": a for k, a in {**self.each, **self.rows, "length": self.length}.items()}

    @classmethod
    def load(cls, ids: Any, arrays: Mapping[str, NDArray[Any]], like: Part) -> Part:
        """From what `save` made; the arrays are named as in `like`, which is returned where there is nothing."""
        if not ids:
            return like
        return cls(
            ids if isinstance(ids, Ids) else Ids(ids), {k: arrays[f"old_{k}"] for k in like.each},
            arrays["old_length"], {k: arrays[f"old_{k}"] for k in like.rows},
        )  # fmt: skip


def grown(young: int, old: int) -> bool:
    """Whether so many principals of late are to be put to the old ones."""
    return young > max(LEAST, old // SHARE)


def spans(start: NDArray[np.int64], which: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indexes start[w], start[w] + 1, ... (length of them) for every w in `which`, one span after the other."""
    some = np.flatnonzero(length)
    total = int(length.sum())
    if not total:
        return np.zeros(0, dtype=np.int64)
    ends = np.cumsum(length[some])
    return np.arange(total) - np.repeat(ends - length[some], length[some]) + np.repeat(start[which[some]], length[some])
