"""What callers want to be told beyond an answer: which fields they saw, and parameters that ask for more."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.habits import Ints, encoded

ASKS: Final = {
    "logprobs": r'"(?:top_)?logprobs":(?:[1-9]|true)',
    "logit_bias": r'"logit_bias(?:_count)?":(?:[1-9]|\{")',
    "explanations": r'"(?:explain|explanations?|return_explanations?|shap)":(?:[1-9]|true|\{")',
}


def asked(rows: pa.Table) -> NDArray[np.bool_]:
    """(rows, ASKS): which calls have parameters that ask for each."""
    if "extra" not in rows.column_names or rows["extra"].null_count == rows.num_rows:
        return np.zeros((rows.num_rows, len(ASKS)), dtype=bool)
    extra = rows["extra"].cast(pa.string())
    found = [pc.fill_null(pc.match_substring_regex(extra, p), False) for p in ASKS.values()]
    return np.stack([np.asarray(f.to_numpy(zero_copy_only=False), dtype=bool) for f in found], axis=1)


def wanted(rows: pa.Table) -> tuple[Ints, tuple[str, ...]]:
    """Per row what the caller saw and asked for, as an index into words; -1 where the log does not say.

    >>> rows = pa.table({"returned": ["label", None, "text"], "extra": ["{}", None, '{"top_logprobs":5}']})
    >>> code, words = wanted(rows); [words[c] if c >= 0 else None for c in code.tolist()]
    ['label', None, 'text, logprobs']
    """
    seen, names = encoded(rows, "returned")
    bits = asked(rows) @ (1 << np.arange(len(ASKS)))
    both = np.where((seen < 0) & (bits == 0), -1, (seen + 1) << len(ASKS) | bits)
    kinds = np.flatnonzero(np.bincount(both + 1)) - 1  # there are few
    code = np.searchsorted(kinds, both)
    words = []
    for kind in kinds[kinds >= 0].tolist():
        own = [names[(kind >> len(ASKS)) - 1]] if kind >> len(ASKS) else []
        words.append(", ".join([*own, *(a for j, a in enumerate(ASKS) if kind >> j & 1)]))
    return np.asarray(code - int((kinds < 0).any()), dtype=np.int64), tuple(words)
