"""Joining halves that waited as rows, on SQLite and PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitor.errors import FencedOut
from monitor.model import Half
from monitor.store import leases, pairing
from monitor.store.engine import read
from monitor.store.eventlog import EventLog
from monitor.store.pairing import pair
from monitor.store.schema import halves
from monitor.store.schema import leases as lease_rows
from tests.eventlogs import MODEL, NOON_US, Store, event, store

MINUTE_US = 60_000_000
TIMEOUT_US = 15 * MINUTE_US


@pytest.fixture
def it(state_url: str, tmp_path: Path) -> Iterator[Store]:
    """A fresh event log."""
    with store(state_url, tmp_path) as fresh:
        yield fresh


def half(side: str, key: str, ms: int, **fields: Any) -> Half:
    """One side of an exchange."""
    usual: dict[str, Any] = {"features": None} if side == "response" else {}
    return Half(side=side, pair_key=key, event=event(ms, **{"request_id": key, **usual, **fields}))


def request(key: str, ms: int, **fields: Any) -> Half:
    return half("request", key, ms, **fields)


def response(key: str, ms: int, **fields: Any) -> Half:
    return half("response", key, ms, **{"prediction": f"a{ms}", **fields})


def run(it: Store, minutes: float = 0) -> list[tuple[Any, ...]]:
    """Pair, publish, and list (request id, prediction, latency, status, flags) of all rows."""
    now_us = it.now_us + round(minutes * MINUTE_US)
    pair(it.log, now_us, TIMEOUT_US, "me")
    it.publisher.publish(MODEL.model_id, now_us)
    rows = it.read("request_id", "prediction_label", "latency_ms", "status", "quality")
    return sorted((tuple(map(str, r.values())) for r in rows.to_pylist()), key=str)


def waiting(it: Store) -> int:
    """Halves that still wait."""
    with read(it.engine) as conn:
        return conn.scalar(sa.select(sa.func.count()).select_from(halves)) or 0


def test_halves_meet_whatever_came_first(it: Store) -> None:
    """A request and its response make one event, in any order of arrival, and nothing is left."""
    it.append([request("a", 0), response("b", 7)])
    assert run(it) == []
    it.append([response("a", 5), request("b", 4)])
    assert run(it) == [("a", "a5", "5.0", "ok", "[]"), ("b", "a7", "3.0", "ok", "[]")]
    assert waiting(it) == 0


def test_what_nobody_answers_becomes_an_event_when_its_time_is_up(it: Store) -> None:
    """After the timeout a request is unanswered and a response has no request; both are flagged and counted once."""
    it.append([request("a", 0), response("b", 0)])
    assert run(it, 14) == []
    wanted = [
        ("a", "None", "None", "unanswered", "['missing_response']"),
        ("b", "a0", "None", "ok", "['missing_request']"),
    ]
    assert run(it, 16) == wanted
    assert run(it, 17) == wanted


def test_a_pinned_id_pairs_with_the_nearest_later_response(it: Store) -> None:
    """A caller who sends one id for ever still gets one event a request, and a lost answer shifts nothing."""
    it.append([request("x", ms) for ms in (0, 10, 20, 30)])
    it.append([response("x", ms) for ms in (1, 21, 31)])
    answered = run(it)
    assert [r[1:3] for r in answered] == [("a1", "1.0"), ("a21", "1.0"), ("a31", "1.0")]
    assert waiting(it) == 1
    assert [r[3] for r in run(it, 20)].count("unanswered") == 1


def test_a_response_older_than_its_request_is_clock_skew(it: Store) -> None:
    """Alone with one request it is its answer; among several, it is taken once the time is up."""
    it.append([request("a", 10), response("a", 8)])
    assert [r[1] for r in run(it)] == ["a8"]
    it.append([request("b", 10), request("b", 11), response("b", 8)])
    assert len(run(it)) == 1
    assert [(r[1], r[3]) for r in run(it, 20)][1:] == [("None", "unanswered"), ("a8", "ok")] or waiting(it) == 0


def test_a_producers_duplicate_makes_no_second_event(it: Store) -> None:
    """The same half at another offset is dropped when its exchange is complete."""
    it.append([request("a", 0), request("a", 0), response("a", 5), response("a", 5)])
    assert [r[1] for r in run(it, 20)] == ["a5"]
    assert waiting(it) == 0


def test_rows_of_one_exchange_pair_by_index(it: Store) -> None:
    """The rows of a batch request are answered by the rows of its response."""
    it.append([request("a", 0, row_index=i) for i in range(3)])
    it.append([response("a", 1, row_index=i, prediction=f"p{i}") for i in (2, 0, 1)])
    assert [r[1] for r in run(it)] == ["p0", "p1", "p2"]


@pytest.mark.parametrize("at", ["file_written", "in_transaction"])
def test_a_crash_while_pairing_changes_nothing(it: Store, at: str) -> None:
    """A pairer that ends before its commit leaves all halves for the next one."""
    it.append([request("a", 0), response("a", 5)])

    def hook(point: str) -> None:
        if point == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pair(EventLog(it.engine, it.root, {"fraud": MODEL}, hook), it.now_us, TIMEOUT_US, "me")
    assert waiting(it) == 2
    assert len(run(it)) == 1


def test_two_pairers_never_take_the_same_half(it: Store) -> None:
    """While one holds the lease the other does nothing; one that lost its lease in the middle is refused."""
    it.append([request("a", 0), response("a", 5)])
    late_us = it.now_us + pairing.LEASE_US + 1

    def take_over(point: str) -> None:
        if point == "file_written":
            assert pair(it.log, it.now_us, TIMEOUT_US, "other") == 0
            assert leases.acquire(it.engine, pairing.LEASE, "other", late_us, 1) is not None

    with pytest.raises(FencedOut):
        pair(EventLog(it.engine, it.root, {"fraud": MODEL}, take_over), it.now_us, TIMEOUT_US, "me")
    assert waiting(it) == 2
    assert it.files() == set()
    assert pair(it.log, late_us + 2, TIMEOUT_US, "third") == 1


def test_any_order_and_any_cut_gives_every_exchange_once(it: Store) -> None:
    """Random arrival, random passes, a flood on one id: each exchange makes one event."""
    rng = random.Random(11)
    parts = [request(f"k{i}", i * 10) for i in range(60)] + [response(f"k{i}", i * 10 + 3) for i in range(60)]
    parts += [request("flood", i * 10) for i in range(40)] + [response("flood", i * 10 + 2) for i in range(40)]
    rng.shuffle(parts)
    while parts:
        cut = rng.randint(1, 25)
        it.append(parts[:cut])
        del parts[:cut]
        if rng.random() < 0.3 and not any(p.pair_key == "flood" for p in parts):
            pair(it.log, it.now_us, TIMEOUT_US, "me")
    rows = run(it)
    assert len(rows) == 100
    assert {r[2] for r in rows if r[0] != "flood"} == {"3.0"}
    assert waiting(it) == 0


def test_no_halves_cost_no_lease(it: Store) -> None:
    """Pairing nothing writes nothing."""
    assert pair(it.log, NOON_US, TIMEOUT_US, "me") == 0
    with read(it.engine) as conn:
        assert conn.execute(sa.select(lease_rows)).all() == []
