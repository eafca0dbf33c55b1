"""Peers side by side with Lanner on the same windows: `python -m benchmarks.peers [--out FILE] [PEER ...]`.

Every peer runs in an environment of its own (made in `.cache/peers` from PyPI, once, versions pinned below) and judges
the same windows of 1,000 flights, once with shuffled rows and once with shuffled days. 100 windows come before them: the
history of Lanner and of NannyML, which learns how chunks vary; the other peers' reference is 10,000 of its rows, evenly
over all of it.

Nothing changes in STREAMS x NULL windows on which a peer's one threshold is tuned to the budget that Lanner is given, one
alarm in 720 checks over all features (see tuning), nor in as many of other shuffles on which the rate that it then has is judged. In
SHIFTED further windows one feature changes: delays, at each peer's defaults and at that threshold.
Needs about 40 minutes of CPU. Streams and raw scores stay in `.cache/peers`, from which another threshold needs no new
run; FILE holds what the tables of docs/benchmarks.md are made from, by benchmarks.peers.table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.drift_null import first_named, judged, transitions
from benchmarks.drift_streams import ROWS, Rows, flights, shifted, shuffled, windows
from benchmarks.measure import cpu
from benchmarks.peers.table import FILE, SHIFTS, written
from benchmarks.peers.tuning import CHECKS, Bools, Floats, alarms, fitted, rate, searched, threshold
from benchmarks.peers.walks import WALKS, reachable
from benchmarks.traffic.data import CACHE
from detectors.profile import Bins

KNOWN: Final = 100  # windows before anything is judged
NULL: Final = 200
SHIFTED: Final = 20
STREAMS: Final = 36  # of NULL windows each
ALLOWED: Final = STREAMS * NULL // CHECKS  # alarms that the budget has for them
KEPT: Final = 60  # strangest null windows of a part whose scores FILE keeps
SAMPLE: Final = 10_000  # rows of the peers' reference
SEEDS: Final = {"tune": 2001, "judge": 2003, "changes": 2002}
ENVIRONMENTS: Final[dict[str, tuple[str, ...]]] = {
    "evidently": ("evidently==0.7.23", "pandas==2.3.3", "pyarrow==26.0.1"),  # imports fail with pandas 3.1
    "nannyml": ("nannyml==0.13.1", "statsmodels", "pyarrow==26.0.1"),  # imports fail without statsmodels
    "alibi": ("alibi-detect==0.13.0", "numpy<2", "pyarrow==17.0.0"),  # newer pyarrow wants numpy 2
    "scipy": ("scipy==1.17.1", "pandas==2.3.3", "pyarrow==26.0.1"),
    "river": ("river==0.26.1", "pyarrow==26.0.1"),
}
HOME: Final = {p: p for p in ("evidently", "nannyml", "alibi", "scipy")} | dict.fromkeys(WALKS, "river")
Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What a peer says of one part: arrays of (windows, features) by place and stream."""

    features: tuple[str, ...]
    scores: Mapping[str, Floats]
    alarms: Mapping[str, Bools]
    cpu_s: float

    def null(self) -> Floats:
        """Scores of all null windows: (streams, windows, features)."""
        return np.stack([s for place, s in sorted(self.scores.items()) if place.endswith("/null")])


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


def streams(rows: Rows, kind: str, part: str, i: int) -> dict[str, pa.Table]:
    """`known`, `null`, and one table per change."""
    seed = SEEDS[part] if part == "changes" else [SEEDS[part], i]
    table = shuffled(rows, kind, np.random.default_rng(seed)).slice(0, (KNOWN + NULL + SHIFTED) * ROWS)
    known, last = table.slice(0, KNOWN * ROWS), table.slice((KNOWN + NULL) * ROWS)
    found = {"known": known, "null": table.slice(KNOWN * ROWS, NULL * ROWS)}
    return found | ({f"{f} {s}": shifted(last, f, s) for f, s in SHIFTS} if part == "changes" else {})


def prepared(rows: Rows, kind: str, part: str) -> Path:
    """The folder with all streams of a part, written when it is not there yet."""
    folder = CACHE / "peers" / "streams" / f"{kind}-{part}"
    done = folder / "written.txt"
    if not done.exists():
        for i in range(1 if part == "changes" else STREAMS):
            tables = streams(rows, kind, part, i)
            chosen = np.linspace(0, tables["known"].num_rows - 1, SAMPLE).astype(np.int64)
            place = folder / f"{i:02d}"
            place.mkdir(parents=True, exist_ok=True)
            for name, table in {**tables, "reference": tables["known"].take(pa.array(chosen))}.items():
                pq.write_table(_plain(table), place / f"{name}.parquet")
        done.write_text("")
    return folder


def _plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, features by their own names."""
    return pa.table(
        {
            c.removeprefix("feature:"): table[c].cast(pa.string())
            if pa.types.is_dictionary(table[c].type)
            else table[c]
            for c in table.column_names
        }
    )


def ask(peer: str, rows: Rows, kind: str, part: str, settings: Mapping[str, float] | None = None) -> Answer:
    """A peer's scores and alarms on a part, at its defaults or at a setting per feature; asked once."""
    out = CACHE / "peers" / "scores" / f"{peer}-{kind}-{part}{'-tuned' if settings else ''}.npz"
    given = out.with_suffix(".json")
    text = json.dumps(settings)
    if not out.exists() or given.read_text() != text:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        given.write_text(text)
        draft = out.with_suffix(".part.npz")
        script = Path(__file__).parent / "contenders.py"
        python, folder = environment(HOME[peer]), prepared(rows, kind, part)
        command = [str(python), "-W", "ignore", str(script), peer, str(folder), str(draft)]
        quiet = {**os.environ, "PYTHONPATH": "", "DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}
        subprocess.run([*command, *([str(given)] if settings else [])], check=True, env=quiet, stdout=sys.stderr)
        draft.replace(out)
    with np.load(out) as found:
        by = {
            what: {k.removeprefix(what): found[k] for k in found.files if k.startswith(what)}
            for what in ("scores/", "alarms/")
        }
        return Answer(tuple(found["features"].tolist()), by["scores/"], by["alarms/"], float(found["cpu_s"]))


def measure_windows(peer: str, rows: Rows, kind: str) -> dict[str, Any]:
    """A peer that judges each window by itself."""
    tune, judge, changes = (ask(peer, rows, kind, part) for part in ("tune", "judge", "changes"))
    null, other = tune.null(), judge.null()
    scale = fitted(null.reshape(-1, null.shape[-1]))
    strangest, later = scale.of(null).max(axis=2), scale.of(other).max(axis=2)
    limit = threshold(strangest, ALLOWED)
    usual = np.stack([a for _, a in sorted(judge.alarms.items())])
    inside = {name.split("/")[1]: scale.of(s) >= limit for name, s in changes.scores.items()}
    defaults = {name.split("/")[1]: a for name, a in changes.alarms.items()}
    found = {
        "default": _windows(_any(usual)) | _delays(defaults, judge.features),
        "tuned": _tuned(limit, strangest >= limit, later >= limit) | _delays(inside, judge.features),
        "limits": dict(zip(tune.features, scale.at(limit).tolist(), strict=True)),
        "strangest": {"tune": _strangest(strangest), "judge": _strangest(later)},
        "cpu_s": tune.cpu_s + judge.cpu_s + changes.cpu_s,
    }
    if peer == "evidently":
        half = {k: np.repeat((v.mean(axis=1) >= 0.5)[:, None], v.shape[1], axis=1) for k, v in defaults.items()}
        found["dataset"] = _windows(usual.mean(axis=2) >= 0.5) | _delays(half, judge.features)
    return found


def measure_walks(peer: str, rows: Rows, kind: str) -> dict[str, Any]:
    """A detector of river's: thousands of windows by its compiled twin, the delays by river, and both must agree."""
    _, setting, usual = WALKS[peer]
    default = ask(peer, rows, kind, "changes")
    n = len(default.features)
    null = {part: _walked(prepared(rows, kind, part), default.features) for part in ("tune", "judge")}

    def told(part: str, limits: Floats) -> Floats:
        return np.stack([_scores(peer, stream, limits) for stream in null[part]])

    scores = told("tune", np.full(n, np.inf))
    scale = fitted(scores.reshape(-1, n))
    tried: dict[float, int] = {}

    def count(limit: float) -> int:
        at = reachable(peer, scale.at(limit))
        tried[limit] = alarms(_any(told("tune", at) > at))
        return tried[limit]

    limit = searched(count, ALLOWED, 0.0, float(scale.of(scores).max()))
    at = reachable(peer, scale.at(limit))
    settings = {f: setting(x) for f, x in zip(default.features, at.tolist(), strict=True)}
    tuned = ask(peer, rows, kind, "changes", settings)
    for limits, answer in ((np.full(n, usual), default), (at, tuned)):
        for name, theirs in answer.alarms.items():
            mine = _scores(peer, _walk(prepared(rows, kind, "changes") / name, default.features), limits) > limits
            assert np.array_equal(mine, theirs), f"{peer} and its compiled twin differ on {kind} {name}"
    inside = [_any(told(part, at) > at) for part in ("tune", "judge")]
    return {
        "default": _windows(_any(told("judge", np.full(n, usual)) > usual)) | _firsts(default),
        "tuned": _tuned(limit, *inside) | _firsts(tuned),
        "limits": settings,
        "tried": sorted(tried.items()),
        "cpu_s": default.cpu_s + tuned.cpu_s,
    }


def _walk(stream: Path, features: tuple[str, ...]) -> list[tuple[Floats, int]]:
    """Per feature the reference's values and then a stream's, standardised, and where the stream begins."""
    past, now = (
        pq.read_table(f, columns=list(features))
        for f in (stream.parent / "reference.parquet", stream.with_name(f"{stream.name}.parquet"))
    )
    found = []
    for c in features:
        before = past[c].drop_null().to_numpy()
        mean, spread = float(before.mean()), float(before.std()) or 1.0
        both = np.concatenate([before, now[c].to_numpy()])
        found.append(((both - mean) / spread, len(before)))
    return found


def _walked(folder: Path, features: tuple[str, ...]) -> list[list[tuple[Floats, int]]]:
    return [_walk(place / "null", features) for place in sorted(p for p in folder.iterdir() if p.is_dir())]


def _scores(peer: str, stream: list[tuple[Floats, int]], limits: Floats) -> Floats:
    walk = WALKS[peer][0]
    return np.stack([walk(x, first, limit) for (x, first), limit in zip(stream, limits.tolist(), strict=True)], axis=1)


def _any(inside: Bools) -> Bools:
    """Windows in which any feature alarms."""
    return np.asarray(inside.any(axis=-1))


def _windows(inside: Bools) -> dict[str, Any]:
    """Windows in alarm and alarms of null streams at a default."""
    return {**rate(alarms(inside), inside.size), "share": float(inside.mean())}


def _tuned(limit: float, tune: Bools, judge: Bools) -> dict[str, Any]:
    return {"limit": limit, "tuning": _windows(tune), **_windows(judge)}


def _strangest(scores: Floats) -> list[tuple[int, int, float]]:
    """The highest scores of null windows with their stream and window, by which thresholds can be chosen anew."""
    order = np.argsort(-scores, axis=None)[:KEPT]
    return [(int(i // NULL), int(i % NULL), round(float(scores.flat[i]), 4)) for i in order]


def _delays(inside: Mapping[str, Bools], features: tuple[str, ...]) -> dict[str, Any]:
    return {f"{f} {s}": _median(float(inside[f"{f} {s}"][:, features.index(f)].mean())) for f, s in SHIFTS}


def _firsts(answer: Answer) -> dict[str, Any]:
    """Delays of a detector that remembers; it watches numbers only."""
    return {f"{f} {s}": _first(answer, f, f"00/{f} {s}") for f, s in SHIFTS}


def _first(answer: Answer, feature: str, stream: str) -> float | None:
    if feature not in answer.features:
        return None
    hits = answer.alarms[stream][:, answer.features.index(feature)]
    return float(np.argmax(hits)) + 1 if hits.any() else None


def _median(power: float) -> float | None:
    """Checks by which half of all tries have alarmed, when each window alarms with this probability; None: none did."""
    if power <= 0:
        return None
    return 1.0 if power >= 0.5 else float(math.ceil(math.log(0.5) / math.log(1 - power)))


def measure_lanner(rows: Rows, kind: str) -> dict[str, Any]:
    """Lanner on the same windows; it knows the 100 windows before them."""
    with cpu() as clock:
        opened = 0
        for i in range(STREAMS):
            tables = streams(rows, kind, "judge", i)
            bins = Bins.fit(tables["known"], rows.numeric, rows.categorical)
            found = judged(list(windows(bins, tables["known"])), windows(bins, tables["null"], KNOWN))
            opened += len(transitions(found)[0])
        tables = streams(rows, kind, "changes", 0)
        bins = Bins.fit(tables["known"], rows.numeric, rows.categorical)
        known = list(windows(bins, tables["known"]))
        told: dict[str, Any] = dict(rate(opened, STREAMS * NULL))
        for f, s in SHIFTS:
            first = first_named(judged(known, windows(bins, tables[f"{f} {s}"], KNOWN)), f)[0]
            told[f"{f} {s}"] = first if math.isfinite(first) else None
    return {"default": told, "cpu_s": clock.seconds}


def _stored(file: Path) -> dict[str, Found]:
    known: dict[str, Found] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known


def main() -> None:
    """Measure what FILE does not hold yet, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of lanner, {', '.join(HOME)}; all without any")
    parser.add_argument(
        "--out", type=Path, default=FILE, metavar="FILE", help=f"keeps each peer's numbers ({FILE.name})"
    )
    args = parser.parse_args()
    rows = flights()
    found: dict[str, Found] = _stored(args.out)
    for peer in args.peers or ["lanner", *HOME]:
        if peer not in found:
            told = {
                kind: measure_lanner(rows, kind)
                if peer == "lanner"
                else (measure_walks if peer in WALKS else measure_windows)(peer, rows, kind)
                for kind in ("iid", "block")
            }
            found = {**found, **_stored(args.out), peer: told}  # another run may have added its own
            draft = args.out.with_suffix(".part")
            draft.write_text(json.dumps(found, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
            draft.replace(args.out)
    sys.stdout.write("\n".join(written(found)) + "\n")


if __name__ == "__main__":
    main()
