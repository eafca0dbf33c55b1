"""Every registered detector keeps the contract of detectors.base. A new one needs a row in tests.judging.CASES."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors import aged, decide
from detectors.base import Calibration, Measured, State
from detectors.decide.budget import SHARES
from detectors.registry import DEFAULTS, REGISTRY
from monitor.errors import CalibrationRefused
from monitor.model import Family, Verdict
from tests.judging import ATTACKS, CASES, Case, Court, Rows, as_log, cut, events, mixed, numbers, sent

SECTIONS = ("Idea:", "Math:", "Assumptions:", "False alarms:", "Parameters:", "Reference:", ">>>")
NAMES = sorted(REGISTRY)


@functools.cache
def calibrated(name: str) -> tuple[Any, Calibration, Case]:
    """The detector with its defaults, calibrated on its case's reference."""
    detector = REGISTRY[name](**CASES[name].params)
    return detector, detector.calibrate(CASES[name].reference(), "ref"), CASES[name]


def settled(detector: Any, calibration: Calibration, case: Case) -> State | None:
    """The state after as many usual windows as the detector needs."""
    state = None
    for i in range(case.settled):
        state = detector.measure(calibration, state, case.usual(i)).state
    return state


def what(measured: Measured) -> tuple[Any, ...]:
    """Everything a measurement says, comparable."""
    e = measured.evidence
    return (
        measured.state.to_bytes(),
        [dataclasses.replace(d, streams=None) for d in measured.detections],
        [(d.streams.names, d.streams.log_e.tobytes(), d.streams.z.tobytes()) for d in measured.detections if d.streams],
        None if e is None else (e.principals, e.code.tobytes(), e.log_e.tobytes(), e.flag.tobytes(), dict(e.details)),
    )


def amount(measured: Measured) -> float:
    """How abnormal: the statistic, or for per-principal evidence the evidence that fuse() would gather, or what gauges read."""
    if measured.evidence is not None and measured.evidence.columns:
        return float(measured.evidence.flag.mean())
    if measured.evidence is not None:
        return sum(d.statistic or 0.0 for d in measured.detections)
    return max(d.statistic for d in measured.detections if d.statistic is not None)


def test_every_detector_has_a_case() -> None:
    """A detector outside the suite cannot exist."""
    assert sorted(CASES) == NAMES
    assert set(DEFAULTS) <= set(NAMES)


def test_detectors_of_windows_share_one_budget() -> None:
    """Whatever bets for budget() has its part, the parts make the whole, and no weights spend more than their part."""
    assert sum(SHARES.values()) == pytest.approx(1.0)
    bet: set[tuple[str, str]] = set()
    for name in NAMES:
        detector, calibration, case = calibrated(name)
        found = detector.measure(calibration, settled(detector, calibration, case), case.usual(0)).detections
        bet |= {(decide.LANES[d.event], name) for d in found if d.streams is not None}
        assert sum(float(d.streams.weight.sum()) for d in found if d.streams is not None) <= 1 + 1e-9
    assert bet <= set(SHARES)
    assert {name for _, name in SHARES} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shape(name: str) -> None:
    """A detector is a frozen dataclass under its own name whose parameters all have defaults."""
    cls = REGISTRY[name]
    assert cls.name == name
    assert cls.family in Family
    assert cls.reads in {"windows", "log", "clock"}
    assert dataclasses.is_dataclass(cls)
    detector = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        detector.anything = 1  # type: ignore[attr-defined]
    assert all(isinstance(v, int | float | str | bool) for v in dataclasses.asdict(detector).values())


@pytest.mark.parametrize("name", NAMES)
def test_docstring_tells_all(name: str) -> None:
    """The docstring has its sections in the fixed order and names every parameter."""
    text = inspect.getdoc(REGISTRY[name]) or ""
    places = [text.find(s) for s in SECTIONS]
    assert -1 not in places
    assert places == sorted(places)
    assert [f.name for f in dataclasses.fields(REGISTRY[name]) if f.name not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_pure(name: str) -> None:
    """Inputs are untouched, the global random state too, and the same input gives the same bytes."""
    detector, calibration, case = calibrated(name)
    state = settled(detector, calibration, case)
    window = case.wrong(1.0)
    before = (calibration.to_bytes(), state.to_bytes() if state else None, window.table.to_pydict())
    random_before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = what(detector.measure(calibration, state, window))
    assert (calibration.to_bytes(), state.to_bytes() if state else None, window.table.to_pydict()) == before
    assert np.array_equal(np.random.get_state()[1], random_before)  # type: ignore[index]  # noqa: NPY002
    assert what(detector.measure(calibration, state, window)) == first
    assert REGISTRY[name](**case.params).calibrate(case.reference(), "ref").to_bytes() == calibration.to_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_state_and_calibration_travel_as_bytes(name: str) -> None:
    """Measuring on from stored bytes gives the same as measuring on from memory."""
    detector, calibration, case = calibrated(name)
    stored = Calibration.from_bytes(calibration.to_bytes())
    assert stored.hash == calibration.hash
    kept: State | None = None
    raw: bytes | None = None
    for i in range(3):
        window = case.usual(i)
        one = detector.measure(calibration, kept, window)
        two = detector.measure(stored, State.from_bytes(raw) if raw else None, window)
        assert what(one) == what(two)
        kept, raw = one.state, two.state.to_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_growing_shift_gives_growing_statistic(name: str) -> None:
    """Larger is always more abnormal."""
    detector, calibration, case = calibrated(name)
    state = settled(detector, calibration, case)
    found = [amount(detector.measure(calibration, state, case.wrong(size))) for size in (0.1, 0.3, 0.5, 0.9)]
    assert found == sorted(found)
    assert found[-1] > found[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 1])
def test_too_little_data_is_its_own_verdict(name: str, rows: int) -> None:
    """An empty and a one-row window never fail and never speak against anybody."""
    detector, calibration, case = calibrated(name)
    if detector.reads == "clock":
        window = case.usual(0)  # clock windows never hold rows
    else:
        one = case.usual(0)
        window = Rows("m", one.start_us, one.end_us, one.table.slice(0, rows), one.bins)
    measured = detector.measure(calibration, None, window)
    assert all(d.verdict in {Verdict.OK, Verdict.INSUFFICIENT} for d in measured.detections)
    if detector.reads == "windows":
        assert [d.verdict for d in measured.detections] == [Verdict.INSUFFICIENT]
        assert all(d.streams is None for d in measured.detections)
    if measured.evidence is not None:
        assert not measured.evidence.flag.any()


@pytest.mark.parametrize("name", NAMES)
def test_events_may_lack_everything(name: str) -> None:
    """Events without the features, principals and answers of the reference make a detector silent, not fail."""
    detector, calibration, case = calibrated(name)
    usual = case.usual(0)
    bare = Rows("m", usual.start_us, usual.end_us, usual.table.select(["event_time"]), usual.bins)
    measured = detector.measure(calibration, None, bare)
    assert all(d.verdict is not Verdict.ALARM for d in measured.detections)
    assert measured.evidence is None or not len(measured.evidence.row)


@pytest.mark.parametrize("name", NAMES)
def test_strange_values_do_not_stop_it(name: str) -> None:
    """Infinite, huge and missing numbers, empty and very long words are values like others."""
    detector, calibration, case = calibrated(name)
    usual = case.usual(0)
    table = usual.table
    if table.num_rows:
        odd = pa.array([[float("inf"), -1e308, 1e308, None][i % 4] for i in range(table.num_rows)], pa.float64())
        words = pa.array([["", "\x00<script>", "x" * 10_000, None][i % 4] for i in range(table.num_rows)], pa.string())
        table = table.set_column(table.column_names.index("feature:x0"), "feature:x0", odd)
        table = table.set_column(table.column_names.index("feature:shop"), "feature:shop", words)
    measured = detector.measure(calibration, None, Rows("m", usual.start_us, usual.end_us, table, usual.bins))
    assert measured.state.to_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_state_of_another_calibration_is_not_used(name: str) -> None:
    """After a new calibration a detector starts from nothing."""
    detector, calibration, case = calibrated(name)
    state = detector.measure(calibration, None, case.usual(0)).state
    other = dataclasses.replace(calibration, reference_hash="another")
    fresh, carried = (detector.measure(other, s, case.usual(1)) for s in (None, state))
    assert carried.state.to_bytes() == fresh.state.to_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_no_reference(name: str) -> None:
    """Without any reference a detector refuses with a reason, or works without one."""
    detector = REGISTRY[name]()
    try:
        calibration = detector.calibrate([], "none")
    except CalibrationRefused as refusal:
        assert len(str(refusal)) > 20
    else:
        assert detector.measure(calibration, None, CASES[name].usual(0)).state.to_bytes()


def searches(rng: np.random.Generator) -> tuple[pa.Table, set[str]]:
    """A log of six honest clients, two that search the model, and one without a name."""
    honest = [events(150, rng, principal=f"honest-{i}") for i in range(6)]
    base = numbers(honest[0])
    steps = [base[i] + rng.normal(0, 0.02, (150, base.shape[1])) for i in (0, 1)]
    steps[1][::2] = base[:75]  # half padding
    attacks = [sent(s, honest[0], f"attacker-{i}", every_s=17.0) for i, s in enumerate(steps)]
    nameless = sent(steps[0], honest[0], None, every_s=13.0)
    return mixed(*honest, *attacks, nameless), {"attacker-0", "attacker-1"}


@pytest.mark.parametrize("name", [n for n in NAMES if REGISTRY[n].reads == "log"])
def test_results_do_not_depend_on_cuts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of several clients, two of them to be found, gives the same decisions wherever it is cut.

    Nor does it matter when the silent are set aside: with few callers remembered as of late, it happens all the time.
    """
    detector, calibration, case = calibrated(name)
    rng = np.random.default_rng(8)
    log, culprits = case.log() if case.log is not None else searches(rng)
    whole = Court(detector, calibration)
    whole.stretch(as_log(log))
    assert {d.subject.id for d in whole.decisions if d.firing} == culprits
    for pieces, least in ((1, aged.LEAST), (7, 0), (40, 2)):
        monkeypatch.setattr(aged, "LEAST", least)
        parts = Court(detector, calibration)
        for piece in cut(log, rng, pieces):
            parts.stretch(as_log(piece))
        assert sorted(parts.decisions, key=lambda d: (d.time_us, d.subject.id)) == whole.decisions
        assert parts.feedback == whole.feedback
    assert isinstance(ATTACKS, decide.FuseSettings)
