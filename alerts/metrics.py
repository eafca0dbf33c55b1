"""How good alerts are, told by the verdicts of those who worked on them. Pure; times in microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from monitor.model import HOUR_US, Alert, Said

WEEK_US = 7 * 24 * HOUR_US
AGAIN_US = 24 * HOUR_US  # an incident of the same problem this soon after the one before counts as reopened


@dataclass(frozen=True, slots=True)
class Judged:
    """An incident, its verdict with its time, and the first acknowledgement."""

    alert: Alert
    said: Said | None = None
    said_us: int | None = None
    acknowledged_us: int | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one detector in a period. None where nothing is known. Times are medians in seconds."""

    detector: str
    incidents: int
    per_model_week: float
    verdicts: Mapping[str, int]
    precision: float | None  # share of true and benign-true: the detector saw what it said
    benign_share: float | None  # share of benign-true: what exceptions and declared profiles could save
    reopened_share: float | None
    acknowledged_s: float | None
    verdict_s: float | None


def precision(verdicts: Mapping[Said, int]) -> float | None:
    """Share of incidents that were what the detector said, with or without a good reason; None without verdicts.

    >>> precision({Said.TRUE: 1, Said.BENIGN_TRUE: 1, Said.FALSE: 2, Said.UNDETERMINED: 7})
    0.5
    """
    right = verdicts.get(Said.TRUE, 0) + verdicts.get(Said.BENIGN_TRUE, 0)
    known = right + verdicts.get(Said.FALSE, 0)
    return right / known if known else None


def quality(judged: Sequence[Judged], models: int, period_us: int) -> list[Quality]:
    """Per detector, the busiest first. `models`: how many were watched; `period_us`: for how long."""
    by: dict[str, list[Judged]] = {}
    for j in judged:
        by.setdefault(j.alert.detector, []).append(j)
    again = _reopened([j.alert for j in judged])
    weeks = max(1, models) * max(period_us, 1) / WEEK_US
    found = []
    for detector, own in by.items():
        counts = {said: sum(j.said is said for j in own) for said in Said}
        known = counts[Said.TRUE] + counts[Said.BENIGN_TRUE] + counts[Said.FALSE]
        found.append(
            Quality(
                detector=detector,
                incidents=len(own),
                per_model_week=len(own) / weeks,
                verdicts={s.value: n for s, n in counts.items()},
                precision=precision(counts),
                benign_share=counts[Said.BENIGN_TRUE] / known if known else None,
                reopened_share=sum(j.alert.alert_id in again for j in own) / len(own),
                acknowledged_s=_median([(j.alert.opened_us, j.acknowledged_us) for j in own]),
                verdict_s=_median([(j.alert.opened_us, j.said_us) for j in own]),
            )
        )
    return sorted(found, key=lambda q: (-q.incidents, q.detector))


def _reopened(alerts: Sequence[Alert]) -> set[str]:
    last: dict[tuple[str, ...], int] = {}
    again = set()
    for a in sorted(alerts, key=lambda a: (a.opened_us, a.alert_id)):
        if a.opened_us - last.get(a.key, a.opened_us - AGAIN_US) < AGAIN_US:
            again.add(a.alert_id)
        if a.cleared_us is not None:
            last[a.key] = a.cleared_us
    return again


def _median(spans: Sequence[tuple[int, int | None]]) -> float | None:
    known = [max(0, end - start) / 1e6 for start, end in spans if end is not None]
    return median(known) if known else None
