"""Data that breaks what the reference kept to: ranges, types, movement, distinct rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Calibration, Detection, Feedback, Measured, State, Streams, Window, few_rows
from detectors.binned import NUMBER, floats, given, stands_for
from detectors.profile import Profile, merged
from detectors.signals import Frame
from detectors.stats import Floats
from detectors.streamed import Streamed
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 4
MAX_KINDS: Final = 2_000  # categories of one field that are remembered; a field with more has no rule about new ones
ROWS: Final = "all fields"  # blame of rules about whole rows
MAX_ROWS: Final = 200_000  # rows of a window that are looked at, the first ones,
AT_ONCE: Final = 32_768  # of which so many are compared at a time
UNTIMED_ROWS: Final = 200  # rows of a stretch where the reference has no times
SAMPLE_ROWS: Final = 100_000  # of a longer reference that say where its numbers' middle is and how many rows repeat
REPEATS: Final = 0.1  # share of repeats that is usual whatever the reference shows: who made it may have left them out
BAD, CLEAN = 2.0, -1.0  # scores of a window that breaks a rule and of one that keeps it, for the return test
UNITS: Final = (1000.0, 100.0, 60.0, 10.0)  # factors that a change of unit is known by
NEAR: Final = 1.25  # how far from such a factor a window's typical size may be
STEADY: Final = 2.0  # factor within which it stays in every reference window, else there is no such rule


@dataclass(frozen=True)
class Rules:
    """Shares of rows that break a rule, compared with what every window of the reference kept to.

    Idea: per window and rule one share: values outside a number's widened range, categories that the reference never
    showed, a field that stands still although it varied in every reference window, a number whose typical size is a known
    factor away (a changed unit, also within the range), rows with fields that the reference does not have or without some
    that every reference row has, rows whose values have the wrong type, rows that repeat an earlier one in every feature. A window is bad when a share is above twice the largest of the reference, plus what the reference's size
    leaves open. Bad windows win, good ones lose, and budget() adds up.

    Math: with K reference windows a share that is exchangeable exceeds the largest with probability at most
    rho = 1 / (K + 1); e = 1 / (2 rho) for a bad window, 1 / (2 (1 - rho)) for a good one. Rows repeat by chance the more
    often the more there are: of n rows a share of p (n - 1) / 2, with p the share of equal pairs in the reference, so the
    usual share of repeats grows with a window that is larger than the reference's.

    Assumptions: windows are exchangeable up to twice the largest share; a burst of bad rows is one trial. A value that is
    wrong but within the usual range is not seen here (detector marginals sees it when many are).

    Rows of a sampled log count as the events that they stand for, all but repeats; how sure a window is goes by its
    effective rows.

    False alarms: 3 % of the model's drift budget (one in 1000 days by default); numbers in docs/detectors.md. A reference
    with fewer than 20 windows or stretches of 200 rows is refused.

    Parameters: widening: how far beyond the reference's ends a number may go, in widths from median to end;
    min_rows: rows a window needs.

    Reference: Vovk and Wang 2021 (e-values); order statistics of exchangeable shares.

    >>> Rules().widening
    1.0
    """

    name: ClassVar[str] = "rules"
    family: ClassVar[Family] = Family.QUALITY
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

    widening: float = 1.0
    min_rows: int = 20

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Ranges of numbers and the largest share of every rule. Raises CalibrationRefused for too little reference."""
        windows = [(w, p) for w in reference if w.n and (p := w.profile()) is not None]
        total = merged(p for _, p in windows)
        if total is None or total.bins is None or not any(f.column.startswith("feature:") for f in total.bins.features):
            raise CalibrationRefused("the reference has no features to learn rules from")
        used = [f for f in total.bins.features if f.column.startswith("feature:") and (f.edges or f.categories)]
        features = {f.name: f.kind == NUMBER for f in used}
        rows = _parts([w for w, _ in windows], _columns(features), self.min_rows)
        seen = _seen(rows, features)
        if (k := len(seen.sure)) < 20:
            raise CalibrationRefused(f"the reference shows {k} windows or stretches of rows; 20 are needed")
        sizes, kinds = np.array(seen.sizes), {f: tuple(c) for f, c in seen.kinds.items() if len(c) <= MAX_KINDS}
        typical = np.array([_middle(column) for column in sizes.T])
        some = rows.sample(SAMPLE_ROWS)
        low, high = _ranges(some, seen.ends, features, self.widening)
        learnt = Learnt(features, low, high, kinds, typical, tuple(f for f in features if f not in seen.absent))
        names = _rules(learnt)
        once = {f: pa.array([v for v, n in seen.kinds[f].items() if n == 1], pa.string()) for f in kinds}
        found = []
        for table, size in zip(rows.tables(), seen.sizes, strict=True):
            weight = _weight(table)
            found.append(_shares(table, learnt, weight, size))
            for f, alone in once.items():  # what one window alone showed was new in it
                new = np.asarray(pc.is_in(_words(table, f), value_set=alone))
                found[-1][names.index(f"{f}/new/1")] = _share(new, weight)
        most = np.max(found, axis=0)
        for f, column, middle in zip((f for f, number in features.items() if number), sizes.T, typical, strict=True):
            known = column[np.isfinite(column)]
            if not len(known) or known.max() > STEADY * middle or known.min() < middle / STEADY:
                most[names.index(f"{f}/unit/1")] = 1.0  # its size changes anyway
        meta = {
            "features": [[f, number] for f, number in features.items()],
            "kinds": {f: sorted(c) for f, c in kinds.items()},
            "always": list(learnt.always),
            "windows": len(seen.sure),
            "rows": sum(seen.sure),
            "equal_pairs": _equal_pairs(some, learnt),
        }
        arrays: dict[str, NDArray[Any]] = {"low": low, "high": high, "most": most, "typical": typical}
        return Calibration(self.name, VERSION, reference_hash, meta, arrays)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the largest share over its limit as statistic, and a bet per rule."""
        learnt, k = _learnt(cal), int(cal.meta["windows"])
        names = _rules(learnt)
        streams, statistic = None, None
        evidence: dict[str, Any] = {}
        if window.n >= self.min_rows:
            rows = window.rows(_columns(learnt.features)).slice(0, MAX_ROWS)
            events = _weight(rows)
            size = _sizes((floats(rows, f"feature:{f}") for f, number in learnt.features.items() if number), events)
            share, sure = _shares(rows, learnt, events, size), _effective(rows, events)
            usual = np.array(cal.arrays["most"])
            repeats = names.index(f"{ROWS}/duplicates/1")
            by_chance = min(1.0, cal.meta["equal_pairs"] * (rows.num_rows - 1) / 2)
            usual[repeats] = max(usual[repeats], by_chance, REPEATS)
            limit = 2 * usual + 3 / cal.meta["rows"]
            allowed = limit + (3 * np.sqrt(limit * sure) + 2) / sure
            bad = share > np.minimum(allowed, 0.99)
            bad &= usual < 0.5  # what half of a usual window does breaks nothing
            rho = 1 / (k + 1)
            log_e = np.asarray(np.where(bad, np.log(0.5 / rho), np.log(0.5 / (1 - rho))), dtype=np.float64)
            blame = tuple(n.rsplit("/", 2)[0] for n in names)
            weight = np.full(len(names), 1 / len(names))
            streams = Streams(names, blame, weight, log_e, np.asarray(np.where(bad, BAD, CLEAN), dtype=np.float64))
            statistic = float(np.max(share / np.maximum(allowed, 1e-9)))
            evidence["broken"] = [
                {"rule": names[i].rsplit("/", 1)[0], "share": round(float(share[i]), 6), "allowed": round(float(allowed[i]), 6)}
                for i in np.flatnonzero(bad)[:20]
            ]  # fmt: skip
            broken = [r["rule"] for r in evidence["broken"]]
            if units := {**_units(window.profile(), broken), **_factors(learnt, broken, size)}:
                evidence["units"] = units
        else:
            evidence["reason"] = few_rows(window, self.min_rows)
        detection = Detection(
            detector=self.name, family=self.family, event=Event.DATA_QUALITY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), statistic=statistic, n=window.n, evidence=evidence, streams=streams,
            verdict=Verdict.INSUFFICIENT if streams is None else Verdict.OK,
        )  # fmt: skip
        return Measured(State(self.name, VERSION, cal.hash), [detection])


@dataclass(frozen=True)
class Learnt:
    """What rows are held against. features: whether each is a number; low, high, typical: per number; kinds: categories
    that the reference showed; always: fields that every reference row has.
    """

    features: dict[str, bool]
    low: Floats
    high: Floats
    kinds: dict[str, tuple[str, ...]]
    typical: Floats
    always: tuple[str, ...]


def _learnt(cal: Calibration) -> Learnt:
    m, a = cal.meta, cal.arrays
    return Learnt(
        {str(f): bool(n) for f, n in m["features"]}, np.asarray(a["low"]), np.asarray(a["high"]),
        {f: tuple(c) for f, c in m["kinds"].items()}, np.asarray(a["typical"]), tuple(m["always"]),
    )  # fmt: skip


def _columns(features: dict[str, bool]) -> list[str]:
    return [*(f"feature:{f}" for f in features), "mismatched", "quality", "sampling_fraction"]


def _rules(learnt: Learnt) -> tuple[str, ...]:
    """Names of the rules, in the order of their shares."""
    numbers = [f for f, number in learnt.features.items() if number]
    return (
        *(f"{f}/range/1" for f in numbers), *(f"{f}/constant/1" for f in learnt.features), *(f"{f}/unit/1" for f in numbers),
        *(f"{f}/new/1" for f in learnt.kinds), f"{ROWS}/type/1", f"{ROWS}/unknown/1", f"{ROWS}/absent/1", f"{ROWS}/duplicates/1",
    )  # fmt: skip


def _words(rows: pa.Table, feature: str) -> pa.ChunkedArray:
    held = given(rows, f"feature:{feature}")
    return pa.chunked_array([pa.nulls(rows.num_rows, pa.string())]) if held is None else held.cast(pa.string())


def _weight(rows: pa.Table) -> Floats | None:
    """Events that each row of a sampled log stands for; None where every row stands for itself."""
    events = stands_for(rows)
    return None if (events == 1).all() else events


def _effective(rows: pa.Table, weight: Floats | None) -> float:
    """How many rows drawn alike would be as sure (Kish 1965)."""
    return float(rows.num_rows) if weight is None else float(weight.sum() ** 2 / (weight @ weight))


def _share(hit: NDArray[np.bool_], weight: Floats | None) -> float:
    """The share of events."""
    if weight is None:
        return np.count_nonzero(hit) / max(1, len(hit))
    return float(weight @ hit) / max(1.0, float(weight.sum()))


@dataclass(frozen=True)
class Seen:
    """What one pass over the reference's windows shows. sure: their effective rows; sizes: per window and number; ends: the
    smallest and largest value of each number; kinds: windows that show each category; absent: fields that some row lacks.
    """

    sure: list[float]
    sizes: list[Floats]
    ends: Floats
    kinds: dict[str, Counter[str]]
    absent: set[str]


def _parts(windows: Sequence[Window], columns: Sequence[str], min_rows: int) -> Streamed:
    """The windows with rows enough, one table each; where there is one only, or no times, stretches stand for windows."""
    whole = [len(windows) > 1 and w.end_us > w.start_us for w in windows]
    cuts = [range(0, w.n, w.n if one else UNTIMED_ROWS) for w, one in zip(windows, whole, strict=True)]
    sizes = [[n for at in cut if (n := min(cut.step, cut.stop - at)) >= min_rows] for cut in cuts]

    def read(_: Sequence[str] | None) -> Iterator[pa.Table]:
        for window, cut, own in zip(windows, cuts, sizes, strict=True):
            rows = window.rows(columns) if own else pa.table({})
            yield from (rows.slice(at, n) for at, n in zip(cut, own, strict=False))

    return Streamed(sum(map(sum, sizes)), read)


def _seen(rows: Streamed, features: dict[str, bool]) -> Seen:
    numbers = [f for f, number in features.items() if number]
    ends = np.tile([[np.inf], [-np.inf]], len(numbers))
    found = Seen([], [], ends, {f: Counter() for f, number in features.items() if not number}, set())
    for table in rows.tables():
        weight = _weight(table)
        found.sure.append(_effective(table, weight))
        columns = [floats(table, f"feature:{f}") for f in numbers]
        found.sizes.append(_sizes(columns, weight))
        for i, x in enumerate(c[np.isfinite(c)] for c in columns):
            ends[:, i] = x.min(initial=ends[0, i]), x.max(initial=ends[1, i])
        for f, windows in found.kinds.items():
            if len(windows) <= MAX_KINDS:  # more are too many to tell a new one
                windows.update(pc.unique(_words(table, f).drop_null()).to_pylist())
        names = set(table.column_names)
        found.absent.update(f for f in features if f"feature:{f}" not in names or table[f"feature:{f}"].null_count)
    return found


def _sizes(columns: Iterable[Floats], weight: Floats | None) -> Floats:
    """Per number the typical size of its values other than 0: what a change of unit multiplies."""
    out = []
    for x in map(np.abs, columns):
        ok = np.isfinite(x) & (x > 0)
        out.append(_middle(x[ok], None if weight is None else weight[ok]))
    return np.array(out)


def _middle(x: Floats, weight: Floats | None = None) -> float:
    """The lower median of values, by the events that they stand for."""
    if weight is not None and len(x):
        order = np.argsort(x, kind="stable")
        total = np.cumsum(weight[order])
        return float(x[order][np.searchsorted(total, total[-1] / 2)])
    x = x[np.isfinite(x)]
    half = (len(x) - 1) // 2
    return float(np.partition(x, half)[half]) if len(x) else np.nan


def _near_unit(ratio: float) -> float | None:
    """The factor (or one over it) that a ratio of typical sizes is near, None for none."""
    return next((u for u in (*UNITS, *(1 / u for u in UNITS)) if u / NEAR < ratio < u * NEAR), None)


def _factors(learnt: Learnt, broken: Sequence[str], size: Floats) -> dict[str, float]:
    """The factor of each number whose unit has changed."""
    numbers = [f for f, number in learnt.features.items() if number]
    ratio = size / learnt.typical
    found = {f: _near_unit(float(r)) for f, r in zip(numbers, ratio, strict=True) if f"{f}/unit" in broken}
    return {f: u for f, u in found.items() if u is not None}


def _ranges(some: pa.Table, ends: Floats, features: dict[str, bool], widening: float) -> tuple[Floats, Floats]:
    """The ends of each number, moved away from the middle of some of its values."""
    low, high = ends * [[-1.0], [-1.0]]
    for i, f in enumerate(f for f, number in features.items() if number):
        x = floats(some, f"feature:{f}")
        x = x[np.isfinite(x)]
        if np.isfinite(ends[0, i]):
            middle = float(np.median(x)) if len(x) else float(ends[:, i].mean())
            low[i], high[i] = ends[:, i] + widening * (ends[:, i] - middle)
    return low, high


def _shares(rows: pa.Table, learnt: Learnt, weight: Floats | None, size: Floats) -> Floats:
    """The share of events that break each rule; a constant and a changed unit (by the typical sizes) are all or nothing.
    Repeats are those of the log: what a sample left out may have been their twins.
    """
    n = max(1, rows.num_rows)
    features = learnt.features
    outside, constant = [], []
    for i, f in enumerate(f for f, number in features.items() if number):
        x = floats(rows, f"feature:{f}")
        outside.append(_share((x < learnt.low[i]) | (x > learnt.high[i]), weight))
    for f in features:
        held = given(rows, f"feature:{f}")
        known = () if held is None else held.drop_null()
        constant.append(float(len(known) >= n / 2 and len(known) > 1 and len(pc.unique(known)) == 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = size / learnt.typical
    unit = [float(_near_unit(float(r)) is not None) for r in ratio]
    new = []
    for f, kinds in learnt.kinds.items():
        words = _words(rows, f)
        known = np.asarray(pc.is_in(words, value_set=pa.array(kinds, pa.string())))
        new.append(_share(~known & np.asarray(words.is_valid()), weight))
    distinct = len(_groups(rows, learnt)) or n
    absent = np.zeros(rows.num_rows, dtype=bool)
    for f in learnt.always:
        held = given(rows, f"feature:{f}")
        absent |= True if held is None else np.asarray(held.is_null())
    return np.array([
        *outside, *constant, *unit, *new, _share_true(rows, "mismatched", weight), _flagged(rows, "unknown_feature", weight),
        _share(absent, weight), 1 - distinct / n,
    ])  # fmt: skip


def _groups(rows: pa.Table, learnt: Learnt) -> NDArray[np.int64]:
    """How often each distinct row comes; nothing without fields."""
    names = set(rows.column_names)
    held = {f: number for f, number in learnt.features.items() if f"feature:{f}" in names}
    if not held or not rows.num_rows:
        return np.zeros(0, np.int64)
    numeric, categorical = ([f for f, number in held.items() if number is kind] for kind in (True, False))
    hashes = [  # one number a row instead of a group of columns: a window of any size fits
        Frame.of(rows.slice(at, AT_ONCE), numeric, categorical).whole() for at in range(0, rows.num_rows, AT_ONCE)
    ]
    return np.asarray(np.unique(np.concatenate(hashes), return_counts=True)[1], dtype=np.int64)


def _equal_pairs(rows: pa.Table, learnt: Learnt) -> float:
    """The share of pairs of rows that are equal in every field."""
    often, n = _groups(rows, learnt), rows.num_rows
    return float((often * (often - 1)).sum() / (n * (n - 1))) if n > 1 else 0.0


def _flagged(rows: pa.Table, flag: str, weight: Floats | None) -> float:
    """The share of events whose quality has this flag."""
    if "quality" not in rows.column_names or rows["quality"].null_count == rows.num_rows:
        return 0.0
    lists = rows["quality"].combine_chunks()
    hits = np.flatnonzero(np.asarray(pc.equal(pc.list_flatten(lists), flag)))
    found = np.zeros(rows.num_rows, dtype=bool)
    found[np.asarray(pc.list_parent_indices(lists))[hits]] = True
    return _share(found, weight)


def _share_true(rows: pa.Table, column: str, weight: Floats | None) -> float:
    if column not in rows.column_names or not pa.types.is_boolean(rows[column].type) or not rows.num_rows:
        return 0.0
    return _share(np.asarray(pc.fill_null(rows[column], False)), weight)


def _units(profile: Profile | None, broken: Sequence[str]) -> dict[str, float]:
    """Numbers out of range whose ends are a known factor times the reference's: 100 for cents instead of riyals."""
    if profile is None or profile.bins is None:
        return {}
    found: dict[str, float] = {}
    for i, f in enumerate(profile.bins.features):
        top = max(abs(f.centers[0]), abs(f.centers[-1])) if f.centers else 0.0
        now = max(abs(float(profile.low[i])), abs(float(profile.high[i])))
        if f"{f.name}/range" in broken and top > 0 and np.isfinite(now):
            near = [u for u in UNITS if 0.5 < now / top / u < 2]
            found |= {f.name: near[0]} if near else {}
    return found
