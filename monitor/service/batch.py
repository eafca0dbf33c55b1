"""Batch jobs over the real store: `check` judges what is not judged yet, `backfill` fills gaps. Same code as the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from monitor.errors import DependencyUnreachable
from monitor.model import Alert, Severity, rfc3339
from monitor.service.compose import Service
from monitor.service.due import Due
from monitor.service.judge import Judge
from monitor.service.live import LiveModel
from monitor.service.references import recount
from monitor.service.renewal import attend
from monitor.service.work import detection_row
from monitor.store import alertlog, ledger
from monitor.store.counts import ProfileRow


@dataclass
class ModelReport:
    """What a batch job found on one model."""

    windows: Sequence[ledger.LedgerRow] = ()
    judged_now: int = 0
    alerts: Sequence[Alert] = ()
    refused: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; alerts are those open at any time in the range."""
        return {
            "windows": [
                {"monitor": w.monitor, "window": [rfc3339(w.start_us), rfc3339(w.end_us)], "outcome": w.outcome, "n": w.n, "detail": w.detail}
                for w in self.windows
            ],
            "judged_now": self.judged_now,
            "refused": self.refused,
            "alerts": [
                {
                    "alert_id": a.alert_id, "event": a.event.value, "family": a.family.value, "severity": a.severity.value,
                    "subject": {"kind": a.subject.kind, "id": a.subject.id}, "open": a.open,
                    "opened": rfc3339(a.opened_us), "cleared": None if a.cleared_us is None else rfc3339(a.cleared_us), "text": a.text,
                }
                for a in self.alerts
            ],
        }  # fmt: skip


def check(service: Service, models: Sequence[str], from_us: int, to_us: int, now_us: int) -> dict[str, ModelReport]:
    """Publish what is recorded, judge windows that are not in the ledger (log clock), report all in (from, to]."""
    publisher = service.publisher()
    found: dict[str, ModelReport] = {}
    for name in models:
        live = service.model(name, now_us)
        publisher.publish(live.watched.model_id, now_us)
        before = {
            (w.monitor, w.end_us) for w in ledger.ledger_rows(service.engine, live.watched.model_id, from_us, to_us)
        }
        while live.tick(service.owner, now_us, clock="log"):
            if live.work is None or live.work.position >= service.log.latest_batch(live.watched.model_id):
                break
        else:
            raise DependencyUnreachable(
                f"model {name}: a scheduler holds its lease; stop it or wait until the lease runs out"
            )
        attend(service, name, now_us)
        windows = ledger.ledger_rows(service.engine, live.watched.model_id, from_us, to_us)
        found[name] = ModelReport(
            windows=windows,
            judged_now=sum((w.monitor, w.end_us) not in before for w in windows),
            alerts=alertlog.alerts_between(service.engine, name, from_us, to_us),
            refused=dict(live.watched.refused),
        )
    return found


def worst(reports: dict[str, ModelReport]) -> Severity | None:
    """The highest severity of any alert found."""
    found = [a.severity for r in reports.values() for a in r.alerts]
    return max(found, key=lambda s: s.rank, default=None)


def backfill(service: Service, name: str, from_us: int, to_us: int, now_us: int) -> ModelReport:
    """Judge the windows in (from, to] that the ledger lacks or holds as gaps, on counts rebuilt from the event log.

    State starts from the reference alone and runs over every window of the range in order. Ledger and detections are
    filled; incidents are left as they are: history must not page anybody.
    """
    live = service.model(name, now_us)
    watched = live.watched
    work = live.fresh()
    judge = live.judge(work)
    buckets = recount(
        service.log,
        watched.model_id,
        watched.bins,
        watched.columns,
        watched.bucket_us,
        (from_us // watched.bucket_us * watched.bucket_us, to_us),
    )
    counts = Recounted(live, judge, buckets)
    done = {
        (w.monitor, w.end_us)
        for w in ledger.ledger_rows(service.engine, watched.model_id, from_us, to_us)
        if w.outcome != "gap"
    }
    rows: list[ledger.LedgerRow] = []
    found: list[dict[str, Any]] = []
    lengths = sorted({m.window_us for m in watched.monitors if m.reads == "windows"})
    ends = sorted({end for size in lengths for end in range(-(-(from_us + 1) // size) * size, to_us + 1, size)})
    for end_us in ends:
        for m in watched.monitors:
            if (
                m.reads != "windows"
                or end_us % m.window_us
                or end_us - m.window_us < from_us // m.window_us * m.window_us
            ):
                continue
            window = counts.window(end_us - m.window_us, end_us)
            measured = m.detector.measure(m.calibration, work.states.get(f"detector:{m.name}"), window, work.feedback)
            work.states[f"detector:{m.name}"] = measured.state
            if (m.name, end_us) in done:
                continue
            due = Due(end_us, m.name, end_us - m.window_us)
            rows.append(
                ledger.LedgerRow(
                    m.name, due.start_us, end_us, "judged" if window.n else "insufficient", window.n, "backfilled"
                )
            )
            found += [detection_row(watched.model_id, m, d) for d in measured.detections]
    ledger.fill(service.engine, watched.model_id, rows, found, counts.rows(), now_us)
    return ModelReport(
        windows=ledger.ledger_rows(service.engine, watched.model_id, from_us, to_us),
        judged_now=len(rows),
        alerts=alertlog.alerts_between(service.engine, name, from_us, to_us),
        refused=dict(watched.refused),
    )


@dataclass
class Recounted:
    """Counts of a range rebuilt from the event log, bucket by bucket."""

    live: LiveModel
    judge: Judge
    buckets: dict[int, Any]

    def window(self, start_us: int, end_us: int) -> Any:
        work = self.live.fresh()
        work.profiles = {b: p for b, p in self.buckets.items() if start_us <= b < end_us}
        return self.judge.window(work, start_us, end_us)

    def rows(self) -> list[ProfileRow]:
        watched = self.live.watched
        return [
            ProfileRow(watched.reference_hash, b, b + watched.bucket_us, p.n, p.to_bytes())
            for b, p in sorted(self.buckets.items())
        ]
