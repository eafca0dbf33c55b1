"""Who and why: sizes in the features' own units, whose rows did it, broken data, versions, the effect on scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from detectors.profile import Bins
from detectors.strata import Segment, fit_strata
from detectors.why import explain
from tests.judging import Rng

CLIENTS = tuple(f"c{i}" for i in range(8))


def calls(n: int, rng: Rng, *, start_us: int = 0, mix: Sequence[float] = (0.5, 0.3, 0.2)) -> dict[str, Any]:
    """Columns of n calls: amount and age, channel and country, a score that follows the amount."""
    channel = rng.choice(3, n, p=mix)
    amount = np.exp(rng.normal(3.0, 0.5, n)) * np.array([1.0, 2.0, 4.0])[channel]
    return {
        "event_time": start_us + np.arange(n), "principal": rng.choice(CLIENTS, n), "model_version": np.full(n, "3"),
        "amount": amount, "age": rng.normal(40.0, 10.0, n), "channel": np.array(["web", "app", "branch"])[channel],
        "country": rng.choice(["QA", "AE", "BH"], n, p=[0.6, 0.3, 0.1]), "score": 1 / (1 + np.exp(3.0 - np.log(amount))),
    }  # fmt: skip


def table(columns: Mapping[str, Any]) -> pa.Table:
    """As rows of the event log."""
    score = np.asarray(columns["score"], dtype=float)
    made = {k: pa.array(columns[k]) for k in ("event_time", "principal", "model_version")}
    made |= {f"feature:{k}": pa.array(columns[k], from_pandas=True) for k in ("amount", "age", "channel", "country")}
    made["scores"] = pa.array([[1 - s, s] for s in score.tolist()])
    made["class_names"] = pa.array([["ok", "fraud"]] * len(score))
    return pa.table(made)


def told(after: Mapping[str, Any], *named: str, bets: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """What is said about a drift of these features after 4,000 usual calls."""
    before = table(calls(4000, np.random.default_rng(1)))
    bins = Bins.fit(before, ("amount", "age"), ("channel", "country"))
    strata = fit_strata(before, more.pop("segments", ()), more.pop("context", ()))
    evidence = {"features": [{"name": n, "share": 1 / len(named)} for n in named], "bets": bets or {}}
    return explain(dataclasses.replace(bins, strata=strata), before, table(after), evidence, **more)


def test_whose_rows_break_a_relation_is_found() -> None:
    """One caller whose amounts no longer go with the score explains a change of dependence; when it is everybody's, nobody
    does.
    """
    for everybody in (False, True):
        rng = np.random.default_rng(9)
        new = calls(4000, rng, start_us=10_000)
        mine = np.full(4000, True) if everybody else new["principal"] == CLIENTS[0]
        new["score"][mine] = rng.permutation(new["score"][mine])
        found = told(new, "score:fraud", bets={"score:fraud": "score:fraud/dependence/+"})
        assert found["changes"][0]["measure"] == "correlation with amount"
        if everybody:
            assert found["explained_by"] is None
        else:
            assert (found["explained_by"]["kind"], found["explained_by"]["value"]) == ("principal", CLIENTS[0])
            assert found["explained_by"]["explains"] > 0.8


def test_the_effect_on_the_score_is_that_of_the_feature_alone() -> None:
    """Amounts that double move the score, and their effect is what the score moved by; ages, of which the score knows
    nothing, move it by nothing, whatever moved it.
    """
    rng = np.random.default_rng(8)
    new = calls(3000, rng, start_us=10_000)
    new["amount"], new["age"] = new["amount"] * 2.0, new["age"] + 5.0
    new["score"] = 1 / (1 + np.exp(3.0 - np.log(new["amount"])))
    amount, age = told(new, "amount", "age")["effects"]
    assert (amount["name"], amount["answer"]) == ("amount", "score:fraud")
    assert amount["measured"] > 0.1
    assert amount["effect"] == pytest.approx(amount["measured"], rel=0.15)
    assert abs(age["effect"]) < 0.02
    assert age["measured"] == amount["measured"]


def test_size_is_told_in_the_features_own_unit() -> None:
    """Everybody's age rises by five years: mean before and after, median, nobody in particular, the score unmoved."""
    new = calls(3000, np.random.default_rng(2), start_us=10_000)
    new["age"] = new["age"] + 5.0
    found = told(new, "age", bets={"age": "age/location/+"}, units={"age": "years"})
    (change,) = found["changes"]
    assert (change["name"], change["measure"], change["unit"]) == ("age", "mean", "years")
    assert change["before"] == pytest.approx(40.0, abs=0.6)
    assert change["after"] == pytest.approx(45.0, abs=0.6)
    assert change["in_sd"] == pytest.approx(0.5, abs=0.06)
    assert change["median_after"] - change["median_before"] == pytest.approx(5.0, abs=0.8)
    assert found["explained_by"] is None
    assert found["concentrates"] == []
    assert found["causes"] == []
    assert found["versions"] == []
    assert found["score"][0]["name"] == "score:fraud"
    assert found["score"][0]["before"] == pytest.approx(found["score"][0]["after"], abs=0.02)
    assert found["compared"] == {"before": 4000, "after": 3000, "since": "1970-01-01T00:00:00.010Z"}
    (picture,) = found["pictures"]
    assert len(picture["labels"]) == len(picture["before"]) == len(picture["after"])
    assert sum(picture["before"]) == pytest.approx(1.0, abs=1e-4)
    assert sum(picture["after"]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("who", "kind", "feature", "value"),
    [
        ("principal", "principal", "principal", "c3"),
        ("country", "segment", "country", "BH"),
        ("model_version", "version", "model_version", "4"),
    ],
)
def test_whose_rows_explain_it(who: str, kind: str, feature: str, value: str) -> None:
    """Ages move for one caller, one country, one version: without its rows nothing is left of the shift."""
    rng = np.random.default_rng(3)
    new = calls(3000, rng)
    new["model_version"] = rng.choice(["3", "4"], 3000)
    new["age"] = new["age"] + np.where(new[who] == value, 15.0, 0.0)
    found = told(new, "age")
    by = found["explained_by"]
    assert (by["kind"], by["feature"], by["value"]) == (kind, feature, value)
    assert by["explains"] >= 0.9
    assert by["share"] == pytest.approx(float(np.mean(new[who] == value)), abs=1e-4)
    assert found["concentrates"][0] == by


def test_a_new_caller_is_seen_though_the_reference_lacks_it() -> None:
    """A caller that comes with odd rows explains the shift of all features it moves."""
    rng = np.random.default_rng(4)
    new, odd = calls(2500, rng), calls(500, rng)
    odd["principal"] = np.full(500, "stranger")
    odd["age"] = odd["age"] - 12.0
    odd["amount"] = odd["amount"] * 3
    both = {k: np.concatenate([new[k], odd[k]]) for k in new}
    by = told(both, "age", "amount")["explained_by"]
    assert (by["kind"], by["value"], by["share_before"]) == ("principal", "stranger", 0.0)


def test_a_condition_of_the_configuration_may_explain() -> None:
    """Only large amounts move: the segment `large` is named, though it is no category's value."""
    new = calls(3000, np.random.default_rng(5))
    new["age"] = new["age"] + np.where(new["amount"] >= 60.0, 15.0, 0.0)
    by = told(new, "age", segments=(Segment("large", "feature:amount", low=60.0),))["explained_by"]
    assert (by["kind"], by["feature"], by["value"]) == ("segment", "amount", "large")


def test_rest_that_could_not_show_it_is_no_explanation() -> None:
    """Nine tenths of the rows come from one caller and all rows moved a little: nobody is accused."""
    rng = np.random.default_rng(6)
    new = calls(400, rng)
    new["principal"] = np.where(rng.random(400) < 0.9, "c0", "c1")
    new["age"] = new["age"] + 4.0
    assert told(new, "age")["explained_by"] is None


def test_inside_a_segment_only_its_rows_count() -> None:
    """The incident of country:BH compares rows of BH with rows of BH."""
    new = calls(6000, np.random.default_rng(7))
    new["age"] = new["age"] + np.where(new["country"] == "BH", 10.0, -10.0)
    before = table(calls(8000, np.random.default_rng(1)))
    strata = fit_strata(before, ("feature:country",))
    bins = dataclasses.replace(Bins.fit(before, ("amount", "age"), ("channel", "country")), strata=strata)
    evidence = {"features": [{"name": "age", "share": 1.0}], "bets": {}}
    found = explain(bins, before, table(new), evidence, segment="country:BH")
    assert found["changes"][0]["after"] - found["changes"][0]["before"] == pytest.approx(10.0, abs=1.5)
    assert found["compared"]["after"] == int(np.sum(new["country"] == "BH"))


def test_size_beyond_the_mix_of_the_context() -> None:
    """The channels' mix moves and ages rise by five: amounts, which follow the channel, are told as hardly moved."""
    new = calls(6000, np.random.default_rng(8), mix=(0.2, 0.3, 0.5))
    new["age"] = new["age"] + 5.0
    mixed, fixed = (told(new, "age", "amount", context=c)["changes"] for c in ((), ("feature:channel",)))
    assert mixed[1]["after"] > 1.3 * mixed[1]["before"]
    assert fixed[1]["after"] == pytest.approx(fixed[1]["before"], rel=0.05)
    assert fixed[0]["after"] == pytest.approx(45.0, abs=0.6)


@pytest.mark.parametrize(
    ("feature", "change", "cause"),
    [
        ("amount", lambda x, part: x * 100, {"cause": "unit", "factor": 100.0, "share": 1.0}),
        ("amount", lambda x, part: x / 1000, {"cause": "unit", "factor": 0.001, "share": 1.0}),
        ("amount", lambda x, part: np.where(part, x * 1000, x), {"cause": "unit", "factor": 1000.0}),
        ("amount", lambda x, part: np.full(len(x), 7.0), {"cause": "constant", "value": 7.0, "share": 1.0}),
        ("amount", lambda x, part: np.where(part, -1.0, x), {"cause": "default value", "value": -1.0}),
        ("amount", lambda x, part: np.where(part, np.nan, x), {"cause": "missing"}),
        ("country", lambda x, part: np.where(part, "UNKNOWN", x), {"cause": "new values", "value": "UNKNOWN"}),
        ("country", lambda x, part: np.full(len(x), "QA"), {"cause": "constant", "value": "QA", "share": 1.0}),
    ],
)
def test_broken_data_is_named(feature: str, change: Any, cause: dict[str, Any]) -> None:
    """Another unit in all or some rows, a constant, a default value, missing and new values: each by its name."""
    rng = np.random.default_rng(9)
    new = calls(3000, rng)
    new[feature] = change(new[feature], rng.random(3000) < 0.3)
    (found,) = told(new, feature)["causes"]
    assert found["name"] == feature
    assert {k: found[k] for k in cause} == cause
    assert found["share"] == pytest.approx(cause.get("share", 0.3), abs=0.04)


def test_usual_rows_have_no_cause() -> None:
    """A shift of half a standard deviation is no broken unit, default or constant."""
    new = calls(3000, np.random.default_rng(10))
    new["amount"] = new["amount"] * 1.4
    assert told(new, "amount", "age", "channel")["causes"] == []


def test_a_version_that_came_with_the_onset_is_told() -> None:
    """Version 4 replaces 3 with the first drifting row."""
    new = calls(2000, np.random.default_rng(11), start_us=50_000)
    new["model_version"][:] = "4"
    new["age"] = new["age"] + 5.0
    earlier = table(calls(500, np.random.default_rng(12)))
    versions = told(new, "age", earlier=earlier)["versions"]
    assert versions == [
        {"version": "4", "before": 0.0, "after": 1.0, "first_seen": "1970-01-01T00:00:00.050Z"},
        {"version": "3", "before": 1.0, "after": 0.0, "first_seen": None},
    ]


def test_what_else_a_bet_speaks_of() -> None:
    """Shares of a value, of missing, the spread, a relation: each told as what was bet on."""
    rng = np.random.default_rng(13)
    new = calls(4000, rng, mix=(0.7, 0.2, 0.1))
    new["age"] = np.where(rng.random(4000) < 0.5, np.nan, 40 + (new["age"] - 40) * 2)
    bets = {"channel": "channel/share of web/+", "age": "age/missing/+", "amount": "amount/dependence"}
    new["score"] = rng.permutation(new["score"])
    found = {c["name"]: c for c in told(new, "channel", "age", "amount", bets=bets)["changes"]}
    assert found["channel"]["measure"] == "share of web"
    assert found["channel"]["after"] == pytest.approx(0.7, abs=0.02)
    assert found["age"]["measure"] == "share missing"
    assert found["age"]["after"] == pytest.approx(0.5, abs=0.03)
    assert found["amount"]["measure"] == "correlation with score:fraud"
    assert found["amount"]["before"] > 0.9
    assert abs(found["amount"]["after"]) < 0.1
    (wide,) = told(new, "age", bets={"age": "age/spread/+"})["changes"]
    assert wide["measure"] == "standard deviation"
    assert wide["after"] == pytest.approx(20.0, abs=1.0)


def test_too_few_rows_say_nothing() -> None:
    """With less than twenty rows on a side there is no evidence, and no error."""
    assert told(calls(10, np.random.default_rng(14)), "age") == {}
    assert pc.count(table(calls(3, np.random.default_rng(1)))["principal"]).as_py() == 3


def test_rows_of_a_sample_weigh_what_they_stand_for() -> None:
    """Of one caller's odd calls, of a new version, a quarter is logged and says so: sizes, shares, explanation, causes,
    versions and score are those of the traffic, whose logged rows look otherwise.
    """
    rng = np.random.default_rng(5)
    new = calls(4000, rng, start_us=10_000)
    odd = new["principal"] == "c3"
    odd |= rng.random(4000) < 0.4
    new["principal"] = np.where(odd, "c3", np.where(new["principal"] == "c3", "c4", new["principal"]))
    new["model_version"] = np.where(odd, "4", "3")
    new["age"] = new["age"] + np.where(odd, 15.0, 0.0)
    new["country"] = np.where(odd & (rng.random(4000) < 0.5), "XX", new["country"])
    new["score"] = np.where(odd, 0.9, new["score"])
    kept = ~odd | (rng.random(4000) < 0.25)
    logged = {k: np.asarray(v)[kept] for k, v in new.items()}
    fraction = np.where(odd[kept], 0.25, 1.0)
    before = table(calls(4000, np.random.default_rng(1)))
    bins = Bins.fit(before, ("amount", "age"), ("channel", "country"))
    evidence = {"features": [{"name": n, "share": 0.5} for n in ("age", "country")], "bets": {"age": "age/location/+"}}
    whole = explain(bins, before, table(new), evidence)
    after = table(logged).append_column("sampling_fraction", pa.array(fraction))
    found = explain(bins, before, after, evidence)
    for k in ("after", "median_after", "p90_after"):
        assert found["changes"][0][k] == pytest.approx(whole["changes"][0][k], abs=1.2)
    assert found["score"][0]["after"] == pytest.approx(whole["score"][0]["after"], abs=0.05)
    assert found["explained_by"]["value"] == whole["explained_by"]["value"]
    group = {(g["kind"], g["value"]): g["share"] for g in found["concentrates"]}
    assert group["principal", "c3"] == pytest.approx(float(odd.mean()), abs=0.05)
    assert found["versions"][0]["version"] == whole["versions"][0]["version"]
    assert {v["version"]: v["after"] for v in found["versions"]}["4"] == pytest.approx(float(odd.mean()), abs=0.05)
    (cause,) = (c for c in found["causes"] if c["name"] == "country")
    (real,) = (c for c in whole["causes"] if c["name"] == "country")
    assert cause["share"] == pytest.approx(real["share"], abs=0.05)
    plain = explain(bins, before, table(logged), evidence)
    assert abs(plain["changes"][0]["after"] - whole["changes"][0]["after"]) > 3
    assert plain["compared"] == found["compared"]
