"""Learn what strange queries say about techniques: writes detectors/decide/techniques.json.

python -m benchmarks.attacks.naming
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.judge import table, watch
from benchmarks.attacks.split import DESIGN
from benchmarks.attacks.traffic import scene, together
from detectors.anomaly.queries import Queries
from detectors.base import TECHNIQUES, UNTOLD
from detectors.decide.techniques import COUNTS, FIRST, SHARE, shares
from detectors.stats import Floats
from monitor.service.windows import Stretch

OUT: Final = Path(__file__).parents[2] / "detectors" / "decide" / "techniques.json"
FLAGGED: Final = (8, 20, 50, 100)  # flagged queries of an attacker after which the table is to know him
LEAST: Final = 4  # of them, where there are never more
INVERSE: Final = 0.3  # strength of the penalty on squared weights, inverse (scikit-learn's C)
ABSENT: Final = 1.5  # nats: a membership test looks like a boundary search; without a training record that is likelier
GROUPS: Final = (
    "unmasked",
    "valid",
    "snap",
    "noise",
    "padded-20%",
    "padded-10%",
    "late",
    "late-10%",
    "columns",
    "explainer_columns",
)
KINDS: Final = {
    "knockoff_random": "made_up_rows",
    "copycat": "made_up_rows",
    "adaptive_retraining": "made_up_rows",
    "columns": "column_draws",
    "explainer_columns": "column_draws",
    "jbda": "augmentation",
    "line_search": "bisection",
    "hop_skip_jump": "boundary_search",
    "label_only_membership": "boundary_search",
    "boundary": "boundary_walk",
    "zoo": "coordinate_search",
    "inversion": "climbing",
    "noise_membership": "noisy_copies",
}


@dataclass(frozen=True)
class Sample:
    """What was counted of an attacker up to some flagged query, the victim's data, and the truth."""

    data: str
    technique: str
    counts: tuple[int, ...]


def samples(name: str) -> Iterator[Sample]:
    """What the detector sees of every attacker on one victim of the design split."""
    made = scene(DESIGN, name, ",".join(f" {g}/" for g in GROUPS))
    detector, calibration = watch(made.reference, {"queries": Queries()}).detectors["queries"]
    for stream in made.streams:
        a = stream.actor
        if a.group not in GROUPS or a.kind not in KINDS:
            continue
        log = together(DESIGN, made, [stream])[0]
        window = Stretch(name, int(log.time_us.min()), int(log.time_us.max()), table(log))
        found = detector.measure(calibration, None, window).evidence
        if found is None or found.traits is None:
            continue
        for counts in grown(found.traits[found.traits[:, 0] != UNTOLD]):
            yield Sample(name, KINDS[a.kind], counts)


def grown(traits: NDArray[np.uint8]) -> Iterator[tuple[int, ...]]:
    """The counts after each of FLAGGED rows, or after all where there are fewer."""
    ends = [n for n in FLAGGED if n <= len(traits)] or [len(traits)]
    for n in ends if ends[0] >= LEAST else ():
        yield tuple(np.bincount((traits[:n] + np.array(FIRST)).ravel(), minlength=COUNTS).tolist())


def fit(known: Sequence[Sample]) -> Floats:
    """(1 + COUNTS, TECHNIQUES): the nats of detectors.decide.techniques.table; each technique counts as much as any other."""
    from sklearn.linear_model import LogisticRegression

    names = list(TECHNIQUES)
    x = np.stack([shares(s.counts) for s in known])
    y = np.array([names.index(s.technique) for s in known])
    model = LogisticRegression(C=INVERSE, class_weight="balanced", solver="newton-cg", max_iter=2_000, tol=1e-9)
    model.fit(x, y)  # to the very optimum: the table is the same whatever the number of threads
    nats = np.zeros((1 + COUNTS, len(names)))
    nats[0, model.classes_], nats[1:, model.classes_] = model.intercept_, model.coef_.T
    nats[:, names.index("record_variation")] = nats[:, names.index("boundary_search")]
    nats[0, names.index("record_variation")] -= ABSENT
    return np.round(nats, 3)


def main() -> None:
    """Learn from every victim of the design split and write the table."""
    known = [s for name in DESIGN.victims for s in samples(name)]
    OUT.write_text(json.dumps(fit(known).tolist()) + "\n", encoding="utf-8")
    print(f"{len(known)} samples, log shares from {SHARE}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
