"""What a flagged query says about the aim of whoever sent it.

A token joins how the query relates to the sender's earlier ones (made up on its own, or a step from one of them, how
small, and whether the answer changed or its score rose) with how sure the model was. The table holds what each token says
for each entry of detectors.base.TECHNIQUES, in nats: logarithms of its share in such attacks, smoothed, learnt on
the design split of the attack evaluation (`python -m benchmarks.attacks.naming`), never on what is judged.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from detectors.search import Met
from detectors.stats import Floats

SURE: Final = 4  # low, middling, high margin; not logged
MOVE: Final = 4  # the label flipped, its score rose, is as high as any before it, is lower
STEPS: Final = (0.5, 0.8, 0.93)  # of the bits of a repeat: a step from an earlier row at all, a small one, a tiny one
APART: Final = SURE * MOVE * len(STEPS)  # not a step from an earlier row
TOKENS: Final = APART + 1
RISE: Final = 1e-4  # of a score


def tokens(met: Met, margin: NDArray[np.float32], levels: list[float] | None, repeat_bits: float) -> NDArray[np.int64]:
    """The token of every row; only those of flagged rows mean something."""
    sure = np.full(len(margin), SURE - 1)
    if levels is not None:
        known = np.isfinite(margin)
        sure = np.where(known, (margin > levels[0]).astype(int) + (margin > levels[1]), SURE - 1)
    move = np.where(met.flip, 0, np.where(np.nan_to_num(met.gain) > RISE, 1, np.where(met.top, 2, 3)))
    step = np.searchsorted(np.array(STEPS) * repeat_bits, met.bits, side="right") - 1
    return np.where(step >= 0, (step * MOVE + move) * SURE + sure, APART)


@functools.cache
def table() -> Floats:
    """(TOKENS, techniques): the learnt nats."""
    return np.array(msgspec.json.decode(resources.files("detectors.anomaly").joinpath("tokens.json").read_bytes()))
