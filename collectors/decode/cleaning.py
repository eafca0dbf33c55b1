"""From hostile bytes to plain values that every store can hold: JSON with its usual sins, times in their usual forms.

Shared by the decoders. Nothing here guesses: what is repaired is flagged, what cannot be repaired has a reason code.
"""

from __future__ import annotations

import codecs
import json
import re
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from monitor.errors import DecodeError

MAX_DEPTH: Final = 64
MAX_TEXT: Final = 4096  # characters of one value; what is longer is no category
EXACT_INT: Final = 2**53  # beyond it a float can no longer tell neighbouring integers apart
MIN_TIME_US: Final = 100_000_000_000_000  # March 1973: earlier "milliseconds" are seconds, and those are a mistake
MAX_TIME_US: Final = 9_214_646_400_000_000  # the year 2262, where nanosecond clocks end
_decode: Final = msgspec.json.Decoder().decode
_LEAP = re.compile(r"(T\d\d:\d\d):60", re.IGNORECASE)
_FRACTION = re.compile(r"(\.\d{6})\d+")


def load_json(value: bytes) -> Any:
    """JSON as plain values; a byte order mark is skipped and NaN and Infinity come as floats. Raises DecodeError."""
    try:
        loaded = json.loads(value.removeprefix(codecs.BOM_UTF8).decode())
        if b"\\u" in value:  # an escaped half of a surrogate pair passes the parser, but no store
            json.dumps(loaded, ensure_ascii=False).encode()
    except RecursionError:
        raise DecodeError("too_deep") from None
    except ValueError as error:  # JSONDecodeError, UnicodeError, and an integer of thousands of digits
        raise DecodeError("bad_json", _short(error)) from None
    return loaded


def clean(value: Any, flags: set[str], depth: int = 1) -> Any:
    """The same tree with non-finite numbers as None (flag "nonfinite") and integers beyond 2**53 as strings.

    >>> flags = set(); clean({"a": [1, float("nan"), 2**60]}, flags), flags
    ({'a': [1, None, '1152921504606846976']}, {'nonfinite'})
    """
    kind = type(value)
    if kind is float:
        if value - value != 0:  # only NaN and the infinities
            flags.add("nonfinite")
            return None
    elif kind is int:
        if not -EXACT_INT <= value <= EXACT_INT:
            return str(value)
    elif kind is dict or kind is list:
        if depth > MAX_DEPTH:
            raise DecodeError("too_deep")
        if kind is dict:
            return {k: clean(v, flags, depth + 1) for k, v in value.items()}
        return [clean(v, flags, depth + 1) for v in value]
    return value


def clean_tree(value: Any, flags: set[str]) -> Any:
    """`clean` for a field of an event, one level below the message itself."""
    return clean(value, flags, 2)


def time_us(value: object, zone: ZoneInfo | None, unit_us: float = 1000) -> int:
    """RFC 3339 text, a datetime or a number of `unit_us` microseconds since 1970 as microseconds UTC.

    Text without a zone takes `zone`; without one it is refused, since a guess would shift every window.
    A leap second counts as the next second. Raises DecodeError("bad_time"), or "missing_field" for None.

    >>> time_us("2016-12-31T23:59:60Z", None) == time_us("2017-01-01T00:00:00Z", None)
    True
    """
    if value is None:
        raise DecodeError("missing_field", "the event time is absent")
    if isinstance(value, bool) or not isinstance(value, int | float | str | datetime):
        raise DecodeError("bad_time", f"a time must be text or a number, not {type(value).__name__}")
    if isinstance(value, int | float):
        try:
            micros = round(min(value * unit_us, MAX_TIME_US))
        except OverflowError:  # an integer of hundreds of digits
            micros = MAX_TIME_US
    else:
        moment = _parse(value) if isinstance(value, str) else value
        if moment.tzinfo is None:
            if zone is None:
                raise DecodeError("bad_time", "the time names no zone; append Z, or set the source's timezone")
            moment = moment.replace(tzinfo=zone)
        micros = int(moment.timestamp() * 1e6 + 0.5)  # a double holds microseconds exactly until 2255
    if not MIN_TIME_US <= micros < MAX_TIME_US:
        raise DecodeError("bad_time", "the time is outside 1973 to 2262; numbers are epoch milliseconds")
    return micros


def leaf(value: Any) -> float | str | bool | None:
    """A feature value or prediction: numbers as floats, ids beyond 2**53 and long texts as what a store can hold.

    Raises DecodeError("bad_shape") for objects and arrays.

    >>> leaf(3), leaf(True), leaf(2**60)
    (3.0, True, '1152921504606846976')
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return float(value) if -EXACT_INT <= value <= EXACT_INT else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, str):
        return value[:MAX_TEXT]
    raise DecodeError("bad_shape", f"{type(value).__name__} where a number or text is expected")


def leaves(name: str, value: Any, out: dict[str, float | str | bool | None], depth: int = 0) -> None:
    """A tree flattened into named leaves: `a.b` for members, `a[0]` for elements.

    >>> out = {}; leaves("x", {"a": 1, "b": [2, None]}, out); out
    {'x.a': 1.0, 'x.b[0]': 2.0, 'x.b[1]': None}
    """
    if depth > MAX_DEPTH:
        raise DecodeError("too_deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            leaves(f"{name}.{key}" if name else str(key), inner, out, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            leaves(f"{name}[{index}]", inner, out, depth + 1)
    else:
        out[name] = leaf(value)


def text(value: Any) -> str | None:
    """An id or name as text; numbers are written out, empty ones count as absent. Raises DecodeError("bad_shape")."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DecodeError("bad_shape", f"{type(value).__name__} where a name is expected")


def numbers(value: Any) -> list[float] | None:
    """A vector of finite numbers, or None when it has holes. Raises DecodeError("bad_shape") for anything else."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise DecodeError("bad_shape", f"{type(value).__name__} where a list of numbers is expected")
    out: list[float] = []
    for item in value:
        number = leaf(item)
        if number is None:
            return None
        if not isinstance(number, float):
            raise DecodeError("bad_shape", "a list of numbers holds something else")
        out.append(number)
    return out


def any_json(value: bytes, flags: set[str]) -> Any:
    """JSON as plain values, the fast way where it is strict JSON; else with what `load_json` and `clean` repair."""
    try:
        return _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return clean(load_json(value), flags)


def _parse(stamp: str) -> datetime:
    try:
        if _LEAP.search(stamp):
            return _parse(_LEAP.sub(r"\1:59", stamp, count=1)) + timedelta(seconds=1)
        return datetime.fromisoformat(_FRACTION.sub(r"\1", stamp, count=1))
    except (ValueError, OverflowError):
        raise DecodeError("bad_time", f"{stamp[:64]!r} is not RFC 3339") from None


def _short(error: Exception) -> str:
    """An error's text without the message it quotes: details are shown in tables and must not carry payloads."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    return str(error)[:120]
