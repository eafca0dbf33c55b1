"""What ties names to each other: a credential, an address, a network, a group that the directory declares."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Caller
from monitor.model import network

WAYS: Final = ("credential_id", "source_ip")  # columns of the log
TIES: Final = ("credential", "address", "network", "group")
KEPT: Final = 4_096  # credentials and addresses, those last flagged


@dataclass
class Ways:
    """Who was flagged last with each credential and address (their digests), in order of use.

    Only flagged queries count, and fuse() unites only callers with much against each of them, so honest callers behind one
    proxy are not accused with somebody who sits there too.
    """

    last: dict[str, str]

    @classmethod
    def load(cls, meta: Mapping[str, Any] | None) -> Ways:
        """From what `save` made, or empty."""
        return cls(dict(meta["ways"]) if meta is not None else {})

    def save(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"ways": [[way, name] for way, name in self.last.items()]}

    def meet(self, rows: pa.Table, at: NDArray[np.int64], who: Sequence[str]) -> list[tuple[int, str]]:
        """Rows (`at`, flagged, in log order; `who` sent each) with the other caller whose way they came.

        >>> ways, log = Ways({}), pa.table({"credential_id": ["k1", "k1", "k2"]})
        >>> ways.meet(log, np.array([0, 1, 2]), ["ann", "bob", "ann"])
        [(1, 'ann')]
        """
        found = []
        columns = [c for c in WAYS if c in rows.column_names and rows[c].null_count < rows.num_rows]
        values = [rows[c].take(pa.array(at)).cast(pa.string()) for c in columns]
        coded = [pc.dictionary_encode(v.combine_chunks()) for v in values]
        digests = [[_digest(c, w) for w in d.dictionary.to_pylist()] for c, d in zip(columns, coded, strict=True)]
        codes = [d.indices.to_pylist() for d in coded]
        for k, (row, name) in enumerate(zip(at.tolist(), who, strict=True)):
            for code, words in zip(codes, digests, strict=True):
                if code[k] is None:
                    continue
                way = words[code[k]]
                before = self.last.pop(way, name)
                self.last[way] = name
                if before != name:
                    found.append((row, before))
        for way in list(self.last)[:-KEPT]:
            del self.last[way]
        return found


def ties(
    rows: pa.Table, at: NDArray[np.int64], who: NDArray[np.int64], names: Sequence[str], declared: Mapping[str, Caller]
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """What may tie the callers of rows `at` (`who` indexes names): a table of "kind:digest", and per row and kind (credential,
    address, network, group) its place there, -1 where the log does not tell.

    >>> log = pa.table({"source_ip": ["10.0.0.1", None, "10.0.0.9"]})
    >>> table, tied = ties(log, np.arange(3), np.zeros(3, np.int64), ["ann"], {})
    >>> [[table[k].split(":")[0] for k in row if k >= 0] for row in tied.tolist()]
    [['address', 'network'], [], ['address', 'network']]
    >>> bool(tied[0, 2] == tied[2, 2])
    True
    """
    place: dict[str, int] = {}
    tied = np.full((len(at), 4), -1, np.int32)

    def put(kind: int, words: Sequence[str | None], index: NDArray[np.int64]) -> None:
        known = [
            -1 if w is None else place.setdefault(f"{TIES[kind]}:{_digest(TIES[kind], w)}", len(place)) for w in words
        ]
        tied[:, kind] = np.array([*known, -1], np.int32)[index]

    for kind, column in enumerate(WAYS):
        if column in rows.column_names and rows[column].null_count < rows.num_rows:
            coded = pc.dictionary_encode(rows[column].combine_chunks().cast(pa.string()).take(pa.array(at)))
            index = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            words = coded.dictionary.to_pylist()
            put(kind, words, index)
            if column == "source_ip":
                put(2, [_network(w) for w in words], index)
    put(3, [declared[n].group or None if n in declared else None for n in names], who)
    return tuple(place), tied


@lru_cache(maxsize=65_536)  # the same few come again and again
def _network(address: str) -> str:
    return network(address)


@lru_cache(maxsize=65_536)
def _digest(column: str, word: str) -> str:
    return hashlib.blake2b(f"{column}\x1f{word}".encode(), digest_size=8).hexdigest()
