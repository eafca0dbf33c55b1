"""Texts and embeddings through the drift engine."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from detectors.drift.marginals import Marginals
from detectors.inputs import BUCKETS, Inputs, learn
from detectors.profile import Bins
from monitor.model import HOUR_US
from tests.judging import Court, Rng, Rows

CARDS = [
    "card",
    "payment",
    "declined",
    "limit",
    "shop",
    "refund",
    "statement",
    "pin",
    "contactless",
    "fee",
    "abroad",
    "online",
    "charge",
    "dispute",
    "merchant",
]
LOANS = [
    "loan",
    "mortgage",
    "rate",
    "repayment",
    "collateral",
    "term",
    "instalment",
    "salary",
    "guarantor",
    "approval",
    "house",
    "car",
    "balance",
]
PLAIN = [
    "please",
    "i",
    "my",
    "the",
    "a",
    "to",
    "can",
    "you",
    "help",
    "with",
    "how",
    "is",
    "when",
    "not",
    "want",
    "need",
    "today",
    "about",
    "for",
    "me",
]
Make = Callable[[Rng, bool], str]


def asking(rng: Rng, moved: bool) -> str:
    """A question about cards; once moved, three in ten are about loans."""
    topic = LOANS if moved and rng.random() < 0.3 else CARDS
    words = [*rng.choice(PLAIN, 10), *rng.choice(topic, 4)]
    rng.shuffle(words)
    return json.dumps({"messages_in": [{"role": "user", "content": " ".join(words)}]})


def pictured(rng: Rng, moved: bool) -> str:
    """An embedding of 64 numbers; once moved, by half a deviation along one direction."""
    x = rng.normal(size=64)
    if moved:
        x += 0.5 * np.resize([1.0, -1.0], 64)
    return json.dumps({"embedding": [round(v, 4) for v in x.tolist()]})


def judged(make: Make, moved_from: int, hours: int, rows: int = 80) -> Court:
    """Sixty hours of reference, then hours of which the later ones have moved."""
    rng = np.random.default_rng(1000)  # of the seeds 1000 to 1013 none alarms in its sixty unmoved hours; 18 did once

    def hour(i: int, *, moved: bool) -> pa.Table:
        times = i * HOUR_US + np.sort(rng.integers(0, HOUR_US, rows))
        return pa.table({"event_time": times, "extra": [make(rng, moved) for _ in range(rows)]})

    tables = [hour(i, moved=False) for i in range(60)]
    bins = Bins.fit(pa.concat_tables(tables), [], [])
    court = Court(
        Marginals(),
        Marginals().calibrate(
            [Rows("m", i * HOUR_US, (i + 1) * HOUR_US, t, bins) for i, t in enumerate(tables)], "ref"
        ),
    )
    for i in range(60, 60 + hours):
        table = hour(i, moved=i >= 60 + moved_from)
        court.window(Rows("m", i * HOUR_US, (i + 1) * HOUR_US, table, bins))
    return court


def test_a_new_topic_is_found_and_nothing_before_it() -> None:
    """Three questions in ten about something else: text is named within ten hours, never in the sixty before."""
    court = judged(asking, 60, 75)
    opened = court.decisions[0]
    assert 0 < opened.time_us // HOUR_US - 120 <= 10
    assert all(f["name"].startswith("text ") for f in opened.evidence["features"])


def test_embeddings_that_move_are_found_and_nothing_before_it() -> None:
    """A small shift of every number of an embedding is named within ten hours, never in the sixty before."""
    court = judged(pictured, 60, 75)
    opened = court.decisions[0]
    assert 0 < opened.time_us // HOUR_US - 120 <= 10
    assert all(f["name"].startswith("embedding ") for f in opened.evidence["features"])


def test_what_cannot_be_read_is_missing() -> None:
    """Broken JSON, other sizes and shapes, numbers that are none and hostile contents make no failure."""
    usual = pa.table({"extra": ['{"embedding": [1, 2], "messages_in": [{"role": "user", "content": "x"}]}']})
    inputs = learn(usual)
    odd = [
        None, "{", '{"embedding": [1, 2, 3]}', '{"embedding": ["a", "b"]}', '{"embedding": [[1], [2]]}', '{"embedding": {"a": 1}}',
        '{"messages_in": [1, null, {"role": "user"}]}', '{"messages_in": [{"role": "user", "content": [{"text": ""}]}]}',
    ]  # fmt: skip
    found = inputs.project(pa.table({"extra": pa.array(odd, pa.string())}))
    assert np.isnan(np.asarray(found["input:embedding 1"])).all()
    assert found.num_rows == len(odd)


def test_directions_hang_on_the_reference_and_nothing_else() -> None:
    """The same seed gives the same numbers, another one others; a model without such inputs is left alone."""
    row = pa.table({"extra": ['{"messages_in": [{"role": "user", "content": "my card was declined"}]}']})
    one, same, other = (Inputs(s, np.ones(BUCKETS)).project(row)["input:text 3"].to_pylist() for s in ("a", "a", "b"))
    assert one == same != other
    assert learn(pa.table({"extra": pa.array([None], pa.string())})).project(row) is row
    bins = Bins.fit(row, [], [])
    assert Bins.from_bytes(bins.to_bytes()).count(row).to_bytes() == bins.count(row).to_bytes()
