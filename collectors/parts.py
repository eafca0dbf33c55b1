"""The last look at what a decoder made, the same for every collector, before it is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from collectors.base import Part
from monitor import telemetry
from monitor.errors import DecodeError
from monitor.model import FeedbackEvent, Half, InferenceEvent, Mark, network


def admit(parts: Sequence[Part], source: str, future_us: float, pseudonym: Callable[[str], str]) -> int:
    """Puts pseudonyms for callers and flags events from the future; the newest other event time, or -1.

    An event later than `future_us` gets the flag "clock_skew" and never moves the watermark. Raises DecodeError for
    names that PostgreSQL cannot store.
    """
    newest = -1
    for part in parts:
        event = part if type(part) is InferenceEvent else _inner(part, pseudonym)
        if event is None:
            continue
        if "\0" in event.model:
            raise DecodeError("bad_shape", "NUL in the model's name")
        if event.event_time_us <= future_us:
            if event.event_time_us > newest:  # noqa: PLR1730 -- max() costs a call per event
                newest = event.event_time_us
        else:
            event.quality = [*event.quality, "clock_skew"]
            telemetry.count("events_flagged_total", source=source, flag="clock_skew")
        if event.principal is not None:
            event.principal = pseudonym(event.principal)
        if event.credential_id is not None:
            event.credential_id = pseudonym(event.credential_id)
        if event.source_ip is not None:
            event.source_ip = _address(event.source_ip, pseudonym)
    return newest


def _address(text: str, pseudonym: Callable[[str], str]) -> str:
    """An address's pseudonym "at" the one of its network, so that a move within a network can be told from one out of it."""
    given = pseudonym(text)
    return given if given == text else f"{given}@{pseudonym(network(text))}"


def _inner(part: Part, pseudonym: Callable[[str], str]) -> InferenceEvent | None:
    """The event inside a half; None for feedback and marks."""
    if isinstance(part, Mark):
        return None
    if isinstance(part, Half):
        if "\0" in part.pair_key:
            raise DecodeError("bad_shape", "NUL in the pairing key")
        return part.event
    if isinstance(part, FeedbackEvent):
        texts = (part.model, part.name, part.kind, part.labeler or "", *part.target, *part.target.values())
        if any("\0" in text for text in texts):
            raise DecodeError("bad_shape", "NUL in feedback")
        if part.labeler is not None:
            part.labeler = pseudonym(part.labeler)
        return None
    return part
