"""What an incident about an attack is called, which honest use it resembles, and how severe it may be yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alerts.policy import Named, Policy
from detectors.base import LOOK_ALIKES, LOOKS, TECHNIQUES, Evidence
from detectors.decide.naming import DECIDED, FULL, MIXED, ONE_CASE, TOOL_HELD
from monitor.model import SECOND_US, Family, Severity, Verdict
from tests.fusing import Log, evidence


def test_a_family_is_named_when_its_queries_tell() -> None:
    """Pending as anomaly first; named by update when one family leads; told once."""
    log = Log()
    votes = np.tile(np.array([0.4, *[0.0] * (len(TECHNIQUES) - 1)]), (40, 1))
    log(replace(evidence(["a"] * 40, [True] * 40), votes=votes))
    families = [d.family for d in log.decisions]
    assert families[0] is Family.ANOMALY
    assert families[-1] is Family.EXTRACTION
    assert log.decisions[-1].evidence["confidence"] > 0.9
    assert log.decisions[-1].evidence["technique"] == "made_up_rows"
    assert log.decisions[-1].evidence["look_alike"]["profile"] == "explainer"


def searched(flags: list[bool], alike: int = 2, **options: Any) -> Evidence:
    """Queries of one caller, of which those that are not flagged are excused as an explainer's samples."""
    excused = np.where(flags, 0, alike).astype(np.uint8)
    votes = np.tile(np.array([0.4, *[0.0] * (len(TECHNIQUES) - 1)]), (len(flags), 1)) * np.array(flags)[:, None]
    return replace(evidence(["a"] * len(flags), flags, **options), alike=excused, votes=votes)


def test_a_suspect_that_is_mostly_a_tool_is_a_warning() -> None:
    """Two thirds of its strange queries are an explainer's: a warning that names it and why, wherever the log is cut."""
    flags = ([False] * 2 + [True]) * 4 + [False] * 20 + [True] * 6
    whole, parts = Log(), Log()
    whole(searched(flags))
    for k in range(0, len(flags), 7):
        parts(searched(flags[k : k + 7], first_row=k))
    assert [(d.time_us, d.severity) for d in parts.decisions] == [(d.time_us, d.severity) for d in whole.decisions]
    opened = whole.decisions[0]
    assert opened.severity is Severity.WARNING
    assert Policy().severity(opened, Policy().raises(replace(opened, log_e=1e3), 1.0, 10**15)) is Severity.WARNING
    assert opened.evidence["look_alike"]["profile"] == "explainer"
    assert opened.evidence["look_alike"]["excused"] >= 2 * (opened.evidence["look_alike"]["strange"] // 3)


def test_what_goes_beyond_the_tool_is_told_at_once() -> None:
    """A search that began like an explainer gets its full severity with the query that makes it more than that."""
    log = Log()
    flags = ([False] * 2 + [True]) * 4 + [False] * 20 + [True] * FULL
    log(searched(flags))
    severities = [d.severity for d in log.decisions]
    assert severities[0] is Severity.WARNING
    assert severities[-1] is None
    told = next(d for d in log.decisions if d.severity is None)
    assert told.evidence["look_alike"]["why_not"]
    assert told.time_us == np.flatnonzero(flags)[FULL - 1] * SECOND_US


@pytest.mark.parametrize("cuts", [1, 9])
def test_the_nearest_honest_use_is_told_in_numbers(cuts: int) -> None:
    """What most of its queries look like, how much of such a client's would, and what the flagged ones do that no such does."""
    n = 60
    flags = [i % 2 == 0 for i in range(n)]
    varied, boundary = (1 << LOOKS.index(k) for k in ("varied", "boundary"))
    looks = np.array([boundary if f else varied if i % 6 == 1 else 0 for i, f in enumerate(flags)], np.uint8)
    log = Log()
    for part in np.array_split(np.arange(n), cuts):
        a, b = int(part[0]), int(part[-1]) + 1
        log(replace(evidence(["a"] * (b - a), flags[a:b], first_row=a), looks=looks[a:b]))
    told = log.decisions[-1].evidence
    assert set(told["look_alike"]) == {"profile", "why_not"}
    assert told["look_alike"]["profile"] == "what_if"
    queries = told["queries"]
    assert (
        f"of its {queries} queries change a few fields of an earlier row, those of a what-if analyst do in 80%"
        in told["look_alike"]["why_not"]
    )
    assert (
        f"; {queries // 2 + 1} of {queries // 2 + 1} flagged ones lie near the boundary"
        in told["look_alike"]["why_not"]
    )


def test_few_queries_are_minor_whoever_sends_them() -> None:
    """An incident on few flagged queries is at most minor; excuses from before the evidence do not count."""
    log = Log()
    log(searched([False] * 300 + [True] * (FULL + 5)))
    assert [d.severity for d in log.decisions][:1] == [Severity.MINOR]
    full = next(d for d in log.decisions if d.severity is None)
    assert full.time_us == (300 + FULL - 1) * SECOND_US
    tier1 = Policy(models={"m": Named(tier=1)})
    assert tier1.severity(log.decisions[0]) is Severity.MINOR
    assert tier1.severity(full) is Severity.CRITICAL


def test_ordinary_queries_between_strange_ones_make_it_take_more() -> None:
    """One strange query in four, as unusual what-ifs come: minor up to MIXED of them, whereafter padding hides nothing more."""
    log = Log()
    flags = [i % 4 == 0 for i in range(4 * MIXED)]
    log(searched(flags, alike=0))
    told = [d for d in log.decisions if d.severity is None]
    assert told[0].time_us == np.flatnonzero(flags)[MIXED - 1] * SECOND_US
    before = [d for d in log.decisions if d.time_us < told[0].time_us]
    assert "most of what it sends is ordinary" in before[-1].evidence["bounded"]


def test_whoever_sends_hardly_anything_but_a_tools_queries_opens_no_incident() -> None:
    """Three in four strange queries are an explainer's, up to 500 others: held back, wherever the log is cut, and kept for
    whoever looks. The query that makes it less opens an incident, and so does a fact.
    """
    flags = [i % 5 == 0 for i in range(200)]
    for cuts in (1, 11):
        log, first = Log(), 0
        for part in np.array_split(np.array(flags), cuts):
            log(searched(part.tolist(), first_row=first))
            first += len(part)
        assert log.decisions == []
        assert log.held["a"].evidence["look_alike"]["profile"] == "explainer"
        assert log.held["a"].verdict is Verdict.OK
        log(searched([True] * 30, first_row=len(flags)))
        assert log.decisions[0].time_us == (200 + 13) * SECOND_US  # 40 and 14 besides 160 are more than a quarter
        assert log.decisions[0].severity is Severity.WARNING
    log = Log()
    log(searched([i % 5 == 0 for i in range(2600)]))
    assert log.decisions[0].time_us == 5 * (TOOL_HELD - 1) * SECOND_US
    log = Log()
    log(
        searched(flags),
        replace(evidence(["a"] * 200, flags, detector="exposure"), family=Family.EXTRACTION),
    )
    assert log.decisions


def test_what_was_held_back_of_old_does_not_excuse_what_is_new() -> None:
    """When nothing is left against a caller, its tool's queries count no more."""
    log = Log()
    log(searched([i % 5 == 0 for i in range(200)]))
    assert log.held and not log.decisions
    log(evidence(["a"] * 5_000, [False] * 5_000, first_row=200))
    log(searched([True] * 12, first_row=5_200))
    assert log.decisions
    assert log.decisions[0].evidence["queries"] <= 12


@pytest.mark.parametrize(("earlier", "opens"), [(0, True), (40, False), (12, True)])
def test_a_tool_that_meets_an_unusual_case_is_known_by_what_it_sent_before(earlier: int, opens: bool) -> None:
    """Ten strange queries in a row after so many of an explainer's: those count, as many as came just before, and each pays for a third
    of a strange one.
    """
    n, log = earlier + 10, Log()
    before = np.minimum(np.arange(n), earlier).astype(np.uint8)
    known = searched([i >= earlier for i in range(n)])
    log(replace(known, before=np.column_stack([np.zeros(n, np.uint8), before])))
    assert bool(log.decisions) is opens
    if not opens:
        assert log.held["a"].evidence["look_alike"] | {"why": ""} == {
            "profile": "explainer", "why": "", "excused": earlier, "strange": log.held["a"].evidence["look_alike"]["strange"],
        }  # fmt: skip


def drawn(n: int, technique: str, *, columns: bool, first_row: int = 0, nats: float = 0.01) -> Evidence:
    """Made-up rows of one caller whose traits speak for a technique, drawn column by column or not, as all but the first tell."""
    known = made_up(n, "invalid", first_row)
    tagged = (np.arange(first_row, first_row + n) >= DECIDED) * columns * (1 + LOOK_ALIKES.index("drawn"))
    votes = np.zeros((n, len(TECHNIQUES)))
    votes[:, list(TECHNIQUES).index(technique)] = nats
    return replace(known, alike=tagged.astype(np.uint8), votes=votes)


def test_rows_drawn_column_by_column_are_held_back_up_to_those_about_one_case() -> None:
    """LIME as it comes: no incident until there are more of them than it sends about one case."""
    log = Log()
    for k in range(0, ONE_CASE + 600, 600):
        log(drawn(600, "column_draws", columns=True, first_row=k))
    assert log.held["a"].evidence["look_alike"]["profile"] == "explainer"
    assert log.decisions[0].time_us == (ONE_CASE - 1) * SECOND_US


@pytest.mark.parametrize(("technique", "row"), [("column_draws", DECIDED), ("made_up_rows", 3)])
def test_other_made_up_rows_open_an_incident_as_soon_as_that_is_known(technique: str, row: int) -> None:
    """Rows that are drawn otherwise open one when that shows, and whoever draws like no tool with the evidence itself."""
    log = Log()
    log(drawn(150, technique, columns=False))
    assert log.decisions[0].time_us == row * SECOND_US
    assert log.decisions[0].evidence["queries"] == row + 1


def made_up(n: int, look: str, first_row: int = 0) -> Evidence:
    """Flagged queries of one caller that all look like `look`."""
    looks = np.full(n, 1 << LOOKS.index(look), np.uint8)
    known = evidence(["a"] * n, [True] * n, first_row=first_row)
    return replace(known, looks=looks, alike=np.zeros(n, np.uint8))


def test_made_up_rows_are_minor_until_they_are_more_than_one_explanation() -> None:
    """Rows that break rules and are no steps from each other: a thief's or an explainer's, told with the reason for the bound."""
    log = Log()
    for k in range(0, ONE_CASE + 10, 501):
        log(made_up(501, "invalid", k))
    assert {d.severity for d in log.decisions} == {Severity.MINOR, None}
    full = next(d for d in log.decisions if d.severity is None)
    assert full.time_us == (ONE_CASE - 1) * SECOND_US
    assert "5,000 about one case" in log.decisions[-2].evidence["bounded"]
    assert "bounded" not in full.evidence


def test_steps_among_made_up_rows_are_a_search() -> None:
    """One step in ten flagged queries, and the incident gets its full severity with FULL of them."""
    log = Log()
    log(made_up(2 * FULL, "invalid"))
    assert {d.severity for d in log.decisions} == {Severity.MINOR}
    log(made_up(FULL // 4, "stepping", 2 * FULL))
    assert log.decisions[-1].severity is None


def test_facts_are_not_bounded() -> None:
    """Who passes a declared budget or sends a canary is no tool, and one such query is enough."""
    log = Log()
    flags = [False] * 2 + [True] * 2 + [False] * 20 + [True] * 6
    fact = replace(evidence(["a"] * len(flags), [True] * len(flags), detector="exposure"), family=Family.EXTRACTION)
    log(searched(flags), fact)
    assert {d.severity for d in log.decisions} == {None}


def test_who_draws_like_a_tool_beyond_doubt_is_held_back_where_columns_do_not_tell() -> None:
    """All that is flagged is taken for draws where the table of techniques is sure, again up to those about one case."""
    log = Log()
    for k in range(0, ONE_CASE + 600, 600):
        log(drawn(600, "column_draws", columns=False, first_row=k, nats=0.5))
    assert "draw each column" in log.held["a"].evidence["look_alike"]["why"]
    assert log.decisions[0].time_us == (ONE_CASE - 1) * SECOND_US
