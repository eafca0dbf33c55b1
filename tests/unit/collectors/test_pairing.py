"""Pairing in a buffer and in a sorted stream."""

from __future__ import annotations

import random
from typing import Any

from collectors.base import Part, Placed
from collectors.pairing import pair, pair_sorted
from monitor.model import Half, InferenceEvent


def half(side: str, time_us: int, key: str = "k", row: int = 0, name: str | None = None) -> Half:
    """A half whose side is told by its prediction or principal."""
    given: dict[str, Any] = {"principal": name} if side == "request" else {"prediction": name}
    return Half(side=side, pair_key=key, event=InferenceEvent(event_time_us=time_us, model="m", row_index=row, **given))


def placed(*parts: Part) -> list[Placed]:
    """Parts at offsets from 0 on."""
    return [Placed("t", i % 3, i, part) for i, part in enumerate(parts)]


def pairs(parts: list[Placed]) -> list[tuple[str | None, object]]:
    """(principal, prediction) of what became whole, sorted."""
    whole = [p.part for p in pair(parts) if isinstance(p.part, InferenceEvent)]
    return sorted((e.principal, e.prediction) for e in whole)


def test_halves_meet_in_any_order() -> None:
    """However they arrive, each pair joins once and nothing is left."""
    parts = placed(
        *(half(s, t, f"k{i}", name=str(i)) for i in range(20) for s, t in (("request", 10), ("response", 15)))
    )
    rng = random.Random(7)
    for _ in range(10):
        rng.shuffle(parts)
        assert pairs(parts) == sorted((str(i), str(i)) for i in range(20))
        assert len(pair(parts)) == 20


def test_rows_of_a_batch_pair_by_their_number() -> None:
    """Row 1 of the request goes with row 1 of the response."""
    parts = placed(
        half("request", 1, row=0, name="a"), half("request", 1, row=1, name="b"),
        half("response", 2, row=1, name="B"), half("response", 2, row=0, name="A"),
    )  # fmt: skip
    assert pairs(parts) == [("a", "A"), ("b", "B")]


def test_a_pinned_id_loses_nobody() -> None:
    """Under one id for ever, each response goes with the latest open request before it; the rest stays."""
    parts = placed(
        half("request", 10, name="refused"), half("request", 20, name="q1"), half("response", 21, name="a1"),
        half("request", 30, name="q2"), half("response", 31, name="a2"),
    )  # fmt: skip
    assert pairs(parts) == [("q1", "a1"), ("q2", "a2")]
    rest = [p.part.event.principal for p in pair(parts) if isinstance(p.part, Half)]
    assert rest == ["refused"]


def test_a_response_never_answers_a_younger_request() -> None:
    """A response older than every request waits for its own."""
    parts = placed(half("response", 5, name="a"), half("request", 9, name="q"))
    assert len(pair(parts)) == 2


def test_a_producers_duplicate_is_dropped() -> None:
    """The same half at another offset counts once; the same id with another time does not count as the same."""
    parts = placed(half("request", 10, name="q"), half("response", 12, name="a"), half("response", 12, name="a"))
    assert len(pair(parts)) == 1
    assert len(pair(placed(half("request", 10, name="q"), half("request", 11, name="q")))) == 2


def test_other_parts_pass_unchanged() -> None:
    """Events keep their places among the halves."""
    event = InferenceEvent(event_time_us=1, model="m")
    parts = placed(event, half("request", 1, name="q"), event, half("response", 2, name="a"))
    assert [p.offset for p in pair(parts)] == [0, 1, 2]
    assert pair(parts[:1]) == parts[:1]


def test_a_sorted_stream_stays_sorted() -> None:
    """Joined events stand at their request's time, lone halves at their own, and equal times keep their order."""
    stream: list[tuple[int, Part]] = [
        (1, half("request", 1, "a", name="q1")), (2, InferenceEvent(event_time_us=2, model="x")),
        (3, half("request", 3, "b", name="q2")), (4, half("response", 4, "c", name="lost")),
        (5, half("response", 5, "a", name="a1")), (50, InferenceEvent(event_time_us=50, model="y")),
    ]  # fmt: skip
    out = list(pair_sorted(stream, timeout_us=20))
    events = [part for _, part in out if isinstance(part, InferenceEvent)]
    assert [time for time, _ in out] == [1, 2, 3, 4, 50]
    assert [(e.status, e.quality) for e in events] == [
        ("ok", []), ("ok", []), ("unanswered", ["missing_response"]), ("ok", ["missing_request"]), ("ok", []),
    ]  # fmt: skip
    assert events[0].prediction == "a1"


def test_a_response_after_the_timeout_comes_too_late() -> None:
    """The request has gone alone by then."""
    stream: list[tuple[int, Part]] = [
        (1, half("request", 1)), (30, InferenceEvent(event_time_us=30, model="x")), (31, half("response", 31)),
    ]  # fmt: skip
    out = [part for _, part in pair_sorted(stream, timeout_us=20)]
    assert [e.quality for e in out if isinstance(e, InferenceEvent)] == [["missing_response"], [], ["missing_request"]]
