"""Rows in the bodies of model servers: V1 (`instances`, `predictions`) and the Open Inference Protocol, V2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from collectors.decode.cleaning import leaf, leaves, text
from monitor.errors import DecodeError
from monitor.model import Scalar

WIDE: Final = 1024  # a row of more numbers is an image or an embedding, not a set of features
_MAX_ROWS: Final = 100_000
_SCORES: Final = ("prob", "score", "logit")
_LABELS: Final = ("predict", "label", "class", "output")


@dataclass(slots=True)
class Asked:
    """One row of a request."""

    features: dict[str, Scalar] | None = None
    embedding: list[float] | None = None


@dataclass(slots=True)
class Answered:
    """One row of a response. `rest` holds what is neither prediction nor scores."""

    prediction: Scalar = None
    scores: list[float] | None = None
    rest: dict[str, Any] = field(default_factory=dict)


def asked(body: Any, names: Sequence[str] = ()) -> list[Asked]:
    """The rows of a request body. `names` are the features of rows that come without names, when they fit.

    >>> [row.features for row in asked({"instances": [[6.8, 2.8], [6.0, 3.4]]})]
    [{'instances[0]': 6.8, 'instances[1]': 2.8}, {'instances[0]': 6.0, 'instances[1]': 3.4}]
    """
    if not isinstance(body, dict):
        raise DecodeError("bad_shape", "the request body is not an object")
    instances, inputs = body.get("instances"), body.get("inputs")
    if isinstance(instances, list):
        rows = [{"instances": row} if not isinstance(row, dict) else row for row in instances]
    elif isinstance(inputs, list) and all(isinstance(t, dict) and "shape" in t for t in inputs):
        rows = _by_row([_tensor(t) for t in inputs])
    elif inputs is not None:  # TensorFlow Serving's column format: one object of columns, or one column
        rows = [{"inputs": inputs} if not isinstance(inputs, dict) else inputs]
    else:
        raise DecodeError("missing_field", "the request body holds neither instances nor inputs")
    return [_asked(row, names) for row in _limited(rows)]


def _limited(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) > _MAX_ROWS:
        raise DecodeError("oversize", f"{len(rows)} rows in one message")
    return rows


def _asked(row: dict[str, Any], names: Sequence[str]) -> Asked:
    flat: dict[str, Scalar] = {}
    for name, value in row.items():
        leaves(str(name), value, flat)
    if len(flat) > WIDE:
        values = list(flat.values())
        if all(isinstance(v, float) for v in values):
            return Asked(embedding=values)  # type: ignore[arg-type]  # just checked
        raise DecodeError("bad_shape", f"a row of {len(flat)} values that are not all numbers")
    if len(names) == len(flat) and all("[" in key for key in flat):
        flat = dict(zip(names, flat.values(), strict=True))
    return Asked(features=flat)


def answered(body: Any) -> list[Answered]:
    """The rows of a response body. A vector is scores and never turned into a prediction; argmax is the reader's.

    >>> answered({"predictions": [1, [0.2, 0.8]]})
    [Answered(prediction=1.0, scores=None, rest={}), Answered(prediction=None, scores=[0.2, 0.8], rest={})]
    """
    if not isinstance(body, dict):
        raise DecodeError("bad_shape", "the response body is not an object")
    predictions, outputs = body.get("predictions"), body.get("outputs")
    if isinstance(predictions, list):
        return [_answer({"predictions": row} if not isinstance(row, dict) else row) for row in predictions]
    if isinstance(outputs, list) and all(isinstance(t, dict) and "shape" in t for t in outputs):
        return [_answer(row) for row in _limited(_by_row([_tensor(t) for t in outputs]))]
    if predictions is not None or outputs is not None:
        found = predictions if predictions is not None else outputs
        return [_answer({"outputs": found} if not isinstance(found, dict) else found)]
    raise DecodeError("missing_field", "the response body holds neither predictions nor outputs")


def _answer(row: dict[str, Any]) -> Answered:
    out = Answered()
    ranked = sorted(row.items(), key=lambda item: not any(word in str(item[0]).lower() for word in _LABELS))
    for name, value in ranked:
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        vector = isinstance(value, list) and all(isinstance(v, int | float) for v in value) and bool(value)
        named_scores = any(word in str(name).lower() for word in _SCORES)
        if vector and out.scores is None:
            numbers = [leaf(v) for v in value]
            out.scores = None if None in numbers else [float(v) for v in numbers if isinstance(v, float)]
        elif not isinstance(value, list | dict) and not named_scores and out.prediction is None:
            out.prediction = leaf(value)
        elif value is not None:
            out.rest[str(name)] = value
    return out


def _tensor(given: dict[str, Any]) -> tuple[str, list[int], list[Any]]:
    """Name, shape and flat row-major data of one V2 tensor."""
    shape, data = given["shape"], given.get("data")
    if isinstance(shape, list):
        shape = [int(n) if isinstance(n, str) and n.isascii() and n.isdigit() and len(n) < 10 else n for n in shape]
    if not isinstance(shape, list) or len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise DecodeError("bad_shape", "a tensor's shape is not a list of sizes")
    flat: list[Any] = []
    if not isinstance(data, list):
        raise DecodeError("bad_shape", "a tensor holds no data")
    _flatten(data, flat, 0)
    if len(flat) != math.prod(shape):
        raise DecodeError("bad_shape", f"a tensor holds {len(flat)} values, but its shape says {math.prod(shape)}")
    return text(given.get("name")) or "tensor", shape, flat


def _flatten(data: list[Any], out: list[Any], depth: int) -> None:
    if depth > 16:
        raise DecodeError("too_deep")
    for item in data:
        if isinstance(item, list):
            _flatten(item, out, depth + 1)
        else:
            out.append(item)


def _by_row(tensors: list[tuple[str, list[int], list[Any]]]) -> list[dict[str, Any]]:
    """Tensors cut along their first dimension when they agree on it; else one row of everything."""
    sizes = {shape[0] if shape else 1 for _, shape, _ in tensors}
    n = sizes.pop() if len(sizes) == 1 else 1
    if n > _MAX_ROWS:
        raise DecodeError("oversize", f"{n} rows in one message")
    rows: list[dict[str, Any]] = [{} for _ in range(n)]
    for name, _, flat in tensors:
        width = len(flat) // n if n else 0
        for index, row in enumerate(rows):
            cut = flat[index * width : (index + 1) * width]
            row[name] = cut[0] if width == 1 else cut
    return rows
