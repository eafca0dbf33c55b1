"""Learn what flagged queries say about techniques, on the design split only: writes detectors/anomaly/tokens.json.

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
from detectors.base import TECHNIQUES
from monitor.service.windows import Stretch

FIRST = 150  # flagged queries of an attacker that count
SMOOTH = 0.2  # share of a technique's tokens that is spread evenly
TEMPER = 0.5  # queries of one attacker resemble each other: a query says half of what it would if they did not
ABSENT = 0.1  # a membership test looks like a boundary search; without a training record each query speaks a little against it
GROUPS = ("unmasked", "valid", "snap", "noise")
KINDS = {
    "knockoff_random": "made_up_rows",
    "copycat": "made_up_rows",
    "adaptive_retraining": "made_up_rows",
    "jbda": "augmentation",
    "line_search": "bisection",
    "hop_skip_jump": "boundary_search",
    "label_only_membership": "boundary_search",
    "boundary": "boundary_walk",
    "zoo": "coordinate_search",
    "inversion": "climbing",
    "noise_membership": "noisy_copies",
}


def main(names: Sequence[str]) -> None:
    """Count the tokens of every attacker's first flagged queries, each attacker as much as any other."""
    techniques = list(TECHNIQUES)
    out = Path(__file__).parents[2] / "detectors" / "anomaly" / "tokens.json"
    out.write_text(
        json.dumps(np.zeros((TOKENS, len(techniques))).tolist()), encoding="utf-8"
    )  # nobody votes while learning
    counts = np.zeros((len(techniques), TOKENS))
    for name in names or tuple(DESIGN.victims):
        made = scene(DESIGN, name, ",".join(GROUPS))
        detector, calibration = watch(made.reference, {"queries": Queries()}).detectors["queries"]
        for stream in made.streams:
            a = stream.actor
            if not a.hostile or a.group not in GROUPS or a.kind not in KINDS:
                continue
            log = together(DESIGN, made, [stream])[0]
            window = Stretch(name, int(log.time_us.min()), int(log.time_us.max()), table(log))
            found = detector.measure(calibration, None, window).evidence
            if found is None or found.tokens is None or not found.flag.any():
                continue
            said = np.bincount(found.tokens[found.flag][:FIRST], minlength=TOKENS)
            counts[techniques.index(KINDS[a.kind])] += said / said.sum()
    counts /= np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    nats = TEMPER * np.log((counts + SMOOTH / TOKENS) / (1 + SMOOTH))
    nats[techniques.index("record_variation")] = nats[techniques.index("boundary_search")] - ABSENT
    out.write_text(json.dumps(np.round(nats.T - nats.mean(axis=0)[:, None], 3).tolist()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--data", nargs="*", default=[])
    main(p.parse_args().data)
