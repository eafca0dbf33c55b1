"""One suite over every decoder: what it may do with any bytes, hostile ones included."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from collectors.base import REASONS, Decoder, Part, Record
from collectors.decode import DECODERS, decoder_for
from monitor.config import Config, Decoders, FieldMap, ModelConfig, Source
from monitor.errors import DecodeError
from monitor.model import FeedbackEvent, Half, InferenceEvent, Mark

CE = [
    ("ce_specversion", b"1.0"), ("ce_id", b"defb5816"), ("ce_source", b"http://localhost:9081/"),
    ("ce_type", b"org.kubeflow.serving.inference.request"), ("ce_time", b"2021-04-10T01:22:16.498917288Z"),
    ("ce_inferenceservicename", b"sklearn-iris"), ("ce_component", b"predictor"),
]  # fmt: skip
# One good message of each decoder: (value, headers).
GOOD: dict[str, tuple[dict[str, Any], list[tuple[str, bytes]]]] = {
    "native": (
        {
            "kind": "inference", "event_time": "2026-11-22T08:00:00.123Z", "model": "card-fraud", "principal": "c-17",
            "features": {"amount": 120.5, "country": "QA", "device": None}, "scores": [0.31, 0.69], "params": {"t": 1},
        },
        [],
    ),
    "field_map": (
        {"meta": {"ts": 1700000000000, "rid": 7}, "in": {"a": 1, "b": {"c": "x"}}, "out": {"p": [0.1, 0.9]}, "y": 1},
        [("x-client", b"c-17")],
    ),
    "marks": (
        {"kind": "maintenance", "text": "disks", "model": "m", "start": "2026-11-22T08:00:00Z",
         "end": "2026-11-22T10:00:00Z", "by": "ops"},
        [],
    ),
    "kserve": ({"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}, CE),
}  # fmt: skip
HOUSE = FieldMap(
    model="const:m", event_time={"from": "/meta/ts", "unit": "ms"}, request_id="/meta/rid", principal="header:x-client",
    features="/in", scores="/out/p", class_names=["a", "b"], status="/st", latency_ms="/ms",
    feedback={"when": "/y", "name": "label", "value": "/y"},
)  # fmt: skip
CONFIG = Config(
    models={"m": ModelConfig()},
    sources={name: Source(type="files", paths=("x",), decoder=name) for name in DECODERS},
    decoders=Decoders(field_map={"field_map": HOUSE}),
)


def test_every_decoder_has_a_good_message() -> None:
    """A decoder that this suite does not know cannot be registered."""
    assert set(GOOD) == set(DECODERS)


@pytest.fixture(params=sorted(DECODERS))
def name(request: pytest.FixtureRequest) -> str:
    """Each registered decoder."""
    return str(request.param)


def record(name: str, value: bytes | None, headers: Sequence[tuple[str, bytes]] | None = None) -> Record:
    """A record for a decoder, with the headers of its good message unless others are given."""
    return Record(name, "t", 0, 5, None, value, GOOD[name][1] if headers is None else headers, 1_700_000_000_000)


def storable(parts: Sequence[Part]) -> None:
    """What every store can take: declared types, finite numbers, texts that encode, integers within 64 bits."""
    for part in parts:
        assert type(part) in (InferenceEvent, Half, FeedbackEvent, Mark)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=type(part))
        assert again == part
        event = part.event if isinstance(part, Half) else part
        if isinstance(event, InferenceEvent):
            assert all(v is None or type(v) in (float, str, bool) for v in (event.features or {}).values())
            assert all(type(v) is float for v in event.scores or [])
            assert "NaN" not in json.dumps(msgspec.to_builtins(event.extra), allow_nan=False)


def outcome(decode: Decoder, given_record: Record) -> Sequence[Part] | str:
    """The parts, or the reason why there are none; anything else fails the test."""
    try:
        parts = decode(given_record)
    except DecodeError as error:
        assert error.reason in REASONS
        return error.reason
    storable(parts)
    return parts


def test_the_good_message_decodes(name: str) -> None:
    """A message as its producer writes it becomes parts that every store can take."""
    parts = outcome(decoder_for(name, CONFIG), record(name, json.dumps(GOOD[name][0]).encode()))
    assert not isinstance(parts, str)
    assert parts


def test_decoding_is_pure(name: str) -> None:
    """The same record gives equal parts every time and is itself left as it was."""
    decode = decoder_for(name, CONFIG)
    given_record = record(name, json.dumps(GOOD[name][0]).encode())
    before = copy.deepcopy(given_record)
    first = decode(given_record)
    assert decode(given_record) == first
    assert given_record == before
    assert all(a is not b for a, b in zip(first, decode(given_record), strict=True))


def test_a_tombstone_is_nothing(name: str) -> None:
    """A record without value holds no parts and is no failure."""
    assert decoder_for(name, CONFIG)(record(name, None)) == ()


@pytest.mark.parametrize(
    ("value", "reasons"),
    [
        (b"", {"bad_json"}),
        (b"\xff\xfe", {"bad_json"}),
        (b'{"a": ', {"bad_json"}),
        (b'"\\ud800"', {"bad_json"}),
        (b"[" * 100_000, {"too_deep", "bad_json"}),
        (b'{"a":' * 70 + b"1" + b"}" * 70, {"too_deep", "missing_field", "bad_shape", "bad_time"}),
        (b"1" * 5000, {"bad_json", "bad_shape", "bad_framing", "missing_field", "bad_time"}),
        (b"[]", {"bad_shape", "missing_field", "bad_time"}),
        (b"null", {"bad_shape", "missing_field", "bad_time"}),
        (b"{}", {"missing_field", "bad_time"}),
        (b"\x00\x00\x00", {"bad_framing"}),
    ],
)
def test_poison_has_its_reason(name: str, value: bytes, reasons: set[str]) -> None:
    """Bytes that are no message are refused with a reason code, never with another error."""
    assert outcome(decoder_for(name, CONFIG), record(name, value)) in reasons


def test_a_byte_order_mark_is_no_obstacle(name: str) -> None:
    """UTF-8 with a BOM is read as if it had none."""
    value = json.dumps(GOOD[name][0]).encode()
    decode = decoder_for(name, CONFIG)
    assert decode(record(name, b"\xef\xbb\xbf" + value)) == decode(record(name, value))


def test_gzip_and_schema_prefixes_are_taken_off(name: str) -> None:
    """A gzip body and a Confluent prefix change nothing."""
    import gzip  # only this test packs anything

    value = json.dumps(GOOD[name][0]).encode()
    decode = decoder_for(name, CONFIG)
    plain = decode(record(name, value))
    assert decode(record(name, b"\x00\x00\x00\x00\x09" + value)) == plain
    zipped = [*GOOD[name][1], ("Content-Encoding", b"gzip")]
    assert decode(record(name, gzip.compress(value), zipped)) == plain


def test_a_bomb_is_refused_before_it_grows(name: str) -> None:
    """A value that decompresses a thousandfold is refused."""
    import gzip  # only this test packs anything

    zipped = [*GOOD[name][1], ("content-encoding", b"gzip")]
    bomb = gzip.compress(b" " * 50_000_000)
    assert outcome(decoder_for(name, CONFIG), record(name, bomb, zipped)) == "bomb"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
        ["2026-01-01T00:00:00Z", "inference", "feedback", "nan", "1e999", "\0", "9" * 400, "QA==", "x" * 5000]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([*(k for k, _ in CE), "content-type", "content-encoding", "x-client", "\0", "ce-type"]),
        st.binary(max_size=40) | st.sampled_from([v for _, v in CE] + [b"application/cloudevents+json", b"gzip"]),
    ),
    max_size=8,
)


def mutated(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The good message with members of any level replaced or removed."""

    def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
        return [path, *(p for k, v in members for p in paths(v, (*path, k)))]

    def put(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
        tree = copy.deepcopy(good)
        at: Any = tree
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
        return tree

    return st.builds(put, st.sampled_from(paths(good)[1:]), JSON)


def fuzz(test: Callable[..., None]) -> Callable[..., None]:
    """Enough examples to matter, few enough for every run."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=150, deadline=None, suppress_health_check=quiet)(test)


@fuzz
@given(value=st.binary(max_size=300), headers=HEADERS)
@example(value=base64.b64decode("AAAAAAE="), headers=[])
def test_no_bytes_break_a_decoder(name: str, value: bytes, headers: list[tuple[str, bytes]]) -> None:
    """Any bytes under any headers give parts that can be stored, or a reason."""
    outcome(decoder_for(name, CONFIG), record(name, value, headers))


@fuzz
@given(data=st.data())
def test_no_message_breaks_a_decoder(name: str, data: st.DataObject) -> None:
    """A good message with anything at all in one place gives parts that can be stored, or a reason."""
    tree = data.draw(mutated(GOOD[name][0]))
    value = json.dumps(tree).encode()
    outcome(decoder_for(name, CONFIG), record(name, value))


def test_recorded_messages_decode(tmp_path: Path) -> None:
    """The recorded KServe messages give two halves per row, and a producer's duplicate the same halves again."""
    del tmp_path
    samples = Path(__file__).parent.parent / "data" / "kserve_knative_kafka.jsonl"
    decode = decoder_for("kserve", CONFIG)
    sides = []
    for line in samples.read_text().splitlines():
        m = json.loads(line)
        headers = [(k, v["utf8"].encode()) for k, v in m["headers"]]
        value = m["value"]["utf8"].encode()
        parts = decode(Record("kserve", m["topic"], m["partition"], m["offset"], None, value, headers))
        sides.append([(p.side, p.event.row_index, p.event.prediction) for p in parts if isinstance(p, Half)])
    assert sides[0] == [("request", 0, None), ("request", 1, None)]
    assert sides[1] == sides[2] == sides[3] == [("response", 0, 1.0), ("response", 1, 1.0)]


def test_the_docs_name_every_reason() -> None:
    """The table of reasons in the docs is the table of the code."""
    page = (Path(__file__).parent.parent.parent / "docs" / "collectors.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == dict(REASONS)
