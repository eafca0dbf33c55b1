"""The kinds of values in a configuration: durations are seconds, sizes bytes, budgets alarms per second."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_UNITS_B = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}


def seconds(value: object) -> float:
    """A duration such as "15m" as seconds; a bare number is seconds.

    >>> seconds("15m"), seconds("2s"), seconds(3)
    (900.0, 2.0, 3.0)
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?\s*", str(value))
    if not match:
        raise ValueError(f"{value!r} is not a duration; write for example 30s, 15m, 24h or 30d")
    return float(match[1]) * _UNITS_S[match[2] or "s"]


def size_bytes(value: object) -> int:
    """A size such as "1MiB" as bytes; a bare number is bytes.

    >>> size_bytes("1MiB")
    1048576
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", str(value))
    if not match or (match[2] or "b").lower() not in _UNITS_B:
        raise ValueError(f"{value!r} is not a size; write for example 64KiB or 1MiB")
    return int(match[1]) * _UNITS_B[(match[2] or "b").lower()]


def rate(value: object) -> float:
    """A false-alarm budget such as "1/30d" as allowed alarms per second.

    >>> round(1 / rate("1/30d"))
    2592000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d*\s*\w+)\s*", str(value))
    if match:
        time = match[2] if match[2][0].isdigit() else f"1{match[2]}"
        if float(match[1]) > 0 and seconds(time) > 0:
            return float(match[1]) / seconds(time)
    raise ValueError(f"{value!r} is not a budget; write false alarms per time, for example 1/30d")


Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=str | float)]  # seconds
Size = Annotated[int, BeforeValidator(size_bytes, json_schema_input_type=str | int)]  # bytes
Rate = Annotated[float, BeforeValidator(rate, json_schema_input_type=str)]  # alarms per second
SeverityName = Literal["warning", "minor", "major", "critical"]


class Section(BaseModel):
    """Base of every section: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)
