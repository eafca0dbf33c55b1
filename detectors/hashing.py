"""Hashes of rows, compiled: of every value, of whole rows, and keyed ones that nobody can foresee or test without the key."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


@numba.njit(cache=True)
def mix(x: Any) -> Any:
    """SplitMix64's finisher: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True)
def of_bits(bits: Any, none: Any, out: Any) -> None:
    """Fill `out` with 64 bits per value, the lowest of them set; 0 where `none` says so. All (rows, fields)."""
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = np.uint64(0) if none[i, j] else mix(bits[i, j]) | np.uint64(1)


@numba.njit(cache=True)
def of_rows(hashes: Any) -> Any:
    """One hash per row of (rows, fields): equal where all fields are."""
    odd = np.empty(hashes.shape[1], np.uint64)
    for j in range(len(odd)):
        odd[j] = mix(np.uint64(j + 1)) | np.uint64(1)
    out = np.empty(len(hashes), np.uint64)
    for i in range(len(out)):
        total = np.uint64(0)
        for j in range(len(odd)):
            total += hashes[i, j] * odd[j]
        out[i] = mix(total)
    return out


@numba.njit(cache=True)
def rounded(numbers: Any, step: Any) -> Any:
    """Numbers to so many steps per unit; those that this would overflow stay as they are."""
    out = np.empty_like(numbers)
    for i in range(numbers.shape[0]):
        for j in range(numbers.shape[1]):
            x = np.rint(numbers[i, j] * step[j]) / step[j]
            out[i, j] = (x if np.isfinite(x) else numbers[i, j]) + 0.0  # -0.0 is 0.0
    return out


@numba.njit(cache=True)
def _turned(x: Any, bits: int) -> Any:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@numba.njit(cache=True)
def _round(a: Any, b: Any, c: Any, d: Any) -> Any:
    a, c = a + b, c + d
    b, d = _turned(b, 13) ^ a, _turned(d, 16) ^ c
    a = _turned(a, 32)
    c, a = c + b, a + d
    b, d = _turned(b, 17) ^ c, _turned(d, 21) ^ a
    return a, b, _turned(c, 32), d


@numba.njit(cache=True)
def _siphash(words: Any, a0: Any, b0: Any, c0: Any, d0: Any) -> Any:
    out = np.empty(len(words), np.uint64)
    for i in range(len(words)):
        a, b, c, d = a0, b0, c0, d0
        for block in (words[i], np.uint64(8 << 56)):
            d ^= block
            for _ in range(2):
                a, b, c, d = _round(a, b, c, d)
            a ^= block
        c ^= np.uint64(0xFF)
        for _ in range(4):
            a, b, c, d = _round(a, b, c, d)
        out[i] = a ^ b ^ c ^ d
    return out


def siphash(words: Hashes, key: bytes) -> Hashes:
    """SipHash-2-4 of 64-bit words under the first 16 bytes of a key.

    >>> hex(siphash(np.array([0x0706050403020100], np.uint64), bytes(range(16)))[0])
    '0x93f5f5799a932462'
    """
    magic = b"somepseudorandomlygeneratedbytes"
    start = [int.from_bytes(magic[i : i + 8], "big") for i in (0, 8, 16, 24)]
    keys = [int.from_bytes(key[i : i + 8], "little") for i in (0, 8, 0, 8)]
    return np.asarray(_siphash(words, *(np.uint64(s ^ k) for s, k in zip(start, keys, strict=True))), dtype=np.uint64)
