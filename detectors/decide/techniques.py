"""What strange queries say about how their sender goes about it, by the shares of them that have each trait.

Idea: an attack is a mixture of few kinds of query, whose shares differ little between data sets. Counted are the levels of
detectors.base.TRAITS, 33 numbers per suspect, whatever it sends.

Maths: multinomial logistic regression on x_k = log(c_k / n + SHARE) - log SHARE, where c_k of n queries have level k: what
never comes is 0, what comes in a tenth of them says much already, and what comes in all of them little more. The logits
are nats for each entry of TECHNIQUES. They are learnt on the design split of the attack evaluation
(`python -m benchmarks.attacks.naming`), never on what is judged.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from typing import Final

import msgspec
import numpy as np

from detectors.base import TECHNIQUES, TRAITS
from detectors.stats import Floats

SHARE: Final = 0.05  # of queries: what is seldomer says little
FIRST: Final = tuple(
    np.cumsum([0, *TRAITS.values()])[:-1].tolist()
)  # place of each trait's lowest level among the counts
COUNTS: Final = sum(TRAITS.values())


@functools.cache
def table() -> Floats:
    """(1 + COUNTS, TECHNIQUES): the learnt nats, first those of no trait."""
    return np.array(msgspec.json.decode(resources.files("detectors.decide").joinpath("techniques.json").read_bytes()))


def shares(counts: Sequence[int]) -> Floats:
    """What the table is multiplied with. counts: COUNTS of them, each trait's add up to the same number.

    >>> bool(shares([0] * COUNTS).any())
    False
    """
    n = sum(counts[: FIRST[1]])
    return np.asarray(np.log1p(np.array(counts) / (max(n, 1) * SHARE)))


def said(counts: Sequence[int]) -> list[float]:
    """Nats for each entry of TECHNIQUES; nothing where nothing was counted."""
    if not any(counts):
        return [0.0] * len(TECHNIQUES)
    rows = table()
    nats: list[float] = (rows[0] + (rows[1:] * shares(counts)[:, None]).sum(axis=0)).tolist()
    return nats
