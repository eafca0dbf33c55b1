"""Learn what flagged queries say about families, on the design split only: writes detectors/anomaly/tokens.json.

python -m benchmarks.attacks.naming
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.attacks.judge import table, watch
from benchmarks.attacks.split import DESIGN
from benchmarks.attacks.traffic import scene, together
from detectors.anomaly.queries import Queries
from detectors.anomaly.tokens import TOKENS
from detectors.base import NAMED
from monitor.model import Family
from monitor.service.windows import Stretch

FIRST = 150  # flagged queries of an attacker that count
SMOOTH = 0.2  # share of a family's tokens that is spread evenly
TEMPER = 0.25  # queries of one attacker resemble each other: a query says a quarter of what it would if they did not
ABSENT = 0.1  # a membership test looks like evasion; without a training record each query speaks a little against it
GROUPS = ("unmasked", "valid", "snap", "noise")


def main(names: Sequence[str]) -> None:
    """Count the tokens of every attacker's first flagged queries, each attacker as much as any other."""
    counts = np.zeros((len(NAMED), TOKENS))
    for name in names or tuple(DESIGN.victims):
        made = scene(DESIGN, name, ",".join(GROUPS))
        detector, calibration = watch(made.reference, {"queries": Queries()}).detectors["queries"]
        for stream in made.streams:
            a = stream.actor
            wanted = [f for f in NAMED if f in a.families]
            if not a.hostile or a.group not in GROUPS or not wanted or wanted[0] is Family.MEMBERSHIP:
                continue  # what tells membership tests apart is a training record, not the kind of query
            log = together(DESIGN, made, [stream])[0]
            window = Stretch(name, int(log.time_us.min()), int(log.time_us.max()), table(log))
            found = detector.measure(calibration, None, window).evidence
            if found is None or found.tokens is None or not found.flag.any():
                continue
            said = np.bincount(found.tokens[found.flag][:FIRST], minlength=TOKENS)
            for f in wanted:
                counts[NAMED.index(f)] += said / said.sum() / len(wanted)
    counts /= np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    share = (counts + SMOOTH / TOKENS) / (counts + SMOOTH / TOKENS).sum(axis=1, keepdims=True)
    nats = TEMPER * np.log(share)
    nats[NAMED.index(Family.MEMBERSHIP)] = nats[NAMED.index(Family.EVASION)] - ABSENT
    nats -= nats.mean(axis=0)
    out = Path(__file__).parents[2] / "detectors" / "anomaly" / "tokens.json"
    out.write_text(json.dumps(np.round(nats.T, 3).tolist()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", nargs="*", default=[])
    main(p.parse_args().data)
