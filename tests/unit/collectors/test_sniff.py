"""What is guessed of a format, and that it is never more than a decoder can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from collectors.base import Record
from collectors.decode import decoder_for
from collectors.sniff import Sniffed, as_yaml, sniff
from monitor.config import read
from monitor.model import InferenceEvent

ROWS = 40


def records(bodies: list[Any], *, headers: Any = ()) -> list[Record]:
    """Messages of a topic."""
    return [Record("s", "t", 0, i, None, json.dumps(b).encode(), headers) for i, b in enumerate(bodies)]


def flat(i: int) -> dict[str, Any]:
    """A house format without any structure, epoch seconds and a score beside the decision."""
    return {
        "timestamp": 1_764_000_000 + i, "UserID": f"u{i % 7}", "transaction-id": f"x{i}", "model": "card", "amount": i * 1.5,
        "country": "QA", "device": {"os": "x", "jailbroken": False}, "decision": "ok", "score": 0.2, "stack": "prose " * 40,
    }  # fmt: skip


def test_a_flat_house_format() -> None:
    """Every plain value that is nothing else is a feature; prose and scores are not."""
    found = sniff(records([flat(i) for i in range(ROWS)]))
    assert found.good
    assert found.mapping == {
        "event_time": {"from": "/timestamp", "unit": "s"}, "model": "/model", "principal": "/UserID",
        "request_id": "/transaction-id", "prediction": "/decision",
        "features": {"fields": {"amount": "/amount", "country": "/country", "device.jailbroken": "/device/jailbroken",
                                "device.os": "/device/os"}},
    }  # fmt: skip


def test_names_alone_are_not_believed() -> None:
    """A field called time that holds none, and ids that repeat, are taken for nothing."""
    bodies = [
        {"time": "noon", "created_at": f"2026-11-22T08:00:{i:02}Z", "id": "same", "model": "m", "x": i}
        for i in range(ROWS)
    ]
    found = sniff(records(bodies))
    assert found.mapping["event_time"] == "/created_at"
    assert "request_id" not in found.mapping


def test_the_caller_may_stand_in_a_header() -> None:
    """Where the body names none."""
    bodies = [{"ts": 1_764_000_000_000 + i, "input": {"a": i, "b": 1}} for i in range(ROWS)]
    found = sniff(records(bodies, headers=(("x-client-id", b"c"),)), model="scorer")
    assert found.mapping["principal"] == "header:x-client-id"
    assert found.models == {"scorer": ROWS}


def test_native_events_need_no_map() -> None:
    """And are preferred."""
    bodies = [{"event_time": "2026-11-22T08:00:00Z", "model": "m", "features": {"a": i}} for i in range(ROWS)]
    assert (sniff(records(bodies)).decoder, sniff(records(bodies)).good) == ("native", True)


@pytest.mark.parametrize("bodies", [[{"x": 1}], [{"ts": "soon", "model": "m"}], [[1, 2]], ["text"]])
def test_what_cannot_be_read_is_said(bodies: list[Any]) -> None:
    """No decoder fits, and the reasons are counted."""
    found = sniff(records(bodies * 20))
    assert not found.good
    assert found.reasons.total() == found.messages - found.decoded > 0


def configured(found: Sniffed, folder: Path) -> Any:
    """The configuration as `lanner connect` would write it, read back."""
    file = folder / "lanner.yaml"
    file.write_text(as_yaml(found, {"type": "files", "paths": ["x.jsonl"]}, "house"))
    return read(file).config


def test_segments_are_left_to_be_found(tmp_path: Path) -> None:
    """Whoever connects a model need not know its parts."""
    config = configured(sniff(records([flat(i) for i in range(ROWS)])), tmp_path)
    assert config.models["card"].segments == "auto"
    assert "# segments: auto: parts of the traffic" in (tmp_path / "lanner.yaml").read_text()


def test_what_is_written_reads_the_messages(tmp_path: Path) -> None:
    """The configuration decodes what it was guessed from."""
    samples = records([flat(i) for i in range(ROWS)])
    decode = decoder_for("house", configured(sniff(samples), tmp_path))
    (event,) = decode(samples[3])
    assert isinstance(event, InferenceEvent)
    assert (event.principal, event.features) == (
        "u3",
        {"amount": 4.5, "country": "QA", "device.os": "x", "device.jailbroken": False},
    )


@given(
    st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=4, unique=True), st.text(min_size=1, max_size=20)
)
def test_hostile_names_stay_text(names: list[str], model: str) -> None:
    """Whatever keys and models are called, the YAML holds them as texts and nothing else."""
    bodies = [{"ts": 1_764_000_000_000 + i, "model": model, "in": dict.fromkeys(names, i)} for i in range(4)]
    found = sniff(records(bodies))
    written = yaml.safe_load(as_yaml(found, {"type": "http"}, "house"))
    assert set(written) <= {"models", "sources", "decoders"}
    assert set(written["models"] or ()) == set(found.named) <= set(found.models)
    assert dict(found.mapping) == (written.get("decoders", {}).get("field_map", {}).get("house", {}))


def test_a_log_has_no_variable_read_and_fills_no_configuration(tmp_path: Path) -> None:
    """What begins a variable, cannot be a name, or is one of very many stays out of what is written."""
    odd = ["${HOME}", "\x1b[2J\n- evil: yes", *(f"m{i:02}" for i in range(30))]
    bodies = [
        {"ts": 1_764_000_000_000 + i, "model": odd[i % 32], "in": {"a": i, "${HOME}": 1, "b": 2}} for i in range(640)
    ]
    found = sniff(records(bodies))
    config = configured(found, tmp_path)
    assert len(config.models) == 20
    assert all(name.startswith("m") for name in config.models)
    assert "12 more names" in (tmp_path / "lanner.yaml").read_text()
    assert "principal" not in sniff(records(bodies, headers=(("${x-client}", b"c"),))).mapping
    flatter = sniff(records([{"ts": 1_764_000_000_000 + i, "model": "m", "a": i, "${HOME}": 1} for i in range(40)]))
    assert flatter.mapping["features"] == {"fields": {"a": "/a"}}
