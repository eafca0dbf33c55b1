"""The field map: places, units, frames, statuses, feedback, and mistakes in the map."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from collectors.base import Part, Record
from collectors.decode.field_map import field_map
from monitor.config import FieldMap
from monitor.errors import ConfigError, DecodeError
from monitor.model import FeedbackEvent, InferenceEvent

BASE: dict[str, Any] = {"model": "const:fraud", "event_time": {"from": "/ts", "unit": "s"}, "features": "/in"}


def run(body: Any, *, headers: Sequence[tuple[str, bytes]] = (), key: bytes | None = None, **fields: Any) -> list[Part]:
    """The parts of one message under a map."""
    decode = field_map(FieldMap(**{**BASE, **fields}))
    return list(decode(Record("s", "prod.fraud.v3", 0, 9, key, json.dumps(body).encode(), headers, 1_700_000_000_500)))


def one(body: Any, **fields: Any) -> InferenceEvent:
    """The single event of a message under a map."""
    (part,) = run(body, **fields)
    assert isinstance(part, InferenceEvent)
    return part


BODY = {"ts": 1_700_000_000, "in": {"a": 1, "b": {"c": "x", "d": [True, None]}}, "p": [0.2, 0.8], "rid": 77}


def test_every_kind_of_place() -> None:
    """Pointers, headers, the key, the topic, constants and the broker's time are all read."""
    event = one(
        BODY, headers=[("X-Client", b"c-1"), ("x-client", b"c-2")], key=b"k-1", model=r"topic:^prod\.(\w+)\.",
        model_version=r"topic:v(\d+)$", event_time="timestamp", principal="header:x-client", request_id="/rid",
        session_id="key", credential_id="const:none", scores="/p", class_names=["ok", "fraud"], returned="scores",
    )  # fmt: skip
    assert (event.model, event.model_version, event.event_time_us) == ("fraud", "3", 1_700_000_000_500_000)
    assert (event.principal, event.request_id, event.session_id) == ("c-1", "77", "k-1"), "the first header counts"
    assert event.features == {"a": 1.0, "b.c": "x", "b.d[0]": True, "b.d[1]": None}
    assert (event.scores, event.class_names, event.prediction) == ([0.2, 0.8], ["ok", "fraud"], None)


def test_pointers_reach_into_lists_and_escaped_names() -> None:
    """RFC 6901: list places by number, ~1 for a slash, ~0 for a tilde."""
    assert one({**BODY, "a/b": {"~": ["x", "y"]}}, principal="/a~1b/~0/1").principal == "y"


@pytest.mark.parametrize(("given", "fraction"), [(0.1, 0.1), ("0.25", 0.25), (None, 1.0), (1, 1.0)])
def test_a_sampled_log_says_what_part_it_is(given: Any, fraction: float) -> None:
    """As a number, as text, or for the whole source; a message without one stands for itself."""
    assert one({**BODY, "f": given}, sampling_fraction="/f").sampling_fraction == fraction
    assert one(BODY, sampling_fraction="const:0.5").sampling_fraction == 0.5


@pytest.mark.parametrize("given", [0, -1, 1.5, "often", True])
def test_a_fraction_that_is_none_is_refused(given: Any) -> None:
    """A wrong weight would bend every count, so the message is a dead letter that says why."""
    with pytest.raises(DecodeError, match="sampling_fraction") as raised:
        one({**BODY, "f": given}, sampling_fraction="/f")
    assert raised.value.reason == "bad_shape"


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units_of_time(unit: str, factor: int) -> None:
    """The same moment in every unit, as number and as text of a number."""
    for value in (1_700_000_000 * factor, str(1_700_000_000 * factor)):
        event = one({**BODY, "ts": value}, event_time={"from": "/ts", "unit": unit})
        assert event.event_time_us == 1_700_000_000_000_000


def test_split_frames_are_one_event_a_row() -> None:
    """Columns and rows apart give as many events as there are rows, answers cut to match."""
    body = {"ts": 1_700_000_000, "cols": ["a", "b"], "rows": [[1, "x"], [2, "y"]], "y": ["no", "yes"], "p": [[1], [0]]}
    events = run(body, features={"names": "/cols", "values": "/rows"}, prediction="/y", scores="/p")
    rows = [(e.features, e.prediction, e.scores, e.row_index) for e in events if isinstance(e, InferenceEvent)]
    assert rows == [({"a": 1.0, "b": "x"}, "no", [1.0], 0), ({"a": 2.0, "b": "y"}, "yes", [0.0], 1)]


def test_features_picked_one_by_one() -> None:
    """`fields` names each feature's place."""
    assert one(BODY, features={"fields": {"amount": "/in/a", "kind": "/in/b/c"}}).features == {
        "amount": 1.0,
        "kind": "x",
    }


def test_scores_by_class_name() -> None:
    """An object of scores brings its class names."""
    event = one({**BODY, "p": {"ok": 0.1, "fraud": 0.9}}, scores="/p")
    assert (event.scores, event.class_names) == ([0.1, 0.9], ["ok", "fraud"])


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [("ok", "ok", None), ("OK!", "ok", None), (200, "ok", 200), ("429", "rejected", 429), (503, "error", 503), ("?", "unknown", None)],
)  # fmt: skip
def test_statuses(given: Any, status: str, code: int | None) -> None:
    """By the map, by name, by HTTP code; anything else is unknown."""
    event = one({**BODY, "st": given}, status={"from": "/st", "map": {"OK!": "ok"}})
    assert (event.status, event.http_status) == (status, code)


def test_latency_in_its_unit() -> None:
    """Seconds become milliseconds."""
    assert one({**BODY, "took": 0.25}, latency_ms={"from": "/took", "unit": "s"}).latency_ms == 250.0


def test_feedback_beside_or_instead_of_an_event() -> None:
    """A label in the message makes feedback, and an event too when features are there."""
    label = {"when": "/label", "name": "chargeback", "value": "/label", "labeler": "/by"}
    both = run({**BODY, "label": True, "by": "ops"}, request_id="/rid", feedback=label)
    assert [type(p) for p in both] == [FeedbackEvent, InferenceEvent]
    (alone,) = run({"ts": 1_700_000_000, "rid": 77, "label": False}, request_id="/rid", feedback=label)
    assert alone == FeedbackEvent(
        model="fraud", target={"request_id": "77"}, name="chargeback", value=False, label_time_us=1_700_000_000_000_000
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"ts": 1_700_000_000}, "missing_field"),
        ({"in": {"a": 1}}, "missing_field"),
        ({"ts": "soon", "in": {"a": 1}}, "bad_time"),
        ({"ts": 1_700_000_000, "in": [1, 2]}, "bad_shape"),
        ({"ts": 1_700_000_000, "in": 3}, "bad_shape"),
        ([1], "missing_field"),
    ],
)
def test_messages_that_do_not_fit_the_map(body: Any, why: str) -> None:
    """Each is refused with its reason."""
    with pytest.raises(DecodeError) as caught:
        run(body)
    assert caught.value.reason == why


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "fraud"}, {"principal": "headers:x"}, {"event_time": {"from": "/ts", "unit": "min"}},
        {"model": "topic:("}, {"scores": {"from": "/p", "clases": []}}, {"feedback": {"value": "/y"}},
        {"request_id": "/r", "feedback": {"when": "/y"}}, {"request_id": "/r", "feedback": {"value": "/y", "x": "/z"}},
    ],
)  # fmt: skip
def test_mistakes_in_a_map_are_configuration_errors(fields: dict[str, Any]) -> None:
    """They are found when the decoder is made, not message by message."""
    with pytest.raises(ConfigError):
        run(BODY, **fields)
