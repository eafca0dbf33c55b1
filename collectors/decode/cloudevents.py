"""CloudEvents 1.0 over Kafka and HTTP, binary and structured: attributes, and the bytes or value they describe.

Written here because real producers bend the standard in ways that the SDK refuses: `Ce-` names, missing or old
versions, unrelated headers that are not UTF-8. Where a header repeats, the first counts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collectors.base import Record
from collectors.decode.cleaning import any_json, text
from monitor.errors import DecodeError

STRUCTURED = "application/cloudevents"


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """Attributes by lower-case name without prefix, the data as JSON value, and how the data had to be mended."""

    attributes: Mapping[str, str]
    data: Any
    flags: set[str]


def cloud_event(record: Record) -> CloudEvent | None:
    """The event in a record; None for one without data. Raises DecodeError when it is no CloudEvent or no JSON."""
    if record.value is None:
        return None
    flags: set[str] = set()
    attributes: dict[str, str] = {}
    content_type = ""
    for raw, value in record.headers:
        name = raw.lower()
        if name.startswith(("ce_", "ce-")):
            attributes.setdefault(name[3:], value.decode("utf-8", "backslashreplace"))
        elif name == "content-type" and not content_type:
            content_type = value.decode("latin-1").strip().lower()
    structured = content_type.startswith(STRUCTURED) or "type" not in attributes
    if not structured:
        return CloudEvent(attributes, any_json(record.value, flags), flags)
    body = any_json(record.value, flags)
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise DecodeError("unknown_type", "neither ce_type header nor a structured CloudEvent")
    data = _data(body, flags)
    if data is None:
        return None
    found = {name.lower(): text(v) or "" for name, v in body.items() if isinstance(v, str | int) and name != "data"}
    return CloudEvent(found, data, flags)


def _data(body: dict[str, Any], flags: set[str]) -> Any:
    encoded = body.get("data_base64")
    if encoded is None:
        return body.get("data")
    try:
        return any_json(base64.b64decode(encoded, validate=True), flags)
    except (TypeError, ValueError, binascii.Error):
        raise DecodeError("bad_shape", "data_base64 is not base64") from None
