"""The `native` format: one JSON object a message or a line, for inference events and for feedback.

The common message takes one typed msgspec pass straight into an InferenceEvent. Whatever that pass refuses (unknown
keys, NaN, a byte order mark, integers beyond 2**53, feedback) is read again by the standard library and cleaned;
only what is wrong after that is refused, with its reason. docs/decoders.md lists the fields and the leniencies.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from collectors.base import Decoder, Part, Record
from collectors.decode.cleaning import EXACT_INT, MAX_TIME_US, MIN_TIME_US, clean, clean_tree, load_json, time_us
from monitor.errors import DecodeError
from monitor.model import FeedbackEvent, InferenceEvent, Scalar

_Exact = Annotated[float, Meta(ge=-EXACT_INT, le=EXACT_INT)]  # a JSON integer beyond this is an id, not a quantity
_Value = _Exact | str | bool | None
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Model = Annotated[str, Meta(min_length=1, max_length=256)]
_EpochMs = Annotated[int, Meta(ge=MIN_TIME_US // 1000, lt=MAX_TIME_US // 1000)]
_Zoned = Annotated[datetime, Meta(tz=True)]


class _Wire(InferenceEvent, kw_only=True, tag_field="kind", tag="inference", forbid_unknown_fields=True):
    """An InferenceEvent as it stands on the wire: the same fields, tighter types, and the time under its own name."""

    event_time_us: _Zoned | _EpochMs = msgspec.field(name="event_time")  # type: ignore[assignment]
    model: _Model
    features: dict[str, _Value] | None = None
    prediction: _Value = None
    http_status: _Count | None = None
    tokens_in: _Count | None = None
    tokens_out: _Count | None = None
    row_index: _Count = 0
    batch_size: _Count | None = None
    sampling_fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0


class _Mended(_Wire, kw_only=True, tag_field="kind", tag="inference"):
    """A _Wire after cleaning: what is still a number beyond 2**53 was written as a float and is one."""

    features: dict[str, Scalar] | None = None
    prediction: Scalar = None


_FIELDS: Final = frozenset(f.encode_name for f in msgspec.structs.fields(_Wire))
_NOT_NULL: Final = frozenset(
    f.encode_name for f in msgspec.structs.fields(_Wire) if f.default not in (msgspec.NODEFAULT, None)
) | {"quality", "extra"}
_FEEDBACK: Final = frozenset({"target", "name", "value", "label_time", "labeler", "model"})
_TARGETS: Final = frozenset({"request_id", "event_id", "client_request_id", "row_index"})
_decode_wire: Final = msgspec.json.Decoder(_Wire).decode


def native(timezone: str | None = None, model: str | None = None) -> Decoder:
    """A decoder of the native format.

    `timezone` is given to event times that name none (without it they are refused as bad_time); `model` to messages
    that name no model. When a key stands twice in one object, its last value counts.

    >>> decode = native()
    >>> line = b'{"event_time": "2026-11-22T08:00:00.5Z", "model": "m", "features": {"amount": 120.5}, "note": 1}'
    >>> (event,) = decode(Record("s", "t", 0, 0, None, line))
    >>> event.event_time_us, event.features, event.extra
    (1795334400500000, {'amount': 120.5}, {'note': 1})
    """
    return partial(_decode, lenient=partial(_lenient, zone=ZoneInfo(timezone) if timezone else None, model=model))


def _decode(record: Record, lenient: Callable[[bytes], tuple[Part, ...]]) -> tuple[Part, ...]:
    value = record.value
    if value is None:
        return ()
    try:
        event = _decode_wire(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return lenient(value)
    when: Any = event.event_time_us  # a datetime or epoch milliseconds, as the wire had it
    micros = when * 1000 if type(when) is int else int(when.timestamp() * 1e6 + 0.5)
    if not MIN_TIME_US <= micros < MAX_TIME_US:
        raise DecodeError("bad_time", "the time is outside 1973 to 2262")
    event.event_time_us = micros
    if event.features is None:
        _need_input(event)
    if event.params or event.messages_in or event.messages_out or event.extra:
        _clean_loose(event)
    event.__class__ = InferenceEvent  # type: ignore[assignment]  # same layout; nobody else need know the wire type
    return (event,)


def _need_input(event: InferenceEvent) -> None:
    if event.features is None and event.messages_in is None and event.embedding is None:
        raise DecodeError("missing_field", "one of features, messages_in and embedding is required")


def _clean_loose(event: InferenceEvent) -> None:
    """The fields whose inner shape is free can still nest too deeply or hold integers that no store takes."""
    flags: set[str] = set()
    for name in ("params", "messages_in", "messages_out", "extra"):
        if getattr(event, name):
            setattr(event, name, clean_tree(getattr(event, name), flags))
    event.quality = sorted({*event.quality, *flags})


def _lenient(value: bytes, zone: ZoneInfo | None, model: str | None) -> tuple[Part, ...]:
    flags: set[str] = set()
    body = clean(load_json(value), flags)
    if not isinstance(body, dict):
        raise DecodeError("bad_shape", "a message must be one JSON object")
    kind = body.pop("kind", "inference")
    if kind == "inference":
        return (_inference(body, flags, zone, model),)
    if kind == "feedback":
        return (_feedback(body, zone, model),)
    raise DecodeError("unknown_type", f"kind is {str(kind)[:64]!r}; inference and feedback are known")


def _inference(body: dict[str, Any], flags: set[str], zone: ZoneInfo | None, model: str | None) -> InferenceEvent:
    fields = {k: v for k, v in body.items() if k in _FIELDS and not (v is None and k in _NOT_NULL)}
    for name in ("scores", "embedding"):  # a vector with a hole is no vector
        vector = fields.get(name)
        if isinstance(vector, list) and None in vector:
            fields[name] = None
    when = time_us(fields.pop("event_time", None), zone)
    if fields.get("model") is None:
        fields.pop("model", None)
        fields |= {"model": model} if model is not None else {}
    try:
        event = msgspec.convert({**fields, "event_time": MIN_TIME_US // 1000}, _Mended)
    except msgspec.ValidationError as error:
        raise DecodeError("missing_field" if "missing required" in str(error) else "bad_shape", str(error)) from None
    event.event_time_us = when
    event.extra = {**event.extra, **{k: v for k, v in body.items() if k not in _FIELDS}}
    event.quality = sorted({*event.quality, *flags})
    _need_input(event)
    event.__class__ = InferenceEvent  # type: ignore[assignment]
    return event


def _feedback(body: dict[str, Any], zone: ZoneInfo | None, model: str | None) -> FeedbackEvent:
    """A label or verdict. Without a model of its own or of the source, it belongs to whichever its target names."""
    for name in ("target", "name", "label_time"):
        if body.get(name) is None:
            raise DecodeError("missing_field", f"feedback needs {name}")
    target = body["target"]
    if not isinstance(target, dict) or not target.keys() - {"row_index"} or target.keys() - _TARGETS:
        raise DecodeError("bad_shape", "target must hold request_id, event_id or client_request_id (and row_index)")
    when = time_us(body["label_time"], zone)
    fields = {k: v for k, v in body.items() if k in _FEEDBACK | {"kind"} and v is not None and k != "label_time"}
    fields["target"] = {k: str(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in target.items()}
    fields.setdefault("value", None)
    fields.setdefault("model", model or "")
    extra = {k: v for k, v in body.items() if k not in _FEEDBACK}
    try:
        return msgspec.convert({**fields, "label_time_us": when, "extra": extra}, FeedbackEvent)
    except msgspec.ValidationError as error:
        raise DecodeError("bad_shape", str(error)) from None
