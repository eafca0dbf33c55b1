"""What query-pattern detectors share: rows as small codes, how surprising a resemblance is, and bets on flags.

A row becomes one code per feature (quantile bin of the reference, known category, other, missing) and one 16-bit mark
per feature (a hash of the exact value). Codes tell how near two rows are, marks in how many fields they differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import hashing
from detectors.base import Window
from detectors.binned import floats, given
from detectors.stats import Floats

LEVELS: Final = 64  # quantile bins of a number; categories that keep a code
OTHER: Final = LEVELS  # a category outside them
MISSING: Final = LEVELS + 1
CODES: Final = LEVELS + 2
RATES: Final = (0.3, 0.6, 0.95)  # shares of flagged events that bets are made on, besides just above the tolerated rate

Codes = NDArray[np.uint8]
Marks = NDArray[np.uint16]


@dataclass(frozen=True)
class Frame:
    """Feature values of n rows. numbers (n, numeric) with NaN for missing; words: per categorical feature the index of
    each row's value in `vocabulary`, -1 for missing; hashes (n, features): 64 bits per exact value, 0 for missing.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    numbers: Floats
    words: NDArray[np.int64]
    vocabulary: tuple[tuple[str, ...], ...]
    hashes: NDArray[np.uint64]

    @property
    def n(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, rows: pa.Table, numeric: Sequence[str], categorical: Sequence[str]) -> Frame:
        """Feature columns of a log table; a column that is absent is missing in every row."""
        n = rows.num_rows
        numbers = np.full((n, len(numeric)), np.nan)
        words = np.full((n, len(categorical)), -1, dtype=np.int64)
        hashes = np.zeros((n, len(numeric) + len(categorical)), dtype=np.uint64)
        vocabulary: list[tuple[str, ...]] = []
        for j, name in enumerate(numeric):
            numbers[:, j] = floats(rows, f"feature:{name}") + 0.0  # -0.0 is 0.0
        hashes[:, : len(numeric)] = number_hashes(numbers)
        for j, name in enumerate(categorical):
            held = given(rows, f"feature:{name}")
            if held is None:
                vocabulary.append(())
                continue
            column = held.combine_chunks()
            if not pa.types.is_dictionary(column.type):
                column = pc.dictionary_encode(column)
            values = tuple(str(v) for v in column.dictionary.to_pylist())
            words[:, j] = pc.fill_null(column.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            known = np.array([*(_digest(v) for v in values), 0], dtype=np.uint64)  # place -1: missing
            hashes[:, len(numeric) + j] = known[words[:, j]]
            vocabulary.append(values)
        return cls(tuple(numeric), tuple(categorical), numbers, words, tuple(vocabulary), hashes)

    def take(self, rows: NDArray[np.int64]) -> Frame:
        """Some of the rows, in the order given."""
        if len(rows) == self.n and np.array_equal(rows, np.arange(self.n)):
            return self
        return Frame(
            self.numeric, self.categorical, self.numbers[rows], self.words[rows], self.vocabulary, self.hashes[rows]
        )

    def marks(self) -> Marks:
        """16 bits per value: two rows differ in a field where their marks differ (but for one chance in 65,536)."""
        return (self.hashes >> np.uint64(48)).astype(np.uint16)

    def whole(self) -> NDArray[np.uint64]:
        """One hash per row: equal for exact repeats."""
        return self._whole

    @cached_property
    def _whole(self) -> NDArray[np.uint64]:
        return np.asarray(hashing.of_rows(self.hashes), dtype=np.uint64)


def framed(window: Window, numeric: Sequence[str], categorical: Sequence[str]) -> Frame:
    """The features of a window's rows, made once however many detectors ask."""

    def make() -> Frame:
        return Frame.of(window.rows([f"feature:{n}" for n in (*numeric, *categorical)]), numeric, categorical)

    return window.once(("frame", tuple(numeric), tuple(categorical)), make)


def rehashed(like: Frame, numbers: Floats, words: NDArray[np.int64]) -> Frame:
    """Made-up rows over the same features and vocabulary."""
    hashes = np.zeros((len(numbers), len(like.numeric) + len(like.categorical)), dtype=np.uint64)
    cut = len(like.numeric)
    hashes[:, :cut] = number_hashes(numbers + 0.0)
    hashing.of_bits(words.astype(np.uint64), words < 0, hashes[:, cut:])
    return Frame(like.numeric, like.categorical, numbers, words, like.vocabulary, hashes)


def number_hashes(numbers: Floats) -> NDArray[np.uint64]:
    """64 bits per number (no -0.0 among them), 0 for NaN."""
    x = np.ascontiguousarray(numbers)
    out = np.empty(x.shape, np.uint64)
    hashing.of_bits(x.view(np.uint64), np.isnan(x), out)
    return out


@lru_cache(maxsize=65_536)  # the same words come again and again
def _digest(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") | 1


@dataclass(frozen=True)
class Encoder:
    """How rows become codes. edges (numeric, LEVELS - 1), padded with inf; words: kept categories per feature."""

    edges: Floats
    words: tuple[tuple[str, ...], ...]

    @classmethod
    def fit(cls, frame: Frame) -> Encoder:
        """Quantile edges of each number, the most frequent LEVELS categories."""
        edges = np.full((len(frame.numeric), LEVELS - 1), np.inf)
        for j in range(len(frame.numeric)):
            x = frame.numbers[:, j]
            x = x[np.isfinite(x)]
            if len(x):
                values = np.unique(x)
                cuts = (
                    values[1:]
                    if len(values) <= LEVELS
                    else np.unique(np.quantile(x, np.linspace(0, 1, LEVELS + 1)[1:-1]))
                )
                edges[j, : len(cuts)] = cuts
        words = []
        for j, vocabulary in enumerate(frame.vocabulary):
            counts = np.bincount(frame.words[frame.words[:, j] >= 0, j], minlength=len(vocabulary))
            order = sorted(range(len(vocabulary)), key=lambda i, c=counts: (-int(c[i]), vocabulary[i]))[:LEVELS]  # type: ignore[misc]
            words.append(tuple(vocabulary[i] for i in order if counts[i]))
        return cls(edges, tuple(words))

    def codes(self, frame: Frame) -> Codes:
        """(n, features) uint8."""
        out = np.full((frame.n, len(frame.numeric) + len(frame.categorical)), MISSING, dtype=np.uint8)
        _code(frame.numbers, self.edges, out)
        for j, vocabulary in enumerate(frame.vocabulary):
            out[:, len(frame.numeric) + j] = place(self.words[j], vocabulary)[frame.words[:, j]]
        return out


def place(kept: Sequence[str], vocabulary: Sequence[str]) -> NDArray[np.uint8]:
    """The code of each word of a vocabulary, and at place -1 that of a missing one."""
    known = {w: i for i, w in enumerate(kept)}
    return np.array([*(known.get(w, OTHER) for w in vocabulary), MISSING], dtype=np.uint8)


@numba.njit(cache=True)
def bin_of(x: float, edges: Any) -> int:
    """How many of the edges lie at or below x; they are in order, and one fewer than a power of two."""
    code, step = 0, (len(edges) + 1) // 2
    while step:
        code += step * (edges[code + step - 1] <= x)
        step //= 2
    return code


@numba.njit(cache=True)
def _code(numbers: Any, edges: Any, out: Any) -> None:
    """How many of each number's edges lie at or below it; infinities and NaN stay as they are in `out`."""
    for j in range(numbers.shape[1]):
        for i in range(numbers.shape[0]):
            if np.isfinite(numbers[i, j]):
                out[i, j] = bin_of(numbers[i, j], edges[j])


def surprise(codes: Codes, numeric: int) -> NDArray[np.float32]:
    """Bits of resemblance per pair of codes, (features, CODES, CODES): -log2 of the chance that a reference value comes as near.

    Equal rare values say much, equal common ones little; for numbers nearness is the reference mass between the two.
    Different categories, unknown ones and missing values say nothing.
    """
    n, features = codes.shape
    table = np.zeros((features, CODES, CODES), dtype=np.float32)
    for f in range(features):
        mass = np.bincount(codes[:, f], minlength=CODES) / max(1, n)
        with np.errstate(divide="ignore"):
            own = -np.log2(np.maximum(mass, 1 / max(2, n)))
        if f >= numeric:
            np.fill_diagonal(table[f], own)
            table[f, OTHER, OTHER] = table[f, MISSING, MISSING] = 0.0
        else:
            total = np.concatenate([[0.0], np.cumsum(mass[:LEVELS])])
            i = np.arange(LEVELS)
            gap = np.abs(i[:, None] - i[None, :])
            inside = total[np.minimum(i[:, None] + gap, LEVELS - 1) + 1] - total[np.maximum(i[:, None] - gap, 0)]
            inside = np.maximum(np.maximum(inside, inside.T), 1 / max(2, n))
            table[f, :LEVELS, :LEVELS] = -np.log2(np.minimum(inside, 1.0))
    return np.minimum(table, np.float32(np.log2(LEVELS)))


def redrawn(table: NDArray[np.float32], codes: Codes, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Mean and variance of the bits of two independent reference values per feature, given that they differ at all."""
    n, features = codes.shape
    a, b = codes[rng.integers(n, size=4000)], codes[rng.integers(n, size=4000)]
    mean, variance = np.zeros(features), np.zeros(features)
    for f in range(features):
        bits = table[f, a[:, f], b[:, f]]
        other = bits[a[:, f] != b[:, f]]
        mean[f], variance[f] = (other.mean(), other.var()) if len(other) else (0.0, 0.0)
    return mean, variance


def tolerated(rho: float) -> tuple[float, ...]:
    """Rates that a mixture bets on: one just above the tolerated rate `rho`, and RATES.

    >>> tolerated(0.02)
    (0.09, 0.3, 0.6, 0.95)
    """
    return (min(2 * rho + 0.05, 0.5), *RATES)


def bernoulli_bets(flag: NDArray[np.bool_], rho: float, against: float | None = None) -> Floats:
    """Log e-values (n, 4) against "at most a share rho of the events is flagged": log of (r/rho)^F ((1-r)/(1-rho))^(1-F).

    Each is an e-value as long as a flag comes with probability rho or less whatever came before. against: a lower rate
    to bet against, with the r of `rho`.
    """
    r = np.array(tolerated(rho))
    rho = rho if against is None else against
    hit, miss = np.log(r / rho), np.log((1 - r) / (1 - rho))
    return np.where(flag[:, None], hit, miss)
