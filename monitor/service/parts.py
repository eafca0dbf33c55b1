"""The parts of a model's traffic that its configuration names, found in its reference: segments and context."""

from __future__ import annotations

import functools
from collections.abc import Callable
from difflib import get_close_matches
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from detectors.strata import Segment, Strata, fit_strata
from monitor.config import Config, ModelConfig
from monitor.errors import ConfigError, Mistake
from monitor.service.privacy import pseudonym
from monitor.store.features import FeatureSchema

CALLER: Final = "principal"
ENVELOPE: Final = (CALLER, "model_version")  # columns beside the features that may divide a model's traffic
PSEUDONYM: Final = "h1-"  # how the names of callers begin that are no plain ones


def strata_of(name: str, model: ModelConfig, schema: FeatureSchema, rows: pa.Table) -> Strata:
    """Segments and cells of a model in its reference's rows; none without a reference.

    Raises ConfigError for a feature that the reference lacks, and for a number without condition.
    """
    if not rows.num_rows or not (model.segments or model.context):
        return Strata()
    segments: list[Segment | str] = []
    for i, s in enumerate(model.segments):
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
    named = {*(s.feature for s in model.segments), *model.context}
    return CALLER in named and CALLER not in (*schema.numeric, *schema.categorical)


def stored_name(config: Config) -> Callable[[str], str]:
    """What the log calls a caller that a reference names: references hold plain names, or those of the log."""
    keyed = functools.cache(lambda: pseudonym(config))  # the key is read, or made, when a name is asked for
    return lambda name: name if name.startswith(PSEUDONYM) else keyed()(name)


def with_callers(rows: pa.Table, stored: Callable[[str], str]) -> pa.Table:
    """Rows whose callers have their stored names."""
    names = rows[CALLER].cast(pa.string()).combine_chunks()
    words = pc.unique(names).drop_null()
    renamed = pa.array([stored(n) for n in words.to_pylist()], pa.string())
    return rows.set_column(rows.column_names.index(CALLER), CALLER, renamed.take(pc.index_in(names, words)))
