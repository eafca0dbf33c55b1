"""The parts of a model's traffic that its configuration names or leaves to be found in its reference: segments, context."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alerts.text import shown
from detectors.drift.marginals import Marginals
from detectors.parting import ANSWERS, SAMPLE_ROWS, Part, choose
from detectors.reference import Finding
from detectors.strata import MAX_CELLS, MAX_PARTS, MAX_SEGMENTS, MIN_PART_ROWS, Segment, Strata, fit_strata
from detectors.streamed import Streamed
from monitor.config import Config, ModelConfig
from monitor.errors import ConfigError, Mistake
from monitor.service.privacy import pseudonym
from monitor.service.windows import hourly, per_window, usual_window_us
from monitor.store.features import FeatureSchema

CALLER: Final = "principal"
ENVELOPE: Final = (CALLER, "model_version")  # columns beside the features that may divide a model's traffic
PSEUDONYM: Final = "h1-"  # how the names of callers begin that are no plain ones


def strata_of(name: str, model: ModelConfig, schema: FeatureSchema, rows: pa.Table | Streamed) -> Strata:
    """Segments and cells of a model in its reference's rows; none without a reference.

    Raises ConfigError for a feature that the reference lacks, and for a number without condition.
    """
    rows = Streamed.of(rows)
    if not rows.num_rows or not (model.segments or model.context):
        return Strata()
    segments: list[Segment | str] = [p.segment for p in found_parts(model, schema, rows)]
    for i, s in enumerate(model.named_segments):
        column = _column(f"models.{name}.segments.{i}", s.feature, schema)
        if s.name is not None:
            segments.append(Segment(s.name, column, s.values, s.at_least, s.below))
        elif s.feature in schema.numeric:
            text = f"models.{name}.segments.{i}: `{s.feature}` is a number; give a name and `at_least` or `below`"
            raise ConfigError([Mistake("configuration", None, text)])
        else:
            segments.append(column)
    context = [_column(f"models.{name}.context.{i}", f, schema) for i, f in enumerate(model.context)]
    return fit_strata(rows, segments, context, numeric=[f"feature:{n}" for n in schema.numeric])


def found_parts(model: ModelConfig, schema: FeatureSchema, rows: pa.Table | Streamed) -> tuple[Part, ...]:
    """The segments of `segments: auto` in a reference, and why these; () for a model that names its own, or none.

    A part needs the rows that a window must have in its usual windows, else it would never be judged. A context keeps
    all its cells: what a person asked for goes before what is found.
    """
    if model.segments != "auto":
        return ()
    room = MAX_PARTS // (MAX_CELLS + 1) - 1 if model.context else MAX_SEGMENTS
    rows, columns = Streamed.of(rows), (*ANSWERS, *(f"feature:{f}" for f in (*schema.numeric, *schema.categorical)))
    some = rows.sample(SAMPLE_ROWS, columns)
    return choose(some, schema.numeric, schema.categorical, room=room, least=least_share(rows))


def part_findings(model: ModelConfig, schema: FeatureSchema, rows: pa.Table | Streamed) -> Iterator[Finding]:
    """What `segments: auto` chose in a reference, a note for each column, or that it chose nothing."""
    rows = Streamed.of(rows)
    parts = found_parts(model, schema, rows)
    columns = sorted({p.segment.column for p in parts}, key=[p.segment.column for p in parts].index)
    for column in columns:
        mine = [p for p in parts if p.segment.column == column]
        words = ", ".join(f"{shown(p.segment.name, 60)} ({p.share:.0%} of rows)" for p in mine)
        tells = "" if mine[0].tells is None else f"; they tell {mine[0].tells:.1%} of the answers' variation"
        text = f"judged by themselves as segments: {words}{tells}"
        yield Finding("note", "segments", text, feature=column.removeprefix("feature:"))
    if model.segments == "auto" and rows.num_rows and not parts:
        least = max(MIN_PART_ROWS, math.ceil(least_share(rows) * rows.num_rows))
        text = f"segments: auto found none: no part has {least:,} rows and at most half of all"
        yield Finding("note", "no_segments", text, "name segments, or give more rows")


def least_share(rows: Streamed) -> float:
    """Share of the rows that a part needs to be judged in a usual window of the reference; 0 without times."""
    hours, wanted = hourly(rows), Marginals().min_rows
    if not len(hours):
        return 0.0
    n = per_window(hours, usual_window_us(hours, wanted))
    return wanted / float(np.median(n[n > 0]))


def _column(key: str, feature: str, schema: FeatureSchema) -> str:
    known = [*schema.numeric, *schema.categorical]
    if feature in known:
        return f"feature:{feature}"
    if feature in ENVELOPE:
        return feature
    near = get_close_matches(feature, [*known, *ENVELOPE], 1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    raise ConfigError([Mistake("configuration", None, f"{key}: the reference has no feature `{feature}`{hint}")])


def by_caller(model: ModelConfig, schema: FeatureSchema) -> bool:
    """Whether callers divide the model's traffic."""
    named = {*(s.feature for s in model.named_segments), *model.context}
    return CALLER in named and CALLER not in (*schema.numeric, *schema.categorical)


def stored_name(config: Config) -> Callable[[str], str]:
    """What the log calls a caller that a reference names: references hold plain names, or those of the log."""
    keyed = functools.cache(lambda: pseudonym(config))  # the key is read, or made, when a name is asked for
    return lambda name: name if name.startswith(PSEUDONYM) else keyed()(name)


def with_callers(rows: pa.Table, stored: Callable[[str], str]) -> pa.Table:
    """Rows whose callers, where they have that column, have their stored names."""
    if CALLER not in rows.column_names:
        return rows
    names = rows[CALLER].cast(pa.string()).combine_chunks()
    words = pc.unique(names).drop_null()
    renamed = pa.array([stored(n) for n in words.to_pylist()], pa.string())
    return rows.set_column(rows.column_names.index(CALLER), CALLER, renamed.take(pc.index_in(names, words)))
