"""Who and why: what a drift decision is told with, from a bounded sample of the rows behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from detectors import why
from detectors.profile import Bins
from monitor.model import Decision, Event, parse_time_us
from monitor.service.frozen import rows_of
from monitor.service.parts import CALLER, with_callers

ROWS: Final = 50_000  # on each side; of more the reference is thinned out and the newest of the log are taken
EARLIER_ROWS: Final = 10_000
EARLIER_WINDOWS: Final = 6  # before the onset, to see what came with it
DRIFT: Final = frozenset({Event.FEATURE_DRIFT, Event.PREDICTION_DRIFT})

log = structlog.get_logger("lanner.explained")

Rows = Callable[[Sequence[str]], pa.Table]
Reader = Callable[[int, int, Sequence[str]], pa.Table]


def explained(
    decision: Decision, bins: Bins, reference: Rows, read: Reader, rows: int, units: Mapping[str, str] | None = None
) -> Decision:
    """The decision with what is behind the drift in its evidence; as it is when it is about something else, or over.

    rows: of the whole model in the decision's window, so that no more are read than needed. `reference` and `read` give the named columns of the reference and of the log in a time range. A defect here never
    keeps an alarm back.
    """
    onset = decision.evidence.get("onset")
    if decision.event not in DRIFT or not decision.firing or not isinstance(onset, str):
        return decision
    try:
        start_us, end_us = decision.window_us
        onset_us = min(parse_time_us(onset), start_us)
        per_us = max(rows, 1) / max(end_us - start_us, 1)
        since_us = max(onset_us, end_us - round(ROWS / per_us))
        lead_us = min(EARLIER_WINDOWS * (end_us - start_us), round(EARLIER_ROWS / per_us))
        columns = tuple(dict.fromkeys([*why.COLUMNS, *bins.columns]))
        found = why.explain(
            bins,
            reference(columns),
            read(since_us, end_us, columns),
            decision.evidence,
            segment=decision.subject.id if decision.subject.kind == "segment" else "",
            earlier=read(onset_us - lead_us, onset_us, why.COLUMNS) if since_us == onset_us else None,
            units=units,
        )
    except Exception:
        log.exception("drift_not_explained", model=decision.model)
        return decision
    return replace(decision, evidence={**decision.evidence, **found})


def reference_rows(file: Path | None, stored: Callable[[str], str]) -> Rows:
    """At most ROWS evenly spaced rows of a frozen reference, callers under their stored names; none without the file."""

    def rows(columns: Sequence[str]) -> pa.Table:
        if file is None or not file.exists():
            return pa.table({c: pa.array([], pa.null()) for c in columns})
        whole = rows_of(file)
        every, at, parts = -(-whole.num_rows // ROWS) or 1, 0, []
        for table in whole.tables(*columns):
            parts.append(table.take(pa.array(range(-at % every, table.num_rows, every), pa.int64())))
            at += table.num_rows
        found = pa.concat_tables(parts).combine_chunks()
        known = CALLER in found.column_names and pc.count(found[CALLER]).as_py()
        return with_callers(found, stored) if known else found

    return rows
