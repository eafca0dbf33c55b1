"""Sinks against real receivers: what arrives, and what each way to fail means."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trustme
from aiosmtpd.controller import Controller

from alerts import ocsf
from alerts.base import SinkRejected, SinkUnavailable, SinkUnknown
from alerts.chat import Chat
from alerts.kafka import KafkaTopic, key, record
from alerts.ocsf import Webhook, finding
from alerts.syslog import Syslog, cef, message, tls
from monitor.errors import ConfigError
from monitor.model import Event, Family, Severity, Transition
from tests import servers
from tests.alerting import alert, cleared, opened, updated
from tests.servers import ROOT, free_port
from tests.servers import syslog as syslog_server

SECRET = "canary-secret-0123456789"
HOSTILE = "p|1=a\\b\n<script>]\x1b[31m\u202e@everyone"
SCHEMA = json.loads((ROOT / "tests/data/ocsf/detection_finding-1.5.0.json").read_text())


def story(subject: str = "p1") -> list[Transition]:
    """An incident from open to clear."""
    first = opened(subject)
    second = updated(first, severity=Severity.CRITICAL)
    return [first, second, cleared(second)]


# --- syslog -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def syslog_ng(tmp_path_factory: pytest.TempPathFactory) -> Iterator[syslog_server.SyslogNg]:
    server = syslog_server.start(tmp_path_factory.mktemp("syslog"))
    yield server
    server.stop()


def parsed(text: str) -> tuple[list[str], dict[str, str]]:
    """A reader of CEF by its specification, independent of the writer: header words and extension pairs."""
    words = re.split(r"(?<!\\)(?:\\\\)*\|", text, maxsplit=7)
    head = [re.sub(r"\\([\\|])", r"\1", w) for w in words[:7]]
    keys = list(re.finditer(r"(?:^|(?<=\s))(\w+)(?<!\\)=", words[7]))
    ends = [k.start() for k in keys[1:]] + [len(words[7]) + 1]
    pairs = {k[1]: words[7][k.end() : end - 1] for k, end in zip(keys, ends, strict=True)}
    plain = {"\\\\": "\\", "\\=": "=", "\\n": "\n"}
    return head, {k: re.sub(r"\\\\|\\=|\\n", lambda m: plain[m[0]], v) for k, v in pairs.items()}


@pytest.mark.parametrize("transport", ["tls", "tcp"])
def test_syslog_ng_understands_every_transition(syslog_ng: syslog_server.SyslogNg, transport: str) -> None:
    """One RFC 5424 message per transition, with its own priority, time and id, and CEF that reads back."""
    over_tls = transport == "tls"
    context = tls(syslog_ng.ca_file, None) if over_tls else None
    sink = Syslog("siem", "localhost", syslog_ng.tls if over_tls else syslog_ng.tcp, context, sender="lanner-1")
    steps = story(f"syslog-{transport}")
    for step in steps:
        sink.send(step, timeout_s=5)
    seen = syslog_ng.wait(steps[0].alert.alert_id, 3)
    seen = sorted(seen, key=lambda m: int(parsed(m["MESSAGE"])[1]["cn2"]))
    assert [int(m["PRI"]) for m in seen] == [14 * 8 + 3, 14 * 8 + 2, 14 * 8 + 6]
    for m, step in zip(seen, steps, strict=True):
        assert (m["HOST"], m["PROGRAM"], m["MSGID"]) == ("lanner-1", "lanner", "AttackSuspected")
        head, pairs = parsed(m["MESSAGE"])
        assert (head[0], head[1], head[4]) == ("CEF:0", "Lanner", "AttackSuspected")
        assert (pairs["externalId"], pairs["act"]) == (step.alert.alert_id, step.action.value)
        assert pairs["rt"] == str(step.time_us // 1000)


def test_hostile_names_stay_in_their_field(syslog_ng: syslog_server.SyslogNg) -> None:
    """A name with pipes, equals signs, line ends and escape sequences is one line and one field at the receiver."""
    sink = Syslog("siem", "localhost", syslog_ng.tls, tls(syslog_ng.ca_file, None))
    first = opened(HOSTILE, text="a=b|c\\d\nexternalId=forged e")
    sink.send(first, timeout_s=5)
    (m,) = syslog_ng.wait(first.alert.alert_id)
    head, pairs = parsed(m["MESSAGE"])
    assert len(head) == 7
    assert pairs["externalId"] == first.alert.alert_id
    assert pairs["msg"] == first.alert.text
    assert all(c.isprintable() for c in m["MESSAGE"])
    assert "<script>" not in m["MESSAGE"]
    assert cef(first) == m["MESSAGE"]


def test_a_syslog_that_cannot_be_trusted_gets_nothing(syslog_ng: syslog_server.SyslogNg, tmp_path: Path) -> None:
    """A certificate of someone else, or of another name: later, and not a byte of the alert was sent."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    first = opened("nobody-may-read")
    for host, ca in (("localhost", tmp_path / "other.pem"), ("127.0.0.1", syslog_ng.ca_file)):
        with pytest.raises(SinkUnavailable):
            Syslog("siem", host, syslog_ng.tls, tls(ca, None)).send(first, timeout_s=5)
    with pytest.raises(SinkUnavailable):
        Syslog("siem", "127.0.0.1", free_port()).send(first, timeout_s=5)
    assert not [m for m in syslog_ng.seen() if first.alert.alert_id in m["MESSAGE"]]
    with pytest.raises(ConfigError):
        Syslog("siem", "siem.example.org", 601)


@contextmanager
def rude(*, reset: bool) -> Iterator[int]:
    """A receiver that accepts and then breaks the connection, or says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            taken, _ = listener.accept()
            with taken:
                if reset:
                    taken.recv(1)  # not before the sender is connected and writes
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                else:
                    done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("reset", [True, False])
def test_a_syslog_that_did_not_read_to_the_end_is_unknown(reset: bool) -> None:
    """A reset or silence after the message was written: nobody knows."""
    with rude(reset=reset) as port, pytest.raises(SinkUnknown):
        Syslog("siem", "127.0.0.1", port, timeout_s=0.5).send(opened(), timeout_s=5)


def test_a_message_no_receiver_must_take_is_rejected() -> None:
    """Validation comes before sending."""
    with pytest.raises(SinkRejected):
        Syslog("siem", "127.0.0.1", 1).send(opened(text="x" * 9000), timeout_s=5)


# --- OCSF webhook -----------------------------------------------------------------------------------------------------


class Receiver(BaseHTTPRequestHandler):
    """Keeps what was posted; answers as told."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((dict(self.headers), body))  # type: ignore[attr-defined]
        status = self.server.status  # type: ignore[attr-defined]
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def receiving(certificate: trustme.LeafCert | None = None) -> Iterator[Any]:
    """A real HTTP(S) server on loopback: `url`, `seen`, `status`."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.seen, server.status, scheme = [], 200, "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    server.url = f"{scheme}://localhost:{server.server_address[1]}/in"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    authority = trustme.CA()
    with receiving(authority.issue_cert("localhost")) as server:
        server.ca = str(tmp_path_factory.mktemp("ca") / "ca.pem")
        authority.cert_pem.write_to_path(server.ca)
        yield server


def test_a_signed_finding_arrives_over_https(https: Any) -> None:
    """The receiver can check who sent it and when, and gets valid OCSF with one idempotency key per state."""
    sink = Webhook("siem", https.url, SECRET, ("localhost",), verify=https.ca, clock=lambda: 1_700_000_000.7)
    https.seen.clear()
    steps = story()
    for step in steps:
        sink.send(step, timeout_s=5)
    assert len(https.seen) == 3
    for (headers, body), step in zip(https.seen, steps, strict=True):
        at = headers["X-Lanner-Timestamp"]
        assert at == "1700000000"
        wanted = hmac.new(SECRET.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
        assert headers["X-Lanner-Signature"] == f"v1={wanted}"
        assert headers["Idempotency-Key"] == f"{step.alert.alert_id}:{step.alert.seq}"
        jsonschema.validate(json.loads(body), SCHEMA, cls=jsonschema.Draft202012Validator)
    assert [json.loads(b)["type_uid"] for _, b in https.seen] == [200401, 200402, 200403]


ATTACKS = [(Event.ATTACK_SUSPECTED, f) for f in (Family.EXTRACTION, Family.EVASION, Family.INVERSION)]
QUALITY = [(Event.FEATURE_DRIFT, Family.DRIFT), (Event.MONITOR_DEGRADED, Family.MONITOR)]


@pytest.mark.parametrize(("event", "family"), ATTACKS + QUALITY)
def test_every_kind_of_alert_is_a_valid_finding(event: Event, family: Family) -> None:
    """Valid against the published schema of OCSF 1.5.0, with hostile names and numbers JSON cannot carry."""
    made = alert(HOSTILE, event=event, family=family, customer=HOSTILE, statistic=float("nan"), p_value=float("inf"))
    body = json.loads(json.dumps(finding(opened(HOSTILE, event=event, family=family)), allow_nan=False))
    jsonschema.validate(body, SCHEMA, cls=jsonschema.Draft202012Validator)
    body = json.loads(json.dumps(finding(replace(opened(), alert=made)), allow_nan=False))
    jsonschema.validate(body, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert "<script>" not in json.dumps(body)
    assert body["unmapped"]["statistic"] is None


def test_the_schema_test_can_fail() -> None:
    """The vendored schema refuses unknown fields and wrong types."""
    for wrong in ({"nonsense": 1}, {"time": "now"}, {"severity_id": 17}):
        with pytest.raises(jsonschema.ValidationError):
            body = {**finding(opened()), **wrong}
            jsonschema.validate(body, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(301, SinkUnavailable), (307, SinkUnavailable), (429, SinkUnavailable), (400, SinkRejected), (401, SinkRejected),
     (413, SinkRejected), (500, SinkUnknown), (503, SinkUnknown)],
)  # fmt: skip
def test_what_a_webhook_answers(status: int, expected: type[Exception]) -> None:
    """One request each, no redirect followed, the secret in no message."""
    with receiving() as server:
        server.status = status
        with pytest.raises(expected) as raised:
            Webhook("siem", server.url, SECRET, ("localhost",)).send(opened(), timeout_s=5)
        assert len(server.seen) == 1
        assert SECRET not in str(raised.value) + repr(Webhook("siem", server.url, SECRET, ("localhost",)))


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_a_webhook_accepts_with_any_2xx(status: int) -> None:
    """Webhooks have no common answer: the status is all there is."""
    with receiving() as server:
        server.status = status
        Webhook("siem", server.url, SECRET, ("localhost",)).send(opened(), timeout_s=5)


def test_a_webhook_that_is_not_trusted_or_not_there(https: Any) -> None:
    """No connection, or a certificate of another authority: later."""
    with pytest.raises(SinkUnavailable):
        Webhook("siem", https.url, SECRET, ("localhost",)).send(opened(), timeout_s=5)
    with pytest.raises(SinkUnavailable):
        Webhook("siem", f"http://127.0.0.1:{free_port()}/", SECRET, ("127.0.0.1",)).send(opened(), timeout_s=5)


def test_a_name_that_leads_elsewhere_gets_nothing(https: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When DNS sends an allowed name to another server, its certificate is of another name: not a byte of the finding."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: real("127.0.0.1", *a, **k))
    https.seen.clear()
    url = https.url.replace("localhost", "siem.example.org")
    with pytest.raises(SinkUnavailable):
        Webhook("siem", url, SECRET, ("siem.example.org",), verify=https.ca).send(opened(), timeout_s=5)
    assert https.seen == []


@pytest.mark.parametrize(
    "url",
    ["http://siem.example.org/in", "https://evil.example/in", "https://user:pw@siem.example.org/", "file:///etc/passwd",
     "https://siem.example.org.evil.example/"],
)  # fmt: skip
def test_an_address_beyond_the_allow_list_is_refused(url: str) -> None:
    """Other hosts, schemes, users in the address and look-alikes are mistakes of the configuration."""
    with pytest.raises(ConfigError):
        Webhook("siem", url, SECRET, ("siem.example.org",))


def test_what_cannot_be_json_or_is_too_large_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation comes before sending, so nothing connects."""
    sink = Webhook("siem", "http://127.0.0.1:1/", SECRET, ("127.0.0.1",))
    with pytest.raises(SinkRejected):
        sink.send(opened(text="x" * ocsf.BODY_BYTES), timeout_s=5)
    with pytest.raises(SinkRejected):
        KafkaTopic("bus", "t", "127.0.0.1:1").send(opened(evidence={"x": float("nan")}), timeout_s=5)


# --- Kafka ------------------------------------------------------------------------------------------------------------


def test_a_topic_gets_every_transition_in_order(kafka: str) -> None:
    """Key = the incident's key, value = the replay line; in order."""
    from kafka import KafkaAdminClient, KafkaConsumer
    from kafka.admin import NewTopic

    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics([NewTopic("alert-transitions", 3, 1)])
    admin.close()
    sink = KafkaTopic("bus", "alert-transitions", kafka)
    steps = [*story("k1"), *story(HOSTILE)]
    for step in steps:
        sink.send(step, timeout_s=10)
    sink.close()
    consumer = KafkaConsumer(
        "alert-transitions", bootstrap_servers=kafka, auto_offset_reset="earliest", consumer_timeout_ms=8000
    )
    try:
        found = [next(consumer) for _ in steps]
    finally:
        consumer.close()
    for subject in ("k1", HOSTILE):
        mine = [t for t in steps if t.alert.subject.id == subject]
        got = [r for r in found if r.key == key(mine[0].alert)]
        assert [r.value for r in got] == [record(t) for t in mine]
        assert len({r.partition for r in got}) == 1
        assert json.loads(got[0].value) == json.loads(json.dumps(mine[0].to_json()))


def test_what_a_broker_refuses_or_does_not_answer(kafka: str) -> None:
    """No broker, no such topic: later. A name no topic can have or a record no broker takes: never."""
    with pytest.raises(SinkUnavailable):
        KafkaTopic("bus", "t", f"127.0.0.1:{free_port()}", timeout_s=1).send(opened(), timeout_s=2)
    missing = KafkaTopic("bus", "no-such-topic-here", kafka, timeout_s=2)
    with pytest.raises(SinkUnavailable):
        missing.send(opened(), timeout_s=2)
    missing.close()
    with pytest.raises(SinkRejected):
        KafkaTopic("bus", "t", kafka).send(opened(text="x" * 1_100_000), timeout_s=2)
    with pytest.raises(ConfigError):
        KafkaTopic("bus", "t", kafka, {"acks": 0})


# --- chat and mail ----------------------------------------------------------------------------------------------------


def test_apprise_posts_to_a_real_receiver() -> None:
    """Escaped text, a type that follows severity, success for a clear; nobody is called by name, nothing to click."""
    with receiving() as server:
        sink = Chat("chat", server.url.replace("http://", "json://"))
        for step in story("@everyone https://evil.example <img>"):
            sink.send(step, timeout_s=5)
        bodies = [json.loads(body) for _, body in server.seen]
    assert [b["type"] for b in bodies] == ["warning", "failure", "success"]
    assert bodies[2]["title"].startswith("CLEARED")
    assert not re.search(r"<img>|@everyone|https://", json.dumps(bodies, ensure_ascii=False))


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, SinkRejected), (404, SinkRejected), (429, SinkUnavailable), (302, SinkUnavailable), (500, SinkUnknown)],
)
def test_what_a_channel_answers(status: int, expected: type[Exception]) -> None:
    """The status decides; one request, no redirect, the address in no message."""
    with receiving() as server:
        server.status = status
        target = server.url.replace("http://", "json://").replace("/in", "/token-canary-1")
        with pytest.raises(expected) as raised:
            Chat("chat", target).send(opened(), timeout_s=5)
        assert len(server.seen) == 1
        assert "canary" not in str(raised.value) + repr(Chat("chat", target))


def test_a_channel_that_is_not_there_or_unknown() -> None:
    """Later; and an address that Apprise does not know is a mistake at once."""
    with pytest.raises(SinkUnavailable):
        Chat("chat", f"json://127.0.0.1:{free_port()}/").send(opened(), timeout_s=2)
    for target in ("nonsense://x", "no address", "syslog://"):
        with pytest.raises(ConfigError):
            Chat("chat", target)


class Mailbox:
    """What the SMTP server took."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802  aiosmtpd calls it so
        await asyncio.sleep(0)
        self.mails.append(envelope)
        return "250 OK"


def test_mail_arrives_at_a_real_smtp_server() -> None:
    """One mail per transition, with the headline as subject and no header of the attacker's."""
    box, port = Mailbox(), free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        target = f"mailto://127.0.0.1:{port}/?from=lanner@example.org&to=soc@example.org"
        first = opened("p1\r\nBcc: evil@example.org")
        Chat("mail", target).send(first, timeout_s=5)
    finally:
        controller.stop()
    servers.USED["aiosmtpd"] = f"127.0.0.1:{port}"
    (mail,) = box.mails
    assert mail.rcpt_tos == ["soc@example.org"]
    assert b"\nBcc:" not in mail.content.replace(b"\r", b"\n")
    assert b"Subject:" in mail.content


class Refusing(Mailbox):
    """A mail server that answers as told, to the recipient or to the mail."""

    def __init__(self, code: int, at: str) -> None:
        super().__init__()
        self.code, self.at = code, at

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        await asyncio.sleep(0)
        envelope.rcpt_tos.append(address)
        return f"{self.code} told so" if self.at == "recipient" else "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        await asyncio.sleep(0)
        return f"{self.code} told so" if self.at == "mail" else "250 OK"


@pytest.mark.parametrize("at", ["recipient", "mail"])
@pytest.mark.parametrize(("code", "expected"), [(550, SinkRejected), (554, SinkRejected), (451, SinkUnavailable)])
def test_mail_that_is_refused_for_good_is_not_tried_for_ever(code: int, expected: type[Exception], at: str) -> None:
    """5xx of a real SMTP server is never, 4xx is later; neither shows the address."""
    port = free_port()
    controller = Controller(Refusing(code, at), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        target = f"mailto://127.0.0.1:{port}/?from=lanner@example.org&to=canary@example.org"
        with pytest.raises(expected, match=str(code)) as raised:
            Chat("mail", target).send(opened(), timeout_s=5)
        assert "canary" not in str(raised.value)
    finally:
        controller.stop()


# --- all --------------------------------------------------------------------------------------------------------------


def test_the_header_of_syslog_is_ascii_and_bounded() -> None:
    """Whatever the names are."""
    raw = message(replace(opened(), alert=alert("ü" * 500, model="m" * 5000, customer=HOSTILE * 50)), "-")
    assert len(raw) < 4096
    assert raw.split(b"CEF:0", 1)[0].isascii()
