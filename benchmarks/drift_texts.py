"""False alarms and delays of the drift engine on texts and embeddings: `python -m benchmarks.drift_texts [--out FILE] [PART ...]`.

Texts are paragraphs of the doc strings of eight libraries that every installation has (read as files, nothing is imported):
real English with topics, the same for all who install the locked versions. Embeddings are the 64 pixels of scikit-learn's
1,797 written digits, whose topics are the digits. A window is ROWS of them drawn again. *iid*: every window has the same
mix of topics; *wandering*: the mix of topics hangs together for hours and moves by some points, which is what people mean
by "nothing changed". Parts are measured once and kept in FILE, as in benchmarks.drift_null; nothing was tuned on them.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks import drift_null
from benchmarks.drift_streams import Counted
from detectors.profile import Bins, Coded
from detectors.stats import Floats
from monitor.model import HOUR_US

ROWS: Final = 200  # of a window
HISTORY: Final = 100  # windows of the reference
JUDGED: Final = 400  # windows of a null stream that are judged
LIMIT: Final = 40
LIBRARIES: Final = (
    "numpy", "pandas", "scipy/optimize", "scipy/signal", "scipy/sparse", "scipy/stats", "sklearn", "sqlalchemy",
)  # fmt: skip
MOST: Final = 1_500  # paragraphs of each
MOVES: Final = (0.05, 0.1, 0.2, 0.3)  # share of the rows that turn to one topic
WANDER: Final = (0.8, 0.15)  # how log shares of topics hang together from hour to hour, and their standard deviation

Topics = tuple[pa.Table, NDArray[np.int64]]


@functools.cache
def texts() -> Topics:
    """Rows with a question each, and which library it speaks of."""
    rows, topic = [], []
    for i, library in enumerate(LIBRARIES):
        found = list(dict.fromkeys(_paragraphs(library)))[:MOST]
        rows += [json.dumps({"messages_in": [{"role": "user", "content": t}]}, separators=(",", ":")) for t in found]
        topic += [i] * len(found)
    return pa.table({"extra": rows}), np.array(topic)


def _paragraphs(library: str) -> Iterator[str]:
    """Paragraphs of prose in the doc strings of a library, by file name."""
    package, _, part = library.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for file in sorted((Path(spec.origin).parent / part).rglob("*.py")):
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    words = " ".join(block.split())
                    if 60 <= len(words) <= 400 and ">>>" not in words and words[-1] == ".":
                        yield words


@functools.cache
def embeddings() -> Topics:
    """Rows with an embedding each, and which digit it is."""
    x, y = load_digits(return_X_y=True)
    rows = [json.dumps({"embedding": row}, separators=(",", ":")) for row in x.tolist()]
    return pa.table({"extra": rows}), y.astype(np.int64)


def stream(kind: str, topics: int, count: int, rng: np.random.Generator) -> Floats:
    """The share of each topic in every window, (count, topics)."""
    usual = rng.dirichlet(np.full(topics, 10.0))
    if kind == "iid":
        return np.tile(usual, (count, 1))
    phi, sd = WANDER
    wander, out = rng.normal(0, sd, topics), []
    for _ in range(count):
        wander = phi * wander + rng.normal(0, sd * np.sqrt(1 - phi**2), topics)
        share = usual * np.exp(wander)
        out.append(share / share.sum())
    return np.array(out)


def windows(
    coded: Coded, topic: NDArray[np.int64], shares: Floats, rng: np.random.Generator, first: int = 0
) -> Iterator[Counted]:
    """Windows of rows drawn with these shares of topics."""
    of = [np.flatnonzero(topic == t) for t in range(shares.shape[1])]
    for i, share in enumerate(shares):
        drawn = rng.choice(len(share), ROWS, p=share)
        rows = np.array([of[t][int(u * len(of[t]))] for t, u in zip(drawn.tolist(), rng.random(ROWS), strict=True)])
        start = (first + i) * HOUR_US
        yield Counted(start, start + HOUR_US, coded.take(rows).count(0, ROWS))


def _learnt(rows: pa.Table, topic: NDArray[np.int64], share: Floats, rng: np.random.Generator) -> Coded:
    """All rows on the bins of a reference with these shares."""
    known = rng.choice(rows.num_rows, HISTORY * ROWS, p=(share / np.bincount(topic))[topic])
    return Bins.fit(rows.take(pa.array(known)), [], []).code(rows)


def null(made: Callable[[], Topics], kind: str, least: int, seed: int) -> dict[str, float]:
    """False alarms per 720 checks over at least `least` windows."""
    (rows, topic), alarms, checks, i = made(), 0, 0, 0
    while checks < least:
        rng = np.random.default_rng([seed, i])
        shares = stream(kind, int(topic.max()) + 1, HISTORY + JUDGED, rng)
        coded = _learnt(rows, topic, shares[:HISTORY].mean(axis=0), rng)
        known = list(windows(coded, topic, shares[:HISTORY], rng))
        found = drift_null.judged(known, windows(coded, topic, shares[HISTORY:], rng, HISTORY))
        alarms, checks, i = alarms + len(drift_null.transitions(found)[0]), checks + JUDGED, i + 1
    return drift_null.rate(alarms, checks)


def delays(made: Callable[[], Topics], kind: str, runs: int, seed: int) -> dict[str, Any]:
    """Median checks until an incident opens after a share of the rows has turned to one topic, another one in each run."""
    rows, topic = made()
    taken: dict[float, list[float]] = {m: [] for m in MOVES}
    for i in range(runs):
        rng = np.random.default_rng([seed, i])
        shares = stream(kind, int(topic.max()) + 1, HISTORY + LIMIT, rng)
        coded = _learnt(rows, topic, shares[:HISTORY].mean(axis=0), rng)
        known = list(windows(coded, topic, shares[:HISTORY], rng))
        one = np.eye(shares.shape[1])[i % shares.shape[1]]
        for move in MOVES:
            later = windows(coded, topic, (1 - move) * shares[HISTORY:] + move * one, rng, HISTORY)
            opened = drift_null.transitions(drift_null.judged(known, later))[0]
            taken[move].append(float(opened[0] if opened else np.inf))
    return {
        f"{m:g}": {"runs": runs, "drift": drift_null.median(t), "found": sum(np.isfinite(t).tolist())}
        for m, t in taken.items()
    }


PARTS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "texts/iid": lambda: null(texts, "iid", 4_000, 1030),
    "texts/wandering": lambda: null(texts, "wandering", 4_000, 1031),
    "embeddings/iid": lambda: null(embeddings, "iid", 4_000, 1032),
    "embeddings/wandering": lambda: null(embeddings, "wandering", 4_000, 1033),
    "texts_delay/iid": lambda: delays(texts, "iid", 8, 1034),
    "texts_delay/wandering": lambda: delays(texts, "wandering", 8, 1035),
    "embeddings_delay/iid": lambda: delays(embeddings, "iid", 10, 1036),
    "embeddings_delay/wandering": lambda: delays(embeddings, "wandering", 10, 1037),
}


def main(args: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift_texts", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--out", type=Path, help="JSON file that keeps each part")
    given = parser.parse_args(args)
    if unknown := sorted(set(given.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}")
    found = drift_null.measure(given.parts or list(PARTS), given.out, PARTS)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
