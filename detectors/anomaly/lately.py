"""Which of a caller's queries count as a tool's: what-ifs beyond those of honest clients, and those of late."""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numpy.typing import NDArray

LATELY: Final = 100  # distinct rows of a caller: what it sent before them counts for less and less
BEYOND: Final = 3.0  # times the share of honest rows that vary the case before them anyway
LEAST: Final = -3.0  # what-ifs that honest rows may be in arrears: so many do not count after long natural use
WIDTH: Final = 3  # numbers kept of each caller


def count(
    lately: NDArray[np.float32],
    who: NDArray[np.int64],
    fresh: NDArray[np.bool_],
    alike: NDArray[np.uint8],
    share: float,
) -> NDArray[np.uint8]:
    """Per row, how many what-ifs and samples its caller sent just before it (rows, 2); `lately` and `alike` go on.

    lately (callers, WIDTH): kept of each caller, changed in place; who: the caller of each row; alike: 1 what-if, 2 sample;
    share: of honest rows that vary the case before them anyway (detectors.honest). A what-if stays one in `alike` as long as
    they come BEYOND times as often as that. So an analyst is one in coarse tables as well, and
    natural rows around an attack do not excuse it. Counts fade by one in LATELY with each distinct row: a tool that meets
    unusual cases is known by what it sent before them, for as many queries as it takes to alarm, whoever else pays for
    each strange row in advance.

    >>> a, fresh = np.zeros(50, np.int64), np.ones(50, bool)
    >>> analyst = np.ones(50, np.uint8)
    >>> [int(n) for n in count(np.zeros((1, WIDTH), np.float32), a, fresh, analyst, 0.1)[-1]], int(analyst.sum())
    ([27, 0], 34)
    >>> client = (np.arange(50) % 5 == 0).astype(np.uint8)
    >>> [int(n) for n in count(np.zeros((1, WIDTH), np.float32), a, fresh, client, 0.1)[-1]], int(client.sum())
    ([0, 0], 0)
    """
    before = np.zeros((len(who), 2), np.float32)
    _go(lately, who, fresh, alike, BEYOND * share, before)
    return np.rint(before).astype(np.uint8)


@numba.njit(cache=True)
def _go(lately: Any, who: Any, fresh: Any, alike: Any, expected: Any, before: Any) -> None:
    for i in range(len(who)):
        mine = lately[who[i]]
        before[i] = mine[1:]
        if not fresh[i]:
            continue
        mine[0] = max(LEAST, mine[0] - expected)
        if alike[i] == 1:
            mine[0] += 1
            if mine[0] >= 1:
                mine[0] -= 1
            else:
                alike[i] = 0
        mine[1:] *= 1 - 1 / LATELY
        if alike[i] == 1 or alike[i] == 2:
            mine[alike[i]] += 1
