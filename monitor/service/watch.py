"""A watched model put together: its table, its frozen reference, its calibrated monitors, its budgets and policy.

Calibration happens once per (reference, detector, parameters) and is stored, and so is a refusal; a restart reads it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from alerts.policy import Policy
from alerts.policy import policy as alert_policy
from detectors import decide, expected
from detectors.base import Calibration, Detector, Window
from detectors.expected import Expected
from detectors.extraction.exposure import Exposure
from detectors.profile import Bins
from detectors.registry import DEFAULTS, REGISTRY
from detectors.strata import Strata
from detectors.streamed import Streamed
from monitor.config import Config, Directory, ModelConfig, directories
from monitor.errors import CalibrationRefused, ConfigError, Mistake
from monitor.model import HOUR_US, SECOND_US, Decision
from monitor.service import known
from monitor.service.callers import finder, nobody, plain
from monitor.service.explained import Rows, reference_rows
from monitor.service.frozen import file_hash, fit_bins, read_columns, reference_events
from monitor.service.known import Known
from monitor.service.ordered import by_time
from monitor.service.parts import by_caller, stored_name, strata_of, with_callers
from monitor.service.references import Held, counted
from monitor.service.windows import hourly, reference_windows, usual_window_us
from monitor.store import registry
from monitor.store.eventlog import ModelTable
from monitor.store.queries import Engine

MAX_VERSIONS: Final = 100  # of a model that are told apart; a producer that writes other things there marks no more
BUDGETS: Final = ("kappa", "distinct_rows")  # what a directory may declare
REFUSED: Final = "refused"  # among the stored calibrations: what a reference could not calibrate, and why
CALENDAR: Final = ("timezone", "weekend", "holidays")  # parameters that detectors take from the model's calendar

log = structlog.get_logger("lanner.watch")


@dataclass(frozen=True)
class Monitor:
    """One detector on one model, calibrated."""

    name: str
    detector: Detector
    calibration: Calibration
    window_us: int

    @property
    def reads(self) -> str:
        return self.detector.reads

    @property
    def silence_limit_us(self) -> int | None:
        """For clock detectors: how long a silence may last."""
        if self.detector.reads != "clock":
            return None
        limit_s = self.calibration.meta.get("limit_s")
        return None if limit_s is None else round(float(limit_s) * SECOND_US)


@dataclass(frozen=True)
class Watched:
    """Everything a tick needs to know of one model."""

    name: str
    table: ModelTable
    reference_hash: str
    bins: Bins
    monitors: tuple[Monitor, ...]
    refused: Mapping[str, str]  # monitor -> why it cannot run on this reference
    void: Mapping[str, str]  # kind of budget that the directory declares -> why it cannot alarm
    budget: decide.BudgetSettings
    fuse: decide.FuseSettings
    policy: Policy
    lateness_us: int
    catch_up_us: int
    known: Known  # training rows and canaries, marked in every stretch of the log
    reference: Rows  # a sample of the frozen reference's rows, to explain drift with
    units: Mapping[str, str]  # of features, where the configuration tells them
    expected: Expected  # what the inputs of a row let expect, to compare versions with
    versions: tuple[str, ...] = ()  # of the model, in its reference, the newest last

    @property
    def model_id(self) -> str:
        return self.table.model_id

    @property
    def bucket_us(self) -> int:
        """Counts are kept per bucket: the shortest window of any monitor."""
        return min((m.window_us for m in self.monitors if m.reads == "windows"), default=HOUR_US)

    @property
    def longest_us(self) -> int:
        return max((m.window_us for m in self.monitors if m.reads == "windows"), default=HOUR_US)

    def monitor(self, name: str) -> Monitor:
        return next(m for m in self.monitors if m.name == name)

    def monitor_of(self, detector: str) -> Monitor:
        """The first monitor that runs a detector."""
        return next(m for m in self.monitors if m.detector.name == detector)

    def based(self, d: Decision, model_version: str | None) -> Decision:
        """A decision with what it was made of and about: versions, calibration, reference. It can be checked long after."""
        known = next((m.calibration for m in self.monitors if m.detector.name == d.detector), None)
        made: dict[str, Any] = {} if model_version is None else {"model_version": model_version}
        if known is not None:
            made |= {"detector_version": known.version, "calibration": known.hash[:16]}
            made["reference"] = self.reference_hash[:16]
        return replace(d, evidence={**d.evidence, **made})

    @property
    def columns(self) -> list[str]:
        """Columns of the event log that a tick reads."""
        return read_columns(self.table.schema)


def watch(config: Config, engine: Engine, table: ModelTable, reference: Held, folder: Path, now_us: int) -> Watched:
    """Calibrate every monitor on the reference (or read its calibration back), derive budgets and policy."""
    digest, rows, model = reference.hash, reference.rows, config.models[table.name]
    directory = directories(config).get(table.name)
    # A file holds plain names, whatever the log holds; rows that come from the log are named as the log names them.
    find = finder(config, engine, table.name) if reference.logged else plain(directory) if directory else nobody
    declared = find(list(rows.words("principal")))
    if by_caller(model, table.schema):
        stored = stored_name(config)
        rows, declared = rows.map(partial(with_callers, stored=stored)), {stored(n): c for n, c in declared.items()}
    strata = strata_of(table.name, model, table.schema, rows)
    bins = _bins(engine, table, digest, rows, strata, now_us)
    found = _known(config, table, folder)
    configured = _configured(config, table.name, hourly(rows))
    with ExitStack() as files:  # sorted and cut only when something has to be learnt
        ordered = cache(lambda: files.enter_context(by_time(map(found.mark, rows.tables()), folder)))
        cut = cache(lambda window_us: reference_windows(table.name, ordered(), bins, window_us, declared))
        ready, refused = _calibrated(engine, table, configured, cut, digest, strata, found.kinds, now_us)
    void = _void(directory, configured, ready, refused)
    for kind, reason in void.items():
        log.warning("declared_budget_void", model=table.name, budget=kind, reason=reason)
    return Watched(
        name=table.name,
        table=table,
        reference_hash=digest,
        bins=bins,
        monitors=ready,
        refused=refused,
        void=void,
        budget=decide.BudgetSettings.derive(config.budgets.drift, [m.window_us for m in ready if m.reads == "windows"]),
        fuse=decide.FuseSettings.derive(config.budgets.attacks, pace_per_s(rows)),
        policy=alert_policy(config),
        lateness_us=round(config.schedule.lateness * SECOND_US),
        catch_up_us=round(config.schedule.catch_up * SECOND_US),
        known=found,
        reference=reference_rows(reference.file, stored_name(config)),
        units=model.units,
        expected=_expected(engine, table, digest, rows, bins, now_us),
        versions=_versions(rows),
    )


def _calibrated(
    engine: Engine, table: ModelTable, configured: Mapping[str, tuple[Detector, int]],
    cut: Callable[[int], Sequence[Window]], digest: str, strata: Strata, kinds: Sequence[str], now_us: int,
) -> tuple[tuple[Monitor, ...], Mapping[str, str]]:  # fmt: skip
    """Monitors that can run on the reference, and why others cannot.

    cut: the reference in windows of so many microseconds; kinds: of known rows, which are marked in it.
    """
    ready, refused = list[Monitor](), dict[str, str]()
    for name, (detector, window_us) in configured.items():
        known = asdict(detector)  # type: ignore[call-overload]  # a Protocol cannot say "frozen dataclass"
        params = {k: v for k, v in known.items() if k not in CALENDAR}  # a new holiday calibrates nothing anew
        params |= {"version": detector.version}
        params |= {"window_us": window_us, **_divided(strata)} if detector.reads == "windows" else {}
        windows = partial(cut, window_us)
        try:
            calibration = _calibration(engine, table.model_id, detector, params, windows, digest, kinds, now_us)
        except CalibrationRefused as error:
            log.warning("calibration_refused", model=table.name, monitor=name, reason=str(error))
            refused[name] = str(error)
            continue
        ready.append(Monitor(name, detector, calibration, window_us))
    return tuple(ready), refused


def _void(
    directory: Directory | None, configured: Mapping[str, tuple[Detector, int]], ready: Sequence[Monitor], refused: Mapping[str, str],
) -> Mapping[str, str]:  # fmt: skip
    """Budgets that are declared and cannot alarm on this reference, each with the reason."""
    entries = directory.principals if directory else ()
    kinds = [k for k in BUDGETS if any(getattr(e.budget, k) is not None for e in entries)]
    own = [m.calibration.meta.get("refused", {}) for m in ready if m.detector.name == Exposure.name]
    own += [
        dict.fromkeys(BUDGETS, refused[n])
        for n, (d, _) in configured.items()
        if d.name == Exposure.name and n in refused
    ]
    own = own or [dict.fromkeys(BUDGETS, f"no monitor runs {Exposure.name}")]
    return {k: own[0][k] for k in kinds if all(k in reasons for reasons in own)}


def _known(config: Config, table: ModelTable, folder: Path) -> Known:
    """Indexes of the files of known rows that the model names."""
    model, made = config.models[table.name], {}
    for kind, path in (("training", model.training), ("canary", model.canaries)):
        if path is not None:
            file = config.path(path)
            events = reference_events(config, table.name, file)
            own = folder / table.model_id
            made[kind] = known.index(config, events, file_hash(file), table.schema, own, kind)
    return Known(**made)


def _versions(rows: Streamed) -> tuple[str, ...]:
    """Versions in the order in which they came."""
    came: dict[str, int] = {}
    for table in rows.tables("event_time", "model_version"):
        first = table.group_by("model_version", use_threads=False).aggregate([("event_time", "min")])
        for version, t in zip(first["model_version"].to_pylist(), first["event_time_min"].to_pylist(), strict=True):
            if version is not None:
                came[version] = min(t, came.get(version, t))
    return tuple(sorted(came, key=lambda v: came[v]))[-MAX_VERSIONS:]


def pace_per_s(rows: Streamed) -> float:
    """Events a second over the reference's span; 0 without times. A reference may be a sample: take it as a lower bound."""
    first, last = rows.span()
    return rows.num_rows * SECOND_US / (last - first) if last > first else 0.0


def _bins(engine: Engine, table: ModelTable, digest: str, rows: Streamed, strata: Strata, now_us: int) -> Bins:
    params = _divided(strata)
    stored = registry.get_calibration(engine, table.model_id, "profile", params, digest)
    if stored is not None:
        return Bins.from_bytes(Calibration.from_bytes(stored).meta["bins"])
    bins = replace(fit_bins(rows, table.schema), strata=strata)
    reference = counted(bins, rows).to_bytes()  # what reports draw the current window against
    made = Calibration("profile", 1, digest, {"bins": bins.to_bytes(), "reference": reference})
    _keep(engine, table.model_id, params, made, now_us)
    return bins


def _expected(engine: Engine, table: ModelTable, digest: str, rows: Streamed, bins: Bins, now_us: int) -> Expected:
    """Fitted once per reference and bins."""
    params = {"bins": bins.key}
    stored = registry.get_calibration(engine, table.model_id, "expected", params, digest)
    if stored is not None:
        known = Calibration.from_bytes(stored)
        return Expected(known.meta["output"], known.arrays["effect"], known.arrays["edges"], known.meta["told"])
    made = expected.fit(bins, rows.sample(expected.FIT_ROWS))
    meta, arrays = {"output": made.output, "told": made.told}, {"effect": made.effect, "edges": made.edges}
    _keep(engine, table.model_id, params, Calibration("expected", 1, digest, meta, arrays), now_us)
    return made


def _divided(strata: Strata) -> dict[str, str]:
    """What tells counts apart that were divided differently; nothing for a model without parts."""
    return {"parts": hashlib.sha256(msgspec.json.encode(strata)).hexdigest()[:16]} if strata.height else {}


def _calibration(
    engine: Engine, model_id: str, detector: Detector, params: Mapping[str, object], windows: Callable[[], Sequence[Window]],
    digest: str, kinds: Sequence[str], now_us: int,
) -> Calibration:  # fmt: skip
    """Read back where it stands, else learnt and kept. CalibrationRefused likewise: for as long as nothing changes."""
    stored = registry.get_calibration(engine, model_id, detector.name, params, digest)
    if stored is not None:
        return Calibration.from_bytes(stored)
    asked = {**params, "detector": detector.name, "known": list(kinds)}  # some refuse for want of known rows
    stored = registry.get_calibration(engine, model_id, REFUSED, asked, digest)
    if stored is not None:
        raise CalibrationRefused(Calibration.from_bytes(stored).meta["reason"])
    try:
        made = detector.calibrate(windows(), digest)
    except CalibrationRefused as error:
        refusal = Calibration(REFUSED, detector.version, digest, {"reason": str(error), "asked": asked})
        _keep(engine, model_id, asked, refusal, now_us)
        raise
    _keep(engine, model_id, params, made, now_us)
    return made


def _keep(engine: Engine, model_id: str, params: Mapping[str, object], made: Calibration, now_us: int) -> None:
    registry.put_calibration(
        engine, model_id, made.detector, params, made.reference_hash, made.hash, made.to_bytes(), now_us
    )


def _configured(config: Config, model: str, hours: NDArray[np.int64]) -> dict[str, tuple[Detector, int]]:
    """Monitors of a model by name: the defaults of every family, replaced or added to by the configuration.

    Defaults judge hours; those that need so many rows (`min_rows`) judge days where the reference's rows per hour say that
    the model is slow.
    """
    days = {**_calendar(config, model), **_fairness(config.models[model])}
    made = {name: REGISTRY[name](**_params(name, {}, days)) for name in DEFAULTS}
    found: dict[str, tuple[Detector, int]] = {
        name: (detector, usual_window_us(hours, int(getattr(detector, "min_rows", getattr(detector, "min_labels", 0)))))
        for name, detector in made.items()
    }
    for name, m in config.monitors.items():
        if m.model != model:
            continue
        known = {f.name for f in fields(REGISTRY[m.detector])}
        if strange := sorted(set(m.params) - known):
            raise ConfigError(
                [
                    Mistake(
                        "configuration",
                        None,
                        f"monitors.{name}.params: {m.detector} has no {', '.join(strange)}; it has {', '.join(sorted(known))}",
                    )
                ]
            )
        found.pop(m.detector, None)
        if m.enabled:
            found[name] = (REGISTRY[m.detector](**_params(m.detector, m.params, days)), round(m.window * SECOND_US))
    return found


def _calendar(config: Config, model: str) -> Mapping[str, str]:
    """The model's calendar (its own, else the only one there is) as detector parameters; nothing without one."""
    name = config.models[model].calendar or (next(iter(config.calendars)) if len(config.calendars) == 1 else None)
    if name is None:
        return {}
    days = config.calendars[name]
    return {
        "timezone": days.timezone, "weekend": ",".join(days.weekend), "holidays": ",".join(sorted(days.holidays)),
    }  # fmt: skip


def _fairness(model: ModelConfig) -> Mapping[str, str]:
    """The model's groups as detector parameters; nothing without any."""
    if model.fairness is None:
        return {}
    return {"groups": ",".join(model.fairness.groups), "outcome": model.fairness.outcome or ""}


def _params(detector: str, given: Mapping[str, Any], days: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of a detector: calendar and groups where it knows them, and what the configuration gives."""
    known = {f.name for f in fields(REGISTRY[detector])}
    return {**{k: v for k, v in days.items() if k in known}, **given}
