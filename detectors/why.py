"""What is behind a drift: how far features moved in their own units, whose rows did it, and what looks broken.

Pure: rows from before (the reference) and since the onset go in, evidence comes out. Both are samples of bounded size;
alarms never depend on anything here. Whether one caller, version, category or segment explains a drift is found by leaving
its rows out on both sides and comparing again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from detectors.binned import NUMBER, Binned, bin_labels, frequent, stands_for
from detectors.broken import causes
from detectors.profile import Bins, Coded
from detectors.stats import Floats
from detectors.strata import Segment, Strata
from monitor.model import finite, rfc3339

FEATURES: Final = 5  # features that are looked into, those with most evidence
VALUES: Final = 20  # callers and versions that are tried, those with most rows
EXPLAINS: Final = 0.8  # part of the shift that must go with the rows left out to be called its explanation
CONCENTRATES: Final = 0.3  # and to be named at all
SHOWN: Final = 3
BLIND: Final = 0.25  # of the shift: remaining rows that could not show so much explain nothing
VERSION_MOVED: Final = 0.1  # share of events
MIN_ROWS: Final = 20
ENVELOPE: Final = {"principal": "principal", "model_version": "version"}  # column -> what its values are called
Places = NDArray[np.int64]  # (rows,): the group of each row
Division = tuple[Places, Places, int]  # of the rows before and after into so many groups, and those of none
COLUMNS: Final = ("event_time", "sampling_fraction", *ENVELOPE)


@dataclass(frozen=True)
class Side:
    """Rows on one side of the comparison, laid out on the bins.

    events (rows,): how many each row stands for; weight (rows,): the same, brought to the reference's mix.
    """

    table: pa.Table
    coded: Coded
    events: Floats
    weight: Floats

    @property
    def n(self) -> int:
        return self.coded.n

    def take(self, keep: NDArray[np.bool_]) -> Side:
        """Some of the rows."""
        rows, coded = self.table.filter(pa.array(keep)), self.coded.take(np.flatnonzero(keep))
        return Side(rows, coded, self.events[keep], self.weight[keep])

    def part(self, some: NDArray[np.bool_]) -> float:
        """The share of all events that some of the rows stand for."""
        return float(self.events[some].sum() / self.events.sum())

    def shares(self, i: int, start: int, slots: int) -> Floats:
        """Shares of one feature's bins."""
        found = np.bincount(self.coded.codes[i] - start, weights=self.weight, minlength=slots)
        return np.asarray(found / max(float(found.sum()), 1e-12), dtype=np.float64)


@dataclass(frozen=True)
class Comparison:
    """The reference's rows beside those since the onset. named: the drifting features' places, with their shares; tied:
    those of them whose relation to other numbers changed, and not how they are spread.
    """

    bins: Bins
    before: Side
    after: Side
    named: Mapping[int, float]
    tied: frozenset[int] = frozenset()

    @cached_property
    def starts(self) -> list[int]:
        return [int(x) for x in self.bins.offsets[:-1]]


def explain(
    bins: Bins,
    before: pa.Table,
    after: pa.Table,
    evidence: Mapping[str, Any],
    *,
    segment: str = "",
    earlier: pa.Table | None = None,
    units: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evidence about the drift that `evidence` tells of (its `features` and `bets`); {} when either side has few rows.

    segment: the incident's, whose rows alone count then. earlier: rows of the log before the onset, for versions.
    Returns changes, pictures, explained_by, concentrates, causes, versions, score, effects and compared, as
    docs/detectors.md says.
    """
    for s in bins.strata.segments:
        if s.name == segment:
            before, after = (t.filter(pa.array(s.of(t))) for t in (before, after))
    if min(before.num_rows, after.num_rows) < MIN_ROWS:
        return {}
    place = {f.name: i for i, f in enumerate(bins.features)}
    listed = [f for f in evidence.get("features", ()) if f["name"] in place][:FEATURES]
    named = {place[f["name"]]: float(f["share"] or 0.0) or 1e-3 for f in listed}
    plain = replace(bins, strata=Strata())
    was, now = stands_for(before), stands_for(after)
    old = Side(before, plain.code(before), was, was)
    new = Side(after, plain.code(after), now, now * _mix(bins.strata, (before, was), (after, now)))
    bets = evidence.get("bets", {})
    tied = {i for i in named if _what(bins, i, bets) == "dependence" and i in plain.crossed and len(plain.crossed) > 1}
    c = Comparison(plain, old, new, named, frozenset(tied))
    found = sorted(_candidates(c, bins.strata.segments), key=lambda x: (-x["explains"], x["share"], str(x["value"])))
    nearly = max(CONCENTRATES, found[0]["explains"] - 0.05) if found else 1.0
    leading = [x for x in found if x["explains"] >= nearly]
    best = min(leading, key=lambda x: (x["share"], -x["explains"])) if leading else None  # the narrowest of equals
    explained = best is not None and best["explains"] >= EXPLAINS
    closer = c if best is None or not explained else replace(c, after=c.after.take(best["rows"]))
    return {
        "changes": [_change(c, i, bets, units or {}) for i in named],
        "pictures": [_picture(c, i) for i in named],
        "explained_by": _told(best) if best is not None and explained else None,
        "concentrates": [_told(x) for x in found if x["explains"] >= CONCENTRATES][:SHOWN],
        "causes": [
            {"name": f.name, **cause}
            for f in (bins.features[i] for i in named)
            for cause in causes(f, old.table, closer.after.table)
        ],
        "versions": _versions(earlier if earlier is not None and earlier.num_rows else before, after),
        "score": [_change(c, i, {}, {}) for i, f in enumerate(bins.features) if f.is_output][:SHOWN],
        "effects": [e for i in named if (e := _effect(c, i)) is not None],
        "compared": {"before": old.n, "after": new.n, "since": _since(after)},
    }


def _what(bins: Bins, i: int, bets: Mapping[str, Any]) -> str:
    """What was bet on about a feature: location, spread, dependence, missing, share of ...; "" where nothing is said."""
    name, bet = bins.features[i].name, str(bets.get(bins.features[i].name, ""))
    return bet.removeprefix(name).split("/")[1] if bet.startswith(f"{name}/") else ""


def _since(after: pa.Table) -> str | None:
    return rfc3339(int(pc.min(after["event_time"]).as_py())) if "event_time" in after.column_names else None


def _mix(strata: Strata, before: tuple[pa.Table, Floats], after: tuple[pa.Table, Floats]) -> Floats:
    """What brings the context of the rows since the onset to the reference's mix; 1 without context. With events by row."""
    rows, _ = after
    if not strata.axes:
        return np.ones(rows.num_rows)
    a, b = (np.bincount(strata.cell(t), weights=w, minlength=strata.width) / w.sum() for t, w in (before, after))
    return np.asarray((a / np.maximum(b, 1 / rows.num_rows))[strata.cell(rows)], dtype=np.float64)


def _candidates(c: Comparison, segments: Sequence[Segment]) -> Iterator[dict[str, Any]]:
    """Every group of rows with how much of the shift goes when it is left out; `rows` marks it in `after`."""
    nobody = np.ones(c.before.n, np.int64), np.ones(c.after.n, np.int64), 1  # the only group has no rows
    ways = list(_groupings(c, segments))
    ((whole,), (blur,)), *shifts = _shifts(c, [nobody, *((old, new, len(words)) for *_, old, new, words in ways)])
    if whole <= 3 * blur:  # nothing to divide
        return
    for (kind, column, old, new, words), (left, blur) in zip(ways, shifts, strict=True):
        his, mine = (np.bincount(np.minimum(g, len(words)), minlength=len(words) + 1) for g in (old, new))
        for v, word in enumerate(words):
            if not mine[v] or min(c.after.n - mine[v], c.before.n - his[v]) < MIN_ROWS or blur[v] > BLIND * whole:
                continue
            rows = new == v
            yield {
                "kind": kind, "feature": column, "value": word, "explains": float(np.clip(1 - left[v] / whole, 0.0, 1.0)),
                "share": c.after.part(rows), "share_before": c.before.part(old == v), "rows": rows,
            }  # fmt: skip


def _shifts(c: Comparison, divisions: Sequence[Division]) -> list[tuple[Floats, Floats]]:
    """Per division how far the named features are apart without each of its groups of rows: distance less what chance makes
    of it, and the standard deviation of that chance.
    """
    out = [(np.zeros(groups), np.zeros(groups)) for *_, groups in divisions]
    for i, weight in c.named.items():
        found = _untied(c, i, divisions) if i in c.tied else [_spread(c, i, *d) for d in divisions]
        for (total, blur), (moved, chance) in zip(out, found, strict=True):
            total += weight * moved
            blur += weight * chance
    return out


def _spread(c: Comparison, i: int, old: Places, new: Places, groups: int) -> tuple[Floats, Floats]:
    """By how values are spread over the bins: chi-square distance."""
    (p, n), (q, m) = (_shares(c, side, i, g, groups) for side, g in ((c.before, old), (c.after, new)))
    middle = (p + q) / 2
    known = middle > 0
    distance = ((p - q) ** 2 / np.where(known, middle, 1.0)).sum(axis=1)
    degrees, rows = np.maximum(known.sum(axis=1) - 1.0, 0.0), 1 / n + 1 / m
    return np.maximum(0.0, distance - degrees * rows), np.sqrt(2 * degrees) * rows


def _shares(c: Comparison, side: Side, i: int, group: Places, groups: int) -> tuple[Floats, Floats]:
    """Shares of one feature's bins without each group (groups, slots), and how many equal rows they are worth (groups,)."""
    slots, at = c.bins.features[i].slots, np.minimum(group, groups)
    cell, size = at * slots + side.coded.codes[i] - c.starts[i], (groups + 1) * slots
    rows = _others(np.bincount(cell, minlength=size).reshape(-1, slots))
    found = _others(np.bincount(cell, weights=side.weight, minlength=size).reshape(-1, slots))
    found = np.where(rows > 0, np.maximum(found, 0.0), 0.0)  # what rounding leaves of a bin without rows is nothing
    squares = np.maximum(_others(np.bincount(at, weights=side.weight**2, minlength=groups + 1)), 1e-12)
    total = found.sum(axis=1)
    return found / np.maximum(total, 1e-12)[:, None], np.maximum(total**2 / squares, 1e-12)


def _others(sums: NDArray[Any]) -> NDArray[Any]:
    """Of sums by group, the rest last: those of all others, for each group but the rest."""
    return np.asarray(sums.sum(axis=0) - sums[:-1])


def _untied(c: Comparison, i: int, divisions: Sequence[Division]) -> Iterator[tuple[Floats, Floats]]:
    """By a number's correlations with the others: their squared distance."""
    others = [j for j in c.bins.crossed if j != i]
    before = _correlations(c, c.before, i, others, [(old, groups) for old, _, groups in divisions])
    after = _correlations(c, c.after, i, others, [(new, groups) for _, new, groups in divisions])
    for (was, n), (now, m) in zip(before, after, strict=True):
        rows = 1 / n + 1 / m
        yield np.maximum(0.0, ((now - was) ** 2).sum(axis=1) - len(others) * rows), np.sqrt(2 * len(others)) * rows


def _correlations(
    c: Comparison, side: Side, i: int, others: Sequence[int], divisions: Sequence[tuple[Places, int]]
) -> list[tuple[Floats, Floats]]:
    """Of one number's normal scores with those of others, per division (the group of each row, and how many groups) without
    each group (groups, others), and how many equal rows these are worth (groups,). One pass over the rows makes all sums.
    """
    one, rest = c.bins.levels[side.coded.codes[i]][:, None], c.bins.levels[side.coded.codes[list(others)]].T
    k = rest.shape[1]
    terms = np.empty((side.n, 4 + 3 * k))  # row by row, as the product of matrices reads it
    columns = [np.ones_like(one), side.weight[:, None], one, one * one, rest, rest * rest, one * rest]
    np.concatenate(columns, axis=1, out=terms)
    starts = np.cumsum([0, *(groups + 1 for _, groups in divisions)])
    cells = np.stack([np.minimum(g, n) + at for (g, n), at in zip(divisions, starts, strict=False)], axis=1)
    each = len(divisions)
    at = (np.repeat(side.weight, each), cells.ravel(), np.arange(0, each * side.n + 1, each))
    whole, found = sparse.csr_array(at, shape=(side.n, starts[-1])).T @ terms, []
    for sums in map(_others, np.split(whole, starts[1:-1])):
        total = np.maximum(sums[:, 0], 1e-12)
        mean = sums / total[:, None]
        _, x, xx, y, yy, xy = np.split(mean, [2, 3, 4, 4 + k, 4 + 2 * k], axis=1)
        size = np.sqrt(np.maximum(xx - x * x, 0.0) * np.maximum(yy - y * y, 0.0))
        worth = np.maximum(total**2 / np.maximum(sums[:, 1], 1e-12), 1e-12)
        found.append(((xy - x * y) / np.maximum(size, 1e-12), worth))
    return found


def _groupings(c: Comparison, segments: Sequence[Segment]) -> Iterator[tuple[str, str, Places, Places, list[str]]]:
    """Ways to divide the rows: (kind, column, group before, group after, words of the groups)."""
    for column, kind in ENVELOPE.items():
        if column in c.after.table.column_names and column in c.before.table.column_names:
            words = [w for w, _ in frequent(c.after.table, column)[:VALUES]]
            old, new = (_places(s.table, column, words) for s in (c.before, c.after))
            yield kind, column, old, new, words
    for s in segments:
        if len(s.values) != 1:
            old, new = (np.where(s.of(side.table), 0, 1) for side in (c.before, c.after))
            yield "segment", s.column.removeprefix("feature:"), old, new, [s.name]
    for i, f in enumerate(c.bins.features):
        if f.kind != NUMBER and not f.is_output and i not in c.named:
            old, new = (side.coded.codes[i] - c.starts[i] for side in (c.before, c.after))
            yield "segment", f.name, old, new, bin_labels(f)


def _places(rows: pa.Table, column: str, words: Sequence[str]) -> NDArray[np.int64]:
    found = pc.index_in(rows[column].cast(pa.string()), pa.array(words, pa.string())).fill_null(len(words))
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)


def _told(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": group["kind"], "feature": group["feature"], "value": group["value"], "explains": finite(group["explains"]),
        "share": finite(group["share"]), "share_before": finite(group["share_before"]),
    }  # fmt: skip


def _change(c: Comparison, i: int, bets: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    """One feature's change as two numbers that a person can check: what was measured, before and after."""
    f = c.bins.features[i]
    p, q = (s.shares(i, c.starts[i], f.slots) for s in (c.before, c.after))
    what = _what(c.bins, i, bets)
    gone = {"name": f.name, "measure": "share missing", "before": finite(p[-1]), "after": finite(q[-1]), "unit": None}
    if what == "missing":
        return gone
    if what == "dependence":
        return _relation(c, i)
    if f.kind != NUMBER:
        words = bin_labels(f)
        k = int(np.argmax(np.abs(q - p)))
        k = words.index(what.removeprefix("share of ")) if what.removeprefix("share of ") in words else k
        return {"name": f.name, "measure": f"share of {words[k]}", "before": finite(p[k]), "after": finite(q[k]), "unit": None}  # fmt: skip
    (x, v), (y, w) = ((s.coded.values[i], s.weight) for s in (c.before, c.after))
    known, now = np.isfinite(x), np.isfinite(y)
    if not known.any() or not now.any():
        return gone
    x, v, y, w = x[known], v[known], y[now], w[now]
    mean, moved = float(np.average(x, weights=v)), float(np.average(y, weights=w))
    spread = float(np.sqrt(np.average((x - mean) ** 2, weights=v)))
    told = {
        "name": f.name,
        "measure": "mean",
        "before": finite(mean),
        "after": finite(moved),
        "unit": units.get(f.name),
    }
    if what == "spread":
        sd = float(np.sqrt(np.average((y - moved) ** 2, weights=w)))
        told |= {"measure": "standard deviation", "before": finite(spread), "after": finite(sd)}
    return {
        **told,
        "in_sd": finite((moved - mean) / spread) if spread > 0 else None,
        **{
            f"{name}_{when}": finite(_quantile(z, u, at))
            for name, at in (("median", 0.5), ("p90", 0.9))
            for when, z, u in (("before", x, v), ("after", y, w))
        },
    }


def _effect(c: Comparison, i: int) -> dict[str, Any] | None:
    """What a feature's own change does to the mean of the first numeric answer, all else as it was: the reference's mean
    answer in each of the feature's bins, weighted by how the bins' shares moved (post-stratification). Values that the
    reference lacks count as average. None for answers themselves, and where no answer is a number.

    Effects of several features do not add up where these hang together.
    """
    outputs = [j for j, f in enumerate(c.bins.features) if f.is_output and f.kind == NUMBER]
    if not outputs or c.bins.features[i].is_output:
        return None
    j, start, slots = outputs[0], c.starts[i], c.bins.features[i].slots
    (y, v), (z, w) = ((s.coded.values[j], s.weight) for s in (c.before, c.after))
    known, now = np.isfinite(y), np.isfinite(z)
    if not known.any() or not now.any():
        return None
    at = c.before.coded.codes[i][known] - start
    rows = np.bincount(at, weights=v[known], minlength=slots)
    total, mean = np.bincount(at, weights=v[known] * y[known], minlength=slots), np.average(y[known], weights=v[known])
    each = np.where(rows > 0, total / np.maximum(rows, 1e-12), mean)
    p, q = (s.shares(i, start, slots) for s in (c.before, c.after))
    return {
        "name": c.bins.features[i].name, "answer": c.bins.features[j].name, "effect": finite(float((q - p) @ each)),
        "measured": finite(float(np.average(z[now], weights=w[now]) - mean)),
    }  # fmt: skip


def _quantile(x: Floats, weight: Floats, at: float) -> float:
    order = np.argsort(x, kind="stable")
    reached = np.cumsum(weight[order])
    return float(x[order][min(len(x) - 1, int(np.searchsorted(reached, at * reached[-1])))])


def _relation(c: Comparison, i: int) -> dict[str, Any]:
    """The number whose relation to this one changed most: correlations of normal scores before and after."""
    others = [j for j in c.bins.crossed if j != i]
    found = [_correlations(c, s, i, others, [(np.ones(s.n, np.int64), 1)])[0][0][0] for s in (c.before, c.after)]
    k = int(np.argmax(np.abs(found[1] - found[0])))
    other = c.bins.features[others[k]].name
    return {
        "name": c.bins.features[i].name, "measure": f"correlation with {other}", "before": finite(float(found[0][k])),
        "after": finite(float(found[1][k])), "unit": None,
    }  # fmt: skip


def _picture(c: Comparison, i: int) -> dict[str, Any]:
    """Shares of the bins that either side has."""
    f: Binned = c.bins.features[i]
    p, q = (s.shares(i, c.starts[i], f.slots) for s in (c.before, c.after))
    used = [k for k in range(f.slots) if p[k] > 0 or q[k] > 0]
    words = bin_labels(f)
    return {
        "name": f.name, "labels": [words[k] for k in used], "before": [finite(float(p[k])) for k in used],
        "after": [finite(float(q[k])) for k in used],
    }  # fmt: skip


def _versions(before: pa.Table, after: pa.Table) -> list[dict[str, Any]]:
    """Model versions whose share of the events moved, with the first row of those that are new."""
    if any("model_version" not in t.column_names or not t.num_rows for t in (before, after)):
        return []
    old, new = (dict(frequent(t, "model_version")) for t in (before, after))
    all_old, all_new = (float(stands_for(t).sum()) for t in (before, after))
    made = []
    for v in sorted({*old, *new}, key=lambda v: (-new.get(v, 0.0), v)):
        was, now = old.get(v, 0.0) / all_old, new.get(v, 0.0) / all_new
        if abs(now - was) >= VERSION_MOVED:
            rows = after.filter(pc.equal(after["model_version"].cast(pa.string()), v))
            made.append({"version": v, "before": finite(was), "after": finite(now), "first_seen": _since(rows) if was == 0 else None})  # fmt: skip
    return made[:SHOWN]
