"""What was used for designing the detectors, and what may only be used for judging them.

They share no data set, no family of models, no seed and no range of a parameter (ranges may overlap, none is the
same). `tests/unit/test_attack_bench.py` checks that. Whoever designs a detector looks at `DESIGN` and at `SEEN`, which
was the judging split until it had been looked at thirteen times; `JUDGING` took its place on 28 November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Range = tuple[float, float]


@dataclass(frozen=True)
class Split:
    """victims: data set -> family of the model. Counts are actors per victim; `natural` is per data set.

    ranges: of the parameters that actors draw (benchmarks.attacks.actors says what they mean).
    """

    name: str
    victims: Mapping[str, str]
    seed: int
    attackers: int
    hard: int
    natural: Mapping[str, int]
    ranges: Mapping[str, Range]
    used: tuple[str, ...] = field(default=())


DESIGN: Final = Split(
    "design",
    {
        "flights": "boosting",
        "diamonds": "logistic",
        "wages": "boosting",
        "hospital": "logistic",
        "lending": "logistic",
        "loans": "boosting",
        "digits": "boosting",
        "breast_cancer": "logistic",
        "car_loan": "logistic",
        "card_offer": "boosting",
        "crashes": "logistic",
        "labor": "boosting",
        "churn": "boosting",
        "hotel": "logistic",
    },
    seed=11,
    attackers=1,
    hard=4,
    natural={
        "flights": 40,
        "diamonds": 20,
        "wages": 20,
        "hospital": 10,
        "lending": 5,
        "loans": 5,
        "labor": 10,
        "crashes": 10,
    },
    ranges={
        "targets": (3, 8),
        "sweep_fields": (1, 2),
        "sweep_values": (5, 24),
        "grid_fields": (2, 3),
        "neighbours": (100, 400),
        "resent": (0.1, 0.3),
        "jitter": (0.01, 0.05),
        "missing": (0.2, 0.5),
        "drift": (0.1, 0.4),
        "cents": (0.3, 1.0),
        "load_rows": (3, 12),
        "history": (200, 600),
        "past": (800, 2000),
        "noise": (0.2, 0.3),
        "gap_s": (0.5, 5.0),
        "copies": (10, 30),
        "group": (10, 60),
    },
    used=("wine", "caravan", "credit"),
)

SEEN: Final = Split(
    "seen",
    {
        "careers": "mlp",
        "cover": "tree",
        "visits": "forest",
        "pharmacy": "tree",
        "deliveries": "mlp",
        "phone": "tree",
        "pension": "mlp",
        "family": "forest",
    },
    seed=20_262,
    attackers=1,
    hard=4,
    natural={"careers": 40, "cover": 30, "visits": 30, "pharmacy": 40, "deliveries": 10, "family": 150},
    ranges={
        "targets": (2, 12),
        "sweep_fields": (1, 3),
        "sweep_values": (5, 40),
        "grid_fields": (2, 4),
        "neighbours": (50, 800),
        "resent": (0.05, 0.5),
        "jitter": (0.005, 0.1),
        "missing": (0.1, 0.7),
        "drift": (0.2, 0.8),
        "cents": (0.1, 0.9),
        "load_rows": (2, 30),
        "history": (100, 1500),
        "past": (1000, 3000),
        "noise": (0.15, 0.35),
        "gap_s": (0.2, 20.0),
        "copies": (8, 50),
        "group": (5, 120),
    },
)

JUDGING: Final = Split(
    "judging",
    {
        "stops": "extra",
        "votes": "bayes",
        "animals": "extra",
        "budget": "neighbours",
        "contacts": "extra",
        "taxi": "bayes",
        "chains": "neighbours",
        "claims": "bayes",
    },
    seed=41_017,
    attackers=1,
    hard=4,
    natural={
        "stops": 75,
        "votes": 90,
        "animals": 50,
        "budget": 30,
        "contacts": 30,
        "taxi": 10,
        "chains": 10,
        "claims": 5,
    },
    ranges={
        "targets": (2, 10),
        "sweep_fields": (1, 4),
        "sweep_values": (4, 30),
        "grid_fields": (2, 5),
        "neighbours": (80, 600),
        "resent": (0.05, 0.4),
        "jitter": (0.005, 0.08),
        "missing": (0.15, 0.6),
        "drift": (0.2, 0.6),
        "cents": (0.2, 1.0),
        "load_rows": (2, 20),
        "history": (150, 1200),
        "past": (900, 2500),
        "noise": (0.15, 0.3),
        "gap_s": (0.3, 15.0),
        "copies": (8, 40),
        "group": (5, 100),
    },
)

SPLITS: Final = {s.name: s for s in (DESIGN, SEEN, JUDGING)}
