"""How often `abuse` alarms on honest clients, and how soon it sees that one uses a model too much: `python -m benchmarks.usage
[--split design|judging] [--out FILE]`.

Clients are made up, by the hour: steady services, office hours, nightly and weekly batches, month ends, heavy-tailed bursts,
people now and then, growth, one-off backfills, launches of products, holidays. Parameters of the judging split come from
wider ranges and other seeds than those of the design split, on which the detector's numbers were chosen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.attacks.score import exact
from detectors.abuse.surges import Abuse
from detectors.decide import FuseSettings, fuse
from monitor.model import HOUR_US, Verdict
from monitor.service.windows import Stretch

Rng = np.random.Generator
Counts = NDArray[np.int64]  # (days, 24): calls of a client
Usual = NDArray[np.float64]

START_DAY: Final = 20_000  # since 1970; a Wednesday, the fifth of a month
DAYS: Final = 180
ONSET: Final = 90  # day on which attacks begin, or up to two weeks later
EACH: Final = 40  # honest clients of a kind
ARRIVES: Final = 31  # day on which newcomers come
BESIDE: Final = 14  # honest clients beside those that attack
AT_ONCE: Final = 2  # clients that attack in one run
RATE: Final = 1 / (30 * 86400)  # false alarms a second that the budget allows


@dataclass(frozen=True)
class Split:
    """seed; wide: how far parameters range, from 0 to 1."""

    seed: int
    wide: float

    def between(self, rng: Rng, low: float, high: float) -> float:
        """A parameter: log-uniform within the middle of the range that the split may use."""
        a, b = np.log(low), np.log(high)
        middle, half = (a + b) / 2, (b - a) / 2 * self.wide
        return float(np.exp(rng.uniform(middle - half, middle + half)))


SPLITS: Final = {"design": Split(501, 0.7), "judging": Split(907, 1.0)}


def _noise(rng: Rng, mean: Usual, split: Split) -> Counts:
    """Calls around a mean that differs from day to day and from hour to hour."""
    day: Usual = np.exp(split.between(rng, 0.05, 0.4) * rng.normal(size=(len(mean), 1)))
    hour = np.exp(split.between(rng, 0.05, 0.5) * rng.normal(size=mean.shape))
    return rng.poisson(mean * day * hour).astype(np.int64)


def _weekday(days: int) -> Usual:
    return ((np.arange(days) + 2) % 7 < 5).astype(np.float64)[:, None]


def _month(days: int) -> NDArray[np.int64]:
    return (np.arange(days) + 5) % 30  # 27 to 29: the end of it


def steady(rng: Rng, split: Split) -> Counts:
    """A service that calls around the clock."""
    return _noise(rng, np.full((DAYS, 24), split.between(rng, 2, 40)), split)


def office(rng: Rng, split: Split) -> Counts:
    """People at work, through a service."""
    shape: Usual = np.where((np.arange(24) >= 8) & (np.arange(24) < 18), 1.0, 0.02)
    return _noise(rng, shape * split.between(rng, 5, 60) * np.maximum(_weekday(DAYS), 0.05), split)


def nightly(rng: Rng, split: Split) -> Counts:
    """A batch of one to three hours a night, of a size that differs."""
    out = np.zeros((DAYS, 24))
    first, hours = int(rng.integers(0, 5)), int(rng.integers(1, 4))
    size = split.between(rng, 60, 600) * np.exp(split.between(rng, 0.1, 0.8) * rng.normal(size=(DAYS, 1)))
    out[:, first : first + hours] = size
    return rng.poisson(out).astype(np.int64)


def weekly(rng: Rng, split: Split) -> Counts:
    """A batch a week, and a few calls in between."""
    out = np.full((DAYS, 24), 0.2)
    size = split.between(rng, 200, 1_000) * np.exp(split.between(rng, 0.1, 0.6) * rng.normal(size=DAYS))
    at = np.arange(int(rng.integers(7)), DAYS, 7)
    out[at, 2], out[at, 3] = size[at], size[at] / 2
    return np.asarray(rng.poisson(out), dtype=np.int64)


def month_end(rng: Rng, split: Split) -> Counts:
    """Office hours, and several times as much at the end of each month."""
    much = np.where(_month(DAYS) >= 30 - int(rng.integers(1, 5)), split.between(rng, 2, 12), 1.0)
    return np.asarray(rng.poisson(office(rng, split) * much[:, None]), dtype=np.int64)


def bursts(rng: Rng, split: Split) -> Counts:
    """Jobs at any time, of heavy-tailed sizes."""
    out: Counts = np.zeros((DAYS, 24), np.int64)
    jobs, tail, least = split.between(rng, 0.5, 6), split.between(rng, 1.2, 3), split.between(rng, 10, 100)
    for day, n in enumerate(rng.poisson(jobs, DAYS).tolist()):
        for hour in rng.integers(24, size=n).tolist():
            out[day, hour] += round(min(least * (1 + rng.pareto(tail)), 5_000))
    return np.asarray(out + rng.poisson(0.3, (DAYS, 24)), dtype=np.int64)


def people(rng: Rng, split: Split) -> Counts:
    """Somebody who asks on some days."""
    present = rng.random((DAYS, 1)) < split.between(rng, 0.15, 0.8)
    hours: Usual = (present & (np.arange(24) >= 9) & (np.arange(24) < 17)).astype(np.float64)
    return np.asarray(
        rng.poisson(_noise(rng, hours * split.between(rng, 1, 20), split) * _weekday(DAYS)), dtype=np.int64
    )


def growth(rng: Rng, split: Split) -> Counts:
    """A client that grows all the time, or from some day on, by 5 to 40 % a month."""
    month = np.log(1 + split.between(rng, 0.05, 0.4)) / 30
    begin = float(rng.choice([0, rng.uniform(30, 120)]))
    grown = steady(rng, split) * np.exp(month * np.maximum(np.arange(DAYS) - begin, 0))[:, None]
    return np.asarray(rng.poisson(grown), dtype=np.int64)


def backfill(rng: Rng, split: Split) -> Counts:
    """Office hours or a service, and once a backfill of two hours to two days."""
    out = (steady, office)[int(rng.integers(2))](rng, split).reshape(-1)
    at, hours = int(rng.integers(60 * 24, 170 * 24)), round(split.between(rng, 2, 48))
    out[at : at + hours] += rng.poisson(split.between(rng, 3, 30) * np.percentile(out, 95), hours)
    return out.reshape(DAYS, 24)


def holidays(rng: Rng, split: Split) -> Counts:
    """Office hours with weeks off, and more than usual when everybody is back."""
    out = office(rng, split)
    first, weeks = int(rng.integers(40, 120)), int(rng.integers(1, 4))
    out[first : first + 7 * weeks] //= 20
    after = slice(first + 7 * weeks, first + 7 * weeks + 3)
    out[after] = rng.poisson(out[after] * split.between(rng, 1.1, 2.0))
    return out


HONEST: Final[Mapping[str, Callable[[Rng, Split], Counts]]] = {
    f.__name__: f for f in (steady, office, nightly, weekly, month_end, bursts, people, growth, backfill, holidays)
}
USERS: Final = (
    "steady",
    "office",
    "nightly",
    "weekly",
    "month_end",
    "bursts",
    "people",
)  # who may begin to take too much


def _times(counts: Counts, rng: Rng, onset: int, times: float, days: int = 30) -> Counts:
    out = counts.copy()
    out[onset : onset + days] = rng.poisson(out[onset : onset + days] * times)
    return out


def _clock(counts: Counts, rng: Rng, onset: int, times: float) -> Counts:
    """Every hour just under so many times the largest hour so far."""
    out = counts.copy()
    out[onset : onset + 30] += int(times * max(60, counts[:onset].max()))
    return out


def _spread(counts: Counts, rng: Rng, onset: int, times: float) -> Counts:
    """So many times the usual amount on top, evenly over all hours of 30 days."""
    out = counts.copy()
    out[onset : onset + 30] += rng.poisson(times * counts[onset - 60 : onset].mean(), (30, 24))
    return out


def _ramp(counts: Counts, rng: Rng, onset: int, times: float) -> Counts:
    """Growth to so many times as much in every 30 days."""
    return rng.poisson(counts * times ** (np.maximum(np.arange(DAYS) - onset, 0) / 30)[:, None]).astype(np.int64)


def _surge(counts: Counts, rng: Rng, onset: int, calls: int, hours: int = 24) -> Counts:
    """So many more calls an hour, for a day or some hours of it."""
    out = counts.copy()
    first = int(rng.integers(25 - hours))
    out[onset, first : first + hours] += rng.poisson(calls, hours)
    return out


ATTACKS: Final[Mapping[str, Callable[[Counts, Rng, int], Counts]]] = {
    "3 times as much for 30 days": lambda c, r, o: _times(c, r, o, 3),
    "twice as much for 30 days": lambda c, r, o: _times(c, r, o, 2),
    "1.5 times as much for 30 days": lambda c, r, o: _times(c, r, o, 1.5),
    "every hour 3.5 times the largest one": lambda c, r, o: _clock(c, r, o, 3.5),
    "three times the usual on top, spread over all hours": lambda c, r, o: _spread(c, r, o, 3),
    "twice as much every 30 days, for 90 days": lambda c, r, o: _ramp(c, r, o, 2),
    "1.5 times as much every 30 days, for 90 days": lambda c, r, o: _ramp(c, r, o, 1.5),
    "6,000 calls an hour more, for a day": lambda c, r, o: _surge(c, r, o, 6_000),
    "6,000 calls more in one hour": lambda c, r, o: _surge(c, r, o, 6_000, 1),
    "20,000 calls more in one hour": lambda c, r, o: _surge(c, r, o, 20_000, 1),
}


NEW: Final[Mapping[str, Callable[[Rng, Split], Counts]]] = {  # newcomers that take too much from their first hour on
    "500 calls an hour": lambda rng, split: rng.poisson(500, (DAYS, 24)),
    "5,000 calls an hour": lambda rng, split: rng.poisson(5_000, (DAYS, 24)),
    "50,000 calls in the first hour": lambda rng, split: _first(50_000),
}


def _first(calls: int) -> Counts:
    out = np.zeros((DAYS, 24), np.int64)
    out[ARRIVES, 0] = calls
    return out


@dataclass(frozen=True)
class Run:
    """Clients of one made-up log, and when each was first alarmed about, or told to have crept up: days from the beginning."""

    alarms: Mapping[str, float]
    crept: Mapping[str, float]
    signals: Mapping[str, str]
    events: int
    seconds: float


def run(clients: Mapping[str, Counts], rng: Rng, days: int = DAYS) -> Run:
    """Through the detector and fuse(), in stretches of a day."""
    names = list(clients)
    counts = np.stack([clients[n] for n in names])  # (clients, days, hours)
    costly, failing, rich = rng.random((3, len(names)))
    tokens = np.where(costly < 0.3, 400.0, 0.0)
    settings = FuseSettings.derive(RATE, counts[:, :days].sum() / (days * 86400))
    detector = Abuse()
    cal = detector.calibrate([], "none")
    state, sums, spent = None, None, 0.0
    alarms, crept = dict[str, float](), dict[str, float]()
    signals: dict[str, str] = {}
    for day in range(days):
        table = _events(names, counts[:, day], day, tokens, failing * 0.05, rich < 0.3, rng)
        began = time.process_time()
        measured = detector.measure(
            cal, state, Stretch("m", START_DAY * 24 * HOUR_US, (START_DAY + 1) * 24 * HOUR_US, table)
        )
        spent += time.process_time() - began
        state = measured.state
        for d in measured.detections:
            if d.verdict is Verdict.ALARM and d.subject.kind == "principal":
                crept.setdefault(d.subject.id, d.window_us[1] / (24 * HOUR_US) - START_DAY)
        decided = fuse(sums, [measured.evidence] if measured.evidence else [], [], settings, "m")
        sums = decided.state
        for told in decided.decisions:
            who = told.subject.id
            if told.firing and who not in alarms:
                alarms[who] = told.time_us / (24 * HOUR_US) - START_DAY
                signals[who] = str(told.evidence["detectors"][0]["name"])
    return Run(alarms, crept, signals, int(counts[:, :days].sum()), spent)


def _events(
    names: list[str], counts: Counts, day: int, tokens: Usual, failing: Usual, rich: NDArray[np.bool_], rng: Rng
) -> pa.Table:
    """The calls of a day, in order of time."""
    who = np.repeat(np.arange(len(names)), counts.sum(axis=1))
    hour = np.repeat(np.tile(np.arange(24), len(names)), counts.reshape(-1))
    when = ((START_DAY + day) * 24 + hour) * HOUR_US + rng.integers(0, HOUR_US, len(who))
    order = np.argsort(when, kind="stable")
    who, n = who[order], len(who)
    failed = rng.random(n) < failing[who]
    words = pa.array(names)
    return pa.table(
        {
            "event_time": pa.array(when[order]), "principal": words.take(pa.array(who)),
            "status": pa.array(["ok", "error"]).take(pa.array(failed.astype(np.int64))),
            "returned": pa.array(["label", "scores"]).take(pa.array(rich[who].astype(np.int64))),
            "tokens_in": pa.array(np.rint(tokens[who] * rng.lognormal(0, 0.7, n)).astype(np.int64)),
            "latency_ms": pa.array(rng.lognormal(3, 0.8, n)),
        }
    )  # fmt: skip


def honest(split: Split, each: int = EACH) -> dict[str, Any]:
    """Alarms on honest clients by kind, in runs of all kinds together."""
    rng = np.random.default_rng([split.seed, 1])
    told: dict[str, list[str]] = {kind: [] for kind in HONEST}
    events, seconds = 0, 0.0
    for part in range(0, each, 10):
        clients = {
            f"{kind}-{part + i}": make(rng, split) for kind, make in HONEST.items() for i in range(min(10, each))
        }
        found = run(clients, rng)
        events, seconds = events + found.events, seconds + found.seconds
        for name, day in found.alarms.items():
            told[name.rpartition("-")[0]].append(f"day {day:.0f}, {found.signals[name]}")
    return {
        "each": each, "days": DAYS, "events": events, "us_per_event": round(1e6 * seconds / events, 2),
        "alarms": {kind: len(t) for kind, t in told.items()}, "when": {kind: t for kind, t in told.items() if t},
    }  # fmt: skip


def newcomers(split: Split, each: int) -> dict[str, Any]:
    """Callers without peers that come to a log of ARRIVES days: alarmed within three weeks, or in case of hostile ones a week."""
    out: dict[str, Any] = {}
    for k, (name, make) in enumerate({**HONEST, **NEW}.items()):
        rng = np.random.default_rng([split.seed, 3, k])
        weeks, days = 3 if name in HONEST else 1, list[float]()
        for part in range(0, each, 5):
            clients = {f"h{i}": HONEST[USERS[i % len(USERS)]](rng, split) for i in range(BESIDE)}
            for i in range(part, min(part + 5, each)):
                clients[f"new-{i}"] = make(rng, split)
                clients[f"new-{i}"][:ARRIVES] = 0
            alarms = run(clients, rng, ARRIVES + 7 * weeks).alarms
            days += [day - ARRIVES for who, day in alarms.items() if who.startswith("new-")]
        median = round(24 * float(np.median(days)), 1) if days else None
        out[name] = {"of": each, "alarmed": len(days), "median_hours": median}
    return out


def attacks(split: Split, each: int) -> dict[str, Any]:
    """Found within 30 days (90 where the attack lasts that long) of its beginning, by attack and kind of client."""
    out: dict[str, Any] = {}
    for k, (name, make) in enumerate(ATTACKS.items()):
        rng = np.random.default_rng([split.seed, 2, k])
        found: dict[str, list[float]] = {kind: [] for kind in USERS}
        before, left = 0, [kind for kind in USERS for _ in range(each)]
        limit = 90 if "every 30 days" in name else 30
        while left:
            hostile = {f"{kind}-bad-{len(left) - i}": kind for i, kind in enumerate(left[:AT_ONCE])}
            left = left[AT_ONCE:]
            onset = ONSET + int(rng.integers(14))
            clients = {f"h{i}": HONEST[USERS[i % len(USERS)]](rng, split) for i in range(BESIDE)}
            clients |= {n: make(HONEST[kind](rng, split), rng, onset) for n, kind in hostile.items()}
            alarms = run(clients, rng, min(DAYS, onset + limit)).alarms
            for n, kind in hostile.items():
                day = alarms.get(n, np.inf) - onset
                before += day < 0
                found[kind].append(day if 0 <= day <= limit else np.inf)
        days = np.array([d for some in found.values() for d in some])
        seen = days[np.isfinite(days)]
        out[name] = {
            "of": len(days), "found": len(seen), "interval": [round(x, 3) for x in exact(len(seen), len(days))],
            "median_days": round(float(np.median(seen)), 1) if len(seen) else None, "before": int(before),
            "by_kind": {kind: int(np.isfinite(some).sum()) for kind, some in found.items()},
        }  # fmt: skip
    return out


def lines(found: Mapping[str, Any]) -> list[str]:
    """The rows of the tables of docs/detectors.md."""
    told = found["honest"]
    made = [f"| {kind.replace('_', ' ')} | {n} of {told['each']} |" for kind, n in told["alarms"].items()]
    for name, x in found["attacks"].items():
        each = x["of"] // len(x["by_kind"])
        kinds = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in x["by_kind"].items())
        days = "–" if x["median_days"] is None else f"{x['median_days']}"
        made.append(f"| {name} | {x['found']} of {x['of']} | {days} | {kinds}, of {each} each |")
    told = found.get("newcomers", {})
    for name, x in told.items():
        hours = "–" if x["median_hours"] is None else f"{x['median_hours']}"
        made.append(f"| {name.replace('_', ' ')} | {x['alarmed']} of {x['of']} | {hours} |")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.usage", description=__doc__.partition("\n")[0])
    parser.add_argument("--split", choices=sorted(SPLITS), default="design")
    parser.add_argument("--each", type=int, default=EACH, help="honest clients of a kind")
    parser.add_argument("--hostile", type=int, default=8, help="clients of a kind that attack, per attack")
    parser.add_argument("--new", type=int, default=20, help="newcomers of a kind")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    split = SPLITS[args.split]
    found = {
        "split": args.split, "honest": honest(split, args.each), "attacks": attacks(split, args.hostile),
        "newcomers": newcomers(split, args.new),
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
