"""What a caller's own past says of its flags: who has long sent clean queries is tolerated fewer strange ones."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from detectors.signals import bernoulli_bets
from detectors.stats import Floats

SHARES: Final = (1.0, 0.7, 0.5, 0.35, 0.25)  # of the rate that the reference tolerates, largest first
BLOCK: Final = 100  # distinct rows of a caller after which they become its past
ALARMING: Final = 30  # flags of one signal in a block: the lowest rate of signals.RATES
SETTLED: Final = (
    1_000  # distinct rows of a past with which it speaks for itself: until then peers do (detectors.anomaly.peers)
)
LONG: Final = 20_000  # rows of a past; a longer one is halved, so that it follows a caller's life over months


class Shares(NamedTuple):
    """Per row the place in SHARES of the rate that it is judged by (`share`: rows, signals), whether its caller's past is
    short of SETTLED (`young`), whether with it a block became part of a past that is not (`closed`), and the places that
    such a past leaves (`after`).
    """

    share: NDArray[np.uint8]
    young: NDArray[np.bool_]
    closed: NDArray[np.bool_]
    after: NDArray[np.uint8]


def width(signals: int) -> int:
    """Counts kept of each caller: distinct rows and flags per signal, of its past and of the block under way.

    >>> width(7)
    16
    """
    return 2 * (1 + signals)


def shares(
    past: NDArray[np.int32], who: NDArray[np.int64], fresh: NDArray[np.bool_], on: NDArray[np.bool_],
    rho: NDArray[np.float64],
) -> Shares:  # fmt: skip
    """The place in SHARES of the rate that each row of a caller is judged by; `past` goes on.

    past (callers, width): counts, changed in place; who: the caller of each row; on (rows, signals): its flags; rho: rates
    that the reference tolerates. A caller's own rate is bounded from above by (k + 2 + 2 sqrt(k + 1)) / n for k flags
    among n distinct rows, about its 97 % bound; the tolerated rate is the least share of rho that is no lower. So it is
    rho for whoever is new, and however many flags a past has it is never more: whoever fills a past with strange queries
    gains nothing by it. Blocks of which a signal flags ALARMING rows or more alarm by themselves and become no past. Rows
    count from the block after theirs on, hence never for themselves, wherever the log is cut.

    >>> past, rho = np.zeros((1, width(1)), np.int32), np.array([0.02])
    >>> a = np.zeros(900, np.int64); clean = np.zeros((900, 1), bool)
    >>> found = shares(past, a, clean[:, 0] == 0, clean, rho).share
    >>> [SHARES[i] for i in found[[0, 299, 300, 899], 0]]
    [1.0, 1.0, 0.7, 0.25]
    """
    n = len(who)
    out = Shares(np.zeros(on.shape, np.uint8), np.zeros(n, bool), np.zeros(n, bool), np.zeros(on.shape, np.uint8))
    _go(past, who, fresh, on, rho, np.array(SHARES), out)
    return out


def against(past: NDArray[np.int32], rho: NDArray[np.float64]) -> NDArray[np.int64]:
    """What speaks against each caller: flags of a signal beyond twice the tolerated ones, in 256ths of a flag.

    Of its past or of the block under way, whichever has more.

    >>> against(np.array([[100, 3, 10, 2], [100, 5, 0, 0]], np.int32), np.array([0.02])).tolist()
    [409, 256]
    """
    beyond = [half[:, 1:] - 2 * rho * half[:, :1] for half in np.split(past, 2, axis=1)]
    return np.asarray(256 * np.maximum(np.concatenate(beyond, axis=1).max(axis=1), 0)).astype(np.int64)


def bets(flag: NDArray[np.bool_], rho: float, share: NDArray[np.uint8]) -> Floats:
    """`bernoulli_bets` against each row's own rate; the rates that are bet on stay those of `rho`.

    >>> np.allclose(bets(np.array([True]), 0.02, np.array([4])) - bernoulli_bets(np.array([True]), 0.02), np.log(4))
    True
    """
    clean, flagged = (
        np.concatenate([bernoulli_bets(np.array([f]), rho, rho * s) for s in SHARES]) for f in (False, True)
    )
    return np.asarray(np.where(flag[:, None], flagged[share], clean[share]))


@numba.njit(cache=True)
def _places(mine: Any, rho: Any, known: Any, out: Any) -> None:
    for s in range(len(rho)):
        k = mine[1 + s]
        upper = (k + 2 + 2 * np.sqrt(k + 1)) / max(mine[0], 1)
        while out[s] + 1 < len(known) and known[out[s] + 1] * rho[s] >= upper:
            out[s] += 1


@numba.njit(cache=True)
def _go(past: Any, who: Any, fresh: Any, on: Any, rho: Any, known: Any, out: Any) -> None:
    signals = on.shape[1]
    half = 1 + signals
    for i in range(len(who)):
        mine = past[who[i]]
        out.young[i] = mine[0] < SETTLED
        _places(mine, rho, known, out.share[i])
        if not fresh[i]:
            continue
        mine[half] += 1
        for s in range(signals):
            mine[half + 1 + s] += on[i, s]
        if mine[half] == BLOCK:
            if np.max(mine[half + 1 :]) < ALARMING:
                for j in range(half):
                    mine[j] += mine[half + j]
                if mine[0] > LONG:
                    for j in range(half):
                        mine[j] //= 2
                out.closed[i] = mine[0] >= SETTLED
                _places(mine, rho, known, out.after[i])
            mine[half:] = 0
