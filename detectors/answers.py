"""What the model answered, row by row: label, how sure it was, and how near to its boundary that is."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.binned import given
from detectors.stats import Floats

COLUMNS: Final = ("prediction_label", "scores")
LOW: Final = 0.1  # part of the reference rows with the smallest margins
HIGH: Final = 0.75  # and where large ones begin


@dataclass(frozen=True)
class Answers:
    """Per row: label as a number (-1: none), score of the best class, margin between the two best (NaN: not logged)."""

    label: NDArray[np.int32]
    score: NDArray[np.float32]
    margin: NDArray[np.float32]

    @classmethod
    def of(cls, rows: pa.Table) -> Answers:
        """From the log's columns `prediction_label` and `scores`; either may be absent.

        >>> t = pa.table({"prediction_label": ["a", None], "scores": [[0.25, 0.75], None]})
        >>> a = Answers.of(t); a.margin.tolist()[0], int(a.label[1])
        (0.5, -1)
        """
        n = rows.num_rows
        label = np.full(n, -1, dtype=np.int32)
        score, margin = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
        if (labels := given(rows, "prediction_label")) is not None:
            coded = pc.dictionary_encode(labels.cast(pa.string()).combine_chunks())
            words = [zlib.crc32(w.encode(errors="surrogatepass")) & 0x7FFFFFFF for w in coded.dictionary.to_pylist()]
            index = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            label = np.array([*words, -1], dtype=np.int32)[index]
        if (scores := given(rows, "scores")) is not None:
            lists = scores.combine_chunks()
            lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
            for k in np.unique(lengths[lengths > 0]).tolist():
                at = np.flatnonzero(lengths == k)
                values = pc.list_flatten(lists.take(pa.array(at))).cast(pa.float32())
                best = np.sort(pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False).reshape(-1, k), axis=1)
                score[at] = best[:, -1]
                margin[at] = best[:, -1] - best[:, -2] if k > 1 else np.abs(2 * best[:, -1] - 1)
        return cls(label, score, margin)

    def take(self, rows: NDArray[np.int64]) -> Answers:
        """Some of the rows, in the order given."""
        return Answers(self.label[rows], self.score[rows], self.margin[rows])

    def levels(self) -> list[float] | None:
        """The margins below which a row counts as near the boundary, and above which as far; None without scores."""
        known: Floats = self.margin[np.isfinite(self.margin)].astype(np.float64)
        return [float(np.quantile(known, q)) for q in (LOW, HIGH)] if len(known) >= 100 else None
