"""What moved from one reference to the next, in sentences for people who approve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alerts.text import shown
from monitor.reports.words import number


def moved(found: Mapping[str, Any]) -> Iterator[str]:
    r"""A line per feature, the most changed first, and one each of added and removed ones.

    Names and values come from logs and are made harmless.

    >>> one = {"name": "amount", "js": 0.1234, "psi": 0.06, "mean": [20.5, 27.25]}
    >>> list(moved({"features": [one], "added": ["<b>"], "removed": []}))
    ['amount: JS 0.123, PSI 0.06, mean 20.5 to 27.2', 'added: \\x3cb\\x3e']
    """
    for f in found["features"]:
        mean = f", mean {number(f['mean'][0])} to {number(f['mean'][1])}" if "mean" in f else ""
        news = "".join(f", {w} {', '.join(shown(v, 40) for v in f[w])}" for w in ("came", "went") if f.get(w))
        yield f"{shown(f['name'], 40)}: JS {number(f['js'])}, PSI {number(f['psi'])}{mean}{news}"
    for what in ("added", "removed"):
        if found[what]:
            yield f"{what}: {', '.join(shown(n, 40) for n in found[what][:20])}"
