"""One peer on all streams: `ENVIRONMENT/bin/python contenders.py PEER FOLDER OUT [SETTINGS]`, with nothing of Lanner there.

Every folder in FOLDER holds a reference (reference.parquet; known.parquet is all that came before) and streams
(NAME.parquet) of ROWS rows a window. Writes to OUT (.npz), for each FOLDER/STREAM, `scores/...` and `alarms/...` of windows x
features. An alarm is what the peer's default says; a score is what its default compares with a threshold, larger = more
abnormal. river's detectors have no score: they alarm at their defaults, or at the setting that SETTINGS (JSON) has per
feature.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

os.environ["DO_NOT_TRACK"] = "1"  # evidently
os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # nannyml

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS: Final = 1000
P_VALUE: Final = 0.05
FEW: Final = 5  # values up to which Evidently takes another test for a number
CHECKED: Final = iter(range(4))  # as many windows of a run a short cut is held against the peer's own report
Judged = tuple[list[float], list[bool]]


def frames(table: pa.Table) -> Any:
    """As pandas, words as categories' plain strings."""
    return table.to_pandas(types_mapper=None)


def numbers(table: pa.Table) -> list[str]:
    """Columns that hold numbers."""
    return [f.name for f in table.schema if pa.types.is_floating(f.type)]


def cut(table: pa.Table) -> Iterator[Any]:
    """The windows of a stream."""
    whole = frames(table)
    return (whole.iloc[at : at + ROWS] for at in range(0, len(whole), ROWS))


def per_window(one: Callable[[Any], Judged]) -> Callable[[pa.Table], list[Judged]]:
    """A rule for one window as one for a stream."""
    return lambda table: [one(window) for window in cut(table)]


def evidently(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """The preset's own choice of test per column with its own threshold, called without drawing the report; on the first
    windows of a run the report is drawn and must tell the same numbers. Chosen once per column: it hangs on how many
    values there are, and only of numbers.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.presets import DataDriftPreset

    past, kinds = frames(reference), numbers(reference)
    there = {c: past[c].dropna() for c in past}
    tests = {c: get_stattest(x, x, "num" if c in kinds else "cat", None) for c, x in there.items()}
    few = [c for c in kinds if there[c].nunique() <= FEW]  # one more in the window, and the choice may be another
    columns = DataDefinition(numerical_columns=kinds, categorical_columns=[c for c in past if c not in kinds])

    def one(now: Any) -> tuple[list[float], list[float], list[bool]]:
        values, scores, alarms = [], [], []
        for c in past.columns:
            kind, here = "num" if c in kinds else "cat", now[c].dropna()
            if here.empty:  # the test raises; a whole window without gusts happens
                values.append(math.nan)
                scores.append(0.0)
                alarms.append(False)
                continue
            test = get_stattest(there[c], here, kind, None) if c in few else tests[c]
            found = test(there[c], here, kind, None)
            assert "p_value" not in test.name  # with this many rows all of its tests are distances
            values.append(float(found.drift_score))
            scores.append(values[-1] / found.actual_threshold)
            alarms.append(bool(found.drifted))
        return values, scores, alarms

    def drawn(now: Any) -> list[float]:
        both = (Dataset.from_pandas(frame, data_definition=columns) for frame in (now, past))
        metrics = Report([DataDriftPreset()]).run(*both).dict()["metrics"]
        told = {m["config"]["column"]: float(m["value"]) for m in metrics if "column" in m["config"]}
        return [told[c] for c in past.columns]

    def stream(table: pa.Table) -> list[Judged]:
        out = []
        for now in cut(table):
            values, scores, alarms = one(now)
            if not any(map(math.isnan, values)) and next(CHECKED, None) is not None:
                assert drawn(now) == values
            out.append((scores, alarms))
        return out

    return stream


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
        return (-np.log10(np.maximum(p, np.finfo(np.float32).smallest_subnormal))).tolist(), [
            bool(x) for x in p < limit
        ]

    return per_window(one)


def scipy(reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """ks_2samp and chi2_contingency per column, p < .05: what many write themselves. The asymptotic p-value, which
    ks_2samp takes by itself from 10,001 rows on: the exact one costs twenty times as much where much has changed.
    """
    from scipy.stats import chi2_contingency, ks_2samp

    past, kinds = frames(reference), numbers(reference)
    there = {c: np.sort(past[c].dropna().to_numpy()) for c in kinds}
    known = {c: Counter(past[c].dropna()) for c in past if c not in kinds}
    least = float(np.finfo(np.float64).smallest_subnormal)

    def one(now: Any) -> Judged:
        p = []
        for c in past:
            if c in there:
                here = now[c].dropna().to_numpy()
                p.append(float(ks_2samp(there[c], here, method="asymp").pvalue) if len(here) else 1.0)
                continue
            seen = Counter(now[c].dropna())
            words = sorted(known[c] | seen)
            p.append(float(chi2_contingency([[counts[w] for w in words] for counts in (known[c], seen)]).pvalue))
        return [-math.log10(max(x, least)) for x in p], [x < P_VALUE for x in p]

    return per_window(one)


def _walk(make: Callable[[str], Any], reference: pa.Table) -> Callable[[pa.Table], list[Judged]]:
    """A river detector per number, from the reference's rows on; values are standardised by the reference."""
    kinds = numbers(reference)
    past = {c: reference[c].drop_null().to_numpy() for c in kinds}
    scale = {c: (float(x.mean()), float(x.std()) or 1.0) for c, x in past.items()}

    def stream(table: pa.Table) -> list[Judged]:
        hits = np.zeros((table.num_rows // ROWS, len(kinds)), dtype=bool)
        for j, c in enumerate(kinds):
            mean, spread = scale[c]
            before, now = ((x - mean) / spread for x in (past[c], table[c].to_numpy(zero_copy_only=False)))
            detector = make(c)
            for x in before.tolist():
                detector.update(x)
            for i, x in enumerate(now.tolist()):
                if not math.isnan(x):  # missing values say nothing
                    detector.update(x)
                    hits[i // ROWS, j] |= detector.drift_detected
        return [([], row.tolist()) for row in hits]

    return stream


def adwin(reference: pa.Table, settings: dict[str, float]) -> Callable[[pa.Table], list[Judged]]:
    """river's ADWIN on every number, row by row; a setting is a delta."""
    from river.drift import ADWIN

    return _walk(lambda c: ADWIN(delta=settings[c]) if settings else ADWIN(), reference)


def page_hinkley(reference: pa.Table, settings: dict[str, float]) -> Callable[[pa.Table], list[Judged]]:
    """river's PageHinkley on every number, row by row; a setting is a threshold."""
    from river.drift import PageHinkley

    return _walk(lambda c: PageHinkley(threshold=settings[c]) if settings else PageHinkley(), reference)


PEERS: Final[dict[str, Callable[..., Callable[[pa.Table], list[Judged]]]]] = {
    "evidently": evidently, "nannyml": nannyml, "alibi": alibi, "scipy": scipy, "adwin": adwin, "page_hinkley": page_hinkley,
}  # fmt: skip


def main() -> None:
    """Judge every stream of every folder."""
    name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    walks = name in ("adwin", "page_hinkley")
    more = [json.loads(Path(sys.argv[4]).read_text()) if len(sys.argv) > 4 else {}] if walks else []
    found: dict[str, Any] = {}
    start = time.process_time()
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        reference = pq.read_table(place / ("known.parquet" if name == "nannyml" else "reference.parquet"))
        judge = PEERS[name](reference, *more)
        for file in sorted(place.glob("*.parquet")):
            if file.stem not in ("reference", "known"):
                judged = judge(pq.read_table(file))
                found[f"scores/{place.name}/{file.stem}"] = np.array([s for s, _ in judged])
                found[f"alarms/{place.name}/{file.stem}"] = np.array([a for _, a in judged])
        found["features"] = np.array(numbers(reference) if walks else reference.column_names)
    np.savez_compressed(out, **found, cpu_s=time.process_time() - start)


if __name__ == "__main__":
    main()
