"""One peer on all streams: `ENVIRONMENT/bin/python contenders.py PEER FOLDER`, with nothing of Lanner in the environment.

FOLDER holds a reference (reference.parquet) and streams (NAME.parquet) of ROWS rows a window. Answers on the last line of
the output as JSON: {"features": [...], "scores": {stream: windows x features}, "alarms": the same, "cpu_s": ...}. An
alarm is what the peer's default says; a score is what its default compares with a threshold, larger = more abnormal.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

os.environ["DO_NOT_TRACK"] = "1"  # evidently
os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # nannyml

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS: Final = 1000
P_VALUE: Final = 0.05
DELTAS: Final = (0.002, 1e-8, 1e-32, 1e-128)  # of ADWIN; the first is its default
THRESHOLDS: Final = (50.0, 400.0, 3200.0)  # of PageHinkley, the same
Judged = tuple[list[float], list[bool]]


def frames(table: pa.Table) -> Any:
    """As pandas, words as categories' plain strings."""
    return table.to_pandas(types_mapper=None)


def numbers(table: pa.Table) -> list[str]:
    """Columns that hold numbers."""
    return [f.name for f in table.schema if pa.types.is_floating(f.type)]


def per_window(one: Callable[[Any], Judged]) -> Callable[[pa.Table], list[Judged]]:
    """A rule for one window as one for a stream."""
    return lambda table: [one(frames(table.slice(at, ROWS))) for at in range(0, table.num_rows, ROWS)]


def evidently(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """The preset's own choice of test per column with its own threshold, called without drawing the report."""
    from evidently.legacy.calculations.stattests import get_stattest

    past, kinds = frames(reference), set(numbers(reference))

    def one(now: Any) -> Judged:
        scores, alarms = [], []
        for c in past.columns:
            kind = "num" if c in kinds else "cat"
            if not now[c].notna().any():  # the test raises; a whole window without gusts happens
                scores.append(0.0)
                alarms.append(False)
                continue
            test = get_stattest(past[c].dropna(), now[c].dropna(), kind, None)
            found = test(past[c].dropna(), now[c].dropna(), kind, None)
            distance = found.drift_score / found.actual_threshold
            scores.append(1 / max(distance, 1e-300) if "p_value" in test.name else distance)
            alarms.append(bool(found.drifted))
        return scores, alarms

    return per_window(one)


def nannyml(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """UnivariateDriftCalculator: Jensen-Shannon per chunk of ROWS rows, alarm beyond mean + 3 sd of the reference's chunks."""
    import nannyml as nml

    past, names = frames(reference), reference.column_names
    words = [c for c in names if c not in numbers(reference)]
    calculator = nml.UnivariateDriftCalculator(
        column_names=names, treat_as_categorical=words, chunk_size=ROWS, continuous_methods=["jensen_shannon"],
        categorical_methods=["jensen_shannon"],
    ).fit(past)  # fmt: skip

    def stream(table: pa.Table) -> list[Judged]:
        found = calculator.calculate(frames(table)).filter(period="analysis").to_df()
        scores, alarms = [], []
        for c in names:
            got = found[(c, "jensen_shannon")]
            scores.append((got["value"] / got["upper_threshold"].replace(0.0, np.nan)).fillna(0.0).tolist())
            alarms.append(got["alert"].astype(bool).tolist())
        return [(list(s), list(a)) for s, a in zip(zip(*scores, strict=True), zip(*alarms, strict=True), strict=True)]

    return stream


def alibi(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """TabularDrift: Kolmogorov-Smirnov or chi-square per column, p < .05 with Bonferroni. It cannot read missing values
    nor words that the reference lacks: they are the reference's median, a word of their own, and its first word.
    """
    from alibi_detect.cd import TabularDrift

    past, kinds = frames(reference), numbers(reference)
    codes = {c: {w: i for i, w in enumerate(sorted(past[c].fillna("").unique()))} for c in past if c not in kinds}
    median = {c: float(past[c].median()) for c in kinds}

    def plain(frame: Any) -> Any:
        columns = [
            frame[c].fillna(median[c]) if c in median else frame[c].fillna("").map(codes[c]).fillna(0) for c in past
        ]
        return np.column_stack(columns).astype(np.float64)

    sizes = {i: len(codes[c]) for i, c in enumerate(past) if c in codes}
    detector = TabularDrift(plain(past), p_val=P_VALUE, categories_per_feature=sizes)

    def one(now: Any) -> Judged:
        found = detector.predict(plain(now), drift_type="batch", return_p_val=True)["data"]
        p, limit = np.asarray(found["p_val"], dtype=float), float(found["threshold"])
        return (-np.log10(np.maximum(p, 1e-300))).tolist(), [bool(x) for x in p < limit]

    return per_window(one)


def scipy(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """ks_2samp and chi2_contingency per column, p < .05: what many write themselves."""
    from scipy.stats import chi2_contingency, ks_2samp

    past, kinds = frames(reference), set(numbers(reference))
    known = {c: past[c].value_counts() for c in past if c not in kinds}

    def one(now: Any) -> Judged:
        p = []
        for c in past:
            if c in kinds:
                there = now[c].dropna()
                p.append(float(ks_2samp(past[c].dropna(), there).pvalue) if len(there) else 1.0)
                continue
            both = known[c].to_frame("past").join(now[c].value_counts().to_frame("now"), how="outer").fillna(0.0)
            p.append(float(chi2_contingency(both.to_numpy().T).pvalue))
        return [-math.log10(max(x, 1e-300)) for x in p], [x < P_VALUE for x in p]

    return per_window(one)


def _walk(reference: pa.Table, steps: Sequence[Callable[[], Any]]) -> Callable[[pa.Table], list[Judged]]:
    """A river detector per number, from the reference's rows on. The score of a window is how many of `steps`, from the
    default to ever stricter ones, alarm in it; values are standardised by the reference.
    """
    kinds = numbers(reference)
    past = {c: reference[c].drop_null().to_numpy() for c in kinds}
    scale = {c: (float(x.mean()), float(x.std()) or 1.0) for c, x in past.items()}

    def stream(table: pa.Table) -> list[Judged]:
        hits = np.zeros((table.num_rows // ROWS, len(kinds), len(steps)), dtype=bool)
        for j, c in enumerate(kinds):
            mean, spread = scale[c]
            before, now = ((x - mean) / spread for x in (past[c], table[c].to_numpy(zero_copy_only=False)))
            for s, make in enumerate(steps):
                detector = make()
                for x in before.tolist():
                    detector.update(x)
                for i, x in enumerate(now.tolist()):
                    if not math.isnan(x):  # missing values say nothing
                        detector.update(x)
                        if detector.drift_detected:
                            hits[i // ROWS, j, s] = True
        score = hits.cumprod(axis=2).sum(axis=2)
        return [(row.tolist(), (row > 0).tolist()) for row in score.astype(float)]

    return stream


def adwin(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """river's ADWIN on every number, row by row."""
    from river.drift import ADWIN

    return _walk(reference, [lambda d=d: ADWIN(delta=d) for d in DELTAS])  # type: ignore[misc]


def page_hinkley(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """river's PageHinkley on every number, row by row."""
    from river.drift import PageHinkley

    return _walk(reference, [lambda t=t: PageHinkley(threshold=t) for t in THRESHOLDS])  # type: ignore[misc]


PEERS: Final = {
    "evidently": evidently, "nannyml": nannyml, "alibi": alibi, "scipy": scipy, "adwin": adwin, "page_hinkley": page_hinkley,
}  # fmt: skip


def main() -> None:
    """Judge every stream of the folder."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    reference = pq.read_table(folder / "reference.parquet")
    start = time.process_time()
    judge = PEERS[name](reference)
    found = {p.stem: judge(pq.read_table(p)) for p in sorted(folder.glob("*.parquet")) if p.stem != "reference"}
    walks = name in ("adwin", "page_hinkley")
    print(
        json.dumps(
            {
                "features": numbers(reference) if walks else reference.column_names,
                "scores": {k: [s for s, _ in v] for k, v in found.items()},
                "alarms": {k: [a for _, a in v] for k, v in found.items()},
                "cpu_s": time.process_time() - start,
            }
        )
    )


if __name__ == "__main__":
    main()
