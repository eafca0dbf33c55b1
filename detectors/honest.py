"""What honest clients send, made from the reference, and the thresholds under which they stay well below an alarm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors import chains, search, signals
from detectors.search import Places, Rows, Scale
from detectors.signals import Codes, Frame, rehashed

CALM: Final = 7.0  # nats that nine in ten simulated honest clients may reach: half of what an alarm takes
WORST: Final = 11.0  # and every one of them: an alarm takes 14.5
MARGIN: Final = 0.15  # of the way from what honest clients need to the bits of a repeated row
REACH: Final = 0.92  # largest part of a repeated row's bits that a threshold may ask for
SEQUENCE: Final = 1500  # rows per simulated client
SEQUENCES: Final = 12  # simulated clients of each sorted kind
EDGES: Final = (0.05, 0.03, 0.02, 0.01)  # shares of reference rows that may count as near the boundary
TAILS: Final = (0.005, 0.003, 0.002, 0.001, 0.0005, 0.0002)  # shares of reference rows that may count as implausible


@dataclass(frozen=True)
class Found:
    """bits: what makes a row near; sampled: what tells it from an explainer's sample; refused: why there is no `bits`.

    benign: what simulated honest clients need; reach: bits of a repeat.
    """

    bits: float | None
    sampled: float
    benign: float
    reach: float
    refused: str | None = None


def sequences(
    codes: Codes, numeric: int, callers: NDArray[np.int64], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Row numbers that honest clients might send one after the other, made from the reference."""
    return [rows for rows in _sequences(codes, numeric, callers, rng) if len(rows) >= 30]


def _sequences(
    codes: Codes, numeric: int, callers: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    n = len(codes)
    every = np.arange(n)
    for start in range(0, min(n, 3 * SEQUENCE), SEQUENCE):  # as it came
        yield every[start : start + SEQUENCE]
    sizes = np.bincount(callers[callers >= 0]) if (callers >= 0).any() else np.zeros(0, np.int64)
    for p in np.argsort(-sizes, kind="stable")[:SEQUENCES].tolist():  # its own clients
        yield np.flatnonzero(callers == p)[:SEQUENCE]
    yield rng.permutation(n)[:SEQUENCE]
    features = codes.shape[1]
    for keys in (1, 3):  # batches sorted by one or three features, taken whole and thinned
        for _ in range(SEQUENCES):
            chosen = rng.choice(features, min(keys, features), replace=False)
            some = rng.permutation(n)[: max(SEQUENCE, n // 2)] if rng.random() < 0.5 else rng.permutation(n)
            order = some[np.lexsort([codes[some, f] for f in chosen])]
            start = int(rng.integers(max(1, len(order) - SEQUENCE + 1)))
            yield order[start : start + SEQUENCE]
    for _ in range(SEQUENCES):  # one segment only
        f = int(rng.integers(features))
        code = int(codes[rng.integers(n), f])
        inside = np.flatnonzero(np.abs(codes[:, f].astype(int) - code) <= (0 if f >= numeric else 8))
        yield rng.permutation(inside)[:SEQUENCE]


def explained(frame: Frame, rng: np.random.Generator, cases: int = 8, rows: int = 120) -> Iterator[Frame]:
    """What explainers send about a case: it, then the case with noise on every number and categories redrawn (LIME), or
    with some fields taken from other rows (SHAP).
    """
    spread = np.nanstd(frame.numbers, axis=0)
    for k in range(2 * cases):
        at = rng.integers(frame.n, size=rows)
        other, case = frame.take(at), frame.take(np.full(rows, at[0]))
        if k % 2:
            numbers = case.numbers + rng.normal(size=case.numbers.shape) * spread
            numbers[0] = case.numbers[0]
            yield rehashed(case, numbers, other.words)
        else:
            swap = rng.random(case.hashes.shape) < rng.random((rows, 1))
            swap[0] = False
            cut = case.numbers.shape[1]
            numbers = np.where(swap[:, :cut], other.numbers, case.numbers)
            yield rehashed(case, numbers, np.where(swap[:, cut:], other.words, case.words))


def near_threshold(
    rows: Rows,
    clients: Sequence[NDArray[np.int64]],
    explainers: Sequence[Rows],
    scale: Scale,
    memory: int,
    rho: float,
) -> Found:
    """The smallest number of bits for which simulated honest clients stay well below an alarm, plus a margin.

    Refused when that is more than REACH of the bits that a row shares with its own repeat: then an attacker's small
    steps cannot be told from rows that are alike anyway (few features, or coarse ones).
    """
    features = rows.codes.shape[1]
    if features <= search.FEW + 1:
        return Found(
            None, 0.0, 0.0, 0.0, f"{features} features are too few: a step in {search.FEW} of them is a what-if"
        )
    reach = float(np.quantile(scale.table[np.arange(features)[None, :], rows.codes, rows.codes].sum(axis=1), 0.5))
    levels = np.linspace(0, reach, 81)[1:].tolist()
    best = [nearest(Rows._make(a[client] for a in rows), scale, memory) for client in clients]
    samples = [nearest(mine, scale, memory) for mine in explainers]
    benign = next((bits for bits in levels if calm([b >= bits for b in best], rho)), reach)
    sampled = next((bits for bits in levels if calm([b >= bits for b in samples], rho)), reach)
    sampled += 2 * MARGIN * (reach - sampled)
    threshold = benign + MARGIN * (reach - benign)
    if threshold > REACH * reach or reach <= 0:
        text = f"honest rows resemble each other by {benign:.0f} of {reach:.0f} bits: no threshold tells steps apart"
        return Found(None, sampled, benign, reach, text)
    return Found(threshold, max(threshold, sampled), benign, reach)


def nearest(rows: Rows, scale: Scale, memory: int) -> NDArray[np.float32]:
    """Bits of the nearest small step of each distinct row of one client."""
    n = len(rows.who)
    room = np.array([min(memory, n)])
    work = chains.blank(int(room[0]), rows.codes.shape[1], rows.numbers.shape[1])
    met, none = chains.unmet(n), np.zeros(1, np.int64)
    search.follow(
        rows._replace(who=np.zeros(n, np.int64)),
        work,
        Places(none, room, none.copy(), none.copy()),
        scale._replace(bits=np.inf, sampled_bits=0.0),
        met,
    )
    return met.bits[met.fresh]


def tail_threshold(
    strangeness: NDArray[np.float32], clients: Sequence[NDArray[np.int64]], rho: float
) -> NDArray[np.float32] | None:
    """Per column the strangeness that honest clients pass so seldom that they stay well below an alarm; None if nowhere."""
    for share in TAILS:
        level = np.quantile(strangeness, 1 - share / 2, axis=0).astype(np.float32)
        odd = np.asarray((strangeness > level).any(axis=1))
        if calm([odd[c] for c in clients], rho):
            return level
    return None


def low_threshold(margin: NDArray[np.float32], clients: Sequence[NDArray[np.int64]], rho: float) -> float | None:
    """The margin under which honest clients fall so seldom that they stay well below an alarm; None without margins."""
    known = margin[np.isfinite(margin)]
    for share in EDGES if len(known) >= 100 else ():
        level = float(np.quantile(known, share))
        if level < float(known.max()) and calm([margin[c] <= level for c in clients], rho):
            return level
    return None


def calm(flags: Sequence[NDArray[np.bool_]], rho: float) -> bool:
    """Whether simulated honest clients with these flags stay well below an alarm."""
    reached = np.array([_evidence(f, rho) for f in flags])
    return bool(np.quantile(reached, 0.9) <= CALM and reached.max() <= WORST)


def _evidence(flag: NDArray[np.bool_], rho: float) -> float:
    """Highest mixture of CUSUM e-values that a client with these flags would reach, in nats."""
    total = np.cumsum(signals.bernoulli_bets(flag, rho), axis=0)
    low = np.minimum.accumulate(np.concatenate([np.zeros((1, total.shape[1])), total[:-1]]), axis=0)
    running = np.maximum(total - np.minimum(low, 0.0), 0.0)
    return float(np.log(np.exp(np.minimum(running, 700.0)).mean(axis=1)).max(initial=0.0))
