"""Kafka's record format, read faster than the client does and where the client is too strict.

The client spends half of a consumer's time on reading varints by function calls and on properties of its record
objects; `record_reader` replaces that inner loop and nothing else: batches, checksums, compression, transactions and
offsets stay the client's business. A record whose header names are not UTF-8 does not stop its partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Read(NamedTuple):
    """One record of a batch, with the attributes that the client asks for."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    size_in_bytes: int
    checksum: None = None

    def validate_crc(self) -> bool:
        """Records of format v2 have no checksum of their own: the batch's has been checked."""
        return True


_make: Callable[..., Read] = tuple.__new__  # NamedTuple's own constructor costs twice as much


def varint(buffer: bytes, pos: int) -> tuple[int, int]:
    r"""A zigzag varint and where it ends.

    >>> varint(b"\x01", 0), varint(b"\xac\x02", 0)
    ((-1, 1), (150, 2))
    """
    raw = shift = 0
    while True:
        byte = buffer[pos]
        pos += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (raw >> 1) ^ -(raw & 1), pos
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def record_reader(corrupt: type[Exception]) -> Callable[[Any], Iterator[Read]]:
    """An iteration over a v2 batch (KIP-98) of the client; raises `corrupt` where the bytes make no sense.

    Varints of one byte, and lengths of two, are read in place: nearly all are that short, and a call costs more than
    the reading.
    """

    def read(batch: Any) -> Iterator[Read]:
        batch._maybe_uncompress()  # noqa: SLF001 -- what the client's own iteration does first
        buffer, pos = bytes(batch._buffer), batch._pos  # noqa: SLF001
        limit = len(buffer)
        base, first, kind = batch.base_offset, batch.first_timestamp, batch.timestamp_type
        logged = batch.max_timestamp if kind == batch.LOG_APPEND_TIME else None
        try:
            for _ in range(batch._num_records):  # noqa: SLF001
                size, pos = varint(buffer, pos)
                end = pos + size
                raw = buffer[pos + 1]  # behind the attributes, which say nothing yet
                if raw < 0x80:
                    time, pos = (raw >> 1) ^ -(raw & 1), pos + 2
                else:
                    time, pos = varint(buffer, pos + 1)
                raw = buffer[pos]
                if raw < 0x80:
                    offset, pos = (raw >> 1) ^ -(raw & 1), pos + 1
                else:
                    offset, pos = varint(buffer, pos)
                key = None
                if buffer[pos] == 1:  # -1: no key
                    pos += 1
                else:
                    length, pos = varint(buffer, pos)
                    if length >= 0:
                        key = buffer[pos : pos + length]
                        pos += length
                raw, more = buffer[pos], buffer[pos + 1]
                if more < 0x80 <= raw:
                    raw = raw & 0x7F | more << 7
                    length, pos = (raw >> 1) ^ -(raw & 1), pos + 2
                else:
                    length, pos = varint(buffer, pos)
                value = None
                if length >= 0:
                    value = buffer[pos : pos + length]
                    pos += length
                if buffer[pos]:
                    headers, pos = _headers(buffer, pos)
                else:
                    headers, pos = [], pos + 1
                if pos != end or end > limit:
                    raise ValueError("a record does not end where it says")
                at = first + time if logged is None else logged
                yield _make(Read, (base + offset, at, kind, key, value, headers, size, None))
        except (ValueError, IndexError) as error:
            raise corrupt(f"Found invalid record structure: {error!r}") from error
        if pos != limit:
            raise corrupt(f"{limit - pos} unconsumed bytes after all records consumed")

    return read


def _headers(buffer: bytes, pos: int) -> tuple[list[tuple[str, bytes | None]], int]:
    """Names repeat, values may be null, and bytes of names that are not UTF-8 are written as escapes."""
    count, pos = varint(buffer, pos)
    if count < 0:
        raise ValueError("a negative number of headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        length, pos = varint(buffer, pos)
        if length < 0:
            raise ValueError("a header without a name")
        name = buffer[pos : pos + length].decode("utf-8", "backslashreplace")
        length, pos = varint(buffer, pos + length)
        value = None
        if length >= 0:
            value = buffer[pos : pos + length]
            pos += length
        headers.append((name, value))
    return headers, pos
