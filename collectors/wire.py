"""Kafka's record format where the client is too strict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def read_record(batch: Any, make: Callable[..., Any], decode_varint: Callable[[Any, int], tuple[int, int]]) -> Any:
    """The next record of a v2 batch (KIP-98), bytes of header names that are not UTF-8 written as escapes."""
    buffer, start = batch._buffer, batch._pos  # noqa: SLF001

    def chunk(pos: int) -> tuple[bytes | None, int]:
        size, pos = decode_varint(buffer, pos)
        return (None, pos) if size < 0 else (bytes(buffer[pos : pos + size]), pos + size)

    length, pos = decode_varint(buffer, start)
    end = pos + length
    _, pos = decode_varint(buffer, pos)  # attributes
    time_delta, pos = decode_varint(buffer, pos)
    offset_delta, pos = decode_varint(buffer, pos)
    key, pos = chunk(pos)
    value, pos = chunk(pos)
    count, pos = decode_varint(buffer, pos)
    headers = []
    for _ in range(count):
        name, pos = chunk(pos)
        body, pos = chunk(pos)
        headers.append(((name or b"").decode("utf-8", "backslashreplace"), body))
    batch._pos = end  # noqa: SLF001
    logged = batch.timestamp_type == batch.LOG_APPEND_TIME
    timestamp = batch.max_timestamp if logged else batch.first_timestamp + time_delta
    return make(length, batch.base_offset + offset_delta, timestamp, batch.timestamp_type, key, value, headers)
