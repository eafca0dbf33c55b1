"""Which of a model's monitors cannot be believed, why, and what to do about it: from what is stored, in milliseconds.

One function, several views: the model's page and its JSON twin, `lanner doctor -c`, `lanner tune`, the owner's report.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
import numpy as np

from alerts.text import shown
from detectors.binned import NUMBER
from monitor.model import SECOND_US
from monitor.reports import features
from monitor.reports.features import Counts
from monitor.reports.words import number
from monitor.store import ledger, lookups, queries
from monitor.store.queries import DetectionRow, Engine, ModelRow, WindowRow

LOOK_US: Final = 28 * 86_400 * SECOND_US  # what is looked at: so much time before the newest judged window
FRESH_US: Final = 7 * 86_400 * SECOND_US  # features are dead when they say nothing for so long
HALF: Final = 0.5
LEAST_WINDOWS: Final = 20  # below this nothing is said about shares of windows
LEAST_ROWS: Final = 200  # below this nothing is said about dead features
GAP_SHARE: Final = 0.1
LATE_US: Final = 900 * SECOND_US  # judged later than the allowed lateness and this: late data
BLIND_SPREADS: Final = 3.0  # a number whose smallest visible shift is larger can move far without being seen
BLIND_SHARE: Final = 0.5  # and so a category that must win or lose half of all events
WANTED: Final = "the configuration names no"  # detectors that are off because nobody asked for them


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One monitor that is not as good as it looks. `code` is for programs, `text` the reason, `fix` what to do."""

    monitor: str
    code: str
    text: str
    fix: str
    feature: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(engine: Engine, model: ModelRow, *, clock: str, lateness_us: int) -> list[Diagnosis]:
    """Everything that is wrong with the monitors of a model; nothing before its first judged window.

    `lateness_us` is how long after its end a window is rightly judged; a log clock knows no lateness.
    """
    found = list(_refused(engine, model))
    if model.judged_us is None:
        return found
    start_us, end_us = model.judged_us - LOOK_US, model.judged_us
    windows = queries.windows(engine, model.model_id, start_us, end_us)
    drift = queries.drift_detections(engine, model.model_id, start_us, end_us)
    others = queries.other_detections(engine, model.model_id, start_us, end_us)
    monitors: dict[str, list[WindowRow]] = {}
    for w in windows:
        monitors.setdefault(w.monitor, []).append(w)
    for name, rows in sorted(monitors.items()):
        own = [d for d in (*drift, *others) if d.monitor == name]
        found += [*_data(name, rows, own), *_alarms(name, rows, own)]
        found += _late(name, rows, lateness_us) if clock == "wall" else ()
    found += _standing(engine, model, windows)
    found += _features(engine, model, drift)
    return found


def _refused(engine: Engine, model: ModelRow) -> Iterator[Diagnosis]:
    """Monitors that could not be calibrated on the reference, and declared budgets that rest on them: they never alarm."""
    body = ledger.load_state(engine, model.model_id, "service")
    head: Mapping[str, Any] = msgspec.json.decode(body) if body else {}
    refused: Mapping[str, str] = head.get("refused") or {}
    for name, reason in sorted(refused.items()):
        if not reason.startswith(WANTED):
            yield Diagnosis(
                name,
                "refused",
                f"it cannot run: {reason}",
                "give a reference that has what it needs: lanner reference build",
            )
    for budget, reason in sorted((head.get("void") or {}).items()):
        fix = "declare distinct_rows, which needs features only" if budget == "kappa" else "limit rows at the gateway"
        text = f"a declared {budget} budget cannot alarm: {reason}"
        yield Diagnosis("exposure", "budget_void", text, f"{fix}; or give a reference that has what it needs")


def _data(name: str, rows: Sequence[WindowRow], own: Sequence[DetectionRow]) -> Iterator[Diagnosis]:
    """Too little data, too little history, gaps, failures."""
    counts = {o: sum(w.outcome == o for w in rows) for o in ("insufficient", "gap", "failed")}
    seen = len(rows) - counts["gap"]
    if counts["failed"]:
        yield Diagnosis(
            name, "fails", f"{counts['failed']} of {len(rows)} windows failed", "the log says why: detector_failed"
        )
    if counts["gap"] > GAP_SHARE * len(rows):
        text = f"{counts['gap']} of {len(rows)} windows were missed"
        yield Diagnosis(name, "gaps", text, "keep a scheduler running; lanner backfill judges what was missed")
    # A monitor that never said anything has nothing to read, as the one for labels where none are sent: that is a choice.
    if seen < LEAST_WINDOWS or counts["insufficient"] <= HALF * seen or not own:
        return
    reason = str(own[-1].evidence.get("reason") or "")
    told = f"{counts['insufficient']} of {seen} windows could not be judged" + (f" ({reason})" if reason else "")
    if reason.startswith("learning"):
        fix = "it learns from windows to come; a reference of several weeks with times shortens that"
        yield Diagnosis(name, "learning", told, fix)
        return
    typical = statistics.median(w.n for w in rows if w.outcome != "gap")
    hours = (rows[-1].end_us - rows[-1].start_us) / (3600 * SECOND_US)
    fix = f"{typical:g} events in a typical window of {hours:g} h: give it a longer one (monitors: window: 24h)"
    yield Diagnosis(name, "too_little_data", told, fix)


def _alarms(name: str, rows: Sequence[WindowRow], own: Sequence[DetectionRow]) -> Iterator[Diagnosis]:
    """Fixed rules that alarm in half of the windows or more."""
    judged = {w.end_us for w in rows if w.outcome == "judged"}
    loud = {d.end_us for d in own if d.verdict == "alarm"} & judged
    if len(judged) >= LEAST_WINDOWS and len(loud) >= HALF * len(judged):
        text = f"it alarmed in {len(loud)} of {len(judged)} windows: nobody reads that"
        yield Diagnosis(name, "alarms_always", text, "change its params, or take what it sees into a new reference")


def _late(name: str, rows: Sequence[WindowRow], lateness_us: int) -> Iterator[Diagnosis]:
    """Windows that are judged long after they may be: their events came late, or nobody judged them."""
    waits = [w.judged_us - w.end_us - lateness_us for w in rows if w.outcome == "judged" and w.detail is None]
    if len(waits) >= LEAST_WINDOWS and (usual := statistics.median(waits)) > LATE_US:
        text = f"half of its windows are judged {usual / (60 * SECOND_US):,.0f} min later than they could be"
        yield Diagnosis(
            name, "late_data", text, "see Sources: a collector lags or a partition is silent; or give lateness as it is"
        )


def _standing(engine: Engine, model: ModelRow, windows: Sequence[WindowRow]) -> Iterator[Diagnosis]:
    """Incidents about the model or a segment that were open half of the time or more: what they say is no news any more."""
    if not windows or model.judged_us is None:
        return
    start_us, end_us = min(w.start_us for w in windows), model.judged_us
    ends = {w.end_us for w in windows}
    by: dict[tuple[str, str | None], float] = {}  # event, segment
    for i in lookups.incidents_between(engine, model.name, start_us, end_us):
        if (i.whole_model or i.subject_kind == "segment") and i.family != "monitor":
            key = i.event, None if i.whole_model else i.subject_id
            closed = i.cleared_us if i.cleared_us is not None else end_us
            by[key] = by.get(key, 0.0) + min(closed, end_us) - max(i.opened_us, start_us)
    for (event, segment), open_us in sorted(by.items(), key=lambda kv: (kv[0][0], kv[0][1] or "")):
        share = open_us / (end_us - start_us)
        if share >= HALF and len(ends) >= LEAST_WINDOWS:
            text = f"{event}{'' if segment is None else f' of segment {shown(segment, 60)}'} was open {share:.0%} of the time"
            fix = "if it is the new normal: verdict benign-true, then lanner reference build, propose, approve; lanner tune shows budgets"
            yield Diagnosis(event, "alarms_half", text, fix)


def _features(engine: Engine, model: ModelRow, drift: Sequence[DetectionRow]) -> Iterator[Diagnosis]:
    """Features that say nothing, and those in which nothing small can be seen."""
    assert model.judged_us is not None
    counts = features.counted(
        queries.calibration(engine, model.model_id, "profile", model.reference_hash),
        queries.counts(engine, model.model_id, model.reference_hash, model.judged_us - FRESH_US, model.judged_us),
    )
    dead = set()
    if counts is not None and counts.current.n >= LEAST_ROWS:
        for d in _dead(counts):
            dead.add(d.feature)
            yield d
    newest = next((d for d in reversed(drift) if d.verdict == "ok"), None)
    if newest is None or counts is None:
        return
    kinds = {f.name: f for f in counts.bins.features}
    for row in newest.evidence.get("features") or ():
        f, smallest = kinds.get(str(row.get("name"))), row.get("smallest")
        if f is None or f.name in dead:
            continue
        if left := row.get("since_reference"):
            size = f"{left['size']:+.4g}" if f.kind == NUMBER else f"{left['size']:+.1%} of events for one value"
            text = f"it has learnt another level than the reference's: {size}, {abs(left['spreads']):.1f} times what windows differ by"
            fix = "a slow change, or somebody who teaches it? Compare and approve a new reference if it is right: lanner reference build"
            yield Diagnosis(newest.monitor, "baseline_left", text, fix, f.name)
        if "smallest" not in row:
            continue
        if smallest is None:
            text = "no lasting shift of it can raise an alarm, however large: its score cannot reach the level"
            fix = "its hours hang together or are too few: judge the model in windows of a day (monitors: window: 24h), or give more history"
            yield Diagnosis(newest.monitor, "never", text, fix, f.name)
        elif smallest > (BLIND_SPREADS * f.spread if f.kind == NUMBER else BLIND_SHARE):
            unit = (
                f"{number(smallest)} (spread {number(f.spread)})" if f.kind == NUMBER else f"{smallest:.0%} of events"
            )
            text = f"no lasting shift under {unit} shows within a day of windows"
            yield Diagnosis(
                newest.monitor, "blind", text, "longer windows, or more history: its hours differ too much", f.name
            )


def _dead(counts: Counts) -> Iterator[Diagnosis]:
    now, before = counts.current, counts.reference
    for i, f in enumerate(counts.bins.features):
        a, b = int(counts.bins.offsets[i]), int(counts.bins.offsets[i + 1])
        if f.is_output or b - a < 2:
            continue
        present, once = int(now.counts[a : b - 1].sum()), int(before.counts[a : b - 1].sum())
        if present == 0:
            text = f"it was missing in all {now.n:,} events of a week" + ("" if once else ", as in the reference")
            yield Diagnosis(
                "marginals",
                "always_missing",
                text,
                "mend where it comes from, or drop it and build a new reference",
                f.name,
            )
        elif _single(f.kind, now, i, a, b):
            text = f"it had one value in all {present:,} events of a week" + (
                ", as in the reference" if _single(f.kind, before, i, a, b) else ""
            )
            yield Diagnosis(
                "marginals", "constant", text, "a default, or a switched-off source? Mend it, or drop it", f.name
            )


def _single(kind: str, profile: Any, i: int, a: int, b: int) -> bool:
    """Whether a feature has one value only."""
    if kind == NUMBER:
        return bool(np.isfinite(profile.low[i]) and profile.low[i] == profile.high[i])
    used = np.flatnonzero(profile.counts[a : b - 1])
    return len(used) == 1 and int(used[0]) != b - a - 2  # "other" may hold many values
