"""KServe's logger: recorded messages, both bodies, rules for version and caller, and pinned ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from collectors.base import Part, Placed, Record
from collectors.decode.kserve import kserve
from collectors.pairing import pair
from monitor.errors import ConfigError, DecodeError
from monitor.model import Half, InferenceEvent

DATA = Path(__file__).parent.parent.parent / "data"
REQUEST, RESPONSE = (f"org.kubeflow.serving.inference.{side}" for side in ("request", "response"))
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def ce(kind: str = REQUEST, **attributes: str) -> list[tuple[str, bytes]]:
    """Headers of a binary CloudEvent."""
    given = {
        "type": kind, "id": "i-1", "source": "u", "time": "2021-04-10T01:22:16.5Z", "component": "predictor",
        "inferenceservicename": "iris", **attributes,
    }  # fmt: skip
    return [(f"ce_{name}", value.encode()) for name, value in given.items() if value]


def run(body: Any, headers: Sequence[tuple[str, bytes]], **options: Any) -> Sequence[Part]:
    """The parts of one message."""
    value = body if isinstance(body, bytes) else json.dumps(body).encode()
    return kserve(options)(Record("s", "t", 0, 0, None, value, headers, 1_618_017_736_000))


def events(parts: Sequence[Part]) -> list[InferenceEvent]:
    """The events inside halves."""
    return [p.event for p in parts if isinstance(p, Half)]


def test_recorded_http_events_pair_and_the_refused_one_stays_alone() -> None:
    """A pair of two rows joins; a request the server refused has no partner; a pinned id loses nobody."""
    decode = kserve({"features": list(FEATURES)}, principal_header="X-Client-Id")
    placed = []
    for offset, line in enumerate((DATA / "kserve_cloudevents_http.jsonl").read_text().splitlines()):
        m = json.loads(line)
        headers = [(name, value.encode()) for name, value in m["headers"].items()]
        record = Record("s", "http", 0, offset, None, json.dumps(m["body"]).encode(), headers)
        placed += [Placed("http", 0, offset, part) for part in decode(record)]
    parts = [p.part for p in pair(placed)]
    whole = [p for p in parts if isinstance(p, InferenceEvent)]
    alone = [p for p in parts if isinstance(p, Half)]
    assert [(e.row_index, e.prediction, e.principal, e.latency_ms) for e in whole] == [
        (0, 1.0, "web-shop", 1.575), (1, 1.0, "web-shop", 1.575),
    ]  # fmt: skip
    assert whole[0].features == dict(zip(FEATURES, (6.8, 2.8, 4.8, 1.4), strict=True))
    assert [h.side for h in alone] == ["request"] * 3, "one refused, two under the same id"
    assert alone[0].event.features == {
        "sepal_length": "not-a-number",
        **dict(zip(FEATURES[1:], (2.8, 4.8, 1.4), strict=True)),
    }


def test_binary_and_structured_mode_say_the_same() -> None:
    """The recorded response in both modes gives the same halves."""
    lines = [json.loads(x) for x in (DATA / "kserve_knative_kafka.jsonl").read_text().splitlines()]
    parts = []
    for m in lines[1:3]:
        headers = [(name, value["utf8"].encode()) for name, value in m["headers"]]
        parts.append(run(m["value"]["utf8"].encode(), headers))
    assert [p.event.prediction for p in parts[0] if isinstance(p, Half)] == [1.0, 1.0]
    assert [(p.pair_key, p.event.prediction) for p in parts[0] if isinstance(p, Half)] == [
        (p.pair_key, p.event.prediction) for p in parts[1] if isinstance(p, Half)
    ]


def test_v2_tensors_become_rows() -> None:
    """The Open Inference Protocol: columns as tensors, shapes in text, scores and labels told apart."""
    asked = {
        "id": "7",
        "inputs": [
            {"name": "amount", "shape": ["2", "1"], "datatype": "FP64", "data": [[1.5], [2.5]]},
            {"name": "country", "shape": [2], "datatype": "BYTES", "data": ["QA", "DE"]},
        ],
    }
    assert [e.features for e in events(run(asked, ce()))] == [
        {"amount": 1.5, "country": "QA"}, {"amount": 2.5, "country": "DE"},
    ]  # fmt: skip
    answered = {
        "model_name": "iris", "model_version": "v7",
        "outputs": [
            {"name": "predict_proba", "shape": [2, 2], "datatype": "FP64", "data": [0.1, 0.9, 0.7, 0.3]},
            {"name": "predict", "shape": [2, 1], "datatype": "INT64", "data": [1, 0]},
        ],
    }  # fmt: skip
    found = events(run(answered, ce(RESPONSE), classes=["no", "yes"]))
    assert [(e.prediction, e.scores, e.class_names, e.model_version) for e in found] == [
        (1.0, [0.1, 0.9], ["no", "yes"], "v7"), (0.0, [0.7, 0.3], ["no", "yes"], "v7"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "x", "shape": [3], "data": [1, 2]}, {"name": "x", "shape": [-1], "data": []}, {"name": "x", "shape": "2"},
        {"name": "x", "shape": [2**40, 2**40], "data": [1]}, {"name": "x", "shape": [1] * 20, "data": [1]},
        {"name": "x", "shape": [1], "data": "x"},
    ],
)  # fmt: skip
def test_tensors_that_lie_about_their_shape_are_refused(tensor: dict[str, Any]) -> None:
    """The shape must fit the data before anything is cut by it."""
    with pytest.raises(DecodeError) as caught:
        run({"inputs": [tensor]}, ce())
    assert caught.value.reason == "bad_shape"


def test_a_wide_row_is_an_embedding() -> None:
    """An image is not a thousand features."""
    (event,) = events(run({"instances": [[[0.5] * 64] * 32]}, ce()))
    assert event.features is None
    assert event.embedding == [0.5] * 2048


def test_rules_for_version_and_caller() -> None:
    """From allow-listed headers, from annotations, or constant; placeholders are no version."""
    headers = ce(metadata='{"X-Client-Id":["web-shop"]}', annotations='{"rev":"12","empty":"default"}')
    body = {"instances": [1]}
    (event,) = events(run(body, headers, principal="metadata:x-client-id", model_version="annotation:rev"))
    assert (event.principal, event.model_version) == ("web-shop", "12")
    (event,) = events(run(body, headers, model_version="annotation:empty", principal="metadata:other"))
    assert (event.principal, event.model_version) == (None, None)
    with pytest.raises(ConfigError):
        kserve({"principal": "header:x"})
    with pytest.raises(ConfigError):
        kserve({"principle": "metadata:x"})


def test_a_transformer_does_not_count_twice() -> None:
    """Its pair is a second record of the same request, unless the source counts transformers."""
    assert run({"instances": [1]}, ce(component="transformer")) == ()
    assert len(run({"instances": [1]}, ce(component="transformer"), components=["transformer"])) == 1


def test_an_event_without_id_goes_alone() -> None:
    """It cannot be paired, so it is stored at once and flagged."""
    (event,) = run({"instances": [1]}, ce(id=""))
    assert isinstance(event, InferenceEvent)
    assert event.quality == ["generated_id", "missing_response"]


def test_without_a_producers_time_the_brokers_counts() -> None:
    """And the event says whose time it is."""
    (event,) = events(run({"instances": [1]}, ce(time="")))
    assert (event.event_time_us, event.event_time_source) == (1_618_017_736_000_000, "broker")


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        (ce("org.kubeflow.other"), {"instances": [1]}, "unknown_type"),
        ([], {"instances": [1]}, "unknown_type"),
        (ce(inferenceservicename=""), {"instances": [1]}, "missing_field"),
        (ce(), {"other": 1}, "missing_field"),
        (ce(time="noon"), {"instances": [1]}, "bad_time"),
        ([("content-type", b"application/cloudevents+json")], {"type": REQUEST, "data_base64": "%%"}, "bad_shape"),
    ],
)
def test_what_is_no_logger_event_is_refused(headers: list[tuple[str, bytes]], body: Any, why: str) -> None:
    """Each with its reason."""
    with pytest.raises(DecodeError) as caught:
        run(body, headers)
    assert caught.value.reason == why


def test_an_error_answer_is_an_error() -> None:
    """A response body that holds only an error has status error and no prediction."""
    (event,) = events(run({"error": "no such model"}, ce(RESPONSE)))
    assert (event.status, event.prediction) == ("error", None)
