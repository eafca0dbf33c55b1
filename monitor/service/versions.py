"""A new model version against the old one: from stored counts of both versions' rows, window by window.

Two questions. Does anything differ? The model's own drift detector is calibrated on the old version's windows and judges
the new version's, under the model's budget, so "changed" means here what it means everywhere else. And does the version
answer otherwise? Answers, what is missing, and latency are compared as they came and at the old version's mix of inputs
(detectors.versions), so that another model is told from other traffic. It is a comparison and opens no incident: versions
are meant to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa

from detectors import decide
from detectors import versions as between
from detectors.base import Feedback
from detectors.conformal import MIN_HISTORY
from detectors.drift.marginals import Marginals
from detectors.groups import Group, each
from detectors.profile import Bins, Profile, compare, merged
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, rfc3339
from monitor.service.compose import Service
from monitor.service.labelled import outcomes
from monitor.service.watch import Watched
from monitor.service.windows import NO_LABELS, TimeWindow
from monitor.store import comparisons, counts
from monitor.store import references as store

BEFORE_US: Final = 21 * 24 * HOUR_US  # of the old version, before the new one came
AFTER_US: Final = 7 * 24 * HOUR_US  # of the new version; then the comparison is final
FIRST_US: Final = 24 * HOUR_US  # of the new version before the first look
AGAIN_US: Final = 24 * HOUR_US  # between looks

Windows = Mapping[int, Group]  # start -> counts


@dataclass(frozen=True)
class Pair:
    """Two versions, and the time that is looked at."""

    old: str
    new: str
    came_us: int
    until_us: int


def attend(service: Service, watched: Watched, now_us: int) -> None:
    """Compare every version with the one that came before it, a day after it came and daily until a week is over."""
    seen = comparisons.versions(service.engine, watched.model_id)
    made = {(c["old"], c["new"]): c for c in comparisons.listed(service.engine, watched.model_id)}
    _, newest_us = store.progress(service.engine, watched.model_id)
    order = sorted(seen, key=lambda v: (seen[v], v))
    for old, new in pairwise(order):
        came_us = seen[new]
        before = made.get((old, new))
        if newest_us is None or came_us == 0 or newest_us - came_us < FIRST_US or (before and before["final"]):
            continue
        pair = Pair(old, new, came_us, min(newest_us, came_us + AFTER_US))
        if before is not None and pair.until_us - before["until_us"] < AGAIN_US and pair.until_us < came_us + AFTER_US:
            continue
        groups = counted(service, watched, pair)
        starts, size = (groups[old], groups[new]), _detector(watched)[1]
        by_labels = outcomes(service, watched, (old, new), starts, size, came_us, pair.until_us)
        found = compared(watched, pair, groups) | {"labels": by_labels}
        comparisons.put(service.engine, watched.model_id, old, new, found, now_us)


def counted(service: Service, watched: Watched, pair: Pair) -> Mapping[str, Windows]:
    """Stored groups of both versions, added up to the windows of the model's drift detector."""
    size = _detector(watched)[1]
    start_us = (pair.came_us - BEFORE_US) // size * size
    stored = counts.load_groups(service.engine, watched.model_id, watched.reference_hash, start_us, pair.until_us)
    found: dict[str, dict[int, Group]] = {pair.old: {}, pair.new: {}}
    for start, own in each("version", stored, watched.bins):
        if own.name in found:
            windows, at = found[own.name], start // size * size
            windows[at] = windows[at].merge(own) if at in windows else own
    return found


def compared(watched: Watched, pair: Pair, found: Mapping[str, Windows]) -> dict[str, Any]:
    """What differs: `verdict` (same, changed, learning), the features that carry it, distances of all, both sides' shares;
    `answers` with `answers_verdict` (same, other answers, other inputs, learning) and what `same_inputs` rests on.

    JSON-ready. "learning": the old version has fewer than 50 windows, or for answers either has fewer than 8, so only
    sizes are told.
    """
    detector, size = _detector(watched)
    groups = [[g for _, g in sorted(found[v].items())] for v in (pair.old, pair.new)]
    told = between.compared(watched.bins, *(between.Side.of(g, watched.bins) for g in groups))
    old, new = (
        [_window(watched.name, s, size, g.counts) for s, g in sorted(found[v].items())] for v in (pair.old, pair.new)
    )
    a, b = (merged(w.counts for w in side if w.counts is not None) or watched.bins.empty() for side in (old, new))
    verdict, named, at_us = _judged(watched, detector, old, new)
    distances = compare(watched.bins, a, b)
    shares = {f["name"]: f["share"] for f in named}
    features = sorted(distances, key=lambda n: (-shares.get(n, 0.0), -(distances[n]["js"] or 0.0), n))
    outputs = {f.name for f in watched.bins.features if f.is_output}
    return {
        "old": pair.old, "new": pair.new, "came": rfc3339(pair.came_us), "until": rfc3339(pair.until_us), "until_us": pair.until_us,
        "final": pair.until_us >= pair.came_us + AFTER_US, "rows": [a.n, b.n], "windows": [len(old), len(new)],
        "verdict": verdict, "since": None if at_us is None else rfc3339(at_us),
        "features": [
            {"name": n, "answer": n in outputs, "share": shares.get(n), **distances[n], "before": _middle(watched.bins, a, n),
             "after": _middle(watched.bins, b, n)}
            for n in features
        ],
        "answers_verdict": between.verdict(told), "answers": told,
        "inputs_by": {"answer": watched.expected.output or None, "tells": round(watched.expected.told, 4)},
    }  # fmt: skip


def _judged(
    watched: Watched, detector: Marginals, old: list[TimeWindow], new: list[TimeWindow]
) -> tuple[str, list[dict[str, Any]], int | None]:
    """The verdict of the drift engine, the features it names, and since when."""
    try:
        cal = detector.calibrate(old, "versions")
    except CalibrationRefused:
        return "learning", [], None
    if cal.meta["windows"] < MIN_HISTORY or not new:
        return "learning", [], None
    state, running, feedback = None, None, Feedback()
    for window in new:
        measured = detector.measure(cal, state, window, feedback)
        decided = decide.budget(running, measured.detections, (), watched.budget, watched.name, window.end_us)
        state, running, feedback = measured.state, decided.state, decided.feedback
        opened = next((d for d in decided.decisions if d.firing), None)
        if opened is not None:
            return "changed", [dict(f) for f in opened.evidence["features"]], opened.window_us[0]
    return "same", [], None


def _detector(watched: Watched) -> tuple[Marginals, int]:
    """The model's own drift detector with its window, else the default one."""
    own = next((m for m in watched.monitors if isinstance(m.detector, Marginals)), None)
    return (
        (Marginals(), HOUR_US)
        if own is None or not isinstance(own.detector, Marginals)
        else (own.detector, own.window_us)
    )


def _window(model: str, start_us: int, size: int, counts: Profile) -> TimeWindow:
    return TimeWindow(
        model, start_us, start_us + size, counts, counts.n, lambda columns: pa.table({}), lambda as_of: NO_LABELS
    )


def _middle(bins: Bins, profile: Profile, name: str) -> float | str | None:
    """What is typical: a number's mean by its bins, a category's most frequent value with its share."""
    i = next(i for i, f in enumerate(bins.features) if f.name == name)
    f, counts = bins.features[i], profile.counts[bins.offsets[i] : bins.offsets[i + 1] - 1]
    if not counts.sum():
        return None
    if f.kind == "number":
        return float(counts @ f.centers) / float(counts.sum()) if len(f.centers) == len(counts) else None
    top = int(counts.argmax())
    word = f.categories[top] if top < len(f.categories) else "other"
    return f"{word} ({counts[top] / counts.sum():.1%})"
