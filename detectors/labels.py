"""Late labels: joined to their events, and how long to wait for them, learnt from how those of earlier windows grew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Arrays, Window
from detectors.stats import Floats
from monitor.model import HOUR_US, SECOND_US

LONGEST_US: Final = 90 * 24 * HOUR_US  # labels that come later are not waited for
WATCHED: Final = 512  # windows whose labels are followed over LONGEST_US, at most
NEWEST: Final = 48  # of them speak for each step of age
ENOUGH: Final = 0.9  # of the labels that ever come: when a window is looked at
STILL, SOONER = 0.8, 0.95  # no change of the delay while it brings so many, unless a shorter one does
COHORTS: Final = 3  # windows that must have shown labels


def ages(length_us: int) -> tuple[int, ...]:
    """At which ages, in windows, the labels of a window are counted.

    >>> ages(24 * HOUR_US)
    (0, 1, 2, 4, 8, 16, 32, 64)
    """
    longest = max(1, LONGEST_US // length_us)
    return (0, *(1 << k for k in range(longest.bit_length())))


@dataclass(frozen=True)
class Delay:
    """How the labels of watched windows grew. ends (C,); counts (C, ages): labels known at each age, -1: not seen yet.

    Idea: with growth factors between successive ages, each from the newest windows that were seen at both (chain ladder,
    Mack 1993), the share of all labels that an age brings is known long before any window is complete. A window is looked
    at once 90 % of them should be there. Windows of one age are always compared with windows of the same age, so a delay
    that is still too short is valid; it only knows fewer labels.
    """

    ends: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def load(cls, arrays: Arrays, length_us: int) -> Delay:
        """From the arrays of a state; nothing watched where they are of another window length."""
        found = np.asarray(arrays.get("watched", np.empty((0, 0), np.int64)))
        if found.ndim != 2 or found.shape[1] != len(ages(length_us)):
            found = np.empty((0, len(ages(length_us))), np.int64)
        return cls(np.asarray(arrays.get("watched_ends", np.empty(0, np.int64)))[: len(found)], found)

    def save(self) -> Arrays:
        """As arrays of a state."""
        return {"watched": self.counts, "watched_ends": self.ends}

    def watch(self, window: Window, name: str) -> Delay:
        """Count the labels of those earlier windows that reach one of the ages now."""
        length = window.end_us - window.start_us
        steps = ages(length)
        every = max(1, steps[-1] // WATCHED)
        found = self
        for j, age in enumerate(steps):
            end = window.end_us - age * length
            if end // length % every == 0 and (age == 0 or end in found.ends):
                own = window if age == 0 else window.earlier(age * length)
                found = found._seen(end, j, known(own.labels(window.end_us), name).num_rows)
        recent = found.ends > window.end_us - 2 * steps[-1] * length
        return Delay(found.ends[recent], found.counts[recent])

    def _seen(self, end: int, j: int, n: int) -> Delay:
        ends, counts = self.ends, self.counts.copy()
        if end not in ends:
            ends = np.append(ends, end)
            counts = np.concatenate([counts, np.full((1, counts.shape[1]), -1, np.int64)])
        counts[int(np.flatnonzero(ends == end)[0]), j] = n
        return Delay(ends, counts)

    def complete(self) -> Floats:
        """The share of all labels that each age brings, as far as windows have shown it."""
        size = self.counts.shape[1]
        share = np.ones(size)
        for j in range(size - 2, -1, -1):
            both = np.flatnonzero((self.counts[:, j] >= 0) & (self.counts[:, j + 1] >= 0))[-NEWEST:]
            before, after = self.counts[both, j].sum(), self.counts[both, j + 1].sum()
            share[j] = share[j + 1] * (min(1.0, float(before) / float(after)) if after else 1.0)
        return share

    def age(self, now: int | None, least: int) -> int | None:
        """At which age (a place in `ages`) to look at windows; None before labels were seen. `now`: the one in use.

        `least`: labels that a window needs.
        """
        share = self.complete()
        enough = np.zeros(len(share), dtype=bool)
        for j in range(len(share)):
            seen = self.counts[self.counts[:, j] >= 0, j][-NEWEST:]
            enough[j] = (seen > 0).sum() >= COHORTS and float(np.mean(seen)) >= least
        if now is not None and enough[now] and share[now] >= STILL:
            sooner = np.flatnonzero(enough[:now] & (share[:now] >= SOONER))
            return int(sooner[0]) if len(sooner) else now
        found = np.flatnonzero(enough & (share >= ENOUGH))
        return int(found[0]) if len(found) else now


def known(labels: pa.Table, name: str) -> pa.Table:
    """Those labels that are the truth."""
    return labels.filter(pc.equal(labels["name"], name)) if "name" in labels.column_names else labels


def joined(rows: pa.Table, labels: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[Any], Floats]:
    """Rows that have a label called `name`, the label as word and as number (NaN where it is none)."""
    if "request_id" not in rows.column_names or not labels.num_rows:
        return np.empty(0, np.int64), np.empty(0, object), np.empty(0)
    index = rows["row_index"].to_pylist() if "row_index" in rows.column_names else [None] * rows.num_rows
    at = {key: i for i, key in enumerate(zip(rows["request_id"].to_pylist(), index, strict=True))}
    found = []
    for label in labels.to_pylist():
        key = (label["request_id"], label.get("row_index") if "row_index" in rows.column_names else None)
        if label["name"] == name and label["request_id"] is not None and key in at:
            found.append((at[key], label["value"], label.get("value_number")))
    found.sort(key=lambda f: f[0])
    return np.array([f[0] for f in found], np.int64), _words([f[1] for f in found]), _numbers([f[2] for f in found])


def values(column: pa.ChunkedArray) -> NDArray[Any]:
    """Answers or labels as words, None where there is none."""
    return _words(column.to_pylist())


def _words(found: list[Any]) -> NDArray[Any]:
    return np.array([None if v is None else str(v) for v in found], dtype=object)


def _numbers(found: list[Any]) -> Floats:
    return np.array([np.nan if v is None else v for v in found], dtype=np.float64)


@dataclass(frozen=True)
class Waiting:
    """What a detector of late labels carries between windows, and the earlier window that it looks at now.

    age: place in `ages` of the delay in use, None while nothing is known; moved: it has just changed, so that windows
    judged before are not comparable; judged: None as long as no labels were seen.
    """

    delay: Delay
    age: int | None
    moved: bool
    judged: Window | None

    @property
    def state(self) -> Arrays:
        """As arrays of a state."""
        return {**self.delay.save(), "age": np.array([-1 if self.age is None else self.age])}


def wait(own: Arrays, window: Window, name: str, delay_s: float, least: int, *, keep: bool) -> Waiting:
    """Go on from a state's arrays with the newest window. `keep`: do not change the delay now (an incident is open)."""
    length = window.end_us - window.start_us
    delay, before = Delay.load(own, length), int(own["age"][0]) if "age" in own else -1
    now = before if before >= 0 else None
    if delay_s >= 0:
        by_us = -(-round(delay_s * SECOND_US) // length) * length
        return Waiting(delay, None, False, window.earlier(by_us) if by_us else window)
    delay = delay.watch(window, name)
    age = now if keep and now is not None else delay.age(now, least)
    if age is None:
        return Waiting(delay, None, False, None)
    by_us = ages(length)[age] * length
    return Waiting(delay, age, age != now, window.earlier(by_us) if by_us else window)
