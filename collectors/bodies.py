"""What an HTTP body holds: one message, a JSON array of them, lines of JSON, or CloudEvents in their three modes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from collectors.base import Record
from collectors.decode.cleaning import load_json
from collectors.framing import INFLATE_WINDOW, inflate
from monitor.errors import DecodeError

_LINES: Final = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)
_BATCH: Final = "application/cloudevents-batch+json"
_ONE: Final = "application/cloudevents+json"
_SECRET: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"})
_raw: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class BodyRefused(Exception):
    """A request that cannot be taken at all; `status` is the HTTP status."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        super().__init__(detail)


def items_of(
    source: str, body: bytes, headers: Iterable[tuple[str, str]], timestamp_ms: int, limit: int
) -> Sequence[Record]:
    """The body's messages as records, at offsets from 0 on. Raises BodyRefused: 400, 413 or 415.

    Headers that may hold secrets are dropped here and never stored. A CloudEvent in binary mode is the whole body;
    in a content type that a web page may send without asking, nothing is accepted.
    """
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in _SECRET]
    content_type = next((v for n, v in kept if n == "content-type"), "").partition(";")[0].strip().lower()
    encoding = next((v for n, v in kept if n == "content-encoding"), "").strip().lower()
    kept = [(name, value) for name, value in kept if name != "content-encoding"]
    if encoding not in ("", "identity"):
        body = _inflated(body, encoding, limit)
    if not body.strip():
        raise BodyRefused(400, "The body is empty.")
    if any(name == "ce-type" for name, _ in kept):
        values: Sequence[bytes] = [body]
    elif content_type in _LINES:
        values = [line for raw in body.split(b"\n") if (line := raw.strip(b"\r \t"))]
    elif content_type == _BATCH or (content_type == "application/json" and body.lstrip().startswith(b"[")):
        values = _elements(body)
        kept = [(n, _ONE if n == "content-type" and content_type == _BATCH else v) for n, v in kept]
    elif content_type in ("application/json", _ONE):
        values = [body]
    else:
        raise BodyRefused(415, "Send application/json, application/x-ndjson or application/cloudevents+json.")
    sent = [(name, value.encode("latin-1", "replace")) for name, value in kept]
    return [Record(source, "http", 0, index, None, value, sent, timestamp_ms, 1) for index, value in enumerate(values)]


def _elements(body: bytes) -> Sequence[bytes]:
    """The bytes of each element of a JSON array; of one with NaN in it, written anew."""
    try:
        return [bytes(element) for element in _raw(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        loaded = load_json(body)
    except DecodeError as error:
        raise BodyRefused(400, f"The body is not JSON: {error.detail or error.reason}") from None
    if not isinstance(loaded, list):
        raise BodyRefused(400, "The body is not a JSON array.")
    try:
        return [json.dumps(element).encode() for element in loaded]
    except RecursionError:
        raise BodyRefused(400, "The body nests too deeply.") from None


def _inflated(body: bytes, encoding: str, limit: int) -> bytes:
    window = INFLATE_WINDOW.get(encoding)
    if window is None:
        raise BodyRefused(415, "Content-Encoding may be gzip or deflate.")
    try:
        return inflate(body, window, limit)
    except DecodeError as error:
        raise BodyRefused(413 if error.reason == "bomb" else 400, f"The body cannot be decompressed: {error}") from None
