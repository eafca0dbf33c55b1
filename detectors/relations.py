"""What the fields of every row of a reference keep to among each other: orders, sums, products, values that never meet.

Learnt, never written by hand. A rule is worth keeping when rows whose columns are drawn each by itself would break it:
what independent columns keep by chance says nothing. Gaps break no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.signals import Frame
from detectors.stats import Floats

MOST: Final = 48  # rules kept, the most surprising ones
SUPPORT: Final = 200  # rows that must have all fields of a rule
POWER: Final = 0.05  # share of rows with redrawn columns that must break it
SURE: Final = 25.0  # nats: independent columns keep a rule by chance once in e**25 tries; tried are some e**13
MET: Final = 25.0  # rows in which two values would meet by chance that never do: the same bound
VALUES: Final = 14  # values of a field that may never meet another's, the most frequent
CODED: Final = 32  # a number with at most so many values has them looked at one by one,
BINS: Final = 8  # and of one with more so many ranges of equal mass
SAMPLE: Final = 40  # rows on which triples of fields are tried first
EXACT: Final = 1e-6  # relative error of a sum or product: what float32 does to each part
ORDER, SUM, PRODUCT, NEVER = 0, 1, 2, 3


class Rule(NamedTuple):
    """kind; places of its fields, of sums and products the whole first; rounded: they hold within rounding of the parts only;
    more: of sums what comes on top, always the same.
    """

    kind: int
    fields: tuple[int, ...]
    rounded: bool = False
    more: float = 0.0


@dataclass(frozen=True)
class Relations:
    """Learnt rules, the most surprising first. rules: as Rule; never: per rule of that kind which values never meet, as
    places in `values`; values: per field of such a rule the values that are looked at one by one, then stands any other; of
    the fields `ranged` the numbers at which the ranges that are looked at begin, after the first.
    unit: per number the smallest step that its values have, 0 for none.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    rules: tuple[Rule, ...]
    never: Mapping[Rule, frozenset[tuple[int, int]]]
    values: Mapping[int, tuple[Any, ...]]
    ranged: frozenset[int]
    unit: Floats

    @classmethod
    def none(cls, numeric: tuple[str, ...], categorical: tuple[str, ...]) -> Relations:
        return cls(numeric, categorical, (), {}, {}, frozenset(), np.zeros(len(numeric)))

    @classmethod
    def fit(cls, frame: Frame, unit: Floats, rng: np.random.Generator) -> Relations:
        """Rules that all rows of the frame keep, and that rows with redrawn columns would break."""
        values, ranged = _values(frame)
        found: dict[Rule, frozenset[tuple[int, int]]] = dict.fromkeys(
            [*_orders(frame.numbers), *_triples(frame.numbers, unit, rng)], frozenset()
        )
        found |= _strangers(values, ranged, frame)
        tried = cls(frame.numeric, frame.categorical, tuple(found), found, values, ranged, unit)
        independent = redrawn(frame, rng)
        scored = []
        for (rule, kept), (_, broken) in zip(tried.breaches(frame), tried.breaches(independent), strict=True):
            there = int(tried._there(rule, independent).sum())
            power = float(broken.sum()) / max(there, 1)
            by_chance = (there - int(broken.sum()) + 1) / (there + 1)
            told = int(tried._there(rule, frame).sum())
            if not kept.any() and told >= SUPPORT and power >= POWER and -told * np.log(by_chance) >= SURE:
                scored.append((-power, rule))
        return tried._only([rule for _, rule in sorted(scored)[:MOST]])

    def kept_by(self, frame: Frame) -> Relations:
        """Without the rules that any row of the frame breaks."""
        return self._only([rule for rule, broken in self.breaches(frame) if not broken.any()])

    def breaches(self, frame: Frame) -> Iterator[tuple[Rule, NDArray[np.bool_]]]:
        """Every rule, and which rows break it."""
        x, codes = frame.numbers, dict[int, NDArray[np.int64]]()
        for rule in self.rules:
            f, g = rule.fields[:2]
            if rule.kind == ORDER:
                yield rule, x[:, f] > x[:, g]
            elif rule.kind == NEVER:
                for h in (f, g):
                    if h not in codes:
                        codes[h] = _places(frame, h, self.values[h], h in self.ranged)
                met = np.zeros((len(self.values[f]) + 2, len(self.values[g]) + 2), dtype=bool)
                for u, v in self.never[rule]:
                    met[u, v] = True
                yield rule, met[codes[f], codes[g]]
            else:
                yield rule, _off(rule, x, self.unit)

    def say(self, rule: Rule, frame: Frame, i: int) -> str:
        """Why row i breaks the rule, in words."""
        names = (*self.numeric, *self.categorical)
        told = [f"{names[f]} = {value(frame, f, i)}" for f in rule.fields]
        if rule.kind == NEVER:
            return f"{told[0]} with {told[1]}: such values never meet in the reference"
        if rule.kind == ORDER:
            return f"{told[0]} is above {told[1]}, in no reference row"
        _, a, b = rule.fields
        sign = " + " if rule.kind == SUM else " times "
        on_top = f" {'+' if rule.more > 0 else '-'} {abs(rule.more):.10g}" if rule.more else ""
        return f"{told[0]}, but {names[a]}{sign}{names[b]}{on_top} = {_made(rule, frame.numbers[i : i + 1])[0]:.10g} in every reference row"

    def _there(self, rule: Rule, frame: Frame) -> NDArray[np.bool_]:
        """Rows that have all fields of a rule."""
        cut = len(self.numeric)
        each = [np.isfinite(frame.numbers[:, f]) if f < cut else frame.words[:, f - cut] >= 0 for f in rule.fields]
        return (
            np.asarray(np.logical_and.reduce(each), dtype=bool) if rule.kind != NEVER else np.ones(frame.n, dtype=bool)
        )

    def _only(self, rules: list[Rule]) -> Relations:
        used = {f for rule in rules if rule.kind == NEVER for f in rule.fields}
        return Relations(
            self.numeric, self.categorical, tuple(rules), {r: self.never[r] for r in rules if r.kind == NEVER},
            {f: v for f, v in self.values.items() if f in used}, self.ranged & used, self.unit,
        )  # fmt: skip

    def pack(self) -> dict[str, Any]:
        """As JSON-ready values."""
        rules = [
            [r.kind, list(r.fields), r.rounded, r.more, sorted(map(list, self.never.get(r, ())))] for r in self.rules
        ]
        values = [[f, list(v)] for f, v in sorted(self.values.items())]
        return {"rules": rules, "values": values, "ranged": sorted(self.ranged), "unit": self.unit.tolist()}

    @classmethod
    def unpack(cls, numeric: tuple[str, ...], categorical: tuple[str, ...], meta: Mapping[str, Any]) -> Relations:
        """The inverse of `pack`."""
        told = {Rule(k, tuple(f), rounded, more): never for k, f, rounded, more, never in meta["rules"]}
        never = {rule: frozenset((u, v) for u, v in pairs) for rule, pairs in told.items() if rule.kind == NEVER}
        values = {int(f): tuple(v) for f, v in meta["values"]}
        ranged, unit = frozenset(meta["ranged"]), np.array(meta["unit"], np.float64)
        return cls(numeric, categorical, tuple(told), never, values, ranged, unit)


def value(frame: Frame, f: int, i: int) -> str:
    """A field's value in a row, as it is shown."""
    cut = len(frame.numeric)
    if f < cut:
        return "missing" if np.isnan(frame.numbers[i, f]) else f"{frame.numbers[i, f]:.10g}"
    word = int(frame.words[i, f - cut])
    return "missing" if word < 0 else frame.vocabulary[f - cut][word][:80]


def _orders(x: Floats) -> Iterator[Rule]:
    """Pairs of numbers of which one is never above the other."""
    varied = [j for j in range(x.shape[1]) if np.nanmax(x[:, j], initial=-np.inf) > np.nanmin(x[:, j], initial=np.inf)]
    for a in varied:
        above = np.flatnonzero((x[:, a, None] > x[:, varied]).any(axis=0)).tolist()
        for b in [v for k, v in enumerate(varied) if k not in set(above)]:
            if a != b:
                yield Rule(ORDER, (a, b))


def _made(rule: Rule, x: Floats) -> Floats:
    """What a sum or product comes to."""
    _, a, b = (x[:, f] for f in rule.fields)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(a + b + rule.more if rule.kind == SUM else a * b)


def _off(rule: Rule, x: Floats, unit: Floats) -> NDArray[np.bool_]:
    """Rows in which the whole is not what its parts come to."""
    whole, a, b = (x[:, f] for f in rule.fields)
    made = _made(rule, x)
    with np.errstate(over="ignore", invalid="ignore"):
        room = EXACT * (np.abs(whole) + (np.abs(a) + np.abs(b) if rule.kind == SUM else np.abs(made))) + 1e-9
        if rule.rounded:
            units = unit[list(rule.fields)]
            parts = units[1] + units[2] if rule.kind == SUM else units[1] * np.abs(b) + units[2] * np.abs(a)
            room = room + (units[0] + parts) / 2
        return np.asarray(np.abs(whole - made) > room, dtype=bool)


def _triples(x: Floats, unit: Floats, rng: np.random.Generator) -> Iterator[Rule]:
    """Numbers that are the sum of two others, and of something that is always the same, or their product, in every row."""
    varied = [j for j in range(x.shape[1]) if np.nanmax(x[:, j], initial=-np.inf) > np.nanmin(x[:, j], initial=np.inf)]
    given = np.argsort(-np.isfinite(x[:, varied]).sum(axis=1) - rng.random(len(x)), kind="stable")[:SAMPLE]
    some, d = x[given][:, varied], len(varied)
    first, second = np.triu_indices(d, 1)
    a, b = some[:, first], some[:, second]
    scale, widest = np.abs(a) + np.abs(b), np.maximum(unit[varied][first], unit[varied][second])
    for kind in (SUM, PRODUCT) if d > 2 else ():
        made = a + b if kind == SUM else a * b
        rough = 2 * widest if kind == SUM else widest * scale
        for c in range(d):
            apart = some[:, c, None] - made
            room = rough + 2 * unit[varied[c]] + 1e-9 + 4 * EXACT * (np.abs(made) + scale + np.abs(some[:, c, None]))
            spread = (
                np.nanmax(apart, axis=0) - np.nanmin(apart, axis=0) if kind == SUM else np.nanmax(np.abs(apart), axis=0)
            )
            for k in np.flatnonzero((spread <= np.nanmax(room, axis=0)) & (first != c) & (second != c)).tolist():
                fields = varied[c], varied[int(first[k])], varied[int(second[k])]
                on_top = float(np.round(np.nanmedian(apart[:, k]), 9)) if kind == SUM else 0.0
                exact = Rule(kind, fields, False, on_top)
                yield exact._replace(rounded=bool(_off(exact, x, unit).any()))


def _values(frame: Frame) -> tuple[dict[int, tuple[Any, ...]], frozenset[int]]:
    """As `Relations.values` and `ranged`, of all fields that vary."""
    out: dict[int, tuple[Any, ...]] = {}
    ranged = set()
    for j, x in enumerate(frame.numbers.T):
        x = x[np.isfinite(x)]
        known, counts = np.unique(x, return_counts=True)
        if 1 < len(known) <= CODED:
            out[j] = tuple(sorted(known[np.argsort(-counts, kind="stable")[:VALUES]].tolist()))
        elif len(known) > CODED:
            out[j] = tuple(np.unique(np.quantile(x, np.arange(1, BINS) / BINS)).tolist())
            ranged.add(j)
    for j, vocabulary in enumerate(frame.vocabulary):
        w = frame.words[:, j]
        counts = np.bincount(w[w >= 0], minlength=len(vocabulary))
        order = sorted(range(len(vocabulary)), key=lambda i, c=counts: (-int(c[i]), vocabulary[i]))[:VALUES]  # type: ignore[misc]
        if order:
            out[len(frame.numeric) + j] = tuple(sorted(vocabulary[i] for i in order if counts[i]))
    return out, frozenset(ranged)


def _places(frame: Frame, f: int, values: tuple[Any, ...], ranged: bool) -> NDArray[np.int64]:
    """Place of each row's value among the n values, n for any other, or its range of n + 1; n + 1 for a gap."""
    n, cut = len(values), len(frame.numeric)
    if f >= cut:
        place = {w: i for i, w in enumerate(values)}
        known = np.array([*(place.get(w, n) for w in frame.vocabulary[f - cut]), n + 1], dtype=np.int64)
        return np.asarray(known[frame.words[:, f - cut]])
    out = np.empty(frame.n, np.int64)
    _among(frame.numbers[:, f], np.array(values, np.float64), ranged, out)
    return out


@numba.njit(cache=True)
def _among(x: Any, values: Any, ranged: bool, out: Any) -> None:
    n = len(values)
    for i in range(len(x)):
        k = 0
        for v in values:
            k += v <= x[i]
        if np.isnan(x[i]):
            k = n + 1
        elif not ranged:
            k = k - 1 if k and values[k - 1] == x[i] else n
        out[i] = k


def _strangers(
    values: Mapping[int, tuple[Any, ...]], ranged: frozenset[int], frame: Frame
) -> dict[Rule, frozenset[tuple[int, int]]]:
    """Pairs of fields with values that are frequent and never meet."""
    ones = []
    for f, known in values.items():
        hot = _places(frame, f, known, f in ranged)[:, None] == np.arange(len(known) + 1)[None, :]
        ones += [(f, u, hot[:, u]) for u in range(hot.shape[1])]
    if not ones:
        return {}
    hot = np.stack([mask for *_, mask in ones], axis=1).astype(np.float32)
    together, alone = hot.T @ hot, hot.sum(axis=0)
    chance = np.outer(alone, alone) / max(1, frame.n)
    out: dict[Rule, set[tuple[int, int]]] = {}
    for p, q in np.argwhere((together == 0) & (chance >= MET)).tolist():
        (f, u, _), (g, v, _) = ones[p], ones[q]
        if f < g:
            out.setdefault(Rule(NEVER, (f, g)), set()).add((u, v))
    return {rule: frozenset(pairs) for rule, pairs in out.items()}


def redrawn(frame: Frame, rng: np.random.Generator) -> Frame:
    """The same rows with every column in an order of its own."""
    numbers = (
        np.stack([rng.permutation(x) for x in frame.numbers.T], axis=1) if frame.numbers.shape[1] else frame.numbers
    )
    words = np.stack([rng.permutation(w) for w in frame.words.T], axis=1) if frame.words.shape[1] else frame.words
    return Frame(frame.numeric, frame.categorical, numbers, words, frame.vocabulary, frame.hashes)
