"""What pipelines may say of deploys and maintenance, and what is refused with which reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collectors.base import Record
from collectors.decode.marks import marks
from monitor.errors import DecodeError
from monitor.model import HOUR_US, Mark, parse_time_us

NOON = "2026-11-22T12:00:00Z"
NOON_US = parse_time_us(NOON)


def record(timestamp_ms: int | None = None, **fields: Any) -> Record:
    """A message with these fields."""
    return Record("deploys", "t", 0, 5, None, json.dumps(fields).encode(), (), timestamp_ms)


def test_a_short_mark_is_enough() -> None:
    """Text alone is a deploy of all models at the time of its message, told by its source."""
    (mark,) = marks()(record(NOON_US // 1000, text="version 4"))
    assert mark == Mark(None, "deploy", NOON_US, None, "version 4", "source deploys")


def test_a_full_mark_is_taken_as_it_is() -> None:
    """Every field, unknown ones ignored; the source's model and zone stand in for what is not said."""
    given = record(
        kind="batch", text="re-score", start="2026-11-22T15:00:00", end="2026-11-22T16:00:00", by="ci", job=7
    )
    (mark,) = marks("Asia/Qatar", "card-fraud")(given)
    assert mark == Mark("card-fraud", "batch", NOON_US, NOON_US + HOUR_US, "re-score", "ci")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start": NOON}, "missing_field"),
        ({"text": "", "start": NOON}, "missing_field"),
        ({"text": "x"}, "missing_field"),
        ({"text": ["x"], "start": NOON}, "bad_shape"),
        ({"text": "x" * 1001, "start": NOON}, "bad_shape"),
        ({"text": "x", "kind": 7, "start": NOON}, "bad_shape"),
        ({"text": "x", "start": "noon"}, "bad_time"),
        ({"text": "x", "start": "2026-11-22T12:00:00"}, "bad_time"),
        ({"text": "x", "start": NOON, "end": NOON}, "bad_time"),
        ({"text": "x", "kind": "maintenance", "start": NOON}, "bad_time"),
        ({"text": "x", "kind": "maintenance", "start": NOON, "end": "2026-11-30T12:00:00Z"}, "bad_time"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], reason: str) -> None:
    """No text, no time, no end of a maintenance or one beyond a week: a dead letter that says why."""
    with pytest.raises(DecodeError) as raised:
        marks()(record(**fields))
    assert raised.value.reason == reason
