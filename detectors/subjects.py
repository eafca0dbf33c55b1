"""What of a model is judged for drift by itself: the whole and each of its segments, at the reference's mix of context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detectors.base import Streams
from detectors.profile import Bins, Profile
from detectors.strata import at_mix, least_worth

SEGMENTS_SHARE: Final = 0.3  # of a model's drift budget that its segments have together, equally


@dataclass(frozen=True)
class Judged:
    """One thing that is judged. name: of the segment, "" for the whole model; row: its place in `Profile.parts`.

    muted: features that cannot drift here: the context, and what defines the segment. weight: its part of the budget.
    """

    name: str
    row: int | None
    muted: frozenset[str]
    weight: float

    def counts(self, profile: Profile, reference: Profile) -> Profile:
        """The counts to judge: those of the segment, at the reference's mix of cells where the model has a context.

        Counts at the reference's mix are no whole numbers; `n` is what they are worth in rows.
        """
        own, usual = self.plain(profile), self.plain(reference)
        if self.row is None or profile.parts.shape[1] == 1:
            return own
        parts, before = profile.parts[self.row].astype(np.float64), reference.parts[self.row].astype(np.float64)
        rows, old = _rows(profile, self.row), _rows(reference, self.row)
        if not self.name:  # products are kept for the whole model only
            parts = np.concatenate([parts, profile.part_cross], axis=1)
            before = np.concatenate([before, reference.part_cross], axis=1)
        if not old.sum() or not own.n:
            return own
        found, n = at_mix(parts, rows, before, old)
        counts: Any = found[: len(own.counts)]
        cross: Any = found[len(own.counts) :]
        worth = max(1, int(n))
        return replace(
            own, n=worth, counts=counts * (worth / n), cross=cross * (worth / n) if len(cross) else usual.cross
        )

    def least(self, profile: Profile, reference: Profile, counted: Profile) -> float:
        """What dependence counts in a window whose mix of cells is not the reference's, of 1; `counted`: its `counts`."""
        if self.name or self.row is None or profile.parts.shape[1] == 1 or not profile.n:
            return 1.0
        rows = _rows(profile, self.row)
        return min(1.0, least_worth(rows, _rows(reference, self.row)) * float(rows.sum()) / counted.n)

    def share(self, streams: Streams) -> Streams:
        """Bets with this thing's part of the budget; none on what is muted, which the other features share."""
        free = (
            np.array([b not in self.muted for b in streams.blame]) if self.muted else np.ones(len(streams.blame), bool)
        )
        weight = np.where(free, streams.weight, 0.0)
        left = float(weight.sum())
        scale = self.weight * float(streams.weight.sum()) / left if left > 0 else 0.0
        return streams if scale == 1.0 else replace(streams, weight=weight * scale)

    def plain(self, profile: Profile) -> Profile:
        """The counts as they are, of this thing alone. Segments have no products."""
        if not self.name or self.row is None:
            return profile
        counts, none = profile.parts[self.row].sum(axis=0), np.zeros(0, np.int64)
        return replace(profile, n=int(_rows(profile, self.row).sum()), counts=counts, cross=none)


def _rows(profile: Profile, row: int) -> NDArray[np.float64]:
    """Rows of each cell: every row is in one slot of the first feature."""
    assert profile.bins is not None
    return np.asarray(profile.parts[row][:, : profile.bins.offsets[1]].sum(axis=1), dtype=np.float64)


def subjects(bins: Bins) -> Sequence[Judged]:
    """The whole model first, then its segments.

    >>> [(j.name, j.weight) for j in subjects(Bins(()))]
    [('', 1.0)]
    """
    strata = bins.strata
    context, first = strata.context, int(bool(strata.axes))
    whole = Judged("", 0 if strata.axes else None, context, 1 - SEGMENTS_SHARE if strata.segments else 1.0)
    share = SEGMENTS_SHARE / max(1, len(strata.segments))
    return [
        whole,
        *(
            Judged(s.name, i + first, context | ({s.column.removeprefix("feature:")} if s.values else set()), share)
            for i, s in enumerate(strata.segments)
        ),
    ]


def mix(bins: Bins, reference: Profile, current: Profile) -> list[dict[str, Any]]:
    """How the context's mix moved: share of rows per cell, in the reference and now; empty without context."""
    if not bins.strata.axes or not reference.n or not current.n:
        return []
    usual, now = _rows(reference, 0) / reference.n, _rows(current, 0) / current.n
    return [
        {"value": word, "reference": float(f"{a:.4g}"), "share": float(f"{b:.4g}")}
        for word, a, b in zip(bins.strata.words(), usual.tolist(), now.tolist(), strict=True)
    ]
