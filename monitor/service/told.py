"""What people told Lanner, as one tick sees it."""

from __future__ import annotations

from typing import Final

from alerts.metrics import precision
from alerts.quiet import Told
from detectors.registry import REGISTRY
from monitor.config import Config
from monitor.model import HOUR_US
from monitor.store import people
from monitor.store.engine import read
from monitor.store.people import ActRow
from monitor.store.queries import Engine

VERDICTS_US: Final = 90 * 24 * HOUR_US  # verdicts count for so long, so that a mended detector comes back


def told(engine: Engine, model: str, now_us: int, config: Config) -> tuple[Told, list[ActRow]]:
    """Exceptions, marks and demotions that bear on a model, and the acts that wait for its tick; one snapshot."""
    with read(engine) as conn:
        acts = people.pending(conn, model)
        exemptions = people.exemptions_of(conn, model, 0)
        marks = [m.mark for m in people.marks_since(conn, model, now_us - people.MARKS_US)]
        demoted = frozenset(_demoted(people.verdict_counts(conn, now_us - VERDICTS_US), config))
    return Told(exemptions, marks, demoted), acts


def demoted(engine: Engine, now_us: int, config: Config) -> dict[str, str]:
    """Detectors on report only, each with the reason."""
    with read(engine) as conn:
        return _demoted(people.verdict_counts(conn, now_us - VERDICTS_US), config)


def _demoted(counts: people.VerdictCounts, config: Config) -> dict[str, str]:
    floor, least = config.alerting.precision_floor, config.alerting.precision_verdicts
    found = {}
    for detector, by in sorted(counts.items()):
        known, n = precision(by), sum(by.values())
        if detector in REGISTRY and known is not None and n >= least and known < floor:
            found[detector] = f"precision {known:.2f} over {n} verdicts is under {floor:.2f}"
    return found
