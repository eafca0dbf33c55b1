"""What normal looks like, as an object: built, checked, frozen, proposed, approved by people; never moved by itself.

The configuration names a source (file, table, a time of the event log, `learn`); naming it is its owner's approval, two
persons approve for a model of tier 1. What was said last holds: a source that the configuration names anew, or a
version that people approve with `lanner reference`. Nothing under suspicion enters a reference that is built from the
log: no time in which an incident about the model was open, no caller whom an incident accuses, unless a person called
the incident false or benign.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from alerts.evidence import clean
from detectors.binned import floats, stands_for
from detectors.conformal import MIN_HISTORY
from detectors.profile import Bins, Profile, compare, merged
from detectors.reference import check
from detectors.season import Calendar
from detectors.streamed import Streamed
from monitor.config import Config, ModelConfig
from monitor.config.tree import Reference
from monitor.errors import StoreError, UsageError
from monitor.model import HOUR_US, SECOND_US, Alert, Family, InferenceEvent, Said, parse_time_us, rfc3339
from monitor.service.frozen import (
    empty,
    file_hash,
    fit_bins,
    read_columns,
    reference_events,
    rows_of,
    write_events,
    write_rows,
)
from monitor.service.parts import part_findings
from monitor.store import alertlog, people
from monitor.store import references as store
from monitor.store.columns import held
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.features import FeatureSchema
from monitor.store.queries import Engine
from monitor.store.references import Approval, ReferenceRow

NO_REFERENCE: Final = "none"  # reference hash of a model that has none yet
CONFIGURATION: Final = "configuration"
MOVED: Final = 5  # features that a version keeps of its comparison with the one before
MOVED_VALUES: Final = 5  # and values of each that came or went
MODEL_INCIDENTS: Final = ("model", "segment")  # subjects whose incidents taint a time; callers' taint the caller

log = structlog.get_logger("lanner.references")


@dataclass(frozen=True)
class Held:
    """The reference that a model is judged by now: its hash, its rows, whether they come from the event log, its copy."""

    hash: str
    rows: Streamed
    schema: FeatureSchema = field(default_factory=FeatureSchema)
    logged: bool = False
    file: Path | None = None


@dataclass(frozen=True)
class Suspicion:
    """What must not enter a reference of the event log: times, callers, and the incidents behind them."""

    times: Sequence[tuple[int, int]] = ()
    callers: frozenset[str] = frozenset()
    incidents: Sequence[str] = ()

    def clean(self, rows: pa.Table) -> pa.Table:
        """Rows that are under no suspicion.

        >>> rows = pa.table({"event_time": [1, 5, 9], "principal": ["a", "a", None]})
        >>> Suspicion([(4, 6)], frozenset({"b"})).clean(rows)["event_time"].to_pylist()
        [1, 9]
        """
        keep = pa.chunked_array([pa.repeat(True, rows.num_rows)])
        for start, end in self.times:
            inside = pc.and_(pc.greater_equal(rows["event_time"], start), pc.less(rows["event_time"], end))
            keep = pc.and_(keep, pc.invert(inside))
        if self.callers:
            accused = pc.is_in(rows["principal"], value_set=pa.array(sorted(self.callers), pa.string()))
            keep = pc.and_(keep, pc.invert(accused))
        return rows.filter(keep)


def needed(config: Config, model: str) -> int:
    """How many persons must approve a reference of this model."""
    return 2 if config.models[model].tier == 1 else 1


def settle(config: Config, engine: Engine, events: EventLog, table: ModelTable, folder: Path, now_us: int) -> Held:
    """The reference that stands, after taking in what the configuration names anew."""
    model, at = config.models[table.name], store.standing(engine, table.model_id)
    key = named(config, model)
    if key != at.named:
        if model.reference is None or model.reference.learn is not None:
            store.name(engine, table.model_id, key, keep=model.reference is not None)
        else:
            row = _take(config, engine, events, table, folder, model.reference, now_us)
            if row is not None:
                said = Approval(CONFIGURATION, now_us)
                wanted = needed(config, table.name)
                store.approve(engine, table.model_id, row.reference_hash, said, wanted, named=key)
        at = store.standing(engine, table.model_id)
    row = store.reference(engine, table.model_id, at.current)
    if row is None:
        return Held(NO_REFERENCE, Streamed.of(empty(table.schema)))
    return Held(
        row.reference_hash, frozen_rows(folder, row), row.schema, row.origin.startswith("log "), folder / row.path
    )


def frozen_rows(folder: Path, row: ReferenceRow) -> Streamed:
    """The rows of a reference as they were frozen. StoreError when the copy is gone or is not what was approved."""
    file = folder / row.path
    if not file.exists() or (row.sha256 is not None and file_hash(file) != row.sha256):
        what = "is not what was frozen" if file.exists() else "is gone"
        raise StoreError(f"the copy {file} of reference version {row.version} {what}: restore it from a backup")
    return rows_of(file)


def named(config: Config, model: ModelConfig) -> str:
    """A key of what a configuration names. A file is named by what it says; all else by the words of the configuration,
    since a table and a log go on growing while a reference stands still.
    """
    given = model.reference
    if given is None:
        return NO_REFERENCE
    if given.file is not None:
        return file_hash(config.path(given.file))
    words = "learn" if given.learn is not None else f"table {given.table} since {given.since} until {given.until}"
    return hashlib.sha256(words.encode()).hexdigest()


def _take(
    config: Config, engine: Engine, events: EventLog, table: ModelTable, folder: Path, given: Reference, now_us: int
) -> ReferenceRow | None:
    """Freeze what the configuration names; None while its time is not complete in the log."""
    if given.since is None:
        return build(config, engine, events, table, folder, given, now_us, CONFIGURATION)
    since_us = parse_time_us(given.since)
    seen_us = _seen_us(engine, events, table, config.clock)
    end_us = since_us + MIN_HISTORY * HOUR_US if given.until is None else parse_time_us(given.until)
    if seen_us is None or seen_us < end_us:
        log.info("reference_waits", model=table.name, until=rfc3339(end_us))
        return None
    until = rfc3339(seen_us) if given.until is None else given.until
    ranged = Reference(since=given.since, until=until)
    return build(config, engine, events, table, folder, ranged, now_us, CONFIGURATION)


def _seen_us(engine: Engine, events: EventLog, table: ModelTable, clock: str) -> int | None:
    """Up to when the log is complete: the watermark, or the newest event when the log is the clock."""
    watermark, newest = store.progress(engine, table.model_id)
    return newest if clock == "log" else watermark


def build(
    config: Config, engine: Engine, events: EventLog, table: ModelTable, folder: Path, given: Reference, now_us: int, by: str
) -> ReferenceRow:  # fmt: skip
    """Freeze rows as a new version, checked, neither proposed nor approved. UsageError when there are none to freeze."""
    own = folder / table.model_id
    own.mkdir(parents=True, exist_ok=True)
    partial = own / f"{os.getpid()}.partial"
    try:
        made = _write(config, engine, events, table, given, partial)
        digest = file_hash(config.path(given.file)) if given.file is not None else file_hash(partial)
        frozen = own / f"{digest}.parquet"
        if not frozen.exists():
            partial.rename(frozen)
    finally:
        partial.unlink(missing_ok=True)
    rows = rows_of(frozen)
    row = replace(
        made, reference_hash=digest, sha256=file_hash(frozen), path=str(frozen.relative_to(folder)), rows=rows.num_rows, created_us=now_us,
        span_us=_span(rows), findings=[f.to_json() for f in findings(config, table.name, rows, made.schema)],
    )  # fmt: skip
    return store.put(engine, table.model_id, replace(row, compared=_predecessor(engine, table, folder, row)), by)


def _predecessor(engine: Engine, table: ModelTable, folder: Path, row: ReferenceRow) -> dict[str, Any] | None:
    """What moved most from the version in use to these rows, for those who approve them; None without another one."""
    before = store.reference(engine, table.model_id, store.standing(engine, table.model_id).current)
    if before is None or before.reference_hash == row.reference_hash:
        return None
    try:
        found = compared(folder, before, row)
    except StoreError as e:  # its copy is lost: that must not keep a new one from being built
        log.warning("reference_not_compared", model=table.name, version=before.version, error=str(e))
        return None
    few = [
        {k: v[:MOVED_VALUES] if k in ("came", "went") else v for k, v in f.items()} for f in found["features"][:MOVED]
    ]
    told: dict[str, Any] = clean({**found, "features": few})
    return {k: v for k, v in told.items() if k != "new"}


def _write(
    config: Config, engine: Engine, events: EventLog, table: ModelTable, given: Reference, partial: Path
) -> ReferenceRow:
    """Write the rows of a source; what is known of the reference before it has a hash."""
    declared = {f: c.type for f, c in config.models[table.name].features.items() if c.type}
    excluded: dict[str, Any] | None = None
    if given.since is None:
        source = given.table if given.file is None else given.file
        assert source is not None
        path = config.path(source)
        schema = table.schema.plus(FeatureSchema.infer(reference_events(config, table.name, path), declared))
        rows = write_events(partial, reference_events(config, table.name, path), replace(table, schema=schema))
        origin = f"{'file' if given.file else 'table'} {source.name}"
    else:
        since_us, until_us = parse_time_us(given.since), parse_time_us(given.until or "")
        schema = table.schema.plus(FeatureSchema.infer(_unknown(events, table, since_us, until_us), declared))
        avoid = suspicion(engine, table.name, since_us, until_us)
        read = events.under(table.name, schema).read_window(table.model_id, since_us, until_us, read_columns(schema))
        seen = [0]
        rows = write_rows(partial, _kept(read, avoid, seen), schema)
        origin = f"log {rfc3339(since_us)} to {rfc3339(until_us)}"
        if avoid.incidents:
            excluded = {"rows": seen[0] - rows, "incidents": list(avoid.incidents), "callers": len(avoid.callers),
                        "times": [[rfc3339(a), rfc3339(b)] for a, b in avoid.times]}  # fmt: skip
    if rows == 0:
        raise UsageError(
            f"{origin}: there are no events of {table.name}" + (" but those under suspicion" if excluded else "")
        )
    return ReferenceRow("", 0, store.BUILT, "", rows, origin, 0, schema=schema, excluded=excluded)


def _kept(tables: Iterator[pa.Table], avoid: Suspicion, seen: list[int]) -> Iterator[pa.Table]:
    for rows in tables:
        seen[0] += rows.num_rows
        yield avoid.clean(rows)


def _unknown(events: EventLog, table: ModelTable, since_us: int, until_us: int) -> Iterator[InferenceEvent]:
    """Features that have no column yet, as events for the schema to be inferred from."""
    for rows in events.read_window(table.model_id, since_us, until_us, ["extra"]):
        for features in held(rows).values():
            yield InferenceEvent(event_time_us=0, model=table.name, features=dict(sorted(features.items())))


def _span(rows: Streamed) -> tuple[int, int] | None:
    ends = rows.span()
    return ends if ends[1] else None


def suspicion(engine: Engine, model: str, since_us: int, until_us: int) -> Suspicion:
    """What incidents of a time taint. One that a person called false or benign taints nothing."""
    found = [a for a in alertlog.alerts_between(engine, model, since_us, until_us) if a.family is not Family.MONITOR]
    acts = people.acts_of(engine, [a.alert_id for a in found])
    times, callers, incidents = [], set[str](), []
    for a in found:
        said = people.verdict(acts.get(a.alert_id, []))
        if said is not None and said.act.said in (Said.FALSE, Said.BENIGN_TRUE):
            continue
        if a.subject.kind in MODEL_INCIDENTS:
            times.append((_onset_us(a), until_us if a.cleared_us is None else a.cleared_us))
        elif a.subject.kind in ("principal", "cluster"):
            callers |= {a.subject.id, *(str(p) for p in a.evidence.get("principals") or ())}
        else:
            continue
        incidents.append(a.alert_id)
    return Suspicion(times, frozenset(callers), incidents)


def _onset_us(a: Alert) -> int:
    onset = a.evidence.get("onset")
    return min(a.opened_us, a.window_us[0], parse_time_us(onset) if isinstance(onset, str) else a.opened_us)


def findings(config: Config, model: str, rows: Streamed, schema: FeatureSchema) -> Sequence[Any]:
    """What these rows lack as a reference of this model."""
    name = config.models[model].calendar or (next(iter(config.calendars)) if len(config.calendars) == 1 else None)
    days = Calendar() if name is None else config.calendars[name]
    calendar = Calendar(days.timezone, tuple(days.weekend), tuple(days.holidays))
    found = check(rows, fit_bins(rows, schema), calendar)
    return [*found, *part_findings(config.models[model], schema, rows)]


def due(config: Config, engine: Engine, events: EventLog, table: ModelTable) -> Reference | None:
    """The time that `learn` has observed, once it is long enough and nobody has proposed anything since it was named."""
    given = config.models[table.name].reference
    if given is None or given.learn is None or store.standing(engine, table.model_id).current is not None:
        return None
    if any(r.state == store.PROPOSED for r in store.of_model(engine, table.model_id)):
        return None
    first_us, seen_us = events.first_us(table.model_id), _seen_us(engine, events, table, config.clock)
    if first_us is None or seen_us is None or seen_us - first_us < given.learn * SECOND_US:
        return None
    return Reference(since=rfc3339(seen_us - round(given.learn * SECOND_US)), until=rfc3339(seen_us))


def compared(folder: Path, old: ReferenceRow, new: ReferenceRow) -> dict[str, Any]:
    """What moved from one reference to another, by feature, on the bins of the old one; the most changed first."""
    before, after = frozen_rows(folder, old), frozen_rows(folder, new)
    bins = fit_bins(before, old.schema)
    a, b = (counted(bins, rows) for rows in (before, after))
    moved = sorted(compare(bins, a, b).items(), key=lambda kv: (-(kv[1]["js"] or 0.0), kv[0]))
    names = {*old.schema.numeric, *old.schema.categorical}, {*new.schema.numeric, *new.schema.categorical}
    return {
        "old": old.version, "new": new.version, "rows": [old.rows, new.rows],
        "features": [{"name": n, **d, **_centers(before, after, n)} for n, d in moved],
        "added": sorted(names[1] - names[0]), "removed": sorted(names[0] - names[1]),
    }  # fmt: skip


def counted(bins: Bins, rows: Streamed) -> Profile:
    """Counts of all rows."""
    return merged(map(bins.count, rows.tables(*bins.columns, "event_time", "sampling_fraction"))) or bins.empty()


def _centers(before: Streamed, after: Streamed, name: str) -> Mapping[str, Any]:
    """Means of a number over the events that the rows stand for, on both sides; categories that came and went."""
    column = f"feature:{name}"
    kinds = [t.schema.field(column).type for t in (next(r.tables(column)) for r in (before, after)) if t.num_columns]
    if len(kinds) < 2:
        return {}
    if all(map(pa.types.is_floating, kinds)):
        return {"mean": [_mean(r, column) for r in (before, after)]}
    x, y = (set(r.words(column)) for r in (before, after))
    return {"came": sorted(y - x)[:20], "went": sorted(x - y)[:20]}


def _mean(rows: Streamed, column: str) -> float | None:
    total, events = 0.0, 0.0
    for table in rows.tables(column, "sampling_fraction"):
        x, weight = floats(table, column), stands_for(table)
        known = np.isfinite(x)
        total, events = total + float(x[known] @ weight[known]), events + float(weight[known].sum())
    return total / events if events else None


def recount(
    events: EventLog, model_id: str, bins: Bins, columns: Sequence[str], bucket_us: int, span_us: tuple[int, int],
    upto: int | None = None,
) -> dict[int, Profile]:  # fmt: skip
    """Counts per bucket on these bins from the event log, in one streaming pass; with `upto` as of that batch.

    Holds one profile (some kilobytes) per bucket, never the rows.
    """
    found: dict[int, Profile] = {}
    for rows in events.read_window(model_id, *span_us, columns, upto=upto):
        order = pc.sort_indices(rows["event_time"])
        ordered = rows.take(order)
        buckets = ordered["event_time"].to_numpy() // bucket_us * bucket_us
        starts = [0, *((buckets[1:] != buckets[:-1]).nonzero()[0] + 1).tolist(), len(buckets)]
        for at, counted in zip(starts, bins.counts(ordered, starts), strict=False):
            start = int(buckets[at])
            both = merged(p for p in (found.get(start), counted) if p is not None)
            assert both is not None
            found[start] = both
    return found
