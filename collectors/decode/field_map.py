"""House formats: a map from the fields of an event to where they stand in a JSON message.

A place is a JSON Pointer (RFC 6901) such as `/meta/ts`, `header:NAME`, `key`, `timestamp` (the broker's), `topic:REGEX`
(its first group) or `const:VALUE`; an object `{from: PLACE, ...}` adds what a field needs. Only mapped fields are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from collectors.base import Decoder, Part, Record
from collectors.decode.cleaning import any_json, leaf, leaves, numbers, text, time_us
from collectors.framing import header
from monitor.config import FieldMap
from monitor.errors import ConfigError, DecodeError, Mistake
from monitor.model import FeedbackEvent, InferenceEvent, Scalar

Place = Callable[[Any, Record], Any]
_UNITS_US: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_STATUSES: Final = frozenset({"ok", "error", "rejected", "timeout", "unanswered", "unknown"})
_NAMES: Final = (
    "request_id", "client_request_id", "model_version", "principal", "credential_id", "source_ip", "session_id",
)  # fmt: skip


def field_map(mapping: FieldMap, timezone: str | None = None) -> Decoder:
    """A decoder for one house format. Raises ConfigError for a place it does not understand.

    >>> decode = field_map(FieldMap(model="const:fraud", event_time={"from": "/ts", "unit": "s"}, features="/in"))
    >>> (event,) = decode(Record("s", "t", 0, 0, None, b'{"ts": 1700000000, "in": {"amount": 3, "device": {"os": "x"}}}'))
    >>> event.event_time_us, event.features
    (1700000000000000, {'amount': 3.0, 'device.os': 'x'})
    """
    compiled = _compile(mapping, ZoneInfo(timezone) if timezone else None)

    def decode(record: Record) -> Sequence[Part]:
        return () if record.value is None else _decode(compiled, record)

    return decode


@dataclass(frozen=True, slots=True)
class _Map:
    """A compiled FieldMap: places as functions."""

    model: Place
    time: Callable[[Any, Record], int]
    names: Mapping[str, Place]
    features: Place | None
    columns: Place | None  # of split frames: names apart from rows
    fields: Mapping[str, Place]
    prediction: Place | None
    scores: Place | None
    class_names: Place | None
    returned: str | None
    latency: Place | None
    latency_ms: float
    fraction: Place | None
    status: Place | None
    statuses: Mapping[str, str]
    feedback: Mapping[str, Place] | None
    feedback_name: str


def _compile(m: FieldMap, zone: ZoneInfo | None) -> _Map:
    time, when = _detail(m.event_time)
    unit_us = _unit(when.get("unit", "ms"))
    moment = _place(time)
    features, frame = _detail(m.features) if m.features is not None else (None, {})
    scores, scored = _detail(m.scores) if m.scores is not None else (None, {})
    latency, lasted = _detail(m.latency_ms) if m.latency_ms is not None else (None, {})
    status, meant = _detail(m.status) if m.status is not None else (None, {})
    classes = m.class_names if m.class_names is not None else scored.get("classes")
    return _Map(
        model=_place(m.model),
        time=lambda body, record: time_us(_plain(moment(body, record)), zone, unit_us),
        names={name: _place(spec) for name in _NAMES if (spec := getattr(m, name)) is not None},
        features=_place(frame["values"]) if "values" in frame else _place(features) if features is not None else None,
        columns=_listed(frame["names"]) if "names" in frame else None,
        fields={name: _place(spec) for name, spec in frame.get("fields", {}).items()},
        prediction=None if m.prediction is None else _place(m.prediction),
        scores=None if scores is None else _place(scores),
        class_names=None if classes is None else _listed(classes),
        returned=m.returned,
        latency=None if latency is None else _place(latency),
        latency_ms=_unit(lasted.get("unit", "ms")) / 1000,
        fraction=None if m.sampling_fraction is None else _place(m.sampling_fraction),
        status=None if status is None else _place(status),
        statuses={str(k): str(v) for k, v in meant.get("map", {}).items()},
        feedback=_feedback_places(m) if m.feedback is not None else None,
        feedback_name=str((m.feedback or {}).get("name", "label")),
    )


def _feedback_places(m: FieldMap) -> dict[str, Place]:
    given = dict(m.feedback or {})
    for key in given.keys() - {"when", "name", "value", "time", "labeler", "request_id"}:
        raise _wrong(f"feedback.{key} is not known")
    if "value" not in given or (m.request_id is None and "request_id" not in given):
        raise _wrong("feedback needs value, and request_id here or in the map")
    given.setdefault("when", given["value"])
    given.setdefault("request_id", m.request_id)
    return {key: _place(spec) for key, spec in given.items() if key != "name"}


def _detail(spec: str | Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """A place and what its object form says besides."""
    if isinstance(spec, str):
        return spec, {}
    known = {"from", "unit", "privacy", "classes", "map", "names", "values", "fields"}
    for key in spec.keys() - known:
        raise _wrong(f"{key} is not known; an object may hold {', '.join(sorted(known))}")
    return spec.get("from"), spec


def _place(spec: Any) -> Place:
    if isinstance(spec, Mapping):
        spec = spec.get("from")
    if not isinstance(spec, str):
        raise _wrong(f"{spec!r} is not a place")
    if spec == "" or spec.startswith("/"):
        steps = [step.replace("~1", "/").replace("~0", "~") for step in spec.split("/")[1:]]
        return lambda body, record: _walk(body, steps)
    if spec == "key":
        return lambda body, record: _text(record.key)
    if spec == "timestamp":
        return lambda body, record: record.timestamp_ms
    kind, colon, rest = spec.partition(":")
    if colon and kind == "header":
        return lambda body, record: _text(header(record, rest.lower()))
    if colon and kind == "const":
        return lambda body, record: rest
    if colon and kind == "topic":
        try:
            pattern = re.compile(rest)
        except re.error as error:
            raise _wrong(f"topic:{rest}: {error}") from None
        return lambda body, record: (m[1] if m.re.groups else m[0]) if (m := pattern.search(record.topic)) else None
    raise _wrong(
        f"{spec!r} is not a place: write /json/pointer, header:NAME, key, timestamp, topic:REGEX or const:VALUE"
    )


def _listed(spec: Any) -> Place:
    """A place, or the list itself."""
    if isinstance(spec, list | tuple):
        names = [str(name) for name in spec]
        return lambda body, record: names
    return _place(spec)


def _wrong(message: str) -> ConfigError:
    return ConfigError([Mistake("decoders.field_map", None, message)])


def _unit(name: object) -> float:
    if name not in _UNITS_US:
        raise _wrong(f"unit {name!r} is not known; units are {', '.join(_UNITS_US)}")
    return _UNITS_US[str(name)]


def _walk(body: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        if isinstance(body, dict):
            body = body.get(step)
        elif isinstance(body, list) and step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(body):
            body = body[int(step)]
        else:
            return None
    return body


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    """A time that stands in text as a bare number, as headers and const have it."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d{1,20}(\.\d+)?", value, re.ASCII) else value


def _decode(m: _Map, record: Record) -> Sequence[Part]:
    flags: set[str] = set()
    body = any_json(record.value or b"", flags)
    parts: list[Part] = []
    if m.feedback is not None and m.feedback["when"](body, record) is not None:
        parts.append(_feedback(m, m.feedback, body, record))
    rows = _rows(m, body, record)
    if rows is None:
        if parts:
            return parts
        raise DecodeError("missing_field", "the message holds no features")
    return parts + list(_events(m, rows, body, record, flags))


def _rows(m: _Map, body: Any, record: Record) -> list[dict[str, Scalar]] | None:
    """The features of each row; None when the message has none at all."""
    if m.fields:
        row = {name: leaf(place(body, record)) for name, place in m.fields.items()}
        return None if all(v is None for v in row.values()) else [row]
    found = m.features(body, record) if m.features is not None else None
    if found is None:
        return None
    if m.columns is not None:
        names = m.columns(body, record)
        if not isinstance(names, list) or not isinstance(found, list):
            raise DecodeError("bad_shape", "names and values of a frame must be lists")
        lines = found if found and all(isinstance(line, list) for line in found) else [found]
        if any(len(line) != len(names) for line in lines):
            raise DecodeError("bad_shape", "a row has not as many values as there are names")
        return [{str(name): leaf(value) for name, value in zip(names, line, strict=True)} for line in lines]
    if isinstance(found, list) and found and all(isinstance(line, dict) for line in found):
        return [_flat(line) for line in found]
    if not isinstance(found, dict):
        raise DecodeError("bad_shape", f"features are {type(found).__name__}; without names they must be an object")
    return [_flat(found)]


def _flat(tree: dict[str, Any]) -> dict[str, Scalar]:
    out: dict[str, Scalar] = {}
    leaves("", tree, out)
    return out


def _events(m: _Map, rows: Sequence[dict[str, Scalar]], body: Any, record: Record, flags: set[str]) -> Sequence[Part]:
    model = text(m.model(body, record))
    if model is None:
        raise DecodeError("missing_field", "the message names no model")
    common: dict[str, Any] = {name: text(place(body, record)) for name, place in m.names.items()}
    common["latency_ms"] = _number(m.latency(body, record), m.latency_ms) if m.latency is not None else None
    if m.fraction is not None:
        common["sampling_fraction"] = _fraction(m.fraction(body, record))
    if m.status is not None:
        common |= _status(m.status(body, record), m.statuses)
    when, n = m.time(body, record), len(rows)
    prediction = m.prediction(body, record) if m.prediction is not None else None
    scores = m.scores(body, record) if m.scores is not None else None
    classes = m.class_names(body, record) if m.class_names is not None else None
    out = []
    for index, row in enumerate(rows):
        label, vector, names = _row(prediction, index, n), _row_scores(scores, index, n), classes
        if isinstance(vector, dict):
            names, vector = list(vector), list(vector.values())
        out.append(
            InferenceEvent(
                event_time_us=when, model=model, features=row, row_index=index, batch_size=n if n > 1 else None,
                prediction=leaf(label), scores=numbers(vector), returned=m.returned, quality=sorted(flags),
                class_names=[str(name) for name in names] if isinstance(names, list) else None, **common,
            )
        )  # fmt: skip
    return out


def _row(value: Any, index: int, n: int) -> Any:
    """One row's share: a batch answers with a list as long as itself, a single row plainly or in a list of one."""
    if isinstance(value, list):
        if len(value) != n:
            raise DecodeError("bad_shape", f"{len(value)} answers to {n} rows")
        return value[index]
    return value


def _row_scores(value: Any, index: int, n: int) -> Any:
    if isinstance(value, list) and (n > 1 or (value and isinstance(value[0], list))):
        return _row(value, index, n)
    return value


def _number(value: Any, factor: float) -> float | None:
    number = leaf(_plain(value))
    return number * factor if isinstance(number, float) else None


def _fraction(value: Any) -> float:
    """The part of the traffic that was logged; a message without one stands for itself."""
    if value is None:
        return 1.0
    fraction = _number(value, 1.0)
    if fraction is None or not 0 < fraction <= 1:
        raise DecodeError("bad_shape", f"sampling_fraction is {value!r:.40}; it must be above 0 and at most 1")
    return fraction


def _status(value: Any, statuses: Mapping[str, str]) -> dict[str, Any]:
    """A status by the map, by its own name, or from an HTTP code."""
    if value is None:
        return {}
    name = statuses.get(str(value), value)
    if isinstance(name, str) and name in _STATUSES:
        return {"status": name}
    code = int(_plain(str(name))) if re.fullmatch(r"[1-5]\d\d", str(name), re.ASCII) else None
    if code is None:
        return {"status": "unknown"}
    return {"http_status": code, "status": "ok" if code < 400 else "rejected" if code in (401, 403, 429) else "error"}


def _feedback(m: _Map, places: Mapping[str, Place], body: Any, record: Record) -> FeedbackEvent:
    request_id = text(places["request_id"](body, record))
    if request_id is None:
        raise DecodeError("missing_field", "feedback names no request")
    moment = places["time"](body, record) if "time" in places else None
    return FeedbackEvent(
        model=text(m.model(body, record)) or "",
        target={"request_id": request_id},
        name=m.feedback_name,
        value=leaf(places["value"](body, record)),
        label_time_us=m.time(body, record) if moment is None else time_us(_plain(moment), None),
        labeler=text(places["labeler"](body, record)) if "labeler" in places else None,
    )
