"""Whose distinct rows are counted together, callers and groups by model version, and what each of them may learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Caller
from detectors.binned import given

SEP: Final = "\x1f"


class Budget(NamedTuple):
    """What a caller, or a group, may learn; None: no limit."""

    kappa: float | None
    rows: int | None


def allowed(
    rows: pa.Table,
    who: NDArray[np.int64],
    names: tuple[str, ...],
    at: NDArray[np.int64],
    declared: Mapping[str, Caller],
) -> tuple[list[str], dict[str, Budget], NDArray[np.int64], NDArray[np.int64]]:
    """Keys of all callers and groups by model version, declared budgets, and per answered row its keys: (key, row)."""
    version, versions = encoded(rows, "model_version")
    pair = who[at] * (len(versions) + 1) + version[at] + 1
    present, code = np.unique(pair, return_inverse=True)
    keys, budgets, shared = [], {}, {}
    for k in present.tolist():
        name = names[k // (len(versions) + 1)]
        text = versions[v - 1] if (v := k % (len(versions) + 1)) else ""
        key = SEP.join((text, "caller", name))
        keys.append(key)
        caller = declared.get(name)
        if caller is None or (caller.kappa is None and caller.distinct_rows is None):
            continue
        budgets[key] = Budget(caller.kappa, caller.distinct_rows)
        if caller.group:
            shared[len(keys) - 1] = SEP.join(
                (text, "group", caller.group, str(caller.kappa), str(caller.distinct_rows))
            )
            budgets[shared[len(keys) - 1]] = budgets[key]
    if not shared:
        return keys, budgets, code, at
    groups = sorted(set(shared.values()))
    member = np.full(len(keys), -1, np.int64)
    for i, group in shared.items():
        member[i] = len(keys) + groups.index(group)
    of = member[code]
    return [*keys, *groups], budgets, np.concatenate([code, of[of >= 0]]), np.concatenate([at, at[of >= 0]])


def encoded(rows: pa.Table, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """A text column as numbers, -1 for missing, and its values in order of appearance."""
    if (values := given(rows, column)) is None:
        return np.full(rows.num_rows, -1, np.int64), ()
    encoded = pc.dictionary_encode(values.cast(pa.string()).combine_chunks())
    index = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return index, tuple(encoded.dictionary.to_pylist())
