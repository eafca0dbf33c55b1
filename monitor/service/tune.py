"""What other budgets would have raised: stored history judged again, by the service's own code, in memory.

Nothing is written and nobody is told. Window detectors run on stored counts (some milliseconds a window); detectors that
read rows read them from the event log as in service. With `attacks` the log itself is replayed for the callers' detectors
as well, once for every budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from detectors import decide
from monitor.model import SECOND_US, Action, Alert, rfc3339
from monitor.service import counts
from monitor.service.compose import Service
from monitor.service.judge import Counts
from monitor.service.live import LiveModel
from monitor.service.renewal import rebuilt_since
from monitor.service.watch import Watched
from monitor.service.work import Work

BUDGETS: Final = ("1/7d", "1/30d", "1/90d", "1/365d")


@dataclass(frozen=True)
class Incident:
    """One incident that a budget would have raised."""

    opened_us: int
    cleared_us: int | None
    event: str
    severity: str
    subject: str
    features: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {
            "opened": rfc3339(self.opened_us), "cleared": None if self.cleared_us is None else rfc3339(self.cleared_us),
            "event": self.event, "severity": self.severity, "subject": self.subject, "features": [dict(f) for f in self.features],
        }  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """One budget over one time: its incidents, and how many windows could be judged at all."""

    budget: str
    days: float
    windows: int
    judged: int
    incidents: Sequence[Incident]

    def to_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget, "days": round(self.days, 3), "windows": self.windows, "judged": self.judged,
            "incidents": [i.to_json() for i in self.incidents],
        }  # fmt: skip


def tune(
    service: Service, model: str, budgets: Mapping[str, float], span_us: tuple[int, int], now_us: int, *, attacks: bool = False,
    progress: Callable[[str], None] = lambda budget: None,
) -> list[Tuned]:  # fmt: skip
    """Every budget (false alarms per second, by name) over the windows of a time, as if the service had begun then."""
    live = service.model(model, now_us)
    size = live.watched.longest_us
    span_us = (span_us[0] // size * size, span_us[1])
    stored = None if attacks else _counts(service, live.watched, span_us)  # the rows that are read are counted
    found = []
    for name, rate in budgets.items():
        progress(name)
        found.append(_tuned(live, name, rate, span_us, stored))
    return found


def _counts(service: Service, watched: Watched, span_us: tuple[int, int]) -> Counts:
    """Counts of a time: as ticks stored them where history is counted on the model's bins since then, else from the log.

    Without that, windows of which nothing is stored would be judged as if nothing had come.
    """
    since_us = rebuilt_since(service.engine, watched)
    if since_us is not None and since_us <= span_us[0]:
        return lambda start, end: counts.stored(service.engine, service.log, watched, start, end, None)
    found = counts.counted(service.log, watched, span_us)
    return lambda start, end: {b: body for b, body in found.items() if start <= b < end}


def _tuned(live: LiveModel, name: str, rate: float, span_us: tuple[int, int], stored: Counts | None) -> Tuned:
    """One budget; without `stored` counts the log itself is replayed."""
    watched = live.watched
    lengths = [m.window_us for m in watched.monitors if m.reads == "windows"]
    start_us, end_us = span_us
    other = replace(
        watched,
        budget=decide.BudgetSettings.derive(rate, lengths),
        fuse=replace(watched.fuse, level=max(1000.0, watched.fuse.level * live.config.budgets.attacks / rate)),
        catch_up_us=1 << 62,  # the past is no gap here
    )
    work = live.fresh()
    judge = replace(live.judge(work), watched=other, stored=stored or (lambda start, end: {}))
    if stored is None:
        for rows in live.log.read_window(watched.model_id, start_us, end_us, watched.columns):
            judge.absorb(work, watched.known.mark(rows), None)
    work.first_us = start_us if work.first_us is None else work.first_us
    judge.judge(work, end_us, lateness_us=0)
    days = (end_us - start_us) / (86_400 * SECOND_US)
    judged = sum(r.outcome == "judged" for r in work.ledger)
    return Tuned(name, days, len(work.ledger), judged, _incidents(work))


def _incidents(work: Work) -> list[Incident]:
    last: dict[str, Alert] = {}
    features: dict[str, Sequence[Mapping[str, Any]]] = {}
    for t in work.transitions:
        last[t.alert.alert_id] = t.alert
        if t.action is not Action.CLEAR:  # what is over names only the last feature to return
            features[t.alert.alert_id] = t.alert.evidence.get("features") or ()
    return [
        Incident(
            a.opened_us, a.cleared_us, a.event.value, a.severity.value, f"{a.subject.kind} {a.subject.id}", features.get(a.alert_id, ()),
        )
        for a in sorted(last.values(), key=lambda a: (a.opened_us, a.alert_id))
    ]  # fmt: skip
