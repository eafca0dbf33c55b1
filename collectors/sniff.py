"""What format a source speaks, guessed from samples: one of the decoders as it is, or a field map for a house format.

Names propose, values decide: a place is taken for a field only where its name says so (in the order of NAMES, however it
is written) and its values could be that. What decides at the end is the decoder itself, run over all samples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

import yaml

from collectors.base import Decoder, Part, Record
from collectors.decode.cleaning import any_json, time_us
from collectors.decode.field_map import field_map
from collectors.decode.kserve import kserve
from collectors.decode.native import native
from collectors.framing import framed
from monitor.config import FieldMap
from monitor.config.checks import nameable
from monitor.errors import DecodeError
from monitor.model import Half, InferenceEvent, parse_time_us

ENOUGH: Final = 0.95  # share of the samples that a decoder, or a place, must fit
MAX_DEPTH: Final = 6
LONG_TEXT: Final = 100  # characters: more is prose, which nobody should put among features by accident
MAX_BYTES: Final = 1 << 20
MODELS: Final = 20
VARIABLE: Final = "${"  # begins a variable in a configuration: a log must not have its reader's environment read
UNITS_US: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
PLAUSIBLE_US: Final = (parse_time_us("2000-01-01T00:00:00Z"), parse_time_us("2100-01-01T00:00:00Z"))
# Names that a field goes by, the likeliest first, without case and signs.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "event_time": ("eventtime", "timestamp", "ts", "time", "datetime", "createdat", "created", "occurredat", "date", "at"),
    "model": ("model", "modelname", "modelid", "endpoint", "endpointname", "deployment", "service"),
    "principal": (
        "principal", "clientid", "client", "caller", "callerid", "userid", "user", "username", "customerid", "customer",
        "consumer", "consumerid", "subject", "sub", "accountid", "account", "xclientid", "xclient", "xuserid",
    ),
    "request_id": ("requestid", "inferenceid", "predictionid", "eventid", "transactionid", "correlationid", "traceid", "id", "uuid"),
    "model_version": ("modelversion", "version", "modelrevision", "revision"),
    "credential_id": ("credentialid", "apikeyid", "keyid"),
    "source_ip": ("sourceip", "clientip", "remoteaddr", "remoteip", "ip"),
    "session_id": ("sessionid", "session", "conversationid"),
    "latency_ms": ("latencyms", "durationms", "tookms", "responsetimems", "elapsedms"),
    "scores": ("scores", "probabilities", "probs", "proba", "predictproba", "probability", "score", "confidence"),
    "class_names": ("classnames", "classes"),
    "prediction": ("prediction", "predicted", "predictedlabel", "predictedclass", "decision", "label", "class", "result",
                   "outcome", "ypred", "output", "score", "probability"),
    "features": ("features", "inputs", "input", "instance", "data", "payload", "attributes", "record", "request"),
}  # fmt: skip


@dataclass(frozen=True)
class Sniffed:
    """decoder: its name; mapping: of a field map; timezone: assumed for times that name none; models: by how often they were
    named; decoded of messages, reasons: why the others were not.
    """

    decoder: str
    mapping: Mapping[str, Any]
    timezone: str | None
    models: Counter[str]
    messages: int
    decoded: int
    reasons: Counter[str]

    @property
    def good(self) -> bool:
        """Whether hardly any message is left over."""
        return self.messages > 0 and self.decoded >= ENOUGH * self.messages

    @property
    def named(self) -> Sequence[str]:
        """The models to configure: the commonest, at most MODELS, of names that a configuration takes."""
        return [m for m, _ in self.models.most_common() if nameable(m) and VARIABLE not in m][:MODELS]


def sniff(samples: Sequence[Record], model: str | None = None) -> Sniffed:
    """The decoder that fits the samples best; `model` for messages that name none.

    >>> line = b'{"when": 3, "ts": "2026-11-22T08:00:00Z", "model_name": "fraud", "in": {"amount": 3.5, "country": "QA"}}'
    >>> found = sniff([Record("s", "t", 0, i, None, line) for i in range(9)])
    >>> found.decoder, found.mapping["event_time"], found.mapping["features"], found.models
    ('field_map', '/ts', '/in', Counter({'fraud': 9}))
    """
    tried = [_tried("native", {}, None, native(model=model), samples)]
    tried.append(_tried("kserve", {}, None, kserve({}, model=model), samples))
    if not any(t.good for t in tried):
        mapping, timezone = _mapped(samples, model)
        if {"event_time", "model"} <= mapping.keys():
            decode = field_map(FieldMap.model_validate(mapping), timezone)
            tried.append(_tried("field_map", mapping, timezone, decode, samples))
    return max(tried, key=lambda t: t.decoded)


def _tried(
    name: str, mapping: Mapping[str, Any], timezone: str | None, decoder: Decoder, samples: Sequence[Record]
) -> Sniffed:
    decode = framed(decoder, MAX_BYTES)
    models: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    decoded = 0
    for record in samples:
        try:
            parts = decode(record)
        except DecodeError as error:
            reasons[error.reason] += 1
            continue
        decoded += 1
        models.update(event.model for event in _events(parts) if event.model)
    return Sniffed(name, mapping, timezone, models, len(samples), decoded, reasons)


def _events(parts: Sequence[Part]) -> Iterable[InferenceEvent]:
    for part in parts:
        event = part.event if isinstance(part, Half) else part
        if isinstance(event, InferenceEvent):
            yield event


def _mapped(samples: Sequence[Record], model: str | None) -> tuple[dict[str, Any], str | None]:
    """A field map, and the time zone to assume."""
    bodies = [body for record in samples if isinstance(body := _body(record), dict)]
    places = _places(bodies)
    taken: dict[str, str] = {}
    mapping: dict[str, Any] = {}
    timezone = None
    for pointer in _named("event_time", places, taken):
        read = _time(places[pointer])
        if read is not None:
            spec, timezone = read
            mapping["event_time"], taken[pointer] = ({"from": pointer, **spec} if spec else pointer), "event_time"
            break
    else:
        if samples and all(r.timestamp_ms for r in samples):
            mapping["event_time"] = "timestamp"
    for field, fits in _FITS.items():
        found = next((p for p in _named(field, places, taken) if fits(places[p])), None)
        if found is not None:
            mapping[field], taken[found] = found, field
    if model is not None:
        mapping["model"] = f"const:{model}"
    mapping |= _headers(samples, mapping)
    features = _features(bodies, places, taken)
    return mapping | ({"features": features} if features else {}), timezone


def _body(record: Record) -> Any:
    try:
        return any_json(record.value or b"", set())
    except DecodeError:
        return None


def _places(bodies: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values at every JSON Pointer that leads through objects to something else, the commonest first."""
    out: dict[str, list[Any]] = {}

    def walk(value: Any, pointer: str, depth: int) -> None:
        if isinstance(value, dict) and depth < MAX_DEPTH:
            for key, inner in value.items():
                walk(inner, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", depth + 1)
        elif value is not None:
            out.setdefault(pointer, []).append(value)

    for body in bodies:
        walk(body, "", 0)
    few = len(bodies) * (1 - ENOUGH)
    common = {p: v for p, v in out.items() if len(v) > few and VARIABLE not in p}
    return dict(sorted(common.items(), key=lambda item: (-len(item[1]), item[0])))


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _named(field: str, places: Mapping[str, Any], taken: Mapping[str, str]) -> list[str]:
    """Places whose names say this field, alone or with the object they are in, the likeliest name first, then the shallowest."""
    order = {name: rank for rank, name in enumerate(NAMES[field])}
    ranks: dict[str, int] = {}
    for place in places:
        *_, above, name = ["", *place.split("/")]
        found = [order[n] for n in (_bare(name), _bare(above + name)) if n in order]
        if found and place not in taken:
            ranks[place] = min(found)
    return sorted(ranks, key=lambda p: (ranks[p], p.count("/")))


def _time(values: Sequence[Any]) -> tuple[dict[str, str], str | None] | None:
    """What a field map must say besides the place, and the zone to assume; None when the values are no times."""
    zones: tuple[str | None, ...] = (None, "UTC")
    for unit in ("ms", "s", "us", "ns"):  # the first is the one of a field map that names none
        for zone in zones:
            good = sum(_plausible(v, unit, zone) for v in values)
            if good >= ENOUGH * len(values):
                return ({} if unit == "ms" else {"unit": unit}), zone
    return None


def _plausible(value: Any, unit: str, zone: str | None) -> bool:
    try:
        moment = time_us(value, ZoneInfo(zone) if zone else None, UNITS_US[unit])
    except DecodeError:
        return False
    return PLAUSIBLE_US[0] <= moment < PLAUSIBLE_US[1]


def _texts(values: Sequence[Any]) -> bool:
    return all(isinstance(v, str | int) and not isinstance(v, bool) for v in values)


def _few(values: Sequence[Any]) -> bool:
    return all(isinstance(v, str) and v for v in values) and len(set(values)) <= max(1, len(values) // 2)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(value: Any) -> bool:
    """A plain value of a feature, no list and no prose."""
    return len(value) <= LONG_TEXT if isinstance(value, str) else not isinstance(value, list | dict)


def _scores(values: Sequence[Any]) -> bool:
    return all(isinstance(v, list) and v and all(map(_number, v)) for v in values)


_FITS: Final[Mapping[str, Callable[[Sequence[Any]], bool]]] = {
    "model": _few,
    "principal": _texts,
    "request_id": lambda values: _texts(values) and len(set(values)) >= ENOUGH * len(values),
    "model_version": _texts,
    "credential_id": _texts,
    "source_ip": _texts,
    "session_id": _texts,
    "latency_ms": lambda values: all(map(_number, values)),
    "scores": _scores,
    "class_names": lambda values: all(isinstance(v, list) and all(isinstance(n, str) for n in v) for v in values),
    "prediction": lambda values: all(isinstance(v, str | bool) or _number(v) for v in values),
}


def _headers(samples: Sequence[Record], mapping: Mapping[str, Any]) -> dict[str, str]:
    """Who calls may stand in a header of the message."""
    if "principal" in mapping:
        return {}
    names = Counter(name for record in samples for name, _ in record.headers)
    for name, n in names.most_common():
        if VARIABLE not in name and _bare(name) in NAMES["principal"] and n >= ENOUGH * len(samples):
            return {"principal": f"header:{name}"}
    return {}


def _features(bodies: Sequence[Any], places: Mapping[str, Any], taken: Mapping[str, str]) -> Any:
    """The object that holds most of what is left; where that is the message itself, each of its plain values."""
    left = [p for p in places if p not in taken]
    objects: Counter[str] = Counter(p.rpartition("/")[0] for p in left)
    named = [p for p in _named("features", objects, taken) if p]
    inner = [p for p in named if not any(t.startswith(f"{p}/") for t in taken)]
    if inner:
        return inner[0]
    free = [p for p in objects if p and not any(t.startswith(f"{p}/") for t in taken)]
    best = max(free, key=lambda p: (objects[p], -p.count("/")), default=None)
    if best is not None and objects[best] > objects[""]:
        return best
    said = {name for field, names in NAMES.items() if field != "features" for name in names}
    plain = [p for p in left if _bare(p.rpartition("/")[2]) not in said and all(map(_value, places[p]))]
    return {"fields": {p[1:].replace("/", "."): p for p in plain}} if plain else None


def as_yaml(found: Sniffed, source: Mapping[str, Any], name: str) -> str:
    """A whole configuration. What came from the log stays text, escaped where it is not ASCII."""
    zone = {} if found.timezone is None else {"timezone": found.timezone}
    whole: dict[str, Any] = {
        "models": {model: {"reference": {"learn": "14d"}, "segments": "auto"} for model in found.named},
        "sources": {name: {**source, "decoder": found.decoder, **zone}},
    }
    if found.mapping:
        whole["decoders"] = {"field_map": {name: dict(found.mapping)}}
    said = f"# By lanner connect: {found.decoded} of {found.messages} messages decode. Names led to these guesses; look them over.\n"
    if len(found.models) > len(found.named):
        said += f"# {len(found.models) - len(found.named)} more names of models are left out: too many, or no names to configure.\n"
    said += "# segments: auto: parts of the traffic found in the reference are judged for drift by themselves, under the same budget.\n"
    if zone:
        said += f"# The times name no zone: {found.timezone} is assumed.\n"
    return said + yaml.safe_dump(whole, sort_keys=False, width=1000)
