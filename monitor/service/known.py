"""Rows that the bank knows, found again in the log: training records and canaries, kept as keyed hashes only.

An index is a membership oracle, so it holds SipHash-2-4 values (a keyed function: without the key nobody can test a row
against it) in a file of mode 0600; the key lies in a file of its own, outside the state store. Nothing answers whether a
row is in it: detectors see two columns and tell counts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from collectors.base import Placed
from detectors.base import pack, unpack
from detectors.hashing import Hashes, of_rows, rounded, siphash
from detectors.signals import Frame, number_hashes
from monitor.config import Config
from monitor.model import InferenceEvent
from monitor.service.privacy import secret_key
from monitor.store.columns import to_table, view
from monitor.store.features import FeatureSchema

CHUNK_ROWS: Final = 20_000
GRAIN: Final = 1e-6  # of a column's range: what float32 and scaling on the way do to a number
VERSION: Final = 2


@dataclass(frozen=True)
class Index:
    """Known rows: sorted keyed hashes of their canonical form, in which numbers are rounded to so many decimals.

    >>> rows = pa.table({"feature:x": [1.5, 2.5, 9.0], "feature:c": ["a", None, "b"]})
    >>> known = Index.of([rows.slice(0, 2)], ["x"], ["c"], bytes(32))
    >>> known.holds(rows).tolist()
    [True, True, False]
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    decimals: tuple[int, ...]
    hashes: Hashes
    key: bytes
    lines: NDArray[np.int32] | None = None  # where each stood first in its file, from 0; only canaries need it

    @classmethod
    def of(
        cls, chunks: Iterator[pa.Table] | Sequence[pa.Table], numeric: Sequence[str], categorical: Sequence[str], key: bytes,
        *, numbered: bool = False,
    ) -> Index:  # fmt: skip
        """From tables of rows; the first one tells the range of each number. numbered: remember which row is which."""
        given = iter(chunks)
        first = next(given, pa.table({}))
        numbers = Frame.of(first, numeric, ()).numbers
        out = cls(
            tuple(numeric), tuple(categorical), tuple(_decimals(x) for x in numbers.T), np.zeros(0, np.uint64), key
        )
        found = [out.keyed(first), *(out.keyed(rows) for rows in given)]
        hashes, lines = np.unique(np.concatenate(found), return_index=True)
        kept = lines.astype(np.int32) if numbered else None
        return cls(out.numeric, out.categorical, out.decimals, hashes, key, kept)

    def keyed(self, rows: pa.Table) -> Hashes:
        """One keyed hash per row: equal for rows that are equal but for rounding on the way."""
        frame = Frame.of(rows, self.numeric, self.categorical)
        step = np.power(10.0, np.array(self.decimals, np.float64))
        hashes = np.concatenate([number_hashes(rounded(frame.numbers, step)), frame.hashes[:, len(step) :]], axis=1)
        return siphash(of_rows(hashes), self.key)

    def holds(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Which rows are known ones."""
        if not len(self.hashes):
            return np.zeros(rows.num_rows, dtype=bool)
        asked = self.keyed(rows)
        at = np.minimum(np.searchsorted(self.hashes, asked), len(self.hashes) - 1)
        return np.asarray(self.hashes[at] == asked)

    def line(self, rows: pa.Table) -> NDArray[np.int32]:
        """Which row of the file each one repeats, from 0; -1 for none. Of a numbered index."""
        if self.lines is None or not len(self.hashes):
            return np.full(rows.num_rows, -1, dtype=np.int32)
        asked = self.keyed(rows)
        at = np.minimum(np.searchsorted(self.hashes, asked), len(self.hashes) - 1)
        return np.where(self.hashes[at] == asked, self.lines[at], -1).astype(np.int32)


@dataclass(frozen=True)
class Known:
    """The indexes of a model; None where its configuration names no file."""

    training: Index | None = None
    canary: Index | None = None

    @property
    def kinds(self) -> list[str]:
        """Which there are."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def mark(self, rows: pa.Table) -> pa.Table:
        """The rows with a column for each index there is: whether a training record, which canary (-1: none)."""
        if self.training is not None:
            rows = rows.append_column("training", pa.array(self.training.holds(rows)))
        if self.canary is not None:
            rows = rows.append_column("canary", pa.array(self.canary.line(rows)))
        return rows


def index(
    config: Config, events: Iterator[InferenceEvent], digest: str, schema: FeatureSchema, folder: Path, kind: str
) -> Index:  # fmt: skip
    """The index of a file of events, read back where it stands and built where the file, features or key are new.

    digest: hash of the file. folder: of this model, for its indexes; those of earlier files are deleted.
    """
    key = secret_key(config.path(config.store.path / "training.key"))
    content = msgspec.json.encode([VERSION, digest, list(schema.numeric), list(schema.categorical)])
    path = folder / f"{kind}-{hmac.new(key, content, hashlib.sha256).hexdigest()[:32]}.index"
    if not path.exists():
        columns = [f"feature:{f}" for f in (*schema.numeric, *schema.categorical)]
        rows = _chunks(events, schema, columns)
        made = Index.of(rows, list(schema.numeric), list(schema.categorical), key, numbered=kind == "canary")
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            lines = {} if made.lines is None else {"lines": made.lines}
            stream.write(pack({"decimals": list(made.decimals)}, {"hashes": made.hashes, **lines}))
        partial.rename(path)
    for old in folder.glob(f"{kind}-*.index"):
        if old != path:
            old.unlink(missing_ok=True)
    meta, arrays = unpack(path.read_bytes())
    decimals = tuple(meta["decimals"])
    return Index(tuple(schema.numeric), tuple(schema.categorical), decimals, arrays["hashes"], key, arrays.get("lines"))


def _chunks(events: Iterator[InferenceEvent], schema: FeatureSchema, columns: Sequence[str]) -> Iterator[pa.Table]:
    while chunk := [Placed("known", 0, i, e) for i, e in enumerate(islice(events, CHUNK_ROWS))]:
        yield view(to_table(chunk, schema, "", 0), schema, list(columns))


def _decimals(x: NDArray[np.float64]) -> int:
    """Decimals that keep about a millionth of a column's range apart."""
    x = x[np.isfinite(x)]
    span = float(np.ptp(x)) or float(np.abs(x).max()) if len(x) else 0.0
    return 6 if span <= 0 or not np.isfinite(span) else int(np.clip(np.floor(-np.log10(GRAIN * span)), -200, 200))
