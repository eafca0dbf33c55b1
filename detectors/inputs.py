"""Text and embeddings as a few numbers that the drift engine can follow: projections on fixed random directions.

Directions are drawn from a hash of the reference, so who sends texts does not know them. They mean nothing one by one;
together they move when topics, language or the embedding model change. Only their counts are stored, never a text.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectors import stats
from detectors.stats import Floats

DIRECTIONS: Final = 12  # numbers per kind of input
BUCKETS: Final = 4096  # n-grams are hashed into so many
WORDS: Final = 2_000  # of a text that are looked at, the first ones
LEARNT: Final = 5_000  # reference rows that say which n-grams are common
_WORD: Final = re.compile(r"\w+")


class _Extra(msgspec.Struct):
    embedding: list[Any] | None = None
    messages_in: list[Any] | None = None


_DECODER: Final = msgspec.json.Decoder(_Extra)


@dataclass(frozen=True)
class Inputs:
    """seed: of the directions, a hash of all the rest. weight (BUCKETS,): of n-grams, rare ones more; empty: the model takes no texts.
    mean, scale (d,): of the reference's embeddings; empty: it takes none.
    """

    seed: str = ""
    weight: Floats = field(default_factory=lambda: np.empty(0), compare=False)
    mean: Floats = field(default_factory=lambda: np.empty(0), compare=False)
    scale: Floats = field(default_factory=lambda: np.empty(0), compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the event log that they are read from."""
        return ("extra",) if len(self.weight) or len(self.mean) else ()

    def pack(self) -> list[Any]:
        """As plain values."""
        return [self.seed, *(a.astype("<f8").tobytes() for a in (self.weight, self.mean, self.scale))]

    @classmethod
    def unpack(cls, raw: Sequence[Any]) -> Inputs:
        """The inverse of `pack`."""
        return cls(str(raw[0]), *(np.frombuffer(b, "<f8").astype(np.float64) for b in raw[1:]))

    def project(self, rows: pa.Table) -> pa.Table:
        """The rows with columns `input:text 1` ..., `input:text length`, `input:embedding 1` ...; NaN where there is none."""
        if not len(self.weight) and not len(self.mean):
            return rows
        texts, embeddings = _held(rows)
        if len(self.weight):
            hashed = stats.seeded("text", self.seed).choice([-1.0, 1.0], (BUCKETS, DIRECTIONS)) * self.weight[:, None]
            found = np.full((rows.num_rows, DIRECTIONS), np.nan)
            for i, text in texts.items():
                grams = _grams(text)
                found[i] = hashed[grams].sum(axis=0) / np.sqrt(len(grams)) if len(grams) else 0.0
            length = np.full(rows.num_rows, np.nan)
            length[list(texts)] = np.log1p([len(t) for t in texts.values()])
            rows = _with(rows, "text", found).append_column("input:text length", pa.array(length))
        if len(self.mean):
            drawn = stats.seeded("embedding", self.seed).normal(size=(len(self.mean), DIRECTIONS))
            found = np.full((rows.num_rows, DIRECTIONS), np.nan)
            fitting = {i: e for i, e in embeddings.items() if len(e) == len(self.mean)}
            if fitting:
                x = (np.array(list(fitting.values())) - self.mean) / self.scale
                found[list(fitting)] = x @ drawn / np.sqrt(len(self.mean))
            rows = _with(rows, "embedding", found)
        return rows


def learn(rows: pa.Table) -> Inputs:
    """What a reference's texts and embeddings look like; empty where it has none.

    >>> t = pa.table({"extra": ['{"embedding": [1.0, 2.0]}', '{"messages_in": [{"role": "user", "content": "hello"}]}']})
    >>> i = learn(t); len(i.mean), len(i.weight), i.project(t)["input:text length"].to_pylist()[1] > 1.7
    (2, 4096, True)
    """
    texts, embeddings = _held(rows.slice(0, LEARNT))
    if not texts and not embeddings:
        return Inputs()
    parts = [*(t.encode(errors="replace") for t in texts.values()), *(e.tobytes() for e in embeddings.values())]
    seed = hashlib.sha256(b"\x00".join(parts)).hexdigest()
    weight = np.empty(0)
    if texts:
        seen = np.zeros(BUCKETS)
        for text in texts.values():
            seen[np.unique(_grams(text))] += 1
        weight = np.log((1 + len(texts)) / (1 + seen))
        weight /= max(float(weight.max()), 1e-9)
    if not embeddings:
        return Inputs(seed, weight)
    sizes = [len(e) for e in embeddings.values()]
    usual = max(set(sizes), key=lambda s: (sizes.count(s), s))
    x = np.array([e for e in embeddings.values() if len(e) == usual])
    return Inputs(seed, weight, x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9))


def _held(rows: pa.Table) -> tuple[dict[int, str], dict[int, Floats]]:
    """Texts and embeddings by row. What cannot be read counts as absent."""
    texts: dict[int, str] = {}
    embeddings: dict[int, Floats] = {}
    if "extra" not in rows.column_names or rows["extra"].null_count == rows.num_rows:
        return texts, embeddings
    wanted = pc.fill_null(pc.match_substring_regex(rows["extra"], '"(messages_in|embedding)":'), fill_value=False)
    at = np.flatnonzero(np.asarray(wanted))
    for i, raw in zip(at.tolist(), rows["extra"].take(pa.array(at)).to_pylist(), strict=True):
        try:
            found = _DECODER.decode(raw)
            if found.embedding:
                x = np.array(found.embedding, dtype=np.float64)
                if x.ndim == 1 and np.isfinite(x).all():
                    embeddings[i] = x
        except (msgspec.DecodeError, ValueError, TypeError):
            continue
        if found.messages_in:
            texts[i] = question(found.messages_in)
    return texts, embeddings


def question(messages: Sequence[Any]) -> str:
    """The newest message of the user, else all of them: a conversation repeats what was said before.

    >>> question([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}])
    'c'
    """
    told = [m for m in messages if isinstance(m, dict)]
    asked = [m for m in told if m.get("role") == "user"][-1:] or told
    return "\n".join(_text(m.get("content") or m.get("parts")) for m in asked)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_text(part.get("text") or part.get("content")) for part in content if isinstance(part, dict))
    return ""


def _grams(text: str) -> Any:
    """Buckets of the distinct words and pairs of neighbours."""
    words = _WORD.findall(text.lower())[:WORDS]
    grams = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
    return np.fromiter((zlib.crc32(g.encode(errors="replace")) % BUCKETS for g in sorted(grams)), np.int64, len(grams))


def _with(rows: pa.Table, kind: str, found: Floats) -> pa.Table:
    for j in range(found.shape[1]):
        rows = rows.append_column(f"input:{kind} {j + 1}", pa.array(found[:, j]))
    return rows
