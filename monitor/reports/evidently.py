"""Evidently's drift report beside ours: on a bounded sample, in a child process that cannot reach a network.

Evidently is heavy (pandas, plotting, a second of CPU per thousand rows) and its page is built from the data it is
given. So it never runs inside the service: the parent writes two small Parquet files whose names and values are made
harmless, the child reads them, and what it may do is limited by an audit hook. Its verdicts are its own and never
become incidents.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alerts.text import shown
from monitor.errors import LannerError

SAMPLE_ROWS: Final = 5_000  # of each side
SAMPLE_COLUMNS: Final = 60
TIMEOUT_S: Final = 300.0


class EvidentlyFailed(LannerError):
    """Evidently could not make its report; Lanner's own stands. Run again with --no-evidently to leave it out."""


def sampled(tables: Iterable[pa.Table], rows: int, most: int = SAMPLE_ROWS) -> pa.Table | None:
    """About `most` evenly spaced rows of tables that hold `rows` rows together; None for none.

    >>> sampled([pa.table({"x": list(range(10))})], 10, most=5)["x"].to_pylist()
    [0, 2, 4, 6, 8]
    """
    stride = max(1, -(-rows // most))
    kept, seen = [], 0
    for table in tables:
        first = -seen % stride
        seen += table.num_rows
        if first < table.num_rows:
            kept.append(table.take(pa.array(range(first, table.num_rows, stride))))
    return pa.concat_tables(kept, promote_options="permissive").slice(0, most) if kept else None


def report(reference: pa.Table, current: pa.Table, *, timeout_s: float = TIMEOUT_S) -> str:
    """Evidently's page about two samples. Raises EvidentlyFailed with the child's last words."""
    with tempfile.TemporaryDirectory(prefix="lanner-evidently-") as folder:
        for name, table in (("reference", reference), ("current", current)):
            pq.write_table(harmless(table), Path(folder) / f"{name}.parquet")
        made = Path(folder) / "report.html"
        # An empty environment: no proxy, no key, no setting of the parent reaches the child.
        env = {"DO_NOT_TRACK": "1", "HOME": folder, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-I", "-m", "monitor.reports.evidently", folder, str(made)]
        try:
            ended = subprocess.run(
                command, env=env, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EvidentlyFailed(
                f"Evidently took longer than {timeout_s:.0f} s and was ended; Lanner's own report stands."
            ) from error
        if ended.returncode or not made.exists():
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise EvidentlyFailed(f"Evidently could not make its report ({shown(last, 300)}); Lanner's own stands.")
        return made.read_text(encoding="utf-8")


def harmless(table: pa.Table) -> pa.Table:
    r"""The features and the answer as plain columns whose names and words no browser can take for markup.

    >>> harmless(pa.table({"feature:<b>": ["<i>"], "event_time": [1]})).to_pydict()
    {'\\x3cb\\x3e': ['\\x3ci\\x3e']}
    """
    columns: dict[str, pa.Array] = {}
    for name in table.column_names:
        if not name.startswith("feature:") and name not in ("prediction_label", "prediction_value"):
            continue
        values = table[name].combine_chunks()
        if values.null_count == len(values) or len(columns) >= SAMPLE_COLUMNS:
            continue
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if not pa.types.is_floating(values.type) and not pa.types.is_integer(values.type):
            values = pa.array(
                [None if v is None else shown(v) for v in pc.cast(values, pa.string()).to_pylist()], pa.string()
            )
        columns[shown(name.removeprefix("feature:"))] = values
    return pa.table(columns)


def _no_network(event: str, _args: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise PermissionError("the report's process may not use a network")


def _child(folder: Path, out: Path) -> None:
    """The child's whole life: two samples in, one page out."""
    sys.addaudithook(_no_network)
    from evidently import Report  # noqa: PLC0415 - only the child pays for it
    from evidently.presets import DataDriftPreset  # noqa: PLC0415

    reference, current = (pq.read_table(folder / f"{n}.parquet") for n in ("reference", "current"))
    both = [c for c in reference.column_names if c in current.column_names]
    made = Report([DataDriftPreset()]).run(current.select(both).to_pandas(), reference.select(both).to_pandas())
    made.save_html(str(out))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
