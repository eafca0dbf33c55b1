"""One table of answers for every sink that speaks HTTP: what each means for the alert."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from alerts.alerta import Alerta
from alerts.alertarows import payload
from alerts.base import Sink, SinkRejected, SinkSuppressed, SinkUnavailable, SinkUnknown
from tests.alerting import opened
from tests.servers import free_port
from tests.servers.proxy import Fault, Proxy, answers, endless, reset, running, silent

KEY = "canary-key-0123456789abcdef"
FIRST = opened()
SINKS: dict[str, Callable[[str], Sink]] = {  # every HTTP sink is listed here
    "alerta": lambda url: Alerta("alerta", url, KEY, timeout_s=0.5, allow_insecure=True),
}
ERROR = json.dumps({"status": "error", "message": "told so"})
HTML = "<html><body><h1>Bad Gateway</h1></body></html>"

TABLE: list[tuple[str, Fault, type[Exception]]] = [
    ("200 without a word", answers(200), SinkUnknown),
    ("200 with HTML", answers(200, HTML, kind="text/html"), SinkUnknown),
    ("200 with a list", answers(200, "[]"), SinkUnknown),
    ("200 that is ok but brings nothing back", answers(200, '{"status": "ok"}'), SinkUnknown),
    ("200 that says error", answers(200, ERROR), SinkUnknown),
    (
        "200 with another alert",
        answers(200, '{"status": "ok", "alert": {"resource": "x", "severity": "major"}}'),
        SinkUnknown,
    ),
    ("201 truncated", answers(201, '{"status": "o'), SinkUnknown),
    (
        "202 suppressed",
        answers(202, '{"status": "ok", "message": "Suppressed alert during blackout period"}'),
        SinkSuppressed,
    ),
    ("204", answers(204), SinkUnavailable),
    ("301", answers(301, head="Location: /elsewhere\r\n"), SinkUnavailable),
    ("302", answers(302, head="Location: http://127.0.0.1:1/alert\r\n"), SinkUnavailable),
    ("307", answers(307, head="Location: /alert\r\n"), SinkUnavailable),
    *(
        (f"{code}", answers(code, ERROR), SinkRejected)
        for code in (400, 401, 403, 404, 405, 409, 411, 413, 415, 422, 451)
    ),
    *((f"{code}", answers(code, ERROR), SinkUnavailable) for code in (408, 425, 429)),
    *((f"{code}", answers(code, ERROR), SinkUnknown) for code in (500, 501, 502, 503, 504, 507)),
    ("502 with HTML", answers(502, HTML, kind="text/html"), SinkUnknown),
    ("503 whose JSON lacks a status", answers(503, '{"message": "maintenance"}'), SinkUnknown),
    ("reset", reset, SinkUnknown),
    ("silence", silent(5), SinkUnknown),
    ("an answer without end", endless, SinkUnknown),
]


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with running(free_port()) as made:
        yield made


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize(("fault", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_answer_has_one_meaning(proxy: Proxy, sink: str, fault: Fault, expected: type[Exception]) -> None:
    """Accepted only with the alert in hand; rejected, suppressed, later or unknown otherwise; the key in no message."""
    proxy.plan(fault)
    asked = len(proxy.seen)
    with pytest.raises(expected) as raised:
        SINKS[sink](proxy.url).send(FIRST, timeout_s=5.0)
    assert type(raised.value) is expected
    assert KEY not in str(raised.value)
    assert len(proxy.seen) == asked + 1  # nothing was tried twice, and no redirect was followed


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("code", [200, 201])
def test_an_answer_with_the_alert_is_acceptance(proxy: Proxy, sink: str, code: int) -> None:
    """200 and 201 that say ok and bring the alert back are the only acceptance, and tell what is shown."""
    shows = {**payload(FIRST), "id": "r-1", "status": "ack", "history": []}
    proxy.plan(answers(code, json.dumps({"status": "ok", "id": "r-1", "alert": shows})))
    state = SINKS[sink](proxy.url).send(FIRST, timeout_s=5.0)
    assert state is not None
    assert (state.severity, state.status, state.remote_id) == ("major", "ack", "r-1")


@pytest.mark.parametrize("sink", SINKS)
def test_a_refused_connection_means_later(sink: str) -> None:
    """Nothing was sent, so nothing has to be asserted again."""
    with pytest.raises(SinkUnavailable):
        SINKS[sink](f"http://127.0.0.1:{free_port()}").send(FIRST, timeout_s=5.0)
