"""What labels say of two model versions: losses per window, of labels that had the same time to come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectors import versions as between
from detectors.performance.labelled import Performance
from detectors.performance.losses import LOSSES, found
from detectors.stats import Floats
from monitor.service.compose import Service
from monitor.service.watch import Watched
from monitor.service.windows import NO_LABELS, TimeWindow

WORDS: Final = ("share of wrong answers", "Brier score", "mean absolute error")  # of LOSSES


def outcomes(
    service: Service, watched: Watched, names: tuple[str, str], starts: tuple[Iterable[int], Iterable[int]], size_us: int,
    came_us: int, until_us: int,
) -> list[dict[str, object]]:  # fmt: skip
    """Rows as of detectors.versions.outcomes: the old and the new version, in windows that begin at `starts`.

    Labels of the new version are younger, and early labels are not like the rest. So of both versions those count that were
    given within half the time that the new version has been there, counted from the end of a window, and windows for which
    that time has passed.
    """
    age_us = (until_us - came_us) // 2
    label = next((m.detector.label for m in watched.monitors if isinstance(m.detector, Performance)), "label")
    ripe = [[s for s in own if s + size_us + age_us <= until_us] for own in starts]
    old, new = (
        _losses(service, watched, v, s, size_us, age_us, until_us, label) for v, s in zip(names, ripe, strict=True)
    )
    return between.outcomes(old, new, WORDS)


def _losses(
    service: Service, watched: Watched, version: str, starts: Sequence[int], size_us: int, age_us: int, until_us: int, label: str,
) -> Floats:  # fmt: skip
    """(windows, LOSSES, 2): sums of losses over the labelled events of a version, and how many these are."""
    made = np.zeros((len(starts), len(LOSSES), 2))
    for i, start in enumerate(sorted(starts)):

        def read(columns: Sequence[str], start: int = start) -> pa.Table:
            wanted = [*columns, "model_version"]
            parts = list(service.log.read_window(watched.model_id, start, start + size_us, wanted))
            rows = pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})
            return rows.filter(pc.fill_null(pc.equal(rows["model_version"], version), False)) if parts else rows

        labels = service.log.labels(watched.name, start, start + size_us, until_us)
        labels = labels.filter(pc.less_equal(labels["label_time_us"], start + size_us + age_us))
        window = TimeWindow(watched.name, start, start + size_us, None, 0, read, lambda as_of_us: NO_LABELS)
        what = found(window, labels, label, ())
        mean, inverse = what.mean[: len(LOSSES)], what.inverse[: len(LOSSES)]
        events = np.where(np.isfinite(mean) & (inverse > 0), 1 / np.where(inverse > 0, inverse, 1.0), 0.0)
        made[i] = np.column_stack([np.nan_to_num(mean) * events, events])
    return made
