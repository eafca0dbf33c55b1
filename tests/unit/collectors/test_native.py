"""The native format: what is read, what is mended, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from collectors.base import Part, Record
from collectors.decode.native import native
from monitor.errors import DecodeError
from monitor.model import FeedbackEvent, InferenceEvent

EVENT = {"event_time": "2026-11-22T08:00:00.123Z", "model": "m", "features": {"a": 1.5}}
EVENT_US = 1_795_334_400_123_000


def decode_one(message: Any, **options: Any) -> Part:
    """The single part of a message, given as JSON text, bytes or an object."""
    value = message if isinstance(message, bytes) else json.dumps(message).encode()
    (part,) = native(**options)(Record("s", "t", 0, 0, None, value))
    return part


def event(message: Any, **options: Any) -> InferenceEvent:
    """The single inference event of a message."""
    part = decode_one(message, **options)
    assert type(part) is InferenceEvent
    return part


def reason(message: Any, **options: Any) -> str:
    """Why a message is refused."""
    with pytest.raises(DecodeError) as caught:
        decode_one(message, **options)
    return caught.value.reason


def test_the_documented_event_is_read_whole() -> None:
    """Every field of the documented example lands in its place, unknown ones in extra."""
    found = event(
        {
            "kind": "inference", "event_time": "2026-11-22T08:00:00.123Z", "model": "card-fraud", "model_version": "3",
            "request_id": "r-1", "client_request_id": "abc", "principal": "client-17", "credential_id": "k-9",
            "source_ip": "203.0.113.7",
            "features": {"amount": 120.5, "country": "QA", "merchant_age_days": 24, "device": None, "vip": True},
            "prediction": "fraud", "scores": [0.31, 0.69], "class_names": ["ok", "fraud"], "returned": "scores",
            "latency_ms": 12.5, "status": "ok", "shop": {"id": 7},
        }
    )  # fmt: skip
    assert found == InferenceEvent(
        event_time_us=EVENT_US, model="card-fraud", model_version="3", request_id="r-1", client_request_id="abc",
        principal="client-17", credential_id="k-9", source_ip="203.0.113.7",
        features={"amount": 120.5, "country": "QA", "merchant_age_days": 24.0, "device": None, "vip": True},
        prediction="fraud", scores=[0.31, 0.69], class_names=["ok", "fraud"], returned="scores", latency_ms=12.5,
        extra={"shop": {"id": 7}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("time", "micros"),
    [
        ("2026-11-22T08:00:00.123Z", EVENT_US),
        ("2026-11-22T11:00:00.123+03:00", EVENT_US),
        ("2026-11-22t08:00:00.123456789z", EVENT_US + 456),
        (1_795_334_400_123, EVENT_US),
        (1_795_334_400_123.5, EVENT_US + 500),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
    ],
)
def test_times_in_their_usual_forms(time: Any, micros: int) -> None:
    """RFC 3339 with any zone and fraction, epoch milliseconds, and a leap second."""
    assert abs(event({**EVENT, "event_time": time}).event_time_us - micros) <= 1


@pytest.mark.parametrize(
    "time", ["2026-11-22T08:00:00", "yesterday", 1_795_334_400, True, -1, 10**17, "9999-01-01T00:00:00Z", ["x"], 1e308]
)
def test_times_that_would_be_guesses_are_refused(time: Any) -> None:
    """No zone, seconds for milliseconds, absurd years, or no time at all: bad_time."""
    assert reason({**EVENT, "event_time": time}) == "bad_time"


def test_a_configured_zone_is_given_to_naive_times() -> None:
    """With the source's timezone a naive time is local there."""
    assert event({**EVENT, "event_time": "2026-11-22T11:00:00.123"}, timezone="Asia/Qatar").event_time_us == EVENT_US


@pytest.mark.parametrize("missing", ["event_time", "model", "features"])
def test_required_fields(missing: str) -> None:
    """Without time, model, or any input: missing_field."""
    assert reason({k: v for k, v in EVENT.items() if k != missing}) == "missing_field"
    assert reason({**EVENT, missing: None}) == "missing_field"


def test_messages_or_an_embedding_are_input_enough() -> None:
    """A text model's event needs no features."""
    base = {"event_time": EVENT["event_time"], "model": "m"}
    assert event({**base, "messages_in": [{"role": "user", "content": "x"}]}).messages_in
    assert event({**base, "embedding": [0.1, 0.2]}).embedding == [0.1, 0.2]


def test_a_model_from_the_source_fills_in() -> None:
    """Messages that name no model get the source's."""
    assert event({k: v for k, v in EVENT.items() if k != "model"}, model="fallback").model == "fallback"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_non_finite_numbers_are_missing_and_flagged(number: str) -> None:
    """What JSON cannot carry becomes null, and the event says so."""
    raw = b'{"event_time": "2026-11-22T08:00:00.123Z", "model": "m", "features": {"a": %s, "b": 1}}' % number.encode()
    found = event(raw)
    assert found.features == {"a": None, "b": 1.0}
    assert found.quality == ["nonfinite"]


def test_a_vector_with_a_hole_is_no_vector() -> None:
    """Scores with NaN in them are dropped as a whole."""
    raw = json.dumps({**EVENT, "scores": [0.5, float("nan")]}).encode()
    found = event(raw)
    assert (found.scores, found.quality) == (None, ["nonfinite"])


def test_integers_beyond_two_to_the_53_are_ids() -> None:
    """They become texts, for as numbers they would run into their neighbours; smaller ones are numbers."""
    found = event({**EVENT, "features": {"id": 2**53 + 1, "n": 2**53, "big": 1e300}, "prediction": 10**30})
    assert found.features == {"id": "9007199254740993", "n": 2.0**53, "big": 1e300}
    assert found.prediction == "1" + "0" * 30


@pytest.mark.parametrize("prediction", ["ok", 1.5, True, False, None])
def test_predictions_keep_their_type(prediction: Any) -> None:
    """Text, number, truth value, or none; a truth value is no number, and scores make no prediction."""
    found = event({**EVENT, "prediction": prediction, "scores": [0.1, 0.9]}).prediction
    assert type(found) is type(prediction)
    assert found == prediction


@pytest.mark.parametrize(
    "change",
    [
        {"features": [1, 2]}, {"features": {"a": {"b": 1}}}, {"features": {"a": [1]}}, {"model": 7}, {"model": ""},
        {"scores": ["x"]}, {"scores": [True]}, {"tokens_in": -1}, {"tokens_in": 2**40}, {"http_status": "200"},
        {"sampling_fraction": 0}, {"sampling_fraction": 1.5}, {"embedding": 3}, {"row_index": 2**31},
    ],
)  # fmt: skip
def test_wrong_shapes_are_refused(change: dict[str, Any]) -> None:
    """A field of another type or out of its range: bad_shape, whether or not the message needs mending besides."""
    assert reason({**EVENT, **change}) == "bad_shape"
    assert reason({**EVENT, **change, "unknown": 1}) == "bad_shape"


def test_unknown_kinds_are_refused() -> None:
    """Only inference and feedback are known."""
    assert reason({**EVENT, "kind": "heartbeat"}) == "unknown_type"


def test_null_where_a_field_has_a_default_counts_as_absent() -> None:
    """A producer that writes null for status gets the default."""
    assert event({**EVENT, "status": None, "quality": None, "extra": None, "row_index": None}).status == "ok"


def test_free_fields_are_bounded_too() -> None:
    """What nests too deeply inside params is refused; huge integers in it become texts."""
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    assert reason({**EVENT, "params": {"x": deep}}) == "too_deep"
    assert event({**EVENT, "params": {"seed": 10**25}}).params == {"seed": "1" + "0" * 25}


def test_the_last_of_repeated_keys_counts() -> None:
    """As in most JSON readers; it is documented."""
    assert event(b'{"event_time": 1795334400123, "model": "m", "features": {"a": 1, "a": 2}}').features == {"a": 2.0}


def test_feedback_is_read() -> None:
    """A label with its target, with or without model; extra members are kept."""
    found = decode_one(
        {
            "kind": "feedback", "target": {"request_id": "r-1", "row_index": 2}, "name": "label", "value": "ok",
            "label_time": "2026-12-22T00:00:00Z", "labeler": "ops-4", "case": 5,
        }
    )  # fmt: skip
    assert found == FeedbackEvent(
        model="", target={"request_id": "r-1", "row_index": "2"}, name="label", value="ok",
        label_time_us=1_797_897_600_000_000, labeler="ops-4", extra={"case": 5},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"target": None}, "missing_field"), ({"name": None}, "missing_field"), ({"label_time": None}, "missing_field"),
        ({"target": {}}, "bad_shape"), ({"target": {"row_index": 1}}, "bad_shape"), ({"target": "r-1"}, "bad_shape"),
        ({"target": {"request_id": 5.5}}, "bad_shape"), ({"value": [1]}, "bad_shape"), ({"label_time": "x"}, "bad_time"),
    ],
)  # fmt: skip
def test_feedback_that_cannot_be_joined_is_refused(change: dict[str, Any], why: str) -> None:
    """Without target, name and time a label belongs to nothing."""
    good = {"kind": "feedback", "target": {"request_id": "r"}, "name": "label", "value": 1, "label_time": 1795334400123}
    assert reason({**good, **change}) == why
