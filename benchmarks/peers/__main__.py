"""Peers side by side with Lanner on the same windows: `python -m benchmarks.peers [--out FILE] [PEER ...]`.

Every peer runs in an environment of its own (made in `.cache/peers` from PyPI, once, versions pinned below) and judges
the same windows of 1,000 flights: nothing changed for NULL windows, then one feature changed for SHIFTED windows, once
with shuffled rows and once with shuffled days. 100 windows come before them: the history of Lanner and of NannyML, which
learns how chunks vary; the other peers' reference is 10,000 of its rows, evenly over all of it. Once as each peer is delivered, and once with thresholds for which none of NULL other
windows (another shuffle) alarms: each feature's largest score there, times what the halves say of each other.
Needs about a quarter of an hour of CPU; the table is kept in docs/benchmarks.md, and not part of `make bench`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.drift_null import first_named, judged, transitions
from benchmarks.drift_streams import BROKEN, ROWS, Rows, flights, shifted, shuffled, windows
from benchmarks.measure import cpu
from benchmarks.traffic.data import CACHE
from detectors.profile import Bins

KNOWN: Final = 100  # windows before anything is judged
NULL: Final = 200
SHIFTED: Final = 20
SAMPLE: Final = 10_000  # rows of the peers' reference
SEEDS: Final = {"tune": 2001, "judge": 2002}
SHIFTS: Final = (
    ("distance", 0.1), ("distance", 0.25), ("distance", 0.5), ("carrier", 0.05), ("carrier", 0.1), ("humid", BROKEN),
)  # fmt: skip
ENVIRONMENTS: Final[dict[str, tuple[str, ...]]] = {
    "evidently": ("evidently==0.7.23", "pandas==2.3.3", "pyarrow==26.0.1"),  # imports fail with pandas 3.1
    "nannyml": ("nannyml==0.13.1", "statsmodels", "pyarrow==26.0.1"),  # imports fail without statsmodels
    "alibi": ("alibi-detect==0.13.0", "numpy<2", "pyarrow==17.0.0"),  # newer pyarrow wants numpy 2
    "scipy": ("scipy==1.17.1", "pandas==2.3.3", "pyarrow==26.0.1"),
    "river": ("river==0.26.1", "pyarrow==26.0.1"),
}
PEERS: Final = {  # contender -> its environment, what it is called
    "evidently": ("evidently", "Evidently 0.7.23, any column"),
    "nannyml": ("nannyml", "NannyML 0.13.1 univariate (Jensen-Shannon, mean + 3 sd of 100 chunks)"),
    "alibi": ("alibi", "alibi-detect 0.13.0 TabularDrift (p < .05, Bonferroni)"),
    "scipy": ("scipy", "scipy 1.17.1 KS and chi-square (p < .05)"),
    "adwin": ("river", "river 0.26.1 ADWIN per number"),
    "page_hinkley": ("river", "river 0.26.1 PageHinkley per number, standardised"),
}
DATASET: Final = "Evidently 0.7.23, dataset (half the columns)"
Bools = NDArray[np.bool_]
Found = dict[str, dict[str, Any]]


def environment(name: str) -> Path:
    """The Python of a peer's environment, made when it is not there yet."""
    folder, wanted = CACHE / "peers" / name, "\n".join(ENVIRONMENTS[name])
    done = folder / "installed.txt"
    python = folder / "bin" / "python"
    if not done.exists() or done.read_text() != wanted:
        print(f"Installing {', '.join(ENVIRONMENTS[name])} into {folder} ...", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *ENVIRONMENTS[name]]
        subprocess.run(command, check=True)
        done.write_text(wanted)
    return python


def streams(rows: Rows, kind: str, seed: int, *, changes: bool) -> dict[str, pa.Table]:
    """`known`, `null`, and one table per change."""
    table = shuffled(rows, kind, np.random.default_rng(seed)).slice(0, (KNOWN + NULL + SHIFTED) * ROWS)
    last = table.slice((KNOWN + NULL) * ROWS)
    found = {"known": table.slice(0, KNOWN * ROWS), "null": table.slice(KNOWN * ROWS, NULL * ROWS)}
    return found | ({f"{f} {s}": shifted(last, f, s) for f, s in SHIFTS} if changes else {})


def ask(peer: str, tables: dict[str, pa.Table]) -> dict[str, Any]:
    """A peer's scores and alarms on all tables but `known`, its reference."""
    known = tables["known"]
    sample = known
    if peer != "nannyml":
        sample = known.take(pa.array(np.linspace(0, known.num_rows - 1, SAMPLE).astype(np.int64)))
    with tempfile.TemporaryDirectory() as folder:
        for name, table in {**tables, "known": sample}.items():
            plain = pa.table(
                {
                    c.removeprefix("feature:"): table[c].cast(pa.string())
                    if pa.types.is_dictionary(table[c].type)
                    else table[c]
                    for c in table.column_names
                }
            )
            pq.write_table(plain, Path(folder) / f"{'reference' if name == 'known' else name}.parquet")
        script = Path(__file__).parent / "contenders.py"
        command = [str(environment(PEERS[peer][0])), "-W", "ignore", str(script), peer, folder]
        quiet = {**os.environ, "PYTHONPATH": "", "DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=quiet)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def tuned(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """A threshold per feature that none of these windows (n, features) passes, nor either half by what the other says."""
    floor = 1e-12
    halves = [np.maximum(h.max(axis=0), floor) for h in (scores[: len(scores) // 2], scores[len(scores) // 2 :])]
    factor = max(
        float((scores[: len(scores) // 2] / halves[1]).max()), float((scores[len(scores) // 2 :] / halves[0]).max())
    )
    return np.asarray(np.maximum(*halves) * max(1.0, min(factor, 1e6)), dtype=np.float64)


def measure_peer(peer: str, rows: Rows) -> Found:
    """False alarms per 720 checks and median checks to the alarm on the changed feature, as delivered and tuned."""
    out: Found = {}
    for kind in ("iid", "block"):
        other = ask(peer, streams(rows, kind, SEEDS["tune"], changes=False))
        mine = ask(peer, streams(rows, kind, SEEDS["judge"], changes=True))
        limit = tuned(np.array(other["scores"]["null"]))
        alarms = {k: np.array(v, dtype=bool) for k, v in mine["alarms"].items()}
        strict = {k: np.array(v) > limit for k, v in mine["scores"].items()}
        walk = peer in ("adwin", "page_hinkley")
        out[kind] = {
            "default": _told(alarms, mine["features"], walk=walk),
            "tuned": _told(strict, mine["features"], walk=walk),
            "cpu_s": mine["cpu_s"],
        }
        if peer == "evidently":
            half = {k: np.repeat((v.mean(axis=1) >= 0.5)[:, None], v.shape[1], axis=1) for k, v in alarms.items()}
            out[kind]["dataset"] = _told(half, mine["features"], walk=False)
    return out


def _told(alarms: dict[str, Bools], features: list[str], *, walk: bool) -> dict[str, Any]:
    null = alarms["null"].any(axis=1)
    found: dict[str, Any] = {"per_720": float(null.mean() * 720)}
    for f, s in SHIFTS:
        hits = alarms[f"{f} {s}"][:, features.index(f)] if f in features else np.zeros(SHIFTED, dtype=bool)
        found[f"{f} {s}"] = _first(hits) if walk else _median(float(hits.mean()))
    return found


def _first(hits: Bools) -> float | None:
    return float(np.argmax(hits)) + 1 if hits.any() else None


def _median(power: float) -> float | None:
    """Checks by which half of all tries have alarmed, when each window alarms with this probability; None: none did."""
    if power <= 0:
        return None
    return 1.0 if power >= 0.5 else float(math.ceil(math.log(0.5) / math.log(1 - power)))


def measure_lanner(rows: Rows) -> Found:
    """Lanner on the same windows; it knows the 100 windows before them."""
    out: Found = {}
    for kind in ("iid", "block"):
        tables = streams(rows, kind, SEEDS["judge"], changes=True)
        with cpu() as clock:
            bins = Bins.fit(tables["known"], rows.numeric, rows.categorical)
            known = list(windows(bins, tables["known"]))
            opened, _, _ = transitions(judged(known, windows(bins, tables["null"], KNOWN)))
            told: dict[str, Any] = {"per_720": len(opened) / NULL * 720}
            for f, s in SHIFTS:
                first = first_named(judged(known, windows(bins, tables[f"{f} {s}"], KNOWN)), f)[0]
                told[f"{f} {s}"] = first if math.isfinite(first) else None
        out[kind] = {"default": told, "cpu_s": clock.seconds}
    return out


def table(found: dict[str, Found]) -> str:
    """Everything measured, as Markdown."""
    names = ["mix" if f == "carrier" else f for f, _ in SHIFTS]
    sizes = ["broken" if s == BROKEN else f"{s:g}" for _, s in SHIFTS]
    head = [f"{n} {s}" for n, s in zip(names, sizes, strict=True)]
    lines = []
    for kind in ("iid", "block"):
        lines += [f"| {kind} | FA per 720 | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
        for how in ("default", "dataset", "tuned"):
            for peer, told in found.items():
                if how not in told[kind]:
                    continue
                label = "Lanner" if peer == "lanner" else DATASET if how == "dataset" else PEERS[peer][1]
                label += ", re-tuned" if how == "tuned" else ""
                row = told[kind][how]
                cells = ["-" if row[f"{f} {s}"] is None else f"{row[f'{f} {s}']:.0f}" for f, s in SHIFTS]
                lines.append(f"| {label} | {row['per_720']:.3g} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _stored(file: Path | None) -> dict[str, Found]:
    known: dict[str, Found] = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else {}
    return known


def main() -> None:
    """Measure what FILE does not hold yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of lanner, {', '.join(PEERS)}; all without any")
    parser.add_argument("--out", type=Path, help="JSON file that keeps each peer's numbers")
    args = parser.parse_args()
    rows = flights()
    found: dict[str, Found] = _stored(args.out)
    for peer in args.peers or ["lanner", *PEERS]:
        if peer not in found:
            told = measure_lanner(rows) if peer == "lanner" else measure_peer(peer, rows)
            found = {**found, **_stored(args.out), peer: told}  # another run may have added its own
            if args.out:
                draft = args.out.with_suffix(".part")
                draft.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                draft.replace(args.out)
    print(table(found))


if __name__ == "__main__":
    main()
