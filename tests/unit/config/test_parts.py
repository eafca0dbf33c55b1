"""Segments and context of a configuration, found in a reference."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from monitor.config import load
from monitor.config.tree import ModelConfig
from monitor.errors import ConfigError
from monitor.model import HOUR_US
from monitor.service.parts import by_caller, found_parts, part_findings, stored_name, strata_of, with_callers
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


def logged(hours: int, rows: int = 200) -> pa.Table:
    """So many hours of a model that answers by channel, not by country."""
    n = hours * rows
    return pa.table({
        "event_time": [HOUR_US + i * HOUR_US // rows for i in range(n)],
        "feature:amount": [float(i * 7 % 50) for i in range(n)],
        "feature:country": [("QA", "AE", "BH")[i // 4 % 3] for i in range(n)],
        "feature:channel": [("web", "app", "branch", "<b>x")[i % 4] for i in range(n)],
        "prediction_value": [float(i % 4 == 2) for i in range(n)],
    })  # fmt: skip


def test_segments_may_be_left_to_be_found() -> None:
    """`auto` takes what the model answers by; with a context fewer, so that its cells stay."""
    rows, auto = logged(40), ModelConfig.model_validate({"segments": "auto"})
    found = strata_of("m", auto, SCHEMA, rows)
    assert [s.name for s in found.segments[:4]] == ["channel:<b>x", "channel:app", "channel:branch", "channel:web"]
    assert len(found.segments) == 9
    assert found == strata_of("m", auto, SCHEMA, rows)
    given = ModelConfig.model_validate({"segments": "auto", "context": ["country"]})
    divided = strata_of("m", given, SCHEMA, rows)
    assert (len(divided.segments), divided.width) == (6, 4)
    assert not by_caller(auto, SCHEMA)
    assert found_parts(ModelConfig(segments=()), SCHEMA, rows) == ()


def test_a_variable_may_say_auto(tmp_path: Path) -> None:
    """As it may give a list."""
    file = tmp_path / "lanner.yaml"
    file.write_text("models: {m: {}}")
    assert load(file, env={"LANNER_MODELS__M__SEGMENTS": "auto"}).models["m"].segments == "auto"
    listed = load(file, env={"LANNER_MODELS__M__SEGMENTS": '["country"]'}).models["m"].named_segments
    assert [s.feature for s in listed] == ["country"]


def test_a_part_that_no_window_could_judge_is_not_chosen() -> None:
    """A channel of 60 rows an hour has 15: too few for an hour; a model of four rows an hour is judged by days."""
    auto = ModelConfig.model_validate({"segments": "auto"})
    hourly = [p.segment.name for p in found_parts(auto, SCHEMA, logged(200, 60))]
    assert sorted(n for n in hourly if "amount" not in n) == ["country:AE", "country:BH", "country:QA"]
    assert len(found_parts(auto, SCHEMA, logged(2000, 4))) == 9


def test_a_reference_says_what_was_chosen_and_why() -> None:
    """A note for each column, the most telling first, no markup in it; and one when there is nothing to choose."""
    auto = ModelConfig.model_validate({"segments": "auto"})
    notes = list(part_findings(auto, SCHEMA, logged(40)))
    assert {(f.level, f.code) for f in notes} == {("note", "segments")}
    assert [f.feature for f in notes] == ["channel", "amount", "country"]
    assert notes[0].text == (
        "judged by themselves as segments: channel:\\x3cb\\x3ex (25% of rows), channel:app (25% of rows), "
        "channel:branch (25% of rows), channel:web (25% of rows); they tell 100.0% of the answers' variation"
    )
    (none,) = part_findings(auto, SCHEMA, logged(4))
    assert none.text == "segments: auto found none: no part has 500 rows and at most half of all"
    assert not list(part_findings(ModelConfig(), SCHEMA, logged(40)))


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
