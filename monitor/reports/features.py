"""Per-feature drift over time, read from stored detections and stored counts: what page and report show.

The detector `marginals` stores with each window a list `features` of {name, psi, js, ks, wasserstein, p_value, log_e,
missing, smallest}. Distances say how large a change is; only the running evidence decides about alarms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from detectors.base import Calibration
from detectors.binned import bin_labels
from detectors.profile import Bins, Profile, compare, merged
from monitor.model import HOUR_US
from monitor.reports.charts import LEVELS, Point
from monitor.reports.words import number
from monitor.store.queries import CountRow, DetectionRow

_TIMES: Final = (2.0, 3.0, 4.0, 6.0, 9.0)
UNSHOWN: Final = frozenset({"name", "share"})
NO_SHIFT: Final = "none shows"  # however large: the feature's score cannot reach the level


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to see a feature's change. `cuts` are the shades of its heat strip, not alarm levels.

    Distances grow as windows get smaller, so their shades count in multiples of what is usual for the feature in the
    range (its lower quartile, at least `floor`); a measure without `floor` is shaded by its value.
    """

    key: str
    label: str
    unit: str
    explanation: str
    cuts: tuple[float, ...]
    floor: float | None = None

    @property
    def shades(self) -> list[str]:
        """The words of the legend, lightest first."""
        times = "× usual" if self.floor is not None else ""
        return [f"below {self.cuts[0]:g}{times}", *(f"from {c:g}{times}" for c in self.cuts)]


MEASURES: Final[Mapping[str, Measure]] = {
    m.key: m
    for m in (
        Measure(
            "evidence", "Running evidence", "nats",
            "How strongly the windows up to each one speak, taken together, against 'nothing has changed' (natural logarithm).",
            (2.0, 4.0, 6.0, 9.0, 12.0),
        ),
        Measure(
            "psi", "PSI", "",
            "Population stability index between the window and the reference, on bins fixed by the reference.",
            _TIMES, 0.01,
        ),
        Measure(
            "js", "Jensen-Shannon", "",
            "Square root of the Jensen-Shannon divergence: 0 for equal distributions, 1 for disjoint ones.",
            _TIMES, 0.03,
        ),
        Measure("ks", "KS", "", "Largest gap between the two cumulative distributions.", _TIMES, 0.02),
        Measure(
            "wasserstein", "Wasserstein", "",
            "How far values have moved, in units of the reference's spread.", _TIMES, 0.02,
        ),
        Measure("missing", "Missing", "share", "Share of events in which the feature is absent.", (0.01, 0.05, 0.1, 0.3, 0.6)),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FeatureSeries:
    """One feature over the windows of a range. `latest` holds the newest judged window's numbers by measure, `smallest`
    the lasting shift that it could show then, in words.
    """

    name: str
    points: Sequence[Point]
    latest: Mapping[str, float | None] = field(default_factory=dict)
    smallest: str | None = None

    @property
    def peak(self) -> float:
        return max((p.value for p in self.points if p.value is not None), default=0.0)

    @property
    def mean(self) -> float:
        known = [p.value for p in self.points if p.value is not None]
        return sum(known) / len(known) if known else 0.0

    @property
    def usual(self) -> float:
        """What the feature shows when it shows least: the lower quartile of its windows."""
        known = sorted(p.value for p in self.points if p.value is not None)
        return known[len(known) // 4] if known else 0.0

    @property
    def last(self) -> float | None:
        return next((p.value for p in reversed(self.points) if p.value is not None), None)


def level(measure: Measure, value: float, usual: float = 0.0) -> int:
    """The shade of a value on a heat strip, 0 to LEVELS - 1; `usual` is the series' own.

    >>> level(MEASURES["psi"], 0.2, usual=0.3), level(MEASURES["psi"], 0.2, usual=0.03), level(MEASURES["missing"], 0.7)
    (0, 4, 5)
    """
    if measure.floor is not None:
        value /= max(usual, measure.floor)
    return min(LEVELS - 1, sum(value >= c for c in measure.cuts))


def smallest_shift(row: Mapping[str, Any], *, number_like: bool, unit: str | None = None) -> str | None:
    """The smallest lasting shift that a feature of a window's evidence can show, in words; None where it does not tell.

    Numbers have a distance in their own unit; of categories it is a share that one gains or loses.

    >>> smallest_shift({"smallest": 12.5}, number_like=True, unit="EUR"), smallest_shift({"smallest": 0.045}, number_like=False)
    ('12.5 EUR', '4.5% of rows')
    >>> smallest_shift({"smallest": None}, number_like=True), smallest_shift({}, number_like=True)
    ('none shows', None)
    """
    if "smallest" not in row:
        return None
    size = _finite(row["smallest"])
    if size is None:
        return NO_SHIFT
    return f"{number(size)}{f' {unit}' if unit else ''}" if number_like else f"{size:.1%} of rows"


def series(
    found: Sequence[DetectionRow], measure: str, restarts: Sequence[int] = (), units: Mapping[str, str] | None = None
) -> list[FeatureSeries]:
    """Every feature that the detections name, the most changed one first: by peak for evidence, by mean for distances.

    Windows without enough data draw a gap. "evidence" accumulates each window's log_e as the deciders do,
    M_t = (M_{t-1} + 1) e_t, on a log scale from zero, and starts afresh after `restarts`: times when an incident ended.
    """
    windows = sorted({(d.start_us, d.end_us): d for d in found}.values(), key=lambda d: d.end_us)
    by_window = [(d, _features(d.evidence)) for d in windows]
    names = sorted({name for _, features in by_window for name in features})
    made = [_one(name, by_window, measure, sorted(restarts), (units or {}).get(name)) for name in names]
    return sorted(made, key=lambda s: (-(s.peak if measure == "evidence" else s.mean), s.name))


def accumulated(windows: Sequence[tuple[int, float]], restarts: Sequence[int] = ()) -> list[Point]:
    """The running evidence of windows given as (end, log_e), oldest first; each point reaches back to the one before."""
    ended = sorted(restarts)
    total, before = -math.inf, None
    made = []
    for end_us, log_e in windows:
        total = _log1pexp(_carried(total, ended, before, end_us)) + log_e
        start_us = before if before is not None else end_us - (windows[1][0] - end_us if len(windows) > 1 else HOUR_US)
        made.append(Point(start_us, end_us, max(0.0, total)))
        before = end_us
    return made


def _one(
    name: str,
    windows: Sequence[tuple[DetectionRow, Mapping[str, Mapping[str, Any]]]],
    measure: str,
    restarts: Sequence[int],
    unit: str | None,
) -> FeatureSeries:
    points: list[Point] = []
    number_like = any(features.get(name, {}).get("wasserstein") is not None for _, features in windows)
    smallest = None
    total, before = -math.inf, None  # log of the running sum; the first window starts it
    latest: Mapping[str, float | None] = {}
    for d, features in windows:
        row = features.get(name)
        value = None if row is None else _finite(row.get("log_e" if measure == "evidence" else measure))
        if measure == "evidence" and value is not None:
            total = _log1pexp(_carried(total, restarts, before, d.end_us)) + value
            before, value = d.end_us, max(0.0, total)
        if row is not None and d.verdict != "insufficient":
            latest = {k: _finite(v) for k, v in row.items() if k not in UNSHOWN}
            smallest = smallest_shift(row, number_like=number_like, unit=unit)
        note = f"{d.n:,} events" if row is not None else "no counts"
        points.append(Point(d.start_us, d.end_us, value, note if d.verdict != "insufficient" else f"{note}, learning"))
    return FeatureSeries(name, points, latest, smallest)


def _carried(total: float, restarts: Sequence[int], before_us: int | None, end_us: int) -> float:
    """The sum that a window inherits: nothing when an incident ended since the window before it."""
    return -math.inf if any((before_us or 0) < r < end_us for r in restarts) else total


def _features(evidence: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    rows = evidence.get("features")
    return (
        {str(r["name"]): r for r in rows if isinstance(r, Mapping) and "name" in r}
        if isinstance(rows, Iterable)
        else {}
    )


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _log1pexp(x: float) -> float:
    """log(1 + e**x) without overflow.

    >>> round(_log1pexp(0.0), 4), _log1pexp(-math.inf), _log1pexp(800.0)
    (0.6931, 0.0, 800.0)
    """
    return x if x > 50 else math.log1p(math.exp(x))


@dataclass(frozen=True, slots=True)
class Shape:
    """One feature's shares per bin, in the reference and now, with the distances between the two."""

    labels: Sequence[str]
    reference: Sequence[float]
    current: Sequence[float]
    n_reference: int
    n_current: int
    distances: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Counts:
    """A model's counts on its reference's bins: the reference itself and the current range, merged."""

    bins: Bins
    reference: Profile
    current: Profile

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.bins.features)

    def distances(self) -> dict[str, dict[str, float | None]]:
        """Every feature's distances between reference and current range."""
        return compare(self.bins, self.reference, self.current)

    def shape(self, name: str) -> Shape | None:
        """One feature's shares; None for a feature that the bins do not know, or without any event."""
        found = next(((i, f) for i, f in enumerate(self.bins.features) if f.name == name), None)
        if found is None or not self.reference.n or not self.current.n:
            return None
        i, feature = found
        a, b = int(self.bins.offsets[i]), int(self.bins.offsets[i + 1])
        ref, cur = self.reference.counts[a:b], self.current.counts[a:b]
        used = [k for k in range(b - a) if ref[k] or cur[k]]
        labels = bin_labels(feature)
        return Shape(
            [labels[k] for k in used],
            [float(ref[k] / self.reference.n) for k in used],
            [float(cur[k] / self.current.n) for k in used],
            self.reference.n,
            self.current.n,
            self.distances()[name],
        )


def counted(calibration: bytes | None, rows: Iterable[CountRow]) -> Counts | None:
    """The stored counts of a range against those of the reference; None while one of them is absent.

    `calibration` is the stored one of the detector name "profile". Rows on other bins are left out.
    """
    if calibration is None:
        return None
    meta = Calibration.from_bytes(calibration).meta
    bins = Bins.from_bytes(meta["bins"])
    stored = (Profile.from_bytes(r.body, bins) for r in rows)
    current = merged(p for p in stored if p.key == bins.key)
    return Counts(bins, Profile.from_bytes(meta["reference"], bins), current or bins.empty())
