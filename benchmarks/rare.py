"""How many rows until a rare class that doubles is found: `python -m benchmarks.rare [--seeds N] [--out FILE]`.

A fraud rate moves from 0.2 % to 0.4 %, in windows of 1,000 rows after 336 windows of history. *predicted*: the model calls
the rare class by name; *scores*: its scores reach no threshold, so that only the upper end of the score moves; *real*:
rows of real crashes (nassCDS), deaths dealt in at that rate, scored by boosted trees trained on other rows; *labels*: the
rate among late labels (detector performance, 100 windows of history). Beside each the same windows without any change.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.drift_null import RATE, Found, incident, judged, rate, transitions
from benchmarks.drift_streams import Counted
from benchmarks.traffic.data import DATA
from detectors import decide
from detectors.base import Feedback
from detectors.performance.labelled import Performance
from detectors.profile import Bins
from monitor.model import HOUR_US, Alert

ROWS: Final = 1000
HISTORY: Final = 336
LABELLED: Final = 100
BEFORE, AFTER = 0.002, 0.004
LIMIT: Final = 80  # windows after the change; without one as many are judged
SETTINGS: Final = decide.BudgetSettings.derive(RATE, [HOUR_US])
Draw = Callable[[int, float, np.random.Generator], pa.Table]


def drawn(features: NDArray[np.float64], bad: NDArray[np.bool_], score: NDArray[np.float64]) -> pa.Table:
    """Rows as the event log gives them, with the score of fraud and the answer at one half."""
    return pa.table({
        **{f"feature:x{j}": features[:, j] for j in range(features.shape[1])},
        "prediction_label": pa.array(np.where(score > 0.5, "fraud", "ok").tolist()),
        "scores": pa.array(np.column_stack([1 - score, score]).tolist(), pa.list_(pa.float64())),
        "class_names": pa.array([["ok", "fraud"]] * len(score)),
        "truth": pa.array(np.where(bad, "fraud", "ok").tolist()),
    })  # fmt: skip


def made(offset: float) -> Draw:
    """Eight numbers that say nothing and a score that tells fraud well; `offset`: how far it stays under one half."""

    def draw(n: int, share: float, rng: np.random.Generator) -> pa.Table:
        bad = rng.random(n) < share
        return drawn(rng.normal(size=(n, 8)), bad, 1 / (1 + np.exp(offset - 7 * bad - rng.normal(size=n))))

    return draw


def real() -> Draw:
    """Crashes: rows of both classes as they are, the share of deaths dealt."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    data = DATA["crashes"]()
    frame = data.table.select(list(data.features)).to_pandas()
    x = np.column_stack([
        frame[c] if frame[c].dtype.kind in "ifb" else frame[c].astype("category").cat.codes for c in frame
    ]).astype(np.float64)  # fmt: skip
    dead = np.array(data.table["label"].to_pylist()) == "dead"
    train = np.random.default_rng(3).random(len(x)) < 0.5
    score = HistGradientBoostingClassifier(random_state=0).fit(x[train], dead[train]).predict_proba(x)[:, 1]
    pools = [np.flatnonzero(~train & (dead == kind)) for kind in (False, True)]

    def draw(n: int, share: float, rng: np.random.Generator) -> pa.Table:
        bad = rng.random(n) < share
        at = np.where(bad, rng.choice(pools[1], n), rng.choice(pools[0], n))
        return drawn(x[at], bad, score[at])

    return draw


@dataclass(frozen=True)
class Labels(Counted):
    """A window with rows whose labels are known at once."""

    table: pa.Table | None = None

    def rows(self, columns: Any) -> pa.Table:
        assert self.table is not None
        return self.table.select([c for c in columns if c in self.table.column_names])

    def labels(self, as_of_us: int) -> pa.Table:
        assert self.table is not None
        name = pa.array(["label"] * self.n)
        return pa.table({"request_id": self.table["request_id"], "name": name, "value": self.table["truth"]})

    def feedback(self, columns: Sequence[str]) -> pa.Table:
        return pa.table({"value": pa.array([], pa.string())})


def by_counts(draw: Draw, share: float, rng: np.random.Generator) -> list[int]:
    """Windows after the change at which incidents of drift opened that name the answer."""
    whole = pa.concat_tables([draw(HISTORY * ROWS, BEFORE, rng), draw(LIMIT * ROWS, share, rng)])
    numeric = [c.removeprefix("feature:") for c in whole.column_names if c.startswith("feature:")]
    bins = Bins.fit(whole.slice(0, HISTORY * ROWS), numeric, [])
    edges = list(range(0, whole.num_rows + 1, ROWS))
    found = [Counted(i * HOUR_US, (i + 1) * HOUR_US, p) for i, p in enumerate(bins.counts(whole, edges))]
    return transitions(judged(found[:HISTORY], found[HISTORY:]))[0]


def by_labels(draw: Draw, share: float, rng: np.random.Generator) -> list[int]:
    """The same for the rate among labels."""
    detector = Performance(delay_s=0.0)
    bins = Bins.fit(draw(ROWS, BEFORE, rng), [], [])

    def window(i: int) -> Labels:
        table = draw(ROWS, BEFORE if i < LABELLED else share, rng)
        table = table.append_column("request_id", pa.array([f"{i}-{j}" for j in range(ROWS)]))
        return Labels(i * HOUR_US, (i + 1) * HOUR_US, bins.count(table), table=table)

    cal = detector.calibrate([window(-1 - i) for i in range(5)], "bench")

    def decisions() -> Found:
        state, running, feedback = None, None, Feedback()
        alive: dict[str, Alert] = {}
        for i in range(LABELLED + LIMIT):
            measured = detector.measure(cal, state, window(i), feedback)
            made = decide.budget(
                running, measured.detections, tuple(alive.values()), SETTINGS, "bench", (i + 1) * HOUR_US
            )
            state, running, feedback = measured.state, made.state, made.feedback
            for d in made.decisions:
                alive |= {d.event: incident(d)} if d.firing else {}
                if not d.firing:
                    alive.pop(d.event, None)
            yield i + 1 - LABELLED, measured.detections[0], list(made.decisions)

    return transitions(decisions())[0]


def measure(seeds: int) -> dict[str, Any]:
    """Rows to the alarm per stream (null: not within 80 windows), and alarms where nothing changed."""
    out: dict[str, Any] = {}
    streams: list[tuple[str, Draw, Callable[[Draw, float, np.random.Generator], list[int]]]] = [
        ("predicted", made(5.0), by_counts), ("scores", made(9.0), by_counts), ("real", real(), by_counts),
        ("labels", made(5.0), by_labels),
    ]  # fmt: skip
    for k, (name, draw, way) in enumerate(streams):
        rows: list[int | None] = []
        alarms = 0
        for seed in range(seeds):
            found = [at for at in way(draw, AFTER, np.random.default_rng([21, k, seed])) if at > 0]
            rows.append(found[0] * ROWS if found else None)
            alarms += len(way(draw, BEFORE, np.random.default_rng([22, k, seed])))
        known = sorted(r if r is not None else np.inf for r in rows)
        middle = float(np.median(known))
        out[name] = {
            "rows": rows,
            "median": middle if np.isfinite(middle) else None,
            "null": rate(alarms, seeds * LIMIT),
        }
        sys.stderr.write(f"{name}: {json.dumps(out[name])}\n")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rare", description="Rows until a rare class is found.")
    parser.add_argument("--seeds", type=int, default=5, help="streams of each kind")
    parser.add_argument("--out", help="write the numbers as JSON")
    args = parser.parse_args()
    text = json.dumps(measure(args.seeds), indent=2)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
