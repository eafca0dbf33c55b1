"""Outcomes as tables: per group on the terminal, and the numbers that were asked for with exact intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.attacks.actors import HARD, TOOLS
from benchmarks.attacks.score import Outcome, exact

HORIZONS: Final = (100, 500, 1_200)
QUIET: Final = ("segment", "one_class", "sorted", "batch", "probe", "retries", "rescored", "cents")
BASELINES: Final = ("prada", "prada-calibrated", "mmd")
Found = Sequence[Outcome]


@dataclass(frozen=True)
class Number:
    """One line: hits of n independent actors against a bar. `met` compares the point, not the interval."""

    what: str
    bar: str
    value: str
    interval: str
    worst: str
    met: bool | None


def _share(mine: Found, hit: Callable[[Outcome], bool]) -> tuple[int, int, str, str]:
    """Hits, n, the exact interval, and the data set that is farthest from all."""
    k, n = sum(map(hit, mine)), len(mine)
    low, high = exact(k, n)
    by_data = {d: [o for o in mine if o.data == d] for d in dict.fromkeys(o.data for o in mine)}
    rates = {d: sum(map(hit, os)) / len(os) for d, os in by_data.items()}
    ends = f"{min(rates, key=rates.__getitem__)} {min(rates.values()):.0%}" if rates else ""
    tops = f"{max(rates, key=rates.__getitem__)} {max(rates.values()):.0%}" if rates else ""
    return k, n, f"{low:.1%} to {high:.1%}", f"{ends}, {tops}"


def _least(what: str, bar: float, mine: Found, hit: Callable[[Outcome], bool]) -> Number:
    k, n, interval, worst = _share(mine, hit)
    return Number(
        what, f"{bar:.0%} or more", f"{k} of {n} ({k / max(n, 1):.0%})", interval, worst, k >= bar * n if n else None
    )


def _most(what: str, bar: float, mine: Found, hit: Callable[[Outcome], bool] = lambda o: o.alarmed) -> Number:
    k, n, interval, worst = _share(mine, hit)
    text = "none" if bar == 0 else f"{bar:.0%} or fewer"
    return Number(what, text, f"{k} of {n} ({k / max(n, 1):.1%})", interval, worst, k <= bar * n if n else None)


def within(queries: int) -> Callable[[Outcome], bool]:
    return lambda o: o.queries is not None and o.queries <= queries


def numbers(found: Found) -> list[Number]:
    """The lines of the specification. Families are read of alarmed attackers only."""
    by = {g: [o for o in found if o.group == g] for g in dict.fromkeys(o.group for o in found)}

    def group(name: str) -> list[Outcome]:
        return by.get(name, [])

    tools = [o for o in found if o.group in TOOLS]
    declared = [o for o in found if o.group.endswith("(declared)")]
    middle = median(group("unmasked"))
    named = {g: [o for o in group(g) if o.right_later is not None] for g in ("unmasked", "valid")}
    return [
        _least("unmasked attacks, within 100 queries", 0.95, group("unmasked"), within(100)),
        Number(
            "unmasked attacks, median queries", "15 or fewer", middle, "", "", middle.isdecimal() and int(middle) <= 15
        ),
        _least("valid values and interleaving, within 500", 0.75, group("valid"), within(500)),
        _least("valid values and interleaving, within 1,200", 0.85, group("valid"), within(1_200)),
        _least("padded, attack share 20 %, within 1,000", 0.95, group("padded-20%"), within(1_000)),
        _least("padded, attack share 10 %, within 1,000", 0.90, group("padded-10%"), within(1_000)),
        _most("natural principals alarmed per 1,000 queries", 0.01, group("natural")),
        _most("undeclared what-if and explainer principals", 0.10, tools),
        _most("undeclared what-if and explainer principals that page somebody", 0.0, tools, lambda o: o.pages),
        _most("declared what-if and explainer principals", 0.0, declared),
        _most("batch, probe, retries, segment, cents, sorted, one class, re-scored", 0.0, [o for o in found if o.group in QUIET]),
        _least("family right 100 queries after onset, unmasked", 0.90, named["unmasked"], lambda o: bool(o.right_later)),
        _least("family right 100 queries after onset, valid values", 0.75, named["valid"], lambda o: bool(o.right_later)),
    ]  # fmt: skip


def median(mine: Found) -> str:
    """Median queries to the alarm, attackers never found counted as later than all; "-" when half were never found."""
    every = sorted(o.queries if o.queries is not None else 10**9 for o in mine)
    middle = every[len(every) // 2] if every else 10**9
    return str(middle) if middle < 10**9 else "-"


def text(found: Found) -> str:
    """A line per group of attackers, one per kind of honest client, then the numbers."""
    head = f"{'attackers':22}{'n':>5}{'<=100':>7}{'<=500':>7}{'<=1200':>8}{'median':>8}{'worst':>7}{'family':>8}{'@100':>6}{'pages':>7}"
    lines = [f"{head}  missed"]
    for g in attack_groups(found):
        r = attackers(found, g)
        lines.append(
            f"{g:22}{r['n']:5}{r['100']:7.0%}{r['500']:7.0%}{r['1200']:8.0%}{r['median']:>8}{r['worst']:>7}"
            f"{_percent(r['family']):>8}{_percent(r['family_later']):>6}{_percent(r['pages']):>7}  {r['missed']}"
        )
    lines.append(f"\n{'honest':24}{'n':>5}{'alarm':>7}{'pages':>7}  {'95 % interval':18}alarmed")
    for g in honest_groups(found):
        mine = [o for o in found if not o.attack and o.group == g]
        bad = [o for o in mine if o.alarmed]
        low, high = exact(len(bad), len(mine))
        pages = sum(o.pages for o in bad)
        lines.append(f"{g:24}{len(mine):5}{len(bad):7}{pages:7}  {low:6.1%} to {high:6.1%}  {_places(bad)}")
    if any(o.baselines for o in found):
        lines.append(f"\n{'ever alarmed by':26}{''.join(f'{b:>18}' for b in BASELINES)}")
        both = [(True, g) for g in attack_groups(found)] + [(False, g) for g in honest_groups(found)]
        lines += [f"{g:26}{''.join(f'{x:>18}' for x in _baselines(found, g, attack=a))}" for a, g in both]
    lines.append("")
    lines += [f"{_mark(x.met)} {x.what:68}{x.bar:>15}{x.value:>20}  {x.interval}" for x in numbers(found)]
    return "\n".join(lines)


def _mark(met: bool | None) -> str:
    return " " if met is None else "+" if met else "-"


def _said(met: bool | None) -> str:
    return "" if met is None else "yes" if met else "**no**"


def attack_groups(found: Found) -> list[str]:
    return list(dict.fromkeys(o.group for o in found if o.attack))


def honest_groups(found: Found) -> list[str]:
    return list(dict.fromkeys(o.group for o in found if not o.attack))


def attackers(found: Found, group: str) -> dict[str, Any]:
    """One line of the attackers' table, as data."""
    mine = [o for o in found if o.attack and o.group == group]
    known = [o.queries for o in mine if o.queries is not None]
    right = [o.right for o in mine if o.right is not None]
    later = [o.right_later for o in mine if o.right_later is not None]
    return {
        "n": len(mine),
        **{str(h): sum(map(within(h), mine)) / len(mine) for h in HORIZONS},
        "median": median(mine),
        "worst": str(max(known)) if known else "-",
        "family": statistics.fmean(right) if right else None,
        "family_later": statistics.fmean(later) if later else None,
        "pages": statistics.fmean(o.pages for o in mine if o.queries is not None) if known else None,
        "before": sum(o.before for o in mine),
        "missed": _places([o for o in mine if o.queries is None], kind=True),
    }


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{x:.0%}"


def _places(found: Found, *, kind: bool = False) -> str:
    """`data` or `kind/data` with counts, at most eight."""
    counts: dict[str, int] = {}
    for o in found:
        key = f"{o.kind}/{o.data}" if kind else o.data
        counts[key] = counts.get(key, 0) + 1
    shown = [f"{k}{f' x{c}' if c > 1 else ''}" for k, c in sorted(counts.items(), key=lambda kv: -kv[1])]
    return ", ".join(shown[:8]) + (f", +{len(shown) - 8}" if len(shown) > 8 else "")


def markdown(found: Found) -> str:
    """The tables of docs/attacks.md for one split."""
    lines = [
        "| what | bar | measured | 95 % interval | lowest and highest data set | met |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {x.what} | {x.bar} | {x.value} | {x.interval} | {x.worst} | {_said(x.met)} |" for x in numbers(found)]
    names = " | ".join(BASELINES)
    lines += [
        "", f"| attackers | n | within 100 | 500 | 1,200 | median | worst | family right at opening | at 100 | of the found page | {names} | never found |",
        "|---" * (11 + len(BASELINES)) + "|---|",
    ]  # fmt: skip
    for g in attack_groups(found):
        r, others = attackers(found, g), " | ".join(_baselines(found, g, attack=True))
        lines.append(
            f"| {g} | {r['n']} | {r['100']:.0%} | {r['500']:.0%} | {r['1200']:.0%} | {r['median']} | {r['worst']} | "
            f"{_percent(r['family'])} | {_percent(r['family_later'])} | {_percent(r['pages'])} | {others} | {r['missed']} |"
        )
    lines += [
        "",
        f"| honest clients | n | alarmed | pages | 95 % interval | {names} | where |",
        "|---" * (6 + len(BASELINES)) + "|",
    ]
    for g in honest_groups(found):
        mine = [o for o in found if not o.attack and o.group == g]
        bad, others = [o for o in mine if o.alarmed], " | ".join(_baselines(found, g, attack=False))
        low, high = exact(len(bad), len(mine))
        lines.append(
            f"| {g} | {len(mine)} | {len(bad)} | {sum(o.pages for o in bad)} | {low:.1%} to {high:.1%} | {others} | {_places(bad)} |"
        )
    return "\n".join(lines)


def _baselines(found: Found, group: str, *, attack: bool) -> list[str]:
    mine = [o for o in found if o.attack == attack and o.group == group and o.baselines]
    return [f"{sum(o.baselines.get(b) is not None for o in mine) / len(mine):.0%}" if mine else "" for b in BASELINES]


def record(found: Found) -> dict[str, Any]:
    """What is stored as the recorded run: counts per group, and every actor that went wrong by name."""
    return {
        "numbers": [vars(x) for x in numbers(found)],
        "attackers": {g: attackers(found, g) for g in attack_groups(found)},
        "honest": {
            g: {"n": len(mine), "alarmed": sum(o.alarmed for o in mine), "pages": sum(o.pages for o in mine)}
            for g in honest_groups(found)
            for mine in [[o for o in found if not o.attack and o.group == g]]
        },
        "missed": sorted(f"{o.data}/{o.name}" for o in found if o.attack and o.queries is None),
        "false": sorted(f"{o.data}/{o.name}" for o in found if not o.attack and o.alarmed),
        "kinds": {"hard": list(HARD), "tools": list(TOOLS)},
    }


def speed(parts: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Events a second and core, per detector and over all."""
    lines, total = [], 0.0
    for name, runs in parts.items():
        events, seconds = sum(n for n, _ in runs), sum(s for _, s in runs)
        total += seconds / max(events, 1)
        lines.append(f"{name} {events / max(seconds, 1e-9):,.0f}/s")
    return f"{', '.join(lines)}; all {1 / total if total else 0:,.0f} events/s"
