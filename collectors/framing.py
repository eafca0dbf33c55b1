"""What stands around a message's bytes: content encoding and schema registry prefixes, taken off before decoding.

`auto` is safe for JSON: neither 0x00 nor 0x03, with which the prefixes begin, can start a JSON text.
"""

from __future__ import annotations

import zlib
from typing import Final

from collectors.base import Decoder, Part, Record
from monitor.errors import DecodeError

MAX_RATIO: Final = 100  # decompressed to compressed size
FREE_BYTES: Final = 65_536  # below this, any ratio passes
INFLATE_WINDOW: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits
_CONFLUENT, _GLUE = 0, 3
_CONFLUENT_BYTES: Final = 5  # 0x00, 4-byte schema id
_GLUE_BYTES: Final = 18  # 0x03, compression, 16-byte schema version id


def framed(decode: Decoder, max_bytes: int) -> Decoder:
    """The decoder behind `unframe`; records without headers and prefixes take the short way."""

    def decode_framed(record: Record) -> tuple[Part, ...] | list[Part]:
        value = record.value
        if record.headers or (value and value[0] <= _GLUE):
            record = unframe(record, max_bytes)
        return decode(record)  # type: ignore[return-value]  # sequences both

    return decode_framed


def unframe(record: Record, max_bytes: int) -> Record:
    r"""The record with its value decompressed and freed of a Confluent or Glue prefix.

    Raises DecodeError: "bomb" when it would grow beyond `max_bytes` or a hundredfold, "bad_framing" when broken.
    Kafka's own batch compression is not meant here; that is the client's business.

    >>> unframe(Record("s", "t", 0, 0, None, b"\x00\x00\x00\x00\x07{}"), 1000).value
    b'{}'
    """
    value = record.value
    if not value:
        return record
    encoding = header(record, "content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
        window = INFLATE_WINDOW.get(encoding.strip().lower().decode("latin-1"))
        if window is None:
            raise DecodeError("bad_framing", f"content encoding {encoding[:32]!r} is not known")
        value = inflate(value, window, max_bytes)
    if value[:1] == bytes([_CONFLUENT]):
        if len(value) <= _CONFLUENT_BYTES:
            raise DecodeError("bad_framing", "a schema prefix without a message")
        value = value[_CONFLUENT_BYTES:]
    elif value[:1] == bytes([_GLUE]):
        if len(value) <= _GLUE_BYTES or value[1] not in (0, 5):
            raise DecodeError("bad_framing", "a broken Glue prefix")
        body = value[_GLUE_BYTES:]
        value = inflate(body, 15, max_bytes) if value[1] else body
    return record if value is record.value else record._replace(value=value)


def inflate(value: bytes, window: int, max_bytes: int) -> bytes:
    """Decompressed bytes, never more than allowed: the limit holds while decompressing, not after it."""
    limit = min(max_bytes, max(FREE_BYTES, MAX_RATIO * len(value)))
    stream = zlib.decompressobj(window)
    try:
        out = stream.decompress(value, limit)
    except zlib.error as error:
        raise DecodeError("bad_framing", f"broken compression: {error}"[:120]) from None
    if stream.unconsumed_tail or (len(out) == limit and not stream.eof):
        raise DecodeError("bomb", f"{len(value)} bytes grow beyond {limit}")
    if not stream.eof:
        raise DecodeError("bad_framing", "compressed data ends early")
    return out


def header(record: Record, name: str) -> bytes | None:
    """The first header of this name, whatever its case; names may repeat, and the first is the producer's."""
    for key, value in record.headers:
        if key.lower() == name:
            return value
    return None
