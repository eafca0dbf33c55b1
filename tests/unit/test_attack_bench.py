"""The attack evaluation: design and judging share nothing, and a run says the same every time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.attacks import exposure, naming, publishing, report
from benchmarks.attacks.actors import attackers, honest
from benchmarks.attacks.baselines import Baselines
from benchmarks.attacks.cost import Cost
from benchmarks.attacks.judge import judge, table, watch
from benchmarks.attacks.score import Outcome, exact, outcomes, paging
from benchmarks.attacks.split import DESIGN, JUDGING, SEEN
from benchmarks.attacks.traffic import Scene, scene, together
from benchmarks.traffic import DATA, FAMILIES, Column, benign, victim
from detectors.base import TECHNIQUES, TRAITS
from detectors.decide.techniques import FIRST, shares
from monitor.model import Decision, Event, Family, Severity, Subject

FEW = "unmasked/knockoff_random,unmasked/inversion,in-distribution,sybil-5/copycat,probe/0,segment/0,what_if-declared/0"
SMALL = replace(DESIGN, victims={"breast_cancer": "logistic"})


def test_the_splits_share_no_data_no_models_no_seed_and_no_range() -> None:
    """Nothing that a detector was designed on is used to judge it."""
    for a, b in itertools.combinations((DESIGN, SEEN, JUDGING), 2):
        assert not {*a.victims, *a.used} & {*b.victims, *b.used}
        assert not set(a.victims.values()) & set(b.victims.values())
        assert a.seed != b.seed
        assert set(a.ranges) == set(b.ranges)
        assert not [name for name, r in a.ranges.items() if r == b.ranges[name]]
        assert {*a.victims, *b.victims} <= set(DATA)


def test_the_table_of_techniques_tells_what_it_was_taught() -> None:
    """Counts after fixed numbers of flagged queries; techniques that differ in one trait are told apart by it."""
    alike = np.zeros((60, len(TRAITS)), np.uint8)
    known = []
    for level, technique in enumerate(("made_up_rows", "bisection", "boundary_search")):
        alike[:, list(TRAITS).index("line")] = level
        counts = list(naming.grown(alike))
        assert [sum(c[: FIRST[1]]) for c in counts] == [8, 20, 50]
        known += [naming.Sample("d", technique, c) for c in counts]
    rows = naming.fit(known)
    for s in known:
        nats = rows[0] + shares(s.counts) @ rows[1:]
        assert list(TECHNIQUES)[int(nats.argmax())] == s.technique
    assert list(naming.grown(alike[: naming.LEAST - 1])) == []


def test_judging_is_as_large_as_was_asked_for() -> None:
    """Four data sets and three families of models in all, and 300 natural principals to judge one percent by."""
    used = {**DESIGN.victims, **JUDGING.victims}
    assert len(DESIGN.victims) >= 4
    assert len(JUDGING.victims) >= 4
    assert len(set(used.values())) >= 4
    assert set(used.values()) <= set(FAMILIES)
    assert sum(JUDGING.natural.values()) >= 300


def test_actors_have_their_own_names() -> None:
    """Names are unique per victim, since streams are drawn from them."""
    names = [a.name for a in (*attackers(0), *attackers(1), *honest(JUDGING, "car_loan"))]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, list[Outcome]]:
    made = scene(SMALL, "breast_cancer", FEW, tmp_path_factory.mktemp("traffic"))
    return made, _judged(made)


def _judged(made: Scene) -> list[Outcome]:
    log, of = together(SMALL, made)
    return outcomes("breast_cancer", log, of, made.streams, judge(watch(made.reference), log))


def test_a_run_names_the_loud_attackers_and_no_probe(small: tuple[Scene, list[Outcome]]) -> None:
    """Made-up rows are found soon, alone and behind five names; the same row for ever is not."""
    by = {o.name: o for o in small[1]}
    loud = by["unmasked/knockoff_random/0"]
    assert loud.queries is not None
    assert loud.queries <= 100
    assert by["sybil-5/copycat/0"].suspects >= 1
    assert not by["probe/0"].alarmed
    assert all(o.n >= 1000 for o in small[1])
    assert max(loud.peaks.values()) > max(by["probe/0"].peaks.values())


def test_who_pages_is_told_apart_from_who_alarms(small: tuple[Scene, list[Outcome]]) -> None:
    """A search pages; nobody pages without an alarm; an incident that stays a warning or minor pages nobody."""
    by = {o.name: o for o in small[1]}
    assert by["unmasked/inversion/0"].pages
    assert by["unmasked/knockoff_random/0"].alarmed  # some hundred made-up rows, which explainers send too
    assert not by["unmasked/knockoff_random/0"].pages
    assert all(o.alarmed for o in small[1] if o.pages)
    d = Decision("m", Event.ATTACK_SUSPECTED, Family.EVASION, Subject("principal", "p"), True, 0, (0, 0), "queries")
    assert paging([d])
    bounded = [replace(d, severity=s, log_e=1e3) for s in (Severity.WARNING, Severity.MINOR)]
    assert not paging(bounded)
    assert paging([*bounded, d])


def test_the_same_seed_gives_the_same_outcome(small: tuple[Scene, list[Outcome]], tmp_path: Path) -> None:
    """Traffic made anew, in another order of actors, and read from the cache, is judged alike."""
    again = _judged(scene(SMALL, "breast_cancer", FEW, tmp_path))
    read = _judged(scene(SMALL, "breast_cancer", FEW, tmp_path))
    assert again == small[1]
    assert read == small[1]


def test_reference_and_clients_share_no_row(small: tuple[Scene, list[Outcome]]) -> None:
    """What calibrates a detector is never what an honest client sends."""
    made = small[0]
    known = {r.tobytes() for r in made.reference.rows}
    assert not [r for r in made.victim.pool if r.tobytes() in known]
    assert not known & {r.tobytes() for r in made.victim.training}


def test_the_table_is_what_the_event_log_holds(small: tuple[Scene, list[Outcome]]) -> None:
    """Columns as in docs/event-log.md; a word where the victim has categories, null where a value is missing."""
    v = victim("wine", family="logistic")
    v = replace(v, columns=(v.columns[0], Column("shop", ("a", "b", "c")), *v.columns[2:]))
    rows = v.sent(v.pool[:50])
    rows[3, 0] = np.nan
    log = replace(
        small[0].reference, victim=v, rows=rows, scores=v.answer(rows), time_us=np.arange(50), who=np.zeros(50, int)
    )
    made = table(log)
    assert made["feature:shop"].to_pylist() == ["abc"[int(x)] for x in rows[:, 1]]
    assert made["scores"].to_pylist() == v.answer(rows).tolist()
    assert made["prediction_label"].to_pylist() == [v.classes[i] for i in v.answer(rows).argmax(axis=1)]
    assert made[f"feature:{v.columns[0].name}"][3].as_py() is None


def test_baselines_hear_a_boundary_search_and_not_a_probe(small: tuple[Scene, list[Outcome]]) -> None:
    """PRADA and window MMD say something about a stream of made-up rows; PRADA is silent about one row for ever."""
    made = small[0]
    other = Baselines.fit(made.reference, 1)
    heard = {s.actor.name: other.alarms(s) for s in made.streams}
    assert heard["unmasked/knockoff_random/0"]["mmd"] is not None
    assert heard["probe/0"]["prada"] is None


def test_every_line_of_the_specification_is_printed(small: tuple[Scene, list[Outcome]]) -> None:
    """The report keeps its shape on few actors, and intervals are exact."""
    found = small[1]
    assert len(report.numbers(found)) == 13
    assert "unmasked" in report.text(found)
    assert "| unmasked |" in report.markdown(found)
    assert exact(0, 300)[1] == pytest.approx(0.0122, abs=1e-4)
    assert exact(1, 1)[0] == pytest.approx(0.025)


def test_the_recorded_run_stands_between_its_markers(small: tuple[Scene, list[Outcome]]) -> None:
    """The page keeps what people wrote, and shows both splits, the gauge and the cost."""
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    reading = exposure.Reading("breast_cancer", "natural/0", 128, 128, 0.8, 0.75, 0.95)
    cost = Cost(25, 50_000.0, {"queries": 60_000.0}, 8_000.0, {10: 1_000_000}, {10: 600.0})
    found, gauges = {"design": small[1], "judging": small[1]}, {"design": [reading], "judging": [reading]}
    made = publishing.inserted(page, publishing.generated(found, gauges, cost))
    again = publishing.inserted(made, "new")
    assert again.split(publishing.BEGIN)[0] == page.split(publishing.BEGIN)[0]
    assert again.split(publishing.END)[1] == page.split(publishing.END)[1]
    for part in (
        "### Judging split",
        "### Design split",
        "| breast_cancer | 1 | 100% | +0.05 | 0.050 | +0.05 |",
        "50,000 events",
        "| unmasked |",
    ):
        assert part in made
    assert "### Design split" not in again


def test_kappa_of_copies() -> None:
    """A perfect copy is worth 1, one that knows the base rate 0."""
    truth = np.array([0, 1, 0, 1])
    assert exposure.kappa(truth, truth) == 1
    assert exposure.kappa(np.zeros(4, int), truth) == 0


def test_the_truth_of_the_gauge_is_what_copies_are_worth(small: tuple[Scene, list[Outcome]]) -> None:
    """The more answers, the better the copy; the best is never worse than the forest by much; one answer is worth nothing."""
    made = small[0]
    stream = next(s for s in made.streams if s.actor.kind == "knockoff_real")
    few, many = (exposure.worth(made, stream, n, np.random.default_rng(n)) for n in (20, 200))
    assert few["forest"] < many["forest"] <= 1
    assert set(many) == {"forest", "boosting", "logistic"}
    same = replace(stream, scores=np.tile([1.0, 0.0], (len(stream.rows), 1)))
    assert set(exposure.worth(made, same, 200, np.random.default_rng(1)).values()) == {0.0}


def test_an_analyst_never_leaves_the_values_that_occur() -> None:
    """A what-if client changes as many fields as its range says, and nothing else."""
    v = victim("wine", family="logistic")
    rows = benign(v, "what_if", 200, np.random.default_rng(1), {**DESIGN.ranges, "sweep_values": (10, 10)})
    for first in range(0, 200, 10):
        assert (np.ptp(rows[first : first + 10], axis=0) > 0).sum() <= 2
