"""Marks as pipelines write them: one JSON object a message that says what explains a change.

The fields are those of POST /api/v1/marks; docs/decoders.md lists them. A mark is no event: it moves no clock, and what
it says is shown beside incidents, escaped.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

from collectors.base import Decoder, Record
from collectors.decode.cleaning import clean, load_json, time_us
from monitor.errors import DecodeError
from monitor.model import HOUR_US, MAINTENANCE, Mark

LONGEST_US: Final = 7 * 24 * HOUR_US  # of a maintenance: a typing error must not silence a model for a year
TEXTS: Final = {"text": 1000, "kind": 40, "model": 256, "by": 100}  # longest of each, characters


def marks(timezone: str | None = None, model: str | None = None) -> Decoder:
    """A decoder of marks. `timezone` is given to times that name none, `model` to marks that name no model.

    Without `start` it begins when the message was written; a maintenance needs an end, within seven days.

    >>> line = b'{"kind": "deploy", "text": "version 4", "model": "m", "by": "ci", "start": "2026-11-22T08:00:00Z"}'
    >>> (mark,) = marks()(Record("deploys", "t", 0, 0, None, line))
    >>> mark.kind, mark.text, mark.model, mark.actor, mark.end_us
    ('deploy', 'version 4', 'm', 'ci', None)
    """
    return partial(_decode, zone=ZoneInfo(timezone) if timezone else None, model=model)


def _decode(record: Record, zone: ZoneInfo | None, model: str | None) -> tuple[Mark, ...]:
    if record.value is None:
        return ()
    body = clean(load_json(record.value), set())
    if not isinstance(body, dict):
        raise DecodeError("bad_shape", "a message must be one JSON object")
    texts = {name: _text(body, name) for name in TEXTS}
    if texts["text"] is None:
        raise DecodeError("missing_field", "a mark needs text")
    kind = texts["kind"] or "deploy"
    start = body.get("start", record.timestamp_ms)
    if start is None:
        raise DecodeError("missing_field", "a mark needs a start, because its message has no time of its own")
    start_us = time_us(start, zone)
    end_us = None if body.get("end") is None else time_us(body["end"], zone)
    if end_us is not None and end_us <= start_us:
        raise DecodeError("bad_time", "it must end after it begins")
    if kind == MAINTENANCE and (end_us is None or end_us - start_us > LONGEST_US):
        raise DecodeError("bad_time", "maintenance needs an end, within seven days of its start")
    actor = texts["by"] or f"source {record.source}"
    return (Mark(texts["model"] or model, kind, start_us, end_us, texts["text"], actor),)


def _text(body: dict[str, Any], name: str) -> str | None:
    """A field of text, None when it is absent or empty."""
    value = body.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > TEXTS[name]:
        raise DecodeError("bad_shape", f"{name} must be text of at most {TEXTS[name]} characters")
    return value
