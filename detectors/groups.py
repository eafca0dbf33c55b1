"""Counts of one bucket by model version and by busy caller, beside those of the whole.

They are made once a bucket has ended, are never judged by themselves and take no part of any budget: versions are compared
with each other from them, and pages say how a caller's traffic differs from all other. Bounded: the four most frequent
versions, and the eight busiest callers with 200 rows and one row in fifty of the bucket. Like profiles they hold whole
numbers only, so longer windows are exact sums of shorter ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import pack, unpack
from detectors.binned import floats, number_codes
from detectors.expected import PARTS, Expected
from detectors.profile import Bins, Coded, Profile

AXES: Final[Mapping[str, str]] = {"version": "model_version", "caller": "principal"}
MOST: Final[Mapping[str, int]] = {"version": 4, "caller": 8}
CALLER_ROWS: Final = 200  # of a bucket that a caller needs,
CALLER_SHARE: Final = 0.02  # and its share of them
LONGEST_NAME: Final = 200  # characters; what is longer is no name
LATENCY_EDGES: Final = tuple(
    2.0 ** (k / 4) for k in range(-12, 81)
)  # milliseconds, a fifth apart: 0.1 ms to 17 minutes
LATENCY_SLOTS: Final = len(LATENCY_EDGES) + 2

Key = tuple[str, str]  # axis, name


@dataclass(frozen=True)
class Group:
    """Counts of the rows of one version or caller.

    latency (LATENCY_SLOTS,): events by latency, the last slot those without; answers (PARTS, slots of answers): counts of
    answers by what the inputs let expect (detectors.expected), of versions only.
    """

    axis: str
    name: str
    counts: Profile
    latency: NDArray[np.int64]
    answers: NDArray[np.int64]

    @property
    def key(self) -> Key:
        return self.axis, self.name

    def merge(self, other: Group) -> Group:
        """Both sets of rows together; exact."""
        return replace(
            self, counts=self.counts.merge(other.counts), latency=self.latency + other.latency,
            answers=self.answers + other.answers,
        )  # fmt: skip


def output_slots(bins: Bins) -> NDArray[np.int64]:
    """Slots of a profile that count answers, in order."""
    spans = [np.arange(bins.offsets[i], bins.offsets[i + 1]) for i, f in enumerate(bins.features) if f.is_output]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)


def tally(rows: pa.Table, weight: NDArray[np.int64] | None) -> dict[Key, tuple[int, int]]:
    """Logged rows of every version and caller, and the events that they stand for."""
    found: dict[Key, tuple[int, int]] = {}
    events = pa.array(np.ones(rows.num_rows, np.int64) if weight is None else weight)
    for axis, column in AXES.items():
        if column not in rows.column_names:
            continue
        named = pa.table({"name": rows[column].cast(pa.string()), "events": events})
        for r in named.group_by("name").aggregate([("events", "count"), ("events", "sum")]).to_pylist():
            if r["name"] is not None and len(r["name"]) <= LONGEST_NAME:
                found[axis, r["name"]] = (r["events_count"], r["events_sum"])
    return found


def chosen(tallied: Mapping[Key, tuple[int, int]], rows: int) -> list[Key]:
    """Who gets counts of his own in a bucket of so many rows, the most frequent first.

    >>> chosen({("caller", "a"): (500, 500), ("caller", "b"): (199, 900), ("version", "1"): (3, 3)}, 700)
    [('version', '1'), ('caller', 'a')]
    """
    order = sorted(tallied, key=lambda k: (-tallied[k][1], k))
    callers = [
        k for k in order if k[0] == "caller" and tallied[k][0] >= max(CALLER_ROWS, CALLER_SHARE * rows)
    ]  # fmt: skip
    return [k for k in order if k[0] == "version"][: MOST["version"]] + callers[: MOST["caller"]]


def count(coded: Coded, rows: pa.Table, expected: Expected, wanted: Iterable[Key]) -> list[Group]:
    """Counts of each of these versions and callers among coded rows."""
    made, outputs = [], output_slots(coded.bins)
    part = expected.parts(coded)
    slow = number_codes(floats(rows, "latency_ms"), LATENCY_EDGES)
    places = np.full(int(coded.bins.offsets[-1]), -1, np.int64)
    places[outputs] = np.arange(len(outputs))
    mine = [i for i, f in enumerate(coded.bins.features) if f.is_output]
    for axis, name in wanted:
        at = np.flatnonzero(np.asarray(pc.fill_null(pc.equal(rows[AXES[axis]].cast(pa.string()), name), False)))
        if not len(at):
            continue
        weight = np.ones(len(at), np.int64) if coded.weight is None else coded.weight[at]
        counts, answers = coded.take(at).count(0, len(at)), np.zeros((PARTS, len(outputs)), np.int64)
        if axis == "version":
            for i in mine:
                np.add.at(answers, (part[at], places[coded.codes[i, at]]), weight)
        else:
            counts = _whole_only(counts)
        latency = np.zeros(LATENCY_SLOTS, np.int64)
        np.add.at(latency, slow[at], weight)
        made.append(Group(axis, name, counts, latency, answers))
    return made


def merged(groups: Iterable[Group]) -> dict[Key, Group]:
    """One group per version and caller."""
    found: dict[Key, Group] = {}
    for g in groups:
        found[g.key] = found[g.key].merge(g) if g.key in found else g
    return found


def save(groups: Sequence[Group], events: int) -> bytes:
    """The groups of one bucket of so many events. Who has sent all of them is stored without counts: they are the whole's."""
    bodies = []
    for g in groups:
        sparse = np.flatnonzero(g.answers)
        arrays = {"latency": g.latency, "at": sparse, "answers": g.answers.ravel()[sparse]}
        own = b"" if g.counts.n == events else g.counts.to_bytes()
        bodies.append(pack({"axis": g.axis, "name": g.name, "shape": g.answers.shape, "counts": own}, arrays))
    return zlib.compress(msgspec.msgpack.encode(bodies), 1)


def load(raw: bytes, whole: Profile, axis: str) -> list[Group]:
    """The groups of a bucket along one axis; `whole`: the bucket's own counts."""
    found = []
    for body in msgspec.msgpack.decode(zlib.decompress(raw)):
        meta, a = unpack(body)
        if meta["axis"] != axis:
            continue
        answers = np.zeros(int(np.prod(meta["shape"])), np.int64)
        answers[a["at"]] = a["answers"]
        counts = Profile.from_bytes(meta["counts"], whole.bins) if meta["counts"] else whole
        counts = _whole_only(counts) if axis == "caller" else counts
        found.append(Group(meta["axis"], meta["name"], counts, a["latency"], answers.reshape(meta["shape"])))
    return found


def _whole_only(counts: Profile) -> Profile:
    """Without the rows of segments and cells: nobody asks for those of one caller."""
    return replace(counts, parts=counts.parts[:0], part_cross=counts.part_cross[:0])


def each(axis: str, stored: Iterable[tuple[int, bytes, bytes]], bins: Bins) -> Iterator[tuple[int, Group]]:
    """Groups along one axis of stored buckets (start, counts of the whole, groups); those on other bins are left out."""
    for start, body, raw in stored:
        whole = Profile.from_bytes(body, bins)
        if whole.key == bins.key:
            yield from ((start, g) for g in load(raw, whole, axis) if g.counts.key == bins.key)
