"""What a flagged query says about the aim of whoever sent it.

A token joins how the query relates to the sender's earlier ones (made up on its own, and whether it breaks rules or is
implausible; or a step from one of them, how small, in how many fields, and whether the answer changed or its score rose)
with how sure the model was. The table holds what each token says
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

from detectors.search import FEW, Met
from detectors.stats import Floats

SURE: Final = 4  # low, middling, high margin; not logged
MOVE: Final = 4  # the label flipped, its score rose, is as high as any before it, is lower
STEPS: Final = (0.5, 0.8, 0.93)  # of the bits of a repeat: a step from an earlier row at all, a small one, a tiny one
FIELDS: Final = 3  # one or two fields differ, up to half of them, more
MADE: Final = 3  # neither, implausible, breaks rules
APART: Final = SURE * MOVE * len(STEPS) * FIELDS  # from here on: not a step from an earlier row
TOKENS: Final = APART + SURE * MADE
RISE: Final = 1e-4  # of a score


def tokens(
    met: Met, margin: NDArray[np.float32], levels: list[float] | None, repeat_bits: float, features: int
) -> NDArray[np.int64]:
    """The token of every row; only those of flagged rows mean something."""
    sure = np.full(len(margin), SURE - 1)
    if levels is not None:
        known = np.isfinite(margin)
        sure = np.where(known, (margin > levels[0]).astype(int) + (margin > levels[1]), SURE - 1)
    fields = np.where(met.moved <= FEW, 0, np.where(met.moved <= features / 2, 1, 2))
    made = np.where(met.schema, 2, met.odd.astype(int))
    move = np.where(met.flip, 0, np.where(np.nan_to_num(met.gain) > RISE, 1, np.where(met.top, 2, 3)))
    step = np.searchsorted(np.array(STEPS) * repeat_bits, met.step, side="right") - 1
    near = ((step * FIELDS + fields) * MOVE + move) * SURE + sure
    return np.asarray(np.where(step >= 0, near, APART + made * SURE + sure), dtype=np.int64)


@functools.cache
def table() -> Floats:
    """(TOKENS, techniques): the learnt nats."""
    return np.array(msgspec.json.decode(resources.files("detectors.anomaly").joinpath("tokens.json").read_bytes()))
