"""Labels and other late verdicts: kept as rows, every revision, joined to their events when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from monitor.model import HOUR_US, stable_id
from monitor.store.engine import read
from monitor.store.features import as_category, as_number
from monitor.store.schema import feedback

PLACE: Final = ("source", "topic", "partition", "offset", "row_index")  # what an event_id is made of
TARGETS: Final = ("request_id", "client_request_id")
COLUMNS: Final = ("event_time", *TARGETS, *PLACE)
GIVEN: Final = ("labeler", "name", "value", "label_time_us")
DAY_US: Final = 24 * HOUR_US
LOOK_BACK_US: Final = 90 * DAY_US  # how old an event may be when its label comes
SEARCHED: Final = 500_000  # events whose ids are derived at most, some seconds: one wrong id must not hold up a tick
Events = Callable[[int, int, Sequence[str]], Iterable[pa.Table]]  # of a time: these columns
CHUNK: Final = 500  # ids per query; SQLite and PostgreSQL both like it
SCHEMA: Final = pa.schema(
    [
        ("request_id", pa.string()),
        ("row_index", pa.int32()),
        ("event_time", pa.int64()),
        ("name", pa.string()),
        ("value", pa.string()),  # texts as they are, booleans as "true" and "false", numbers in their shortest form
        ("value_number", pa.float64()),
        ("label_time_us", pa.int64()),
        ("labeler", pa.string()),
        ("kind", pa.string()),
    ]
)


def event_id(source: str, topic: str, partition: int, offset: int, row_index: int) -> str:
    """The id of an event: where its message stood, so a replay gives the same one."""
    return stable_id("event", source, topic, partition, offset, row_index)


def known(engine: sa.Engine, model: str, events: Iterable[pa.Table], start_us: int, as_of_us: int) -> pa.Table:
    """Verdicts on these events that were known at `as_of_us`: per event and name the newest label time wins.

    `events` has COLUMNS. A caller-chosen id that several events carry labels all of them; the row_index of a target, if
    it has one, must agree. `start_us` is where the events begin.
    """
    with read(engine) as conn:
        if conn.execute(sa.select(feedback.c.feedback_id).where(feedback.c.model == model).limit(1)).first() is None:
            return SCHEMA.empty_table()  # no event needs to be read
        by_event_id = _uses_event_ids(conn, model, start_us)
        found = [row for table in events for row in _of(conn, model, table, by_event_id, as_of_us)]
    return pa.Table.from_pylist(found, schema=SCHEMA)


def given(
    engine: sa.Engine, model: str, start_us: int, end_us: int, late_us: int | None, events: Events, columns: Sequence[str]
) -> pa.Table:  # fmt: skip
    """Ground truth that labelers gave in [start_us, end_us), each with `columns` of the event that it is about.

    A label is given at its label time, if it was received within `late_us` of it, else when it was received: its label time
    may lie in windows judged long ago, or never to be. None: label time is all that is known, as in a log that is its own clock.
    One row per event, name and labeler: the newest label time. Events are looked for up to LOOK_BACK_US back, by request_id,
    client_request_id and event_id; what is not found is left out.
    """
    c = feedback.c
    wanted = (c.model == model) & (c.kind == "truth") & _within(start_us, end_us, late_us)
    order = (c.label_us, c.received_us, c.feedback_id)
    with read(engine) as conn:
        rows = conn.execute(sa.select(feedback).where(wanted).order_by(*order)).all()
    newest = {(r.target_key, r.name, r.labeler): r for r in rows}
    told: dict[str, list[Any]] = {}
    for r in newest.values():
        told.setdefault(r.target_key, []).append(r)
    found: list[pa.Table] = []
    for table, places in _targets(told, start_us - LOOK_BACK_US, end_us, events, columns):
        indices = table["row_index"].to_pylist() if places else []
        hits = [(i, r) for i, key in places for r in told[key] if _of_row(r, indices[i])]
        if hits:
            found.append(_with_events(table, [i for i, _ in hits], [r for _, r in hits], columns))
    return pa.concat_tables(found, promote_options="default") if found else pa.table({k: [] for k in GIVEN})


def _within(start_us: int, end_us: int, late_us: int | None) -> sa.ColumnElement[bool]:
    """Whether a label is given in a time; every label is in one time only."""

    def in_it(column: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
        return (column >= start_us) & (column < end_us)

    c = feedback.c
    if late_us is None:
        return in_it(c.label_us)
    on_time = (c.received_us - c.label_us).between(-late_us, late_us)
    return (in_it(c.label_us) & on_time) | (in_it(c.received_us) & ~on_time)


def _targets(
    told: Collection[str], since_us: int, until_us: int, events: Events, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, list[tuple[int, str]]]]:
    """Events since then that labels are told about, and which ones by what key.

    An event_id names one event and has to be derived from each: days are searched from the last one back until all are found,
    or SEARCHED events have been.
    """
    for name in TARGETS:
        ids = pa.array([k.removeprefix(f"{name}=") for k in told if k.startswith(f"{name}=")], pa.string())
        for table in events(since_us, until_us, [name, "row_index", *columns]) if len(ids) else ():
            where = np.flatnonzero(pc.is_in(table[name], value_set=ids).to_numpy())
            keys = table[name].take(pa.array(where)).to_pylist()
            yield table, [(i, f"{name}={key}") for i, key in zip(where.tolist(), keys, strict=True)]
    missing, left = {k for k in told if k.startswith("event_id=")}, SEARCHED
    while missing and until_us > since_us and left > 0:
        for table in events(max(since_us, until_us - DAY_US), until_us, [*PLACE, *columns]):
            left -= table.num_rows
            each = zip(*(table[name].to_pylist() for name in PLACE), strict=True)
            places = [(i, key) for i, at in enumerate(each) if (key := f"event_id={event_id(*at)}") in missing]
            missing -= {key for _, key in places}
            yield table, places
        until_us -= DAY_US


def _of_row(row: Any, row_index: object) -> bool:
    wanted = row.target.get("row_index")
    return wanted is None or str(wanted) == str(row_index)


def _with_events(table: pa.Table, places: list[int], rows: list[Any], columns: Sequence[str]) -> pa.Table:
    said = {
        "labeler": pa.array([r.labeler for r in rows], pa.string()),
        "name": pa.array([r.name for r in rows], pa.string()),
        "value": pa.array([as_category(r.value, coded=True) for r in rows], pa.string()),
        "label_time_us": pa.array([r.label_us for r in rows], pa.int64()),
    }
    events = table.take(pa.array(places, pa.int64()))
    return pa.table(said | {c: events[c] for c in columns if c in events.column_names})


def _uses_event_ids(conn: sa.Connection, model: str, start_us: int) -> bool:
    c = feedback.c
    some = sa.select(c.feedback_id).where(
        c.model == model, c.label_us >= start_us, c.target_key.startswith("event_id=", autoescape=True)
    )
    return conn.execute(some.limit(1)).one_or_none() is not None


def _of(conn: sa.Connection, model: str, table: pa.Table, by_event_id: bool, as_of_us: int) -> list[dict[str, Any]]:
    columns = table.to_pydict()
    events: dict[str, list[int]] = {}
    for place in range(table.num_rows):
        for name in TARGETS:
            if (held := columns[name][place]) is not None:
                events.setdefault(f"{name}={held}", []).append(place)
        if by_event_id:
            where = (columns[name][place] for name in PLACE)
            events.setdefault(f"event_id={event_id(*where)}", []).append(place)
    newest: dict[tuple[int, str], Any] = {}
    for row in _rows(conn, model, list(events), as_of_us):
        wanted = row.target.get("row_index")
        for place in events[row.target_key]:
            if wanted is not None and str(wanted) != str(columns["row_index"][place]):
                continue
            known = newest.get((place, row.name))
            if known is None or (row.label_us, row.received_us) >= (known.label_us, known.received_us):
                newest[place, row.name] = row
    return [_label(columns, place, row) for (place, _), row in sorted(newest.items(), key=lambda item: item[0])]


def _rows(conn: sa.Connection, model: str, keys: Sequence[str], as_of_us: int) -> list[Any]:
    c = feedback.c
    known = (c.model == model) & (c.label_us <= as_of_us) & (c.received_us <= as_of_us)
    found: list[Any] = []
    for first in range(0, len(keys), CHUNK):
        some = sa.select(feedback).where(known, c.target_key.in_(keys[first : first + CHUNK]))
        found += conn.execute(some.order_by(c.feedback_id)).all()
    return found


def _label(columns: dict[str, list[Any]], place: int, row: Any) -> dict[str, Any]:
    return {
        "request_id": columns["request_id"][place],
        "row_index": columns["row_index"][place],
        "event_time": columns["event_time"][place],
        "name": row.name,
        "value": as_category(row.value, coded=True),
        "value_number": as_number(row.value),
        "label_time_us": row.label_us,
        "labeler": row.labeler,
        "kind": row.kind,
    }
