"""How values and names become words on the page and in reports."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from monitor.model import SECOND_US

VERSION_WORDS: Final[Mapping[str, str]] = {
    "same": "The drift engine, with the old version's windows as its reference, sees no difference.",
    "changed": "The drift engine, with the old version's windows as its reference, sees a difference.",
    "learning": "The old version has too few windows for the drift engine to judge; sizes of change only.",
}
ANSWER_WORDS: Final[Mapping[str, str]] = {
    "same": "Its answers are those of the old version, as far as the windows can tell.",
    "other answers": "Asked the same, it answers otherwise.",
    "other inputs": "It is asked otherwise: at the old version's mix of inputs its answers are the same.",
    "learning": "Too little data to compare answers: eight windows of each version are needed.",
}
_HIDDEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def change(told: Mapping[str, Any] | None) -> str:
    """A difference with its band; a dash where there is none.

    >>> change({"difference": 0.25, "band": [0.125, 0.375]}), change({"difference": 1.0, "band": None}), change(None)
    ('0.25 (0.125 to 0.375)', '1 (too little data)', '–')
    """
    if told is None:
        return "–"
    band = "too little data" if told["band"] is None else " to ".join(number(b) for b in told["band"])
    return f"{number(told['difference'])} ({band})"


def seen(text: object) -> str:
    r"""Text of a log with its invisible and direction-changing characters spelled out; markup is escaped later.

    >>> seen("pay\u202ecod.exe"), seen("a\x07b")
    ('pay\\u{202e}cod.exe', 'a\\u{7}b')
    """
    return _HIDDEN.sub(lambda m: f"\\u{{{ord(m[0]):x}}}", str(text))


def number(value: float | None) -> str:
    """A number for people: about three digits, thousands grouped, an en dash where there is none.

    >>> number(12345.6), number(0.01234), number(None), number(7.0), number(2e-9)
    ('12,346', '0.0123', '–', '7', '2.0e-09')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == round(value) and abs(value) < 1e15:
        return f"{round(value):,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-4 else f"{value:.1e}"


def moment(time_us: int) -> str:
    """A time for people, in UTC.

    >>> moment(1_700_000_000_000_000)
    '2023-11-14 22:13'
    """
    return f"{datetime.fromtimestamp(time_us // SECOND_US, UTC):%Y-%m-%d %H:%M}"


def percent(share: float | None) -> str:
    """A share as a percentage.

    >>> percent(0.1234), percent(None)
    ('12.34%', '–')
    """
    return "–" if share is None else f"{share:.2%}"
