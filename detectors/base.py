"""The contract of every detector, and the plain data that passes through it.

A detector is a frozen dataclass: its fields are parameters with defaults. It calibrates once on a reference and then
measures chunks of the event log. It is pure: no clock, no I/O, no log, no global random numbers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from monitor.model import HOUR_US, Event, Family, Severity, Subject, Verdict

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")
TECHNIQUES: Final[Mapping[str, Family]] = {  # how attackers go about it, and what family of attack that makes
    "made_up_rows": Family.EXTRACTION,
    "augmentation": Family.EXTRACTION,
    "bisection": Family.EXTRACTION,
    "boundary_search": Family.EVASION,
    "boundary_walk": Family.EVASION,
    "coordinate_search": Family.EVASION,
    "record_variation": Family.MEMBERSHIP,
    "noisy_copies": Family.MEMBERSHIP,
    "climbing": Family.INVERSION,
    "column_draws": Family.EXTRACTION,  # whole rows drawn from the reference's columns, each by itself: LIME sends them too
}
NAMED: Final = tuple(dict.fromkeys(TECHNIQUES.values()))  # what an attack can turn out to be
TRAITS: Final[
    Mapping[str, int]
] = {  # what strange queries are like among their sender's others, and how many levels that has
    "kept": 5,  # how much of its parent's row is left, the earlier row that it resembles most
    "fields": 4,  # how many fields differ from that one
    "line": 3,  # whether it lies between that one and another
    "siblings": 4,  # strange queries that came from the same one before
    "parent": 3,  # whether that one is strange, valid or clean
    "clean": 4,  # clean rows that are remembered of the sender
    "broken": 4,  # rules that it breaks
    "idle": 4,  # queries since the parent was of use
    "edge": 2,  # whether the model was unsure
}
UNTOLD: Final = 255  # instead of a level
LOOK_ALIKES: Final = (  # what honest tools send that looks like a search to whoever does not know them
    "what_if",
    "explainer",  # samples around a row
    "drawn",  # rows that draw every column by itself: an explainer's, or a theft's
    "slopes",  # steps up and down from a row, in several numbers: an analysis of what the answer depends on, or a search
)


LOOKS: Final = (  # what is counted of the queries of a suspect, to tell which honest use they resemble most
    "varied",  # changes a few fields of an earlier row
    "sampled",  # a copy of an earlier row with noise or with values of others
    "repeated",  # an earlier row as it was
    "one_rule",  # breaks one learnt rule and is not flagged
    "invalid",  # flagged, and of those: breaks several rules
    "implausible",  # combines what does not go together
    "stepping",  # a small step from other rows
    "boundary",  # the model was unsure
)


class Profile(Protocol):
    """Mergeable counts of one window on reference-fixed bins; the real one is detectors.profile.Profile."""

    n: int


@dataclass(frozen=True)
class Caller:
    """What the bank declares about a principal in its directory file. Empty values: not declared.

    profile: the declared use (batch, what_if, explainer, load_test, health_probe, retries, segment). kappa, distinct_rows: how
    good a copy, and how many different rows, the caller may ask for; None: no budget was declared.
    """

    kind: str = ""
    group: str = ""
    owner: str = ""
    profile: str = ""
    kappa: float | None = None
    distinct_rows: int | None = None


PROBES: Final = frozenset({"health_probe", "batch"})  # declared uses that may send canaries


class Window(Protocol):
    """What a detector may see: one model's events over [start_us, end_us), or a stretch of its log in log order.

    Windows of `reads = "windows"` detectors are time windows. Those of `reads = "log"` detectors are consecutive
    stretches of the log, cut at arbitrary places: results must not depend on the cuts.
    """

    @property
    def model(self) -> str: ...
    @property
    def start_us(self) -> int: ...
    @property
    def end_us(self) -> int: ...
    @property
    def n(self) -> int: ...

    def profile(self) -> Any:
        """The window's detectors.profile.Profile (already counted; cheap)."""
        ...

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Named columns in log order. Features are named `feature:NAME`, the rest as in docs/event-log.md."""
        ...

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of these rows; the next one that asks by this name gets the same. Nobody may change it."""
        ...

    def callers(self) -> Mapping[str, Caller]:
        """Principals of this window that the directory declares, by the id that `rows` shows."""
        ...

    def feedback(self, columns: Sequence[str]) -> pa.Table:
        """Labels given in this window (late ones: received in it), on events of any time: labeler, name, value, label_time_us,
        the event's `columns`.
        """
        ...

    def labels(self, as_of_us: int) -> pa.Table:
        """Labels known at `as_of_us`, newest label time per event: request_id, name, value, label_time_us, labeler."""
        ...

    def earlier(self, by_us: int) -> Window:
        """The window of the same length that ended `by_us` before this one; empty where the log does not reach."""
        ...


def few_rows(window: Window, min_rows: int) -> str:
    """Why a window was not judged, and for short ones what to do when that is always so."""
    longer = "; where that is usual, give the monitor longer windows (window: 24h)"
    hint = longer if window.end_us - window.start_us < 24 * HOUR_US else ""
    return f"fewer than {min_rows} rows in the window{hint}"


def pack(meta: Mapping[str, Any], arrays: Arrays) -> bytes:
    """Plain arrays and JSON-ready values as bytes, the same on every machine.

    >>> m, a = unpack(pack({"k": 1}, {"x": np.arange(3)})); int(m["k"]), a["x"].tolist()
    (1, [0, 1, 2])
    """
    blobs = {}
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        blobs[name] = (a.dtype.str, list(a.shape), a.tobytes())
    return msgspec.msgpack.encode({"meta": dict(meta), "arrays": blobs}, order="sorted")


def unpack(raw: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The inverse of `pack`; the arrays are writable copies."""
    data = msgspec.msgpack.decode(raw)
    arrays = {k: np.frombuffer(b, dtype=np.dtype(d)).reshape(s).copy() for k, (d, s, b) in data["arrays"].items()}
    return data["meta"], arrays


@dataclass(frozen=True)
class Calibration:
    """What a detector learnt from a reference: immutable, hashed, stored with every alert that rests on it.

    `meta` is JSON-ready (parameters, thresholds, measured false-alarm behaviour), `arrays` plain numpy.
    """

    detector: str
    version: int
    reference_hash: str
    meta: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        head = {"detector": self.detector, "version": self.version, "reference_hash": self.reference_hash}
        return pack({**head, "meta": dict(self.meta)}, self.arrays)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Calibration:
        head, arrays = unpack(raw)
        return cls(head["detector"], head["version"], head["reference_hash"], head["meta"], arrays)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the stored bytes, first 32 hex digits. Computed once: calibrations never change."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:32]


@dataclass(frozen=True)
class State:
    """What a detector (or a decider) carries from one measurement to the next: plain arrays, versioned, bounded.

    State of another calibration is never used: measure() rebuilds it from nothing and says so in its detections.
    """

    detector: str
    version: int
    calibration_hash: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        head = {"detector": self.detector, "version": self.version, "calibration_hash": self.calibration_hash}
        return pack({**head, "meta": dict(self.meta)}, self.arrays)

    @classmethod
    def from_bytes(cls, raw: bytes) -> State:
        head, arrays = unpack(raw)
        return cls(head["detector"], head["version"], head["calibration_hash"], head["meta"], arrays)


def own_state(state: State | None, cal: Calibration, version: int) -> State | None:
    """The state, if it belongs to this calibration and this version of the detector.

    >>> own_state(State("volume", 1, "of another"), Calibration("volume", 1, "ab", {}), 1) is None
    True
    """
    return state if state is not None and (state.calibration_hash, state.version) == (cal.hash, version) else None


@functools.lru_cache(maxsize=256)
def _digest(names: tuple[str, ...], blame: tuple[str, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode([names, blame])).hexdigest()[:16]


@dataclass(frozen=True)
class Streams:
    """The e-values of one window, one per betting stream, for budget().

    names: stable id of each stream, e.g. "amount/location/+/1.0". blame: the feature (or other part) it speaks for.
    weight: its share of the detector's budget, summing to 1 or less. log_e: natural log of this window's e-value.
    z: the calibrated score behind it where there is one (for the shift test while an incident is open), else nan.
    """

    names: tuple[str, ...]
    blame: tuple[str, ...]
    weight: NDArray[np.float64]
    log_e: NDArray[np.float64]
    z: NDArray[np.float64]

    @property
    def key(self) -> str:
        """Digest of the bets' names and blame: running sums of other bets are not carried on."""
        return _digest(self.names, self.blame)


@dataclass(frozen=True)
class Detection:
    """One detector on one window (or one principal's stretch of the log). Larger `statistic` is always more abnormal.

    `event` is what an alert resting on it is about. `evidence` is JSON-ready and holds the per-feature arrays that the
    page shows. `log_e` is this window's evidence alone; running sums live in budget() and fuse().
    """

    detector: str
    family: Family
    event: Event
    subject: Subject
    window_us: tuple[int, int]
    statistic: float | None
    verdict: Verdict
    n: int
    p_value: float | None = None
    log_e: float | None = None
    threshold: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    streams: Streams | None = None
    severity: Severity | None = None  # of a fixed rule: what its incident begins with, if it is not that of the event
    known_us: int | None = None  # end of the window in which it was made, where that is not its own: labels come late


@dataclass(frozen=True)
class Evidence:
    """Per-event evidence about principals, columnar and in log order, for fuse(). All arrays have one length.

    principals: table of ids; code: index into it per event; row: index into the measured stretch; time_us: event time;
    log_e: natural log of the event's e-value, shape (events, bets): one column per bet r of the detector's mixture
    (negative for ordinary events). flag: whether the event itself looked abnormal. family: what the detector would call it.
    """

    detector: str
    family: Family
    principals: tuple[str, ...]
    code: NDArray[np.int32]
    row: NDArray[np.int64]
    time_us: NDArray[np.int64]
    log_e: NDArray[np.float64]
    flag: NDArray[np.bool_]
    details: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # row -> why, only for flagged rows, bounded
    columns: tuple[str, ...] = ()  # name of each column of log_e, "signal/bet"; shown as the detector's parts
    votes: NDArray[np.float64] | None = None  # (events, TECHNIQUES): what each event says about the technique, in nats
    traits: NDArray[np.uint8] | None = None  # (events, TRAITS): the level of each, UNTOLD where nothing is said
    alike: NDArray[np.uint8] | None = None  # (events,): 1 + place in LOOK_ALIKES of what it looks like, 0: nothing
    before: NDArray[np.uint8] | None = None  # (events, 2): what-ifs and samples that its caller sent just before it
    looks: NDArray[np.uint8] | None = None  # (events,): what it looks like, a bit per entry of LOOKS
    readings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # row -> what a gauge says of its caller
    links: NDArray[np.int64] | None = (
        None  # (k, 3): row, place in `principals` of another caller that it belongs with, and
    )
    # 1 + place in `columns` of a bet on the signal that says so; 0: a fact, such as a credential that both use
    ties: tuple[str, ...] = ()  # what may tie callers: "kind:digest" of a credential, an address, a network, a group
    tied: NDArray[np.int32] | None = None  # (events, kinds): places in `ties`, -1 for none
    young: NDArray[np.bool_] | None = None  # (events,): flagged beside peers, for want of a past of the caller's own


@dataclass(frozen=True)
class Measured:
    """What one call of measure() found. `state` goes into the next call."""

    state: State
    detections: Sequence[Detection] = ()
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Feedback:
    """What the deciders tell the next measure(): nothing is learnt from a window or principal under suspicion.

    Suspects are those known when a stretch begins. What is learnt of a caller may therefore depend on where the stretch
    ended in which its incident opened, on nothing else; detectors learn late to make little of it (detectors.habits).
    """

    frozen: bool = False  # an incident is open: the baseline must not move
    restart: bool = False  # an incident ended: evidence starts afresh
    suspects: frozenset[str] = frozenset()  # principals with an open AttackSuspected, or labelers, before the stretch
    told: frozenset[str] = frozenset()  # principals with an open TrafficAnomaly before the stretch
    changes_us: tuple[int, ...] = ()  # when people or pipelines said that the model changed (poisoning detectors only)


class Detector(Protocol):
    """One file, one registry line. Implementers are frozen dataclasses; fields are parameters with defaults."""

    name: ClassVar[str]
    family: ClassVar[Family]
    reads: ClassVar[str]  # "windows" (time windows) or "log" (consecutive stretches, per principal)
    version: ClassVar[int]  # of its calibrations and states: what another version made is made anew

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Learn from benign windows only. Raises CalibrationRefused with what the reference lacks."""
        ...

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Judge one window. Pure: inputs are untouched, the same inputs give the same bytes."""
        ...
