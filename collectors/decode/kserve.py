"""KServe's inference logger: CloudEvents by HTTP or through Knative to Kafka; request and response travel apart.

The two halves may arrive in any order, on any partition. The server logs no response to a request it refused, so a
request without response is an error signal, not a loss. A caller may choose the event's id: it pairs, it identifies
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from collectors.base import Decoder, Part, Record
from collectors.decode.cleaning import any_json, text, time_us
from collectors.decode.cloudevents import CloudEvent, cloud_event
from collectors.decode.tensors import Answered, answered, asked
from monitor.errors import ConfigError, DecodeError, Mistake
from monitor.model import Half, InferenceEvent

_TYPES: Final = {
    "org.kubeflow.serving.inference.request": "request",
    "org.kubeflow.serving.inference.response": "response",
}
_NO_VERSION: Final = frozenset({"", "default", "not available", "none"})
Rule = Callable[[CloudEvent], str | None]


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `decoders.kserve.SOURCE` may say.

    model_version and principal: `metadata:HEADER`, `annotation:NAME` or `const:VALUE`. features and classes: names for
    rows that come without. components: whose events count; a transformer logs the same request a second time.
    """

    model_version: str | None = None
    principal: str | None = None
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    components: tuple[str, ...] = ("predictor", "")


def kserve(options: Mapping[str, Any], model: str | None = None, principal_header: str | None = None) -> Decoder:
    """A decoder of KServe's logger; `principal_header` is short for the rule `metadata:HEADER`.

    >>> headers = [("ce_type", b"org.kubeflow.serving.inference.response"), ("ce_id", b"7"),
    ...            ("ce_inferenceservicename", b"iris"), ("ce_time", b"2021-04-10T01:22:16.5Z")]
    >>> (half,) = kserve({})(Record("s", "t", 0, 0, None, b'{"predictions": [1]}', headers))
    >>> half.side, half.event.model, half.event.prediction
    ('response', 'iris', 1.0)
    """
    try:
        settings = msgspec.convert(dict(options), Options)
    except msgspec.ValidationError as error:
        raise ConfigError([Mistake("decoders.kserve", None, str(error))]) from error
    principal = settings.principal or (f"metadata:{principal_header}" if principal_header else None)
    return partial(
        _decode,
        options=settings,
        model=model,
        version=_rule(settings.model_version),
        principal=_rule(principal),
    )


def _decode(record: Record, options: Options, model: str | None, version: Rule, principal: Rule) -> Sequence[Part]:
    event = cloud_event(record)
    if event is None:
        return ()
    side = _TYPES.get(event.attributes.get("type", ""))
    if side is None:
        raise DecodeError("unknown_type", f"CloudEvents type {event.attributes.get('type', '')[:100]!r} is not known")
    if event.attributes.get("component", "") not in options.components:
        return ()
    common = _common(event, record, model, version, principal, side)
    rows = _request(event.data, common, options) if side == "request" else _response(event.data, common, options)
    identity = event.attributes.get("id")
    if not identity:  # nothing to pair by
        flag = "missing_response" if side == "request" else "missing_request"
        return [msgspec.structs.replace(row, quality=sorted({*row.quality, flag, "generated_id"})) for row in rows]
    place = [event.attributes.get(name, "") for name in ("namespace", "inferenceservicename", "component")]
    key = "|".join([*place, identity])[:1024]
    return [Half(side=side, pair_key=key, event=row) for row in rows]


def _common(
    event: CloudEvent, record: Record, model: str | None, version: Rule, principal: Rule, side: str
) -> dict[str, Any]:
    """The fields that every row of this side shares."""
    name = event.attributes.get("inferenceservicename") or model
    if not name:
        raise DecodeError("missing_field", "the event names no inference service; set the source's model")
    stamp = event.attributes.get("time")
    logged = record.timestamp_ms if stamp is None else stamp
    number = version(event)
    return {
        "event_time_us": time_us(logged, None),
        "event_time_source": side if stamp is not None else "broker",
        "model": name,
        "model_version": None if number is None or number.lower() in _NO_VERSION else number,
        "request_id": event.attributes.get("id") or None,
        "principal": principal(event),
        "quality": sorted(event.flags),
    }


def _request(body: Any, common: Mapping[str, Any], options: Options) -> list[InferenceEvent]:
    rows = asked(body, options.features)
    n = len(rows)
    return [
        InferenceEvent(
            features=row.features, embedding=row.embedding, row_index=i, batch_size=n if n > 1 else None, **common
        )
        for i, row in enumerate(rows)
    ]


def _response(body: Any, common: Mapping[str, Any], options: Options) -> list[InferenceEvent]:
    if isinstance(body, dict) and "error" in body and not body.keys() & {"predictions", "outputs"}:
        return [InferenceEvent(status="error", **common)]
    rows: list[Answered] = answered(body)
    version = text(body.get("model_version")) if isinstance(body, dict) else None
    if version is not None and version.lower() not in _NO_VERSION and common["model_version"] is None:
        common = {**common, "model_version": version}
    return [
        InferenceEvent(
            prediction=row.prediction,
            scores=row.scores,
            class_names=list(options.classes) if row.scores and len(row.scores) == len(options.classes) else None,
            returned="scores" if row.scores else "label",
            row_index=i,
            extra={"outputs": row.rest} if row.rest else {},
            **common,
        )
        for i, row in enumerate(rows)
    ]


def _rule(spec: str | None) -> Rule:
    if spec is None:
        return lambda event: None
    kind, _, name = spec.partition(":")
    if kind == "const" and name:
        return lambda event: name
    if kind in ("metadata", "annotation") and name:
        attribute = "metadata" if kind == "metadata" else "annotations"
        return lambda event: _listed(event.attributes.get(attribute), name.lower())
    raise ConfigError(
        [Mistake("decoders.kserve", None, f"{spec!r} is no rule: metadata:HEADER, annotation:NAME or const:VALUE")]
    )


def _listed(attribute: str | None, name: str) -> str | None:
    """A value out of the JSON object of headers or annotations that KServe puts into an attribute."""
    if not attribute:
        return None
    try:
        found = any_json(attribute.encode("utf-8", "surrogatepass"), set())
    except DecodeError:
        return None
    if not isinstance(found, dict):
        return None
    for key, value in found.items():
        if str(key).lower() == name:
            first = value[0] if isinstance(value, list) and value else value
            return None if isinstance(first, list | dict | bool) else text(first)
    return None
