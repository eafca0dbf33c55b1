"""Every detector there is, by name. Adding one: its file, its line here, its row in tests/contract/test_detectors.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from detectors.abuse.surges import Abuse
from detectors.access.novelty import Access
from detectors.anomaly.queries import Queries
from detectors.anomaly.volume import Volume
from detectors.drift.marginals import Marginals
from detectors.extraction.exposure import Exposure
from detectors.poisoning.feedback import LabelFlips
from detectors.quality.missing import Missing

REGISTRY: Final[Mapping[str, type[Any]]] = {
    Abuse.name: Abuse,
    Access.name: Access,
    Exposure.name: Exposure,
    LabelFlips.name: LabelFlips,
    Marginals.name: Marginals,
    Missing.name: Missing,
    Queries.name: Queries,
    Volume.name: Volume,
}

DEFAULTS: Final[tuple[str, ...]] = tuple(REGISTRY)
"""Detectors that a model gets without naming any: all that need no parameters."""
