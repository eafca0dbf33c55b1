"""What honest clients send, made from the reference, and the thresholds under which they stay well below an alarm."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from detectors import search, signals
from detectors.chains import Chains
from detectors.search import Met, Rows, Scale
from detectors.signals import Codes, Frame, rehashed

CALM: Final = 7.0  # nats that nine in ten simulated honest clients may reach: half of what an alarm takes
WORST: Final = 11.0  # and every one of them: an alarm takes 14.5
MARGIN: Final = 0.15  # of the way from what honest clients need to the bits of a repeated row
ANSWERS: Final = (
    0.5  # of CALM and WORST where answers decide: segments differ in them more than the simulated ones tell
)
SLIGHT: Final = 0.08  # the same where several rows or answers must agree: honest clients come close more seldom
REACH: Final = 0.92  # largest part of a repeated row's bits that a threshold may ask for
SEQUENCE: Final = 1500  # rows per simulated client
SEQUENCES: Final = 12  # simulated clients of each sorted kind
EDGES: Final = (0.05, 0.03, 0.02, 0.01)  # shares of reference rows that may count as near the boundary
TAILS: Final = (0.005, 0.003, 0.002, 0.001, 0.0005, 0.0002)  # shares of reference rows that may count as implausible


@dataclass(frozen=True)
class Found:
    """bits: what makes a row near; crowd, cross: what makes it one of a crowd, or a step across the boundary; None: refused.

    sampled: what tells a small step from an explainer's sample; benign: what simulated honest clients need for `bits`;
    reach: bits of a repeat; refused: why a signal cannot be had.
    """

    bits: float | None
    crowd: float | None
    cross: float | None
    sampled: float
    benign: float
    reach: float
    refused: Mapping[str, str]
    what_ifs: float = 1.0  # share of what half of the simulated honest clients send that is `varied` anyway


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


def near_thresholds(
    rows: Rows,
    clients: Sequence[NDArray[np.int64]],
    explainers: Sequence[Rows],
    scale: Scale,
    memory: int,
    rho: Mapping[str, float],
) -> Found:
    """Per signal the smallest number of bits for which simulated honest clients stay well below an alarm, plus a margin.

    Refused when that is more than REACH of the bits that a row shares with its own repeat: then an attacker's small
    steps cannot be told from rows that are alike anyway (few features, or coarse ones).
    """
    features = rows.codes.shape[1]
    if features <= search.FEW + 1:
        why = f"{features} features are too few: a step in {search.FEW} of them is a what-if"
        return Found(None, None, None, 0.0, 0.0, 0.0, dict.fromkeys(("near", "crowd", "cross"), why))
    reach = float(np.quantile(scale.table[np.arange(features)[None, :], rows.codes, rows.codes].sum(axis=1), 0.5))
    levels = np.linspace(0, reach, 81)[1:].tolist()

    def least(values: Sequence[NDArray[np.float32]], rate: float, part: float = 1.0) -> float:
        # The more bits are asked for the fewer rows have them, so that a level is calm where a lower one is.
        at = bisect_left(levels, True, key=lambda bits: calm([v >= bits for v in values], rate, part))
        return levels[at] if at < len(levels) else reach

    met = [followed(Rows._make(a[client] for a in rows), scale, memory) for client in clients]
    samples = [followed(mine, scale, memory).bits for mine in explainers]
    benign = {
        "near": least([m.bits for m in met], rho["near"]),
        "crowd": least([m.third for m in met], rho["crowd"]),
        "cross": least([m.other for m in met], rho["cross"], ANSWERS) if len(np.unique(rows.label)) > 1 else reach,
    }
    sampled = least(samples, rho["near"])
    sampled += 2 * MARGIN * (reach - sampled)
    found = {k: b + (MARGIN if k == "near" else SLIGHT) * (reach - b) for k, b in benign.items()}
    refused = {
        k: f"honest rows resemble each other by {benign[k]:.0f} of {reach:.0f} bits: no threshold tells steps apart"
        for k, b in found.items()
        if b > REACH * reach or reach <= 0
    }
    bits, crowd, cross = (None if k in refused else found[k] for k in ("near", "crowd", "cross"))
    usual = float(np.median([varied(m).mean() for m in met])) if met else 1.0
    sampled = sampled if bits is None else max(bits, sampled)
    return Found(bits, crowd, cross, sampled, benign["near"], reach, refused, usual)


def followed(rows: Rows, scale: Scale, memory: int) -> Met:
    """What each distinct row of one client resembles, with no threshold yet."""
    n = len(rows.who)
    kept = Chains.load(None, rows.codes.shape[1], rows.numbers.shape[1], memory)
    unset = scale._replace(bits=np.inf, sampled_bits=0.0, crowd=np.inf, cross=np.inf)
    met = kept.meet([""], rows._replace(who=np.zeros(n, np.int64)), unset)
    return Met._make(a[met.fresh] for a in met)


def varied(met: Met) -> NDArray[np.bool_]:
    """Rows that vary the case before them as a what-if does. In coarse tables a third and more of any honest rows lie beside
    some earlier one; that one after the other goes on with the same case happens to one in a hundred.
    """
    return np.asarray(met.again & (met.excused == search.WHAT_IF))


def tail_threshold(
    strangeness: NDArray[np.float32], own: NDArray[np.float32], clients: Sequence[NDArray[np.int64]], rho: float
) -> NDArray[np.float32] | None:
    """Per column the strangeness that honest clients pass so seldom that they stay well below an alarm; None if nowhere.

    strangeness: of the reference rows as fresh rows get it; own: as the rows themselves get it. In tables of few coarse
    columns many rows are equally strange, and a level between the two would be passed by all of them.
    """
    for share in TAILS:
        level = np.maximum(*(np.quantile(x, 1 - share / 2, axis=0) for x in (strangeness, own))).astype(np.float32)
        odd = np.asarray((strangeness > level).any(axis=1))
        if calm([odd[c] for c in clients], rho):
            return level
    return None


def low_threshold(margin: NDArray[np.float32], clients: Sequence[NDArray[np.int64]], rho: float) -> float | None:
    """The margin under which honest clients fall so seldom that they stay well below an alarm; None without margins."""
    known = margin[np.isfinite(margin)]
    for share in EDGES if len(known) >= 100 else ():
        level = float(np.quantile(known, share))
        if level < float(known.max()) and calm([margin[c] <= level for c in clients], rho, ANSWERS):
            return level
    return None


def calm(flags: Sequence[NDArray[np.bool_]], rho: float, part: float = 1.0) -> bool:
    """Whether simulated honest clients with these flags stay well below an alarm; `part` of what they may reach."""
    reached = np.array([_evidence(f, rho) for f in flags])
    return bool(np.quantile(reached, 0.9) <= part * CALM and reached.max() <= part * WORST)


def _evidence(flag: NDArray[np.bool_], rho: float) -> float:
    """Highest mixture of CUSUM e-values that a client with these flags would reach, in nats."""
    total = np.cumsum(signals.bernoulli_bets(flag, rho), axis=0)
    low = np.minimum.accumulate(np.concatenate([np.zeros((1, total.shape[1])), total[:-1]]), axis=0)
    running = np.maximum(total - np.minimum(low, 0.0), 0.0)
    return float(np.log(np.exp(np.minimum(running, 700.0)).mean(axis=1)).max(initial=0.0))
