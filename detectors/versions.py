"""Answers of two model versions compared: as they came, and as if both had been asked the same; and by labels.

A sum of counts says nothing about how sure it is, since rows of one window hang together; windows are the unit. Every
number is a ratio of sums over windows; its error comes from what each window adds (linearised, Newey and West 1987 with
a lag of the square root of the windows), never less than that of independent windows, and a Student band of 95 % over all
numbers together (Bonferroni). Below MIN_WINDOWS windows on a side only sizes are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.special import stdtrit

from detectors.binned import NUMBER, Binned, bin_labels
from detectors.expected import PARTS
from detectors.groups import LATENCY_EDGES, Group, output_slots
from detectors.profile import Bins
from detectors.stats import Floats

MIN_WINDOWS: Final = 8
LEVEL: Final = 0.95
PRIOR: Final = 5.0  # events of the old version that stand in every part of like inputs
TINY: Final = 1e-9  # what rounding makes of no difference
CLASSES: Final = 10  # of an answer whose shares are told


@dataclass(frozen=True)
class Side:
    """One version's windows: answers (windows, PARTS, slots of answers), latency (windows, slots); an axis of windows first."""

    answers: Floats
    latency: Floats

    @classmethod
    def of(cls, groups: Sequence[Group], bins: Bins) -> Side:
        """Windows in the order of time."""
        slots = len(output_slots(bins))
        if not groups:
            return cls(np.zeros((0, PARTS, slots)), np.zeros((0, len(LATENCY_EDGES) + 2)))
        return cls(np.array([g.answers for g in groups], np.float64), np.array([g.latency for g in groups], np.float64))


def compared(bins: Bins, old: Side, new: Side) -> list[dict[str, Any]]:
    """One row per share of a class, mean of a number, share of missing answers, and latency.

    Each with `name`, `what`, `before`, `after`, `difference`, `band` of the difference (None: too little data), `differs`,
    and under `same_inputs` the difference and band at the old version's mix of inputs (None where it has no meaning).
    """
    numbers = [*_of_answers(bins), ("latency", "median ms", None, None)]
    made = [(n, _latency(old, new)) if n[0] == "latency" else (n, _answer(old, new, n)) for n in numbers]
    rows = len([m for m in made if m[1] is not None])
    return [_told(n, m, rows) for n, m in made if m is not None]


Number = tuple[str, str, Any, Any]  # name, what, slots' values, slots that count as one event


def outcomes(old: Floats, new: Floats, names: Sequence[str]) -> list[dict[str, Any]]:
    """The same of losses by labels; old, new (windows, losses, 2): sums of a loss over events, and how many these are.

    >>> even = np.tile([[[5.0, 100.0]]], (20, 1, 1))
    >>> (row,) = outcomes(even, even * [2.0, 1.0], ["share of wrong answers"])
    >>> row["before"], row["after"], row["differs"]
    (0.05, 0.1, True)
    """
    made = []
    for i, name in enumerate(names):
        sides = [s[s[:, i, 1] > 0, i] for s in (old, new)]
        if all(len(s) for s in sides):
            (before, a), (after, b) = (_ratio(s[:, 0], s[:, 1]) for s in sides)
            few = min(len(s) for s in sides)
            made.append((name, Moved(before, after, float(np.hypot(a, b)), np.nan, np.nan, few)))
    return [_told(("labels", name, None, None), m, len(made)) for name, m in made]


def _of_answers(bins: Bins) -> list[Number]:
    """What is told of each answer: values per slot of the answers' slots, and which slots are events."""
    outputs, total, at = output_slots(bins), len(output_slots(bins)), 0
    found: list[Number] = []
    assert total == len(outputs)
    for f in (f for f in bins.features if f.is_output):
        here, known = np.zeros(total), np.zeros(total)
        here[at : at + f.slots], known[at : at + f.slots - 1] = 1.0, 1.0
        for what, values in _values(f):
            full = np.zeros(total)
            full[at : at + f.slots] = values
            found.append((f.name, what, full, here if what == "missing" else known))
        at += f.slots
    return found


def _values(f: Binned) -> list[tuple[str, Floats]]:
    made = []
    if f.kind == NUMBER and len(f.centers) == f.slots - 1:
        made.append(("mean", np.r_[np.array(f.centers), 0.0]))
    elif f.kind != NUMBER:
        for i, word in enumerate(bin_labels(f)[:-2][:CLASSES]):
            made.append((f"share of {word}", np.eye(f.slots)[i]))
    return [*made, ("missing", np.eye(f.slots)[-1])]


@dataclass(frozen=True)
class Moved:
    """before, after: as they came; difference and error as they came and at the same inputs (NaN: not known)."""

    before: float
    after: float
    error: float
    same: float
    same_error: float
    windows: int


def _answer(old: Side, new: Side, number: Number) -> Moved | None:
    """A share or mean of the answers."""
    _, _, values, counts = number
    x, n = old.answers @ values, old.answers @ counts  # (windows, PARTS)
    y, m = new.answers @ values, new.answers @ counts
    if not n.sum() or not m.sum():
        return None
    before, spread = _ratio(x.sum(axis=1), n.sum(axis=1))
    after, own = _ratio(y.sum(axis=1), m.sum(axis=1))
    weight, total = n.sum(axis=0) / n.sum(), m.sum(axis=0)
    usual = x.sum(axis=0) / np.maximum(n.sum(axis=0), 1)
    mean = (y.sum(axis=0) + PRIOR * usual) / (total + PRIOR)
    influence = ((y - mean * m) * weight / (total + PRIOR)).sum(axis=1)
    mix = (n - weight * n.sum(axis=1)[:, None]) * (mean - usual)
    own_of_old = (mix - (x - usual * n)).sum(axis=1) / n.sum()
    same_error = float(np.hypot(_error(own_of_old), _error(influence)))
    known = min(len(x), len(y))
    return Moved(
        before, after, float(np.hypot(spread, own)), float(weight @ mean) - before, same_error, known
    )  # fmt: skip


def _ratio(x: Floats, n: Floats) -> tuple[float, float]:
    """A ratio of sums over windows and its standard error."""
    mean = float(x.sum() / n.sum())
    return mean, _error((x - mean * n) / n.sum())


def _error(influence: Floats) -> float:
    """Standard error of a sum of what windows add, which may hang together with the windows before."""
    k = len(influence)
    if k < 2:
        return float("nan")
    u = influence - influence.mean()
    alone = float(u @ u)
    lag = min(int(k**0.5), k // 4)
    together = alone + 2 * sum((1 - j / (lag + 1)) * float(u[j:] @ u[:-j]) for j in range(1, lag + 1))
    return float(np.sqrt(max(alone, together) * k / (k - 1)))


def _latency(old: Side, new: Side) -> Moved | None:
    """The median latency; its error from the medians of the windows."""
    sides = [_medians(s.latency) for s in (old, new)]
    if any(not np.isfinite(whole) for whole, _ in sides):
        return None
    (before, a), (after, b) = sides
    errors = [_error((w - w.mean()) / max(1, len(w))) for w in (a, b)]
    return Moved(before, after, float(np.hypot(errors[0], errors[1])), np.nan, np.nan, min(len(a), len(b)))


def _medians(latency: Floats) -> tuple[float, Floats]:
    """Of all windows together, and of each that knows any."""
    known = latency[latency[:, :-1].sum(axis=1) > 0][:, :-1]
    return (_median(known.sum(axis=0)) if len(known) else np.nan), np.array([_median(w) for w in known])


def _median(counts: Floats) -> float:
    """Within its bin as if events were spread evenly there: bins are a fifth wide."""
    total = np.cumsum(counts)
    i = int(np.searchsorted(total, total[-1] / 2))
    low = LATENCY_EDGES[i - 1] if i else 0.0
    high = LATENCY_EDGES[min(i, len(LATENCY_EDGES) - 1)]
    inside = (total[-1] / 2 - (total[i - 1] if i else 0.0)) / max(float(counts[i]), 1.0)
    return float(low + (high - low) * inside)


def _told(number: Number, m: Moved, numbers: int) -> dict[str, Any]:
    enough = m.windows >= MIN_WINDOWS
    factor = float(stdtrit(m.windows - 1, 1 - (1 - LEVEL) / 2 / max(1, numbers))) if enough else np.nan
    raw = _banded(m.after - m.before, factor * m.error if enough else np.nan)
    same = _banded(m.same, factor * m.same_error if enough else np.nan) if np.isfinite(m.same) else None
    return {"name": number[0], "what": number[1], "before": m.before, "after": m.after, **raw, "same_inputs": same}


def _banded(difference: float, half: float) -> dict[str, Any]:
    if not np.isfinite(half):
        return {"difference": difference, "band": None, "differs": None}
    return {
        "difference": difference, "band": [difference - half, difference + half], "differs": abs(difference) > half + TINY,
    }  # fmt: skip


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """What the rows about answers say: "same", "other answers", "other inputs" (gone at the same inputs), or "learning"."""
    told = [r for r in rows if r["name"] != "latency" and r["band"] is not None]
    if not told:
        return "learning"
    at_same = [r["same_inputs"]["differs"] if r["same_inputs"] else r["differs"] for r in told]
    if any(at_same):
        return "other answers"
    return "other inputs" if any(r["differs"] for r in told) else "same"
