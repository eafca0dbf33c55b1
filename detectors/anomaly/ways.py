"""Flagged queries of several names that come with one credential, or from one address: what ties the names to each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

WAYS: Final = ("credential_id", "source_ip")  # columns of the log
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


def _digest(column: str, word: str) -> str:
    return hashlib.blake2b(f"{column}\x1f{word}".encode(), digest_size=8).hexdigest()
