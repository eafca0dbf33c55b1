"""Outcomes as a compact table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.attacks.score import Outcome, exact

HORIZONS = (100, 500, 1_200)


def table(found: Sequence[Outcome]) -> str:
    """A line per group of attackers, then one per kind of honest client."""
    lines = [
        f"{'attackers':22}{'n':>5}{'<=100':>7}{'<=500':>7}{'<=1200':>8}{'median':>8}{'worst':>7}{'family':>8}{'@100':>6}  missed"
    ]
    for group in dict.fromkeys(o.group for o in found if o.attack):
        mine = [o for o in found if o.attack and o.group == group]
        lines.append(_attackers(group, mine))
    lines.append(f"\n{'honest':22}{'n':>5}{'alarm':>7}  {'95 % interval':18}alarmed")
    for group in dict.fromkeys(o.group for o in found if not o.attack):
        mine = [o for o in found if not o.attack and o.group == group]
        bad = [o for o in mine if o.alarmed]
        low, high = exact(len(bad), len(mine))
        where = _places(bad)
        lines.append(f"{group:22}{len(mine):5}{len(bad):7}  {low:6.1%} to {high:6.1%}  {where}")
    return "\n".join(lines)


def _attackers(group: str, mine: Sequence[Outcome]) -> str:
    n = len(mine)
    counts = [sum(o.queries is not None and o.queries <= h for o in mine) / n for h in HORIZONS]
    known = sorted(o.queries for o in mine if o.queries is not None)
    every = sorted(o.queries if o.queries is not None else 10**9 for o in mine)
    middle = every[n // 2] if n else 0
    right = [o.right for o in mine if o.right is not None]
    later = [o.right_later for o in mine if o.right_later is not None]
    missed = _places([o for o in mine if o.queries is None], kind=True)
    early = sum(o.before for o in mine)
    return (
        f"{group:22}{n:5}{counts[0]:7.0%}{counts[1]:7.0%}{counts[2]:8.0%}"
        f"{middle if middle < 10**9 else '-':>8}{known[-1] if known else '-':>7}"
        f"{statistics.fmean(right) if right else 0:8.0%}{statistics.fmean(later) if later else 0:6.0%}  {missed}"
        + (f" ({early} before onset)" if early else "")
    )


def _places(found: Sequence[Outcome], *, kind: bool = False) -> str:
    """`data` or `kind/data` with counts, at most eight."""
    counts: dict[str, int] = {}
    for o in found:
        key = f"{o.kind}/{o.data}" if kind else o.data
        counts[key] = counts.get(key, 0) + 1
    shown = [f"{k}{f' x{c}' if c > 1 else ''}" for k, c in sorted(counts.items(), key=lambda kv: -kv[1])]
    return ", ".join(shown[:8]) + (f", +{len(shown) - 8}" if len(shown) > 8 else "")


def speed(parts: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Events a second and core, per detector and over all."""
    lines, total = [], 0.0
    for name, runs in parts.items():
        events, seconds = sum(n for n, _ in runs), sum(s for _, s in runs)
        total += seconds / max(events, 1)
        lines.append(f"{name} {events / max(seconds, 1e-9):,.0f}/s")
    return f"\nspeed: {', '.join(lines)}; all {1 / total if total else 0:,.0f} events/s"
