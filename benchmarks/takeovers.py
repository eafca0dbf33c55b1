"""How often the `mmd` gauge reads accounts in other hands as strange, and honest ones: `python -m benchmarks.takeovers
[--out FILE]`.

Clients are airlines at one airport of a year of real flights: they differ from each other, and live through weeks, seasons,
weather and schedules. Airline, airport, destination and flight number are no features, so that rows of others are no
giveaway. A takeover replaces a client's rows from some day on by flights of anybody on the same day, all of them or half.
Nothing was chosen by looking at these numbers but the defaults' days and windows, on the first 20 weeks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.attacks.score import exact
from benchmarks.drift_streams import flights
from benchmarks.traffic.data import DATA
from detectors.anomaly.mmd import WindowMMD
from detectors.profile import Bins
from monitor.model import HOUR_US
from monitor.service.windows import Stretch, reference_windows

HIDDEN: Final = ("carrier", "origin", "dest", "flight", "hour")
LEAST_ROWS: Final = 4_000  # a year, of a client
DAYS: Final = (150, 320)  # of the year, between which takeovers begin
AT_ONCE: Final = 3  # clients taken over in one run
ROWS: Final = (1, 3, 5)  # strange windows in a row


@dataclass(frozen=True)
class Year:
    """Flights with the hour of the year, and the client of each."""

    table: pa.Table
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    hour: NDArray[np.int64]
    client: NDArray[np.int64]
    names: tuple[str, ...]


def year() -> Year:
    """All flights of airlines that fly often enough from an airport."""
    rows, known = flights(), DATA["flights"]().table
    day = np.cumsum(np.r_[0, np.diff(rows.day) != 0])
    hour = day * 24 + np.asarray(rows.table["feature:hour"]).astype(np.int64)
    pairs = pc.binary_join_element_wise(
        rows.table["feature:carrier"].cast(pa.string()), rows.table["feature:origin"].cast(pa.string()), "-"
    )
    encoded = pc.dictionary_encode(pairs.combine_chunks())
    code, names = np.asarray(encoded.indices).astype(np.int64), encoded.dictionary.to_pylist()
    often = np.bincount(code, minlength=len(names)) >= LEAST_ROWS
    keep = often[code]
    numeric, words = (tuple(n for n in some if n not in HIDDEN) for some in (rows.numeric, rows.categorical))
    table = rows.table.select([f"feature:{n}" for n in (*numeric, *words)]).filter(pa.array(keep))
    assert known.num_rows == len(keep)
    return Year(table.combine_chunks(), numeric, words, hour[keep], code[keep], tuple(names))


@dataclass(frozen=True)
class Read:
    """A reading of a client: day of the year, and how many windows in a row are strange by then (0: usual again)."""

    client: str
    day: float
    strange: int


def read(y: Year, table: pa.Table, detector: WindowMMD) -> tuple[list[Read], float]:
    """Readings of a year in stretches of a day, and the cost of an event in microseconds. The reference is a sample of the
    first 20 weeks.
    """
    first = np.flatnonzero(y.hour < 20 * 7 * 24)
    sample = y.table.take(pa.array(np.linspace(0, len(first) - 1, 5_000).astype(np.int64)))
    sample = sample.append_column("event_time", pa.array(np.arange(5_000)))
    bins = Bins.fit(sample, y.numeric, y.categorical)
    calibration = detector.calibrate(reference_windows("flights", sample, bins), "reference")
    principals = pa.array(list(y.names), pa.string()).take(pa.array(y.client))
    log = table.append_column("event_time", pa.array(y.hour * HOUR_US)).append_column("principal", principals)
    found, state, seconds = list[Read](), None, 0.0
    edges = np.searchsorted(y.hour, np.arange(0, y.hour[-1] + 25, 24)).tolist()
    for a, b in pairwise(edges):
        began = time.process_time()
        measured = detector.measure(calibration, state, Stretch("flights", 0, 0, log.slice(a, b - a), None, {}))
        seconds += time.process_time() - began
        state = measured.state
        for d in measured.detections:
            found.append(Read(d.subject.id, d.window_us[1] / HOUR_US / 24, d.evidence["strange_windows"]))
    return found, seconds / log.num_rows * 1e6


def taken(y: Year, who: Sequence[int], days: Sequence[int], share: float, rng: np.random.Generator) -> pa.Table:
    """The year with some clients' rows, from their day on, replaced by anybody's of the same day."""
    at = np.arange(len(y.hour))
    day = y.hour // 24
    for client, start in zip(who, days, strict=True):
        for d in np.unique(day[(y.client == client) & (day >= start)]).tolist():
            mine = np.flatnonzero((y.client == client) & (day == d))
            mine = mine[rng.random(len(mine)) < share]
            at[mine] = rng.choice(np.flatnonzero(day == d), len(mine))
    return y.table.take(pa.array(at))


def measure(seed: int, runs: int) -> dict[str, Any]:
    """How often honest clients read as strange, and how soon others' rows do."""
    y, detector = year(), WindowMMD()
    clients = np.unique(y.client)
    honest, cost = read(y, y.table, detector)
    found: dict[str, Any] = {
        "clients": len(clients), "us_per_event": round(cost, 2),
        "honest": {str(k): _share([any(r.client == y.names[c] and r.strange >= k and r.day >= s for r in _first(honest, s))
                                   for c in clients for s in range(*DAYS, 30)]) for k in ROWS},
    }  # fmt: skip
    for share in (1.0, 0.5):
        hits: dict[int, list[bool]] = {k: [] for k in ROWS}
        for i in range(runs):
            rng = np.random.default_rng([seed, i, round(100 * share)])
            who = rng.choice(clients, AT_ONCE, replace=False).tolist()
            start = rng.integers(*DAYS, AT_ONCE).tolist()
            readings, _ = read(y, taken(y, who, start, share, rng), detector)
            for client, day in zip(who, start, strict=True):
                mine = [r for r in _first(readings, day) if r.client == y.names[client]]
                for k in ROWS:
                    hits[k].append(any(r.strange >= k for r in mine))
        found[f"taken over, {share:.0%}"] = {str(k): _share(v) for k, v in hits.items()}
    return found


def _first(readings: Sequence[Read], day: float) -> list[Read]:
    """Readings of the 30 days from a day on."""
    return [r for r in readings if day <= r.day < day + 30]


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    low, high = exact(sum(hits), len(hits))
    return {"within_30_days": sum(hits), "of": len(hits), "interval": [round(low, 3), round(high, 3)]}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The rows of the table of docs/detectors.md."""
    named = {"honest": "honest, 20 clients in six spans each"}
    named |= {f"taken over, {s}": f"{s} of the rows are others'" for s in ("100%", "50%")}
    shares = {key: [found[key][str(k)] for k in ROWS] for key in named}
    return [
        "| " + " | ".join([named[key], *(f"{x['within_30_days']} of {x['of']}" for x in mine)]) + " |"
        for key, mine in shares.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.takeovers", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", help="write the numbers as JSON")
    parser.add_argument("--seed", type=int, default=1051)
    parser.add_argument("--runs", type=int, default=8)
    args = parser.parse_args()
    text = json.dumps(measure(args.seed, args.runs), indent=1) + "\n"
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
