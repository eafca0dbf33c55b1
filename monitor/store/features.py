"""Which features of a model have typed columns, what those columns are called, and which values fit them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
import pyarrow as pa

from monitor.model import InferenceEvent, Scalar

NUMERIC_SHARE: Final = 0.99  # a feature of the reference is numeric when this share of its present values are numbers

_SAFE = re.compile(r"[a-z][a-z0-9_]{0,59}")
_HASHED = re.compile(r".*__[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """Which features have typed columns. `coded`: those of `categorical` whose values also travel as numbers."""

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    coded: tuple[str, ...] = ()

    @classmethod
    def infer(cls, events: Iterable[InferenceEvent], declared: Mapping[str, str] | None = None) -> FeatureSchema:
        """From the events of a reference. `declared` ("number" or "category" by name) overrules what the values say.

        >>> FeatureSchema.infer([InferenceEvent(event_time_us=0, model="m", features={"a": 1.5, "b": "x", "c": True})])
        FeatureSchema(numeric=('a',), categorical=('b', 'c'), coded=())
        """
        declared = declared or {}
        numbers: Counter[str] = Counter()
        texts: Counter[str] = Counter()
        names: dict[str, None] = {}
        for event in events:
            for name, value in (event.features or {}).items():
                names[name] = None
                if type(value) in (int, float):
                    numbers[name] += 1
                elif value is not None:
                    texts[name] += 1
        names.update(dict.fromkeys(declared))

        def numeric(name: str) -> bool:
            if name in declared:
                return declared[name] == "number"
            return numbers[name] >= NUMERIC_SHARE * (numbers[name] + texts[name])

        return cls(
            numeric=tuple(n for n in names if numeric(n)),
            categorical=tuple(n for n in names if not numeric(n)),
            coded=tuple(n for n in names if not numeric(n) and numbers[n]),
        )

    def plus(self, other: FeatureSchema) -> FeatureSchema:
        """Both; a feature that both know keeps the type it has here.

        >>> FeatureSchema(("a",), ("b",)).plus(FeatureSchema(("b", "c"), ("a",)))
        FeatureSchema(numeric=('a', 'c'), categorical=('b',), coded=())
        """
        taken = {*self.numeric, *self.categorical}
        return FeatureSchema(
            (*self.numeric, *(f for f in other.numeric if f not in taken)),
            (*self.categorical, *(f for f in other.categorical if f not in taken)),
            tuple(dict.fromkeys((*self.coded, *other.coded))),
        )

    def to_json(self) -> dict[str, list[str]]:
        """What the `models` table keeps."""
        return {"numeric": list(self.numeric), "categorical": list(self.categorical), "coded": list(self.coded)}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[str]]) -> FeatureSchema:
        """The inverse of `to_json`."""
        return cls(tuple(value["numeric"]), tuple(value["categorical"]), tuple(value.get("coded", ())))

    def columns(self) -> dict[str, pa.DataType]:
        """Physical feature columns of a segment written under this schema, with their types."""
        numeric = {numeric_column(name): pa.float64() for name in self.numeric}
        return numeric | {categorical_column(name): pa.string() for name in self.categorical}


def numeric_column(feature: str) -> str:
    """Physical column of a numeric feature.

    >>> numeric_column("amount"), numeric_column("Amount (EUR)")
    ('n_amount', 'n_amount__eur___7042368c')
    """
    return "n_" + _safe(feature)


def categorical_column(feature: str) -> str:
    """Physical column of a categorical feature."""
    return "c_" + _safe(feature)


def _safe(feature: str) -> str:
    # Spark compares column names without case and forbids spaces and punctuation: plain names stay readable,
    # all others get a hash, so that no two features share a column.
    if _SAFE.fullmatch(feature) and not _HASHED.fullmatch(feature):
        return feature
    slug = re.sub(r"[^a-z0-9]", "_", feature.lower()[:40])
    return f"{slug}__{sha256(feature.encode(errors='surrogatepass')).hexdigest()[:8]}"


def clean(text: str) -> str:
    r"""Text that every store takes: no NUL (PostgreSQL refuses it) and no lone surrogates (they are not UTF-8).

    >>> clean("a\x00b\ud800")
    'a�b?'
    """
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def number_text(value: float) -> str:
    """A number as a category: 5411 and 5411.0 are one.

    >>> number_text(5411.0), number_text(5411), number_text(0.5)
    ('5411', '5411', '0.5')
    """
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def as_number(value: Any) -> float | None:
    """What a numeric feature makes of a value; None when it does not fit.

    >>> as_number(2), as_number(True), as_number("2")
    (2.0, None, None)
    """
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def as_category(value: Any, coded: bool = False) -> str | None:
    """What a categorical feature makes of a value; None when it does not fit. Booleans are categories.

    >>> as_category("QA"), as_category(True), as_category(5), as_category(5, coded=True)
    ('QA', 'true', None, '5')
    """
    if type(value) is str:
        return clean(value)
    if type(value) is bool:
        return truth(value)
    if coded and (number := as_number(value)) is not None and np.isfinite(number):
        return number_text(number)
    return None


def truth(value: Scalar) -> str | None:
    """A bool as a category, None for anything else."""
    return ("true" if value else "false") if type(value) is bool else None
