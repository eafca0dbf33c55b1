"""What strange queries are like among their sender's others, and what that says about the attack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detectors import kin
from detectors.anomaly.queries import Queries
from detectors.anomaly.traits import traits
from detectors.base import LOOKS, TECHNIQUES, TRAITS, UNTOLD, Evidence
from detectors.chains import blank, unmet
from detectors.decide import techniques
from detectors.decide.principals import OFTEN, SELDOM, Votes
from detectors.explained import CLEAN
from monitor.model import Family
from tests.fusing import Log, evidence
from tests.judging import Rng, as_log, bins_of, events, numbers, sent
from tests.judging import Rows as Window

WEIGHT = np.ones(3, np.float32)


def lines(x: list[float], *remembered: list[float]) -> int:
    """Of row x beside remembered ones, the first of which is its parent."""
    rows = np.array(remembered, np.float32)
    return int(kin.line(np.array(x, np.float32), rows, 0, len(rows), 0, WEIGHT))


def test_a_bisection_halves_the_line_between_two_rows() -> None:
    """The middle, another place between, beside the line, beyond its end; gaps on both sides do not matter."""
    a, b, other = [0.0, 0.0, 1.0], [2.0, 4.0, 1.0], [9.0, 1.0, 5.0]
    assert lines([1.0, 2.0, 1.0], a, other, b) == kin.HALVED
    assert lines([0.5, 1.0, 1.0], a, other, b) == kin.BETWEEN
    assert lines([0.5, 1.5, 1.0], a, other, b) == kin.NO_LINE
    assert lines([-1.0, -2.0, 1.0], a, other, b) == kin.NO_LINE
    assert lines([1.0, 0.0, 1.0], a, [2.0, 0.0, 1.0]) == kin.NO_LINE  # one field alone is a what-if
    nan = float("nan")
    assert lines([1.0, 2.0, nan], [0.0, 0.0, nan], [2.0, 4.0, nan]) == kin.HALVED


def test_the_parent_is_the_row_with_most_in_common_and_of_several_the_one_of_use_last() -> None:
    """Its children are counted; clean rows are counted whether or not they are near."""
    met, memory = unmet(3), blank(3, 3, 3)
    memory.worth[:], memory.used[:], memory.kids[:], memory.numbers[:] = [CLEAN, 0, 0], [1, 2, 3], 0, 0.0
    rows = type("Rows", (), {"numbers": np.zeros((3, 3), np.float32)})
    bits, differ = np.array([1.0, 8.0, 8.0], np.float32), np.array([3, 2, 1], np.int32)
    for i in range(2):
        kin.note.py_func(rows, i, memory, 0, 3, bits, differ, WEIGHT, 10 + i, met)
    assert (met.kept[1], met.changed[1], met.parent[1], met.idle[1], met.clean[1]) == (8.0, 1, 0, 8, 1)
    assert met.siblings.tolist() == [0, 1, 0]
    assert memory.kids.tolist() == [0, 0, 2]
    kin.note.py_func(rows, 2, memory, 0, 0, bits[:0], differ[:0], WEIGHT, 1, met)
    assert met.strange.all()
    assert (met.kept[2], met.siblings[2], met.clean[2]) == (0.0, 0, 0)


def test_only_flagged_rows_that_were_looked_at_have_traits() -> None:
    """Every level is below the number of levels of its trait."""
    met = unmet(4)
    met.strange[:3] = True
    met.kept[:], met.changed[:], met.siblings[:], met.idle[:], met.clean[:] = [0, 50, 100, 0], 20, 200, 900, 99
    met.line[:], met.parent[:] = 2, 2
    flag, no = np.array([True, True, False, True]), np.zeros(4, bool)
    said = traits(met, np.full(4, 9), ~no, flag, 100.0, 20)
    assert (said[2:] == UNTOLD).all()
    assert (said[:2] < np.array(list(TRAITS.values()))).all()
    assert said[:2, 0].tolist() == [0, 2]
    assert said[0, 1:].tolist() == [n - 1 for n in list(TRAITS.values())[1:]]


def searched(rng: Rng, n: int = 120) -> tuple[Evidence, list[int]]:
    """What the detector says of rows around one that stands, and of rows that are made up."""
    table = events(3000, np.random.default_rng(1))
    cal = Queries().calibrate([Window("m", 0, 3_600_000_000, table, bins_of(table))], "ref")
    like = events(n, rng)
    noise = numbers(like)[:1] + rng.normal(0, 0.05, (n, 8))
    noise[0] = numbers(like)[0]
    found = Queries().measure(cal, None, as_log(sent(noise, like, "eve"))).evidence
    assert found is not None
    return found, np.flatnonzero(found.flag).tolist()


def test_noise_around_one_row_shows_as_its_children() -> None:
    """Most strange rows leave much of their parent's row, change all fields and have siblings."""
    found, flagged = searched(np.random.default_rng(2))
    assert found.traits is not None
    told = found.traits[flagged][found.traits[flagged][:, 0] != UNTOLD]
    assert len(told) > 50
    names = list(TRAITS)
    assert np.median(told[:, names.index("fields")]) == TRAITS["fields"] - 1
    assert np.median(told[:, names.index("line")]) == kin.NO_LINE
    assert np.median(told[:, names.index("siblings")]) >= 1


def counted(levels: dict[str, int], n: int = 40) -> list[int]:
    """What is counted of so many queries that are all alike; what is not said is the lowest level."""
    votes = Votes()
    for _ in range(n):
        votes.flag([0.0] * len(TECHNIQUES), [levels.get(t, 0) for t in TRAITS])
    return votes.traits


def likeliest(*kinds: dict[str, int]) -> Family:
    """The family of the likeliest technique of queries of which each kind is as frequent as any other."""
    counts = np.sum([counted(levels) for levels in kinds], axis=0).tolist()
    return TECHNIQUES[max(zip(techniques.said(counts), TECHNIQUES, strict=True))[1]]


def test_the_table_knows_the_plainest_attacks() -> None:
    """Rows drawn at random; a bisection and then noise around the row that it found; noise around rows that stand; a few
    fields of one strange row changed again and again.
    """
    drawn = {"fields": 3, "broken": 3, "idle": 3}
    halved = {"kept": 3, "fields": 3, "line": kin.HALVED, "broken": 3}
    around = {"kept": 1, "fields": 3, "clean": 1, "broken": 3, "idle": 1}
    assert likeliest(drawn, drawn | {"siblings": 1, "idle": 2}) is Family.EXTRACTION
    assert likeliest(halved, around, around | {"siblings": 1}, around | {"siblings": 2, "edge": 1}) is Family.EVASION
    record = {"kept": 2, "fields": 3, "parent": 2, "clean": 2, "idle": 1}
    assert likeliest(record, record | {"siblings": 1}, record | {"siblings": 3, "broken": 1}) is Family.MEMBERSHIP
    best = {"kept": 3, "fields": 1, "broken": 3, "idle": 1}
    assert (
        likeliest(best, best | {"siblings": 2}, best | {"siblings": 3}, best | {"siblings": 3, "fields": 0})
        is Family.INVERSION
    )


def test_nothing_counted_says_nothing_and_shares_do_not_depend_on_how_many() -> None:
    """The table's shape, and the same nats for 40 queries and 4,000 of one kind."""
    assert techniques.table().shape == (1 + techniques.COUNTS, len(TECHNIQUES))
    assert techniques.said([0] * techniques.COUNTS) == [0.0] * len(TECHNIQUES)
    few, many = (techniques.said(counted({"kept": 4, "idle": 2}, n)) for n in (40, 4_000))
    assert few == pytest.approx(many)


def test_votes_of_several_callers_add_up_and_old_ones_are_read() -> None:
    """Clusters count all their queries; what an earlier version kept has no traits."""
    a, b = Votes(traits=counted({"kept": 4})), Votes(traits=counted({"line": 1}))
    assert a.plus(b).traits == [x + y for x, y in zip(a.traits, b.traits, strict=True)]
    old = {k: v for k, v in vars(Votes(nats=[1.0] * len(TECHNIQUES), flagged=9)).items() if k != "traits"}
    assert Votes(**old).said == [1.0] * len(TECHNIQUES)
    fewer = vars(Votes()) | {"nats": [1.0] * (len(TECHNIQUES) - 1)}  # before the last technique was told apart
    assert Votes.of(fewer).nats == [*fewer["nats"], 0.0]
    assert [n for n in range(OFTEN - 1, OFTEN + 2 * SELDOM) if Votes(flagged=n).due] == [
        OFTEN - 1,
        OFTEN,
        OFTEN + SELDOM,
    ]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_named_does_not_depend_on_where_the_log_is_cut(seed: int) -> None:
    """Two callers whose queries change in kind on the way: the same decisions and counts, however it is cut."""
    rng = np.random.default_rng(seed)
    n, ends = 400, []
    who, flag = [f"c{i}" for i in rng.integers(0, 2, n)], (rng.random(n) < 0.7).tolist()
    told = np.stack([rng.integers(0, k, n) for k in TRAITS.values()], axis=1).astype(np.uint8)
    told[: n // 2] = [0, 3, 0, 0, 0, 0, 3, 3, 0]
    told[n // 2 :, : len(TRAITS) - 3] = [3, 1, 0, 3, 0, 0]
    told[rng.random(n) < 0.1] = UNTOLD
    looks = np.full(n, 1 << LOOKS.index("stepping"), np.uint8)
    for cuts in (1, 3, 50):
        log = Log()
        for part in np.array_split(np.arange(n), cuts):
            a, b = int(part[0]), int(part[-1]) + 1
            log(replace(evidence(who[a:b], flag[a:b], first_row=a), traits=told[a:b], looks=looks[a:b]))
        assert log.state is not None
        ends.append((
            [(d.time_us, d.subject.id, d.family, d.evidence["confidence"], d.evidence["technique"]) for d in log.decisions],
            log.state.meta["lanes"]["AttackSuspected"]["votes"],
        ))  # fmt: skip
    assert ends[1] == ends[0]
    assert ends[2] == ends[0]
    assert {d[2] for d in ends[0][0]} > {Family.EXTRACTION}
