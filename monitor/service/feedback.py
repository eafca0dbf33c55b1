"""How good alerts were in a period, from what people said about them."""

from __future__ import annotations

from collections.abc import Sequence

from alerts.metrics import Judged, Quality, quality
from monitor.config import Config
from monitor.model import Alert
from monitor.store import alertlog, people
from monitor.store.queries import Engine


def judged(engine: Engine, since_us: int, until_us: int) -> list[Judged]:
    """Incidents that opened in (since, until] with their verdict and their first acknowledgement."""
    found = alertlog.opened_between(engine, since_us, until_us)
    acts = people.acts_of(engine, [a.alert_id for a in found])
    return [_judged(a, acts.get(a.alert_id, [])) for a in found]


def _judged(alert: Alert, acts: Sequence[people.ActRow]) -> Judged:
    said = people.verdict(acts)
    taken = next((a.act.time_us for a in acts if a.act.kind != "unack"), None)
    return Judged(
        alert,
        None if said is None else said.act.said,
        None if said is None else said.act.time_us,
        taken,
    )


def qualities(engine: Engine, config: Config, since_us: int, until_us: int) -> list[Quality]:
    """Per detector: incidents per model and week, precision, times; the busiest first."""
    return quality(judged(engine, since_us, until_us), len(config.models), until_us - since_us)
