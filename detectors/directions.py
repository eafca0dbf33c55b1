"""A window's counts as a few numbers per feature that can be ranked: levels, shares, and one shape."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors import conformal, stats
from detectors.base import Streams
from detectors.binned import NUMBER, Binned
from detectors.conformal import LAMBDAS, History, Scored
from detectors.dependence import Relations, relate
from detectors.profile import Bins, Profile
from detectors.season import Calendar
from detectors.stats import Floats

DIRECTIONS_WEIGHT: Final = 0.6  # share of the bets on moved levels and shares
SHAPES_WEIGHT: Final = 0.25  # on any change of a feature's shape; the rest is on how numbers move together
MIN_SHARE: Final = 0.02  # categories rarer than this are watched by shape only
OTHER: Final = "share of other"
RARE_ROWS: Final = (
    20  # rows of the reference from which on the share of a predicted class or the end of a score is followed
)
RARE_COUNT: Final = 0.5  # and how often a typical window must hold them
ENDS: Final = (0.002, 0.01)  # of scores
MAX_SKEW: Final = 0.5  # of a window's mean: beyond it a few rare values decide, and the shape watches them better
MIN_COUNT: Final = 4.0  # and those that a typical window holds less often; shapes count such values together


@dataclass(frozen=True)
class Compared:
    """A window against its history. ratio (F,): each feature's chi-square over its expectation, 1 = as usual; doubt
    (D + F + G,): what the history itself may be off by, in standard deviations of the window; broke (F,): the ratio over
    the largest of the history; spread (D,): standard deviation of a window's direction, season included.
    """

    scored: Scored
    ratio: Floats
    doubt: Floats
    broke: Floats
    spread: Floats


@dataclass(frozen=True)
class Layout:
    """Which numbers a profile is turned into. Columns: D directions, a shape per feature (F), G dependences.

    linear (slots, D): a direction is counts @ linear / counts @ below; row_variance, row_skewness (D,): of one row;
    deviation (D,): standard deviation of what the direction averages, among the rows that have it.
    rare (D,): shares that a typical window holds less than MIN_COUNT times; only their rising can be seen.
    rare_share (D,): how rare they are in the reference of `rows` rows.
    groups (slots, G): slots that a shape counts as one; share (G,): of the reference; measure (G,):
    what deviations are measured by; feature (G,): whose they are.
    mean, variance, coarse (F,): moments of n times a shape when nothing changed: mean, and variance + coarse / n.
    relations: how numbers moved together in the reference.
    """

    bins: Bins
    names: tuple[str, ...]
    blame: tuple[str, ...]
    linear: Floats
    below: Floats
    row_variance: Floats
    row_skewness: Floats
    deviation: Floats
    rare: NDArray[np.bool_]
    rare_share: Floats
    rows: int
    groups: Floats
    share: Floats
    measure: Floats
    feature: NDArray[np.int64]
    mean: Floats
    variance: Floats
    coarse: Floats
    relations: Relations

    @property
    def directions(self) -> int:
        return int(self.linear.shape[1])

    def values(self, profile: Profile, rows: float, *, inside: bool, min_rows: int, least: float = 1.0) -> Floats:
        """The numbers of one window (D + F + G,). `inside`: its rows are among the reference's `rows` (leave them out).

        `least`: what dependence counts; see detectors.strata.least_worth.
        """
        c = profile.counts.astype(np.float64)
        below = c @ self.below
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(below >= min_rows, (c @ self.linear) / below, np.nan)
        gap = (c @ self.groups / profile.n - self.share) ** 2 / self.measure
        chi: Floats = np.bincount(self.feature, weights=gap, minlength=len(self.bins.features)).astype(np.float64)
        rest = max(1, rows - profile.effective) if inside else rows
        chi = chi * ((rows / rest) ** 2 if inside else 1.0) / (1 + profile.effective / rest)  # on the scale of 1 / n
        return np.concatenate([x, chi, least * self.relations.values(profile, rows, inside=inside)])

    def score(
        self, past: History, window: History, length_us: int, rng: np.random.Generator, calendar: Calendar = Calendar()
    ) -> Compared:
        """Compare the last row of `window` with the history."""
        d, s = self.directions, slice(self.directions, self.directions + len(self.mean))
        old = past.values.astype(np.float64)
        known = np.isfinite(old[:, :d])
        center = np.where(known, old[:, :d], 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        between = conformal.spread(old[:, :d], past.inverse_n, self.row_variance)
        excess = old[:, s] - self.mean * past.inverse_n[:, None]
        extra = np.maximum(excess.mean(axis=0), 0.0) if len(past) else np.zeros(len(self.mean))

        def scaled(h: History) -> History:
            v = h.values.astype(np.float64)
            gap = np.where(self.rare, self._news(v[:, :d], h.inverse_n[:, None]), v[:, :d] - center)
            x = self._even(gap, h.inverse_n[:, None], between)
            chi = self._even_shape(v[:, s], h.inverse_n[:, None], extra)
            together = self.relations.even(v[:, s.stop :], h.inverse_n, old[:, s.stop :], past.inverse_n)
            return History(np.concatenate([x, chi, together], axis=1).astype(np.float32), h.inverse_n, h.end_us)

        usual = np.maximum(self.mean * window.inverse_n[-1] + extra, 1e-12)
        ratio = np.asarray(window.values[-1, s] / usual, dtype=np.float64)
        before = old[:, s] / np.maximum(self.mean * past.inverse_n[:, None] + extra, 1e-12)
        broke = ratio / np.maximum(before.max(axis=0, initial=0.0), 1.0)
        wide = np.sqrt(self.row_variance * window.inverse_n[-1] + between)
        scored = conformal.score(scaled(past), scaled(window), length_us, rng, calendar)
        return Compared(scored, ratio, self._doubt(past, window, between), broke, wide)

    def _doubt(self, past: History, window: History, between: Floats) -> Floats:
        """Two standard errors of the history's mean, in standard deviations of the newest window (D + F + G,).

        A history of few or small windows is off by that much for ever; bets must not take it for drift.
        """
        rows, k, inverse_n = float(np.sum(1 / past.inverse_n)), max(1, len(past)), float(window.inverse_n[-1])
        with np.errstate(divide="ignore", invalid="ignore"):
            error = (self.row_variance / max(rows, 1.0) + between / k) / (self.row_variance * inverse_n + between)
        shape = np.full(len(self.names) - self.directions, 1 / max(rows, 1.0) / inverse_n)
        return np.asarray(
            2 * np.sqrt(np.concatenate([np.where(np.isfinite(error), error, 0.0), shape])), dtype=np.float64
        )

    def _news(self, share: Floats, inverse_n: Floats) -> Floats:
        """How far a rare share is above what a window may hold when nothing changed, else 0.

        The reference knows a rare share badly, and never showing a value bounds its share by 3 / rows only (19 times in
        20). A window may hold the upper bound, two standard deviations and one; below that windows of all sizes tie.
        """
        bound = self.rare_share + 2 * np.sqrt(self.rare_share / self.rows) + 3 / self.rows
        count = bound / inverse_n
        return np.asarray(np.maximum(share - (count + 2 * np.sqrt(count) + 1) * inverse_n, 0.0), dtype=np.float64)

    def _even(self, gap: Floats, inverse_n: Floats, between: Floats) -> Floats:
        """Deviations of windows of any size on one scale: divided by their spread, skewness taken out.

        Rare values make small windows lopsided and large ones even; ranked against each other as they are, the large
        ones would look strange. First term of Cornish and Fisher 1938, held within what keeps the order.
        """
        inner = self.row_variance * inverse_n
        total = inner + between
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.where(total > 0, gap / np.sqrt(total), gap)
            part = np.where(total > 0, inner / total, 0.0)
        skew = np.clip(self.row_skewness * np.sqrt(inverse_n) * part**1.5, -1.0, 1.0)
        even = u - skew * (np.minimum(u * u, 4.0) - 1) / 6
        return np.asarray(np.where(self.rare, u, even), dtype=np.float64)

    def _even_shape(self, value: Floats, inverse_n: Floats, extra: Floats) -> Floats:
        """Chi-squares of windows of any size on one scale (Wilson and Hilferty 1931 on a gamma of the right moments)."""
        mean = np.maximum(self.mean + extra / inverse_n, 1e-9)
        variance = (self.variance + self.coarse * inverse_n) * (mean / np.maximum(self.mean, 1e-9)) ** 2
        nine_a = 9 * mean**2 / np.maximum(variance, 1e-9)
        cube = np.cbrt(np.maximum(value / inverse_n, 0.0) / mean)
        return np.asarray((cube - (1 - 1 / nine_a)) * np.sqrt(nine_a), dtype=np.float64)

    @functools.cached_property
    def stream_names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        d = self.directions
        plan = [*((i, s) for s in "+-" for i in range(d)), *((i, "+") for i in range(d, len(self.names)))]
        names = tuple(f"{self.names[i]}/{s}/{lam}" for lam in LAMBDAS for i, s in plan)
        return names, tuple(self.blame[i] for _ in LAMBDAS for i, _ in plan)

    @functools.cached_property
    def places(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Per feature: where its numbers and where its streams stand."""
        blame, streams = np.array(self.blame), np.array(self.stream_names[1])
        return {
            f.name: (np.flatnonzero(blame == f.name), np.flatnonzero(streams == f.name)) for f in self.bins.features
        }

    @functools.cached_property
    def shifting(self) -> tuple[list[int], ...]:
        """Per feature the directions that tell how far it has shifted: its level, or the shares of values that are not rare."""

        def own(f: Binned) -> Iterator[int]:
            kind = "/location" if f.kind == NUMBER else "/share of "
            for j, name in enumerate(self.names[: self.directions]):
                if self.blame[j] == f.name and kind in name[len(f.name) :] and (f.kind == NUMBER or not self.rare[j]):
                    yield j

        return tuple(list(own(f)) for f in self.bins.features)

    @functools.cached_property
    def weight(self) -> Floats:
        """Equal per feature and kind of change; within a feature equal over its directions, signs and lambdas."""
        d, features = self.directions, len(self.bins.features)
        per = {b: self.blame[:d].count(b) for b in set(self.blame[:d])}
        direction = np.array([DIRECTIONS_WEIGHT / features / per[b] / 2 for b in self.blame[:d]])
        together = len(self.names) - d - features
        shapes = SHAPES_WEIGHT if together else 1 - DIRECTIONS_WEIGHT
        shape = np.full(features, shapes / features)
        depend = np.full(together, (1 - DIRECTIONS_WEIGHT - shapes) / max(1, together))
        return np.tile(np.concatenate([direction, direction, shape, depend]) / len(LAMBDAS), len(LAMBDAS))

    def streams(self, found: Compared, kappa: float, kappa_shape: float) -> Streams:
        """Bets on every direction both ways and on every shape and dependence; what is tolerated is never below the history's doubt."""
        d, z = self.directions, found.scored.z
        least = np.maximum(found.doubt, np.r_[np.full(d, kappa), np.full(len(z) - d, kappa_shape)])
        z, least = np.concatenate([z[:d], -z[:d], z[d:]]), np.concatenate([least[:d], least])
        names, blame = self.stream_names
        return Streams(names, blame, self.weight, conformal.bets(z, least).ravel(), np.tile(z, len(LAMBDAS)))

    def smallest(self, found: Compared, kappa: float, level: float, windows: int) -> dict[str, float]:
        """Per feature how large a lasting shift must at least be for an alarm within `windows` windows at this level.

        Infinite where the score can never reach the level. Numbers: their own unit (a standard deviation of normal scores is taken for one of values); categories: the share
        that a typical value must gain or lose. From a bet's best growth, (h - kappa)^2 / 2 per window, to log(level / weight),
        before windows leave quarantine and the shift becomes part of the history.
        """
        d, single, windows = self.directions, self.weight[: self.directions], min(windows, conformal.QUARANTINE)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = np.maximum(found.doubt[:d], kappa) + np.sqrt(2 * np.log(level / single) / windows)
            seen = (found.scored.gain[:d] > 0) & (h < found.scored.ceiling[:d])
            size = np.where(seen, h * found.spread / found.scored.gain[:d], np.inf)
            size = np.where([n.endswith("/location") for n in self.names[:d]], size / self.deviation, size)
        out: dict[str, float] = {}
        for f, own in zip(self.bins.features, self.shifting, strict=True):
            if own and not np.isnan(shift := float(np.median(size[own]))):
                out[f.name] = shift * f.spread if f.kind == NUMBER else shift
        return out

    def per_feature(self, scored: Scored, streams: Streams) -> dict[str, dict[str, float | None]]:
        """p-value (Bonferroni over the feature's numbers, two-sided for directions) and log e-value of each feature."""
        two_sided = np.minimum(scored.p[: self.directions], 1 - scored.p[: self.directions]) * 2
        p = np.concatenate([two_sided, scored.p[self.directions :]])
        out: dict[str, dict[str, float | None]] = {}
        for f, (numbers, own) in self.places.items():
            mine = p[numbers]
            mine = mine[np.isfinite(mine)]
            weight = self.weight[own] / self.weight[own].sum()
            out[f] = {
                "p_value": min(1.0, float(mine.min()) * len(mine)) if len(mine) else None,
                "log_e": stats.log_sum_exp(streams.log_e[own], weight),
            }
        return out


@functools.lru_cache(maxsize=256)
def lay_out(raw_bins: bytes, raw_counts: bytes, raw_cross: bytes, raw_between: bytes, typical_rows: int) -> Layout:
    """The layout for a reference's bins, counts and products; `raw_between`: see detectors.dependence.

    `typical_rows` of a window say which values are rare in one.
    """
    bins = Bins.from_bytes(raw_bins)
    counts = np.frombuffer(raw_counts, dtype=np.int64)
    found = [d for i in range(len(bins.features)) for d in _directions(bins, counts, i, typical_rows)]
    linear, below = np.zeros((len(counts), len(found))), np.zeros((len(counts), len(found)))
    for j, d in enumerate(found):
        linear[d.slots, j] = d.weights
        below[d.among, j] = 1.0
    c = counts.astype(np.float64)
    size = np.maximum(c @ below, 1.0)
    mean = (c @ linear) / size
    variance = np.maximum((c @ linear**2) / size - mean**2, 0.0)
    third = (c @ linear**3) / size - 3 * mean * (c @ linear**2) / size + 2 * mean**3
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = np.where(variance > 1e-12, third / variance**1.5, 0.0)
    # A direction speaks of the rows where its feature is present; history knows the rows of the whole window.
    row_variance = variance * max(1.0, c[: bins.offsets[1]].sum()) / size
    followed = np.array([d.kind.startswith("share of ") and d.kind != OTHER for d in found], dtype=bool)
    rare = np.array([len(d.slots) == 1 for d in found], dtype=bool) & (mean * typical_rows < MIN_COUNT) & ~followed
    groups, share, p, feature = _groups(bins, counts, typical_rows)
    per = functools.partial(np.bincount, feature, minlength=len(bins.features))
    k = per().astype(np.float64)
    cross, between = np.frombuffer(raw_cross, dtype=np.int64), np.frombuffer(raw_between, dtype=np.float64)
    relations = relate(bins, counts, cross, between)
    coarse = np.maximum(per(weights=p / share**2) - k**2 - 2 * k + 2, 0.0)
    return Layout(
        bins=bins,
        names=(
            *(f"{d.feature}/{d.kind}" for d in found),
            *(f"{f.name}/shape" for f in bins.features),
            *(f"{n}/dependence" for n in relations.names),
        ),
        blame=(*(d.feature for d in found), *(f.name for f in bins.features), *relations.names),
        linear=linear,
        below=below,
        row_variance=row_variance,
        row_skewness=skewness,
        deviation=np.sqrt(variance),
        rare=rare,
        rare_share=np.where(rare, mean, 0.0),
        rows=max(1, int(c[: bins.offsets[1]].sum())),
        groups=groups,
        share=p,
        measure=share,
        feature=feature,
        mean=np.maximum(per(weights=p * (1 - p) / share), 1e-9),
        variance=np.maximum(2 * (k - 1), 0.5),
        coarse=coarse,
        relations=relations,
    )


@dataclass(frozen=True)
class _Direction:
    """A linear function of one feature's counts: weights on slots, over the rows in the slots `among`."""

    feature: str
    kind: str
    slots: NDArray[np.int64]
    weights: Floats
    among: NDArray[np.int64]


def _directions(bins: Bins, counts: NDArray[np.int64], i: int, typical_rows: int) -> list[_Direction]:
    f, a, b = bins.features[i], int(bins.offsets[i]), int(bins.offsets[i + 1])
    everything, present, one = np.arange(a, b), np.arange(a, b - 1), np.ones(1)
    found = []
    if f.kind == NUMBER and counts[present].sum():
        score = stats.normal_scores(counts[present])
        share = counts[present] / counts[present].sum()
        for kind, weights in (("location", score), ("spread", score**2)):
            if abs(_skewness(weights, share)) <= MAX_SKEW * np.sqrt(typical_rows):
                found.append(_Direction(f.name, kind, present, weights, present))
        if f.column == "scores":
            found += _tails(f.name, counts, present, typical_rows)
    elif f.kind != NUMBER:
        total = max(1, int(counts[a:b].sum()))
        common = max(MIN_SHARE, MIN_COUNT / typical_rows) * total
        if f.is_output:  # classes are few, and a rare one is what the model is for
            common = min(common, max(RARE_ROWS, RARE_COUNT / typical_rows * total))
        found += [
            _Direction(f.name, f"share of {c[:40]}", np.array([a + j]), one, everything)
            for j, c in enumerate(f.categories)
            if counts[a + j] >= common
        ]
        found.append(_Direction(f.name, OTHER, np.array([b - 2]), one, everything))
    found.append(_Direction(f.name, "missing", np.array([b - 1]), one, everything))
    return found


def _tails(name: str, counts: NDArray[np.int64], present: NDArray[np.int64], typical_rows: int) -> list[_Direction]:
    """The shares of rows at both ends of a score: where a rare class stands whose scores reach no threshold."""
    found = []
    size = int(counts[present].sum())
    for end, order in (("lowest", present), ("highest", present[::-1])):
        below = np.cumsum(counts[order])
        for tail in ENDS:
            slots = order[below <= tail * 1.05 * size]
            held = int(counts[slots].sum())
            if held >= max(RARE_ROWS, 0.5 * tail * size) and held * typical_rows >= RARE_COUNT * size:
                found.append(_Direction(name, f"{end} {100 * tail:g} %", slots, np.ones(len(slots)), present))
    return found


def _skewness(weights: Floats, share: Floats) -> float:
    gap = weights - float(weights @ share)
    variance = float(gap**2 @ share)
    return float(gap**3 @ share) / variance**1.5 if variance > 1e-12 else 0.0


def _groups(
    bins: Bins, counts: NDArray[np.int64], typical_rows: int
) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Slots as shapes count them: those that a window holds MIN_COUNT times stand alone, a feature's others are one.

    Returns membership (slots, G), the shares that deviations are measured by (floored, so that one odd row does not
    drown the rest), the shares themselves, and the feature of each group.
    """
    member: list[NDArray[np.int64]] = []
    feature: list[int] = []
    for i in range(len(bins.features)):
        a, b = int(bins.offsets[i]), int(bins.offsets[i + 1])
        enough = counts[a:b] * typical_rows >= MIN_COUNT * max(1, int(counts[a:b].sum()))
        parts = [np.array([s]) for s in (a + np.flatnonzero(enough)).tolist()]
        if not enough.all():
            parts.append(a + np.flatnonzero(~enough))
        member += parts
        feature += [i] * len(parts)
    groups = np.zeros((len(counts), len(member)))
    for g, slots in enumerate(member):
        groups[slots, g] = 1.0
    of = np.array(feature, dtype=np.int64)
    grouped = counts @ groups
    p = grouped / np.maximum(np.bincount(of, weights=grouped, minlength=len(bins.features)), 1.0)[of]
    share = np.maximum(p, 1 / typical_rows)
    return groups, np.asarray(share, dtype=np.float64), np.asarray(p, dtype=np.float64), of
