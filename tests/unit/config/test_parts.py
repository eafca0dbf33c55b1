"""Segments and context of a configuration, found in a reference."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from monitor.config import load
from monitor.config.tree import ModelConfig
from monitor.errors import ConfigError
from monitor.service.parts import by_caller, stored_name, strata_of, with_callers
from monitor.store.features import FeatureSchema

SCHEMA = FeatureSchema(numeric=("amount",), categorical=("country", "channel"))
ROWS = pa.table({
    "feature:amount": [float(i % 50) for i in range(2000)],
    "feature:country": ["QA"] * 1300 + ["AE"] * 700,
    "feature:channel": ["web", "app"] * 1000,
    "principal": ["ann"] * 1000 + ["h1-0"] * 1000,
})  # fmt: skip


def test_every_way_to_name_parts() -> None:
    """A feature stands for its values; conditions keep their names and their order; numbers may be context."""
    large = {"name": "large", "feature": "amount", "at_least": 40}
    gulf = {"name": "gulf", "feature": "country", "values": ["QA", "AE"]}
    given = {"segments": ["country", large, gulf], "context": ["channel", "amount"]}
    model = ModelConfig.model_validate(given)
    found = strata_of("m", model, SCHEMA, ROWS)
    assert [s.name for s in found.segments] == ["large", "gulf", "country:QA", "country:AE"]
    assert found.members(ROWS).sum(axis=1).tolist() == [2000, 400, 2000, 1300, 700]
    assert found.context == {"channel", "amount"}
    assert strata_of("m", model, SCHEMA, ROWS.slice(0, 0)).height == 0


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"segments": ["contry"]}, "segments.0: the reference has no feature `contry`; did you mean `country`?"),
        ({"segments": ["amount"]}, "segments.0: `amount` is a number; give a name and `at_least` or `below`"),
        ({"context": ["nothing"]}, "context.0: the reference has no feature `nothing`"),
    ],
)
def test_parts_that_the_reference_lacks_are_mistakes(part: dict[str, list[str]], said: str) -> None:
    """A segment or context of no feature is named, with the nearest that there is."""
    with pytest.raises(ConfigError, match=re.escape(f"models.m.{said}")):
        strata_of("m", ModelConfig.model_validate(part), SCHEMA, ROWS)


def test_callers_are_known_by_their_stored_names(tmp_path: Path) -> None:
    """Plain names of a reference become pseudonyms, pseudonyms stay; only where callers divide the traffic."""
    file = tmp_path / "lanner.yaml"
    file.write_text("models: {m: {segments: [principal]}}")
    config = load(file, env={})
    assert by_caller(config.models["m"], SCHEMA)
    assert not by_caller(ModelConfig(context=("channel",)), SCHEMA)
    names = with_callers(ROWS, stored_name(config))["principal"].unique().to_pylist()
    assert len(names) == 2
    assert names[0].startswith("h1-")
    assert len(names[0]) == 35
    assert names[1] == "h1-0"
