"""Pages and their JSON twin over a seeded store, without a browser."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from detectors.drift.marginals import BREAKS_EXPECTED
from monitor.model import Event, Subject
from monitor.store import alertlog, lookups
from monitor.store.engine import migrate, open_state, write
from monitor.web.assets import vendored
from tests import scenes

Browse = Callable[..., TestClient]


def addresses(engine: sa.Engine) -> list[str]:
    """Every page there is."""
    incidents = [f"/incidents/{i.alert_id}" for i in lookups.incidents(engine)[0]]
    model = "/models/card-fraud"
    fixed = [
        "/",
        model,
        f"{model}/feature?name=amount",
        f"{model}/report",
        f"{model}/reports",
        "/incidents?state=all",
        "/sources?reason=bad_json",
        "/models/credit-limit",
    ]
    ranges = [
        f"{model}?range={r}&measure={m}" for r, m in (("24h", "psi"), ("30d", "ks"), ("all", "missing"), ("x", "y"))
    ]
    return fixed + ranges + incidents


def test_every_page_answers_with_strict_headers(scene: sa.Engine, browse: Browse) -> None:
    """No page allows inline script, other hosts, frames or caching."""
    client = browse(scene)
    for address in [
        *addresses(scene),
        "/livez",
        "/readyz",
        "/metrics",
        "/nowhere",
        "/api/v1/models",
        "/api/v1/nowhere",
    ]:
        answer = client.get(address)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == (404 if "nowhere" in address else 200), address
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_pages_hold_no_inline_script_or_style(scene: sa.Engine, browse: Browse) -> None:
    """What the policy forbids is not there in the first place."""
    client = browse(scene)
    for address in addresses(scene):
        body = client.get(address).text
        assert " style=" not in body, address
        assert " onclick=" not in body
        assert body.count("<script") == (0 if address.endswith("/report") else 1)


def test_the_overview_says_how_every_model_stands(scene: sa.Engine, browse: Browse) -> None:
    """Worst first, with words beside the shapes."""
    body = browse(scene).get("/").text
    assert body.index("Attack suspected") < body.index("Incident open") < body.index("As usual")
    assert "3 models watched. 2 incidents open. Judged up to 2026-11-22 13:00 UTC." in body
    assert "Model extraction suspected" in body


def test_the_model_page_names_the_drifting_features(scene: sa.Engine, browse: Browse) -> None:
    """Features of an open incident are marked in words too."""
    body = browse(scene).get("/models/card-fraud").text
    assert body.count("named by an open incident") == 3
    assert "merchant_age_days" in body
    assert "version 3.2 of the feature pipeline" in body


def test_an_incident_says_whose_it_is_and_what_it_rests_on(scene: sa.Engine, browse: Browse) -> None:
    """Owner, versions and runbook stand on the incident, and who is on it; the list says the same."""
    client = browse(scene)
    (drift,) = [i for i in lookups.incidents(scene)[0] if i.event == "FeatureDrift"]
    body = client.get(f"/incidents/{drift.alert_id}").text
    for words in (
        "<dd>cards-ml</dd>",
        "<dd>marginals v4</dd>",
        "<dd>3.2</dd>",
        "Runbook: RB-12",
        "nobody is on it yet",
    ):
        assert words in body
    assert client.get(f"/api/v1/incidents/{drift.alert_id}").json()["incident"]["runbook"] == "RB-12"


def test_markup_from_logs_is_text_everywhere(hostile_scene: sa.Engine, browse: Browse) -> None:
    """No page lets a name from a log or from the configuration become markup, or shows a control character."""
    client = browse(hostile_scene, hostile=True)
    for address in addresses(hostile_scene):
        body = client.get(address).text
        assert "<img src=x" not in body, address
        assert "<script>alert" not in body, address
        assert not set("\u202e\x1b\x07\r") & set(body), address


def test_state_that_makes_no_sense_is_default(scene: sa.Engine, browse: Browse) -> None:
    """A mangled address still shows a page."""
    client = browse(scene)
    for query in (
        "until=soon",
        "until=9999-12-31T23:59:59Z",
        "until=0001-01-01T00:00:00Z",
        "features=all&range=%00",
        "live=off",
    ):
        assert client.get(f"/models/card-fraud?{query}").status_code == 200, query
    for query in ("state=x", "severity=x", "cursor=%ff", "cursor=!!", "q=" + "%25" * 300, "model=%27;--"):
        assert client.get(f"/incidents?{query}").status_code == 200, query
    assert client.get("/models/card-fraud/feature?name=").status_code == 200
    assert client.get("/models/card-fraud/feature").status_code == 422


def test_an_empty_store_has_pages_too(tmp_path: Path, browse: Browse) -> None:
    """Before the first event every page says what is missing and what to do."""
    engine = open_state(f"sqlite:///{tmp_path / 's.db'}")
    migrate(engine)
    client = browse(engine)
    assert "No model is configured yet" in client.get("/").text
    assert "Nothing is wrong" in client.get("/incidents").text
    assert "No source has delivered anything yet" in client.get("/sources").text
    assert client.get("/models/none").status_code == 404
    engine.dispose()


def test_only_loopback_names_are_answered_on_loopback(scene: sa.Engine, browse: Browse) -> None:
    """A name that someone points at 127.0.0.1 reads nothing; a service bound elsewhere answers to any name."""
    assert browse(scene).get("/", headers={"host": "evil.example"}).status_code == 421
    assert browse(scene).get("/", headers={"host": "localhost:8080"}).status_code == 200
    assert browse(scene, server={"bind": "0.0.0.0:8080"}).get("/", headers={"host": "lanner.bank"}).status_code == 200


def test_ready_means_the_store_answers(scene: sa.Engine, tmp_path: Path, browse: Browse) -> None:
    """The process may live while the store is not there."""
    assert browse(scene).get("/readyz").json() == {"ready": True, "checks": {"store": "ok"}}
    empty = open_state(f"sqlite:///{tmp_path / 'empty.db'}")
    client = browse(empty)
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    empty.dispose()


def test_metrics_are_counted_by_route_not_by_address(scene: sa.Engine, browse: Browse) -> None:
    """A scanner cannot fill the metrics with names of its own."""
    client = browse(scene)
    client.get("/incidents/some-id-of-a-scanner")
    text = client.get("/metrics").text
    assert 'route="/incidents/{alert_id}"' in text
    assert "scanner" not in text


def test_vendored_files_are_what_the_list_says() -> None:
    """Nothing in the vendor folder is unlisted, changed or without licence."""
    folder = resources.files("monitor.web") / "static" / "vendor"
    listed = {v["file"]: v for v in vendored()}
    assert {f.name for f in folder.iterdir()} == {*listed, "vendor.json"}
    for name, entry in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
        assert entry["version"]
        assert entry["license"]


def test_static_files_are_kept_for_ever_under_their_hash(scene: sa.Engine, browse: Browse) -> None:
    """The style sheet's name changes with its content, so it may be cached."""
    client = browse(scene)
    address = client.get("/").text.split('rel="stylesheet" href="')[1].split('"')[0]
    assert "immutable" in client.get(address).headers["cache-control"]
    assert client.get("/static/../app.py").status_code == 404


def test_the_json_twin_shows_what_the_page_shows(scene: sa.Engine, browse: Browse) -> None:
    """Models, windows, detections, histogram, incidents and sources are there as JSON."""
    client = browse(scene)
    names = {m["name"]: m for m in client.get("/api/v1/models").json()["items"]}
    assert names["credit-limit"]["status"] == "attack"
    assert names["card-fraud"]["open_incidents"] == {"major": 1}
    assert len(client.get("/api/v1/models/card-fraud/windows?range=24h").json()["items"]) == 48
    newest = client.get("/api/v1/models/card-fraud/detections").json()["items"][-1]
    assert {"name", "psi", "js"} <= set(newest["evidence"]["features"][0])
    assert client.get("/api/v1/models/card-fraud/feature?name=amount").json()["columns"][0] == "Bin"
    assert client.get("/api/v1/sources").json()["dead_letters"][0]["reason"] == "bad_json"


def test_incidents_page_by_cursor(scene: sa.Engine, browse: Browse) -> None:
    """Following `next` shows every incident once."""
    client = browse(scene)
    seen, address = [], "/api/v1/incidents?state=all&limit=1"
    while address:
        answer = client.get(address)
        seen += [i["alert_id"] for i in answer.json()["items"]]
        address = answer.links["next"]["url"] if "next" in answer.links else ""
    assert len(seen) == len(set(seen)) == 3


def test_every_incident_has_history_and_delivery(scene: sa.Engine, browse: Browse) -> None:
    """An incident tells its transitions and what each sink made of them."""
    client = browse(scene)
    (drift,) = client.get("/api/v1/incidents?event=FeatureDrift").json()["items"]
    detail = client.get(f"/api/v1/incidents/{drift['alert_id']}").json()
    assert [s["action"] for s in detail["history"]] == ["open", "update"]
    assert {d["sink"]: d["state"] for d in detail["deliveries"]}["chat"] == "dead"
    page = client.get(f"/incidents/{drift['alert_id']}").text
    assert "features joined: country, merchant_age_days" in page
    assert "refused for good" in page


def test_a_drift_incident_tells_who_and_why(scene: sa.Engine, browse: Browse) -> None:
    """Sizes in the feature's unit, whose rows it was, what looks broken, the version, the score, pictures, the mix."""
    client = browse(scene)
    (drift,) = client.get("/api/v1/incidents?event=FeatureDrift").json()["items"]
    page = client.get(f"/incidents/{drift['alert_id']}").text
    assert "Who and why" in page
    assert "82.4 QAR" in page
    assert "131 QAR" in page
    assert "+0.61 sd" in page
    assert "principal c-7f3a91 explains it 93%" in page
    assert "amount: unit x100 17%" in page
    assert "model version amount came with it" in page
    assert "score:fraud" in page
    assert "0.048" in page
    assert "20,000 events of the reference beside 1,400 since 2026-11-21 08:00 UTC" in page
    assert "reference 10.0%, current 30.0%" in page
    assert "<h3>Mix</h3>" in page
    assert "amount 58% (mean 82 to 130 QAR)" in page  # the alert's own text


def test_the_model_page_tells_the_mix_of_the_context(scene: sa.Engine, browse: Browse) -> None:
    """How the context's mix stands now, beside the reference's."""
    page = browse(scene).get("/models/card-fraud").text
    assert "Mix of the context in the newest window" in page
    assert '<th scope="row">channel:web</th><td class="num">0.5</td><td class="num">0.375</td>' in page


def test_the_model_page_and_its_twin_tell_the_smallest_shift_of_every_feature(scene: sa.Engine, browse: Browse) -> None:
    """In the feature's own unit, as a share of rows for a category, and when no shift shows; nothing where untold."""
    client = browse(scene, models={"card-fraud": {"features": {"amount": {"unit": "QAR"}}}})
    told = {f["feature"]: f["smallest"] for f in client.get("/api/v1/models/card-fraud/features").json()["items"]}
    assert (told["amount"], told["merchant_age_days"]) == ("0.25 QAR", "0.25")
    assert (told["country"], told["hour"]) == ("3.0% of rows", "none shows")
    for measure in ("evidence", "psi"):
        page = client.get(f"/models/card-fraud?features=all&measure={measure}").text
        shown = re.findall(r'<td class="least">([^<]*)</td>', page)
        assert sorted(shown) == sorted(told.values())


def test_the_model_page_and_its_twin_tell_every_segment(scene: sa.Engine, browse: Browse) -> None:
    """Name, rows, state with its reason, evidence of the most changed feature, and the smallest shift; none without."""
    client = browse(scene)
    told = {s["segment"]: s for s in client.get("/api/v1/models/card-fraud/segments").json()["items"]}
    assert set(told) == {"country:QA", "country:AE", "country:SA"}
    assert told["country:QA"]["state"] == "as usual"
    assert told["country:QA"]["evidence"] > 5
    assert told["country:QA"]["feature"]
    assert len(told["country:QA"]["smallest"]) == 3
    page = client.get("/models/card-fraud").text
    assert '<h2 id="h-segments">Segments</h2>' in page
    assert all(name in page for name in told)
    assert "Segments</h2>" not in client.get("/models/churn").text


def test_the_model_page_and_its_twin_list_who_is_held_back(scene: sa.Engine, browse: Browse) -> None:
    """Each caller once, newest first, with what was said last; nobody who turned out an attacker, nor who is out of range."""
    client = browse(scene)
    told = client.get("/api/v1/models/credit-limit/held_back").json()["items"]
    assert [(h["principal"], h["others"], h["queries"], h["flagged"]) for h in told] == [
        ("svc-a", 1, 900, 112), ("svc-b", 1, 900, 112), ("svc-lime", 0, 1024, 128),
    ]  # fmt: skip
    assert (told[2]["onset"], told[2]["time"]) == ("2026-11-22T07:00:00.000Z", "2026-11-22T09:00:00.000Z")
    page = client.get("/models/credit-limit").text
    table = page[page.index('<h2 id="h-held">Held back</h2>') :].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in table.split("<tr>")[2:]]
    assert " ".join(rows[0]).startswith("svc-a one with 1 more what_if, but 12% of its 900 queries")
    assert " ".join(rows[2]) == (
        "svc-lime explainer: 84 of 97 strange queries are samples around rows that it sent as they are "
        "1,024 128 2026-11-22 07:00 2026-11-22 09:00"
    )
    earlier = {"range": "24h", "until": "2026-11-22T08:00:00Z"}
    before = client.get("/api/v1/models/credit-limit/held_back", params=earlier).json()["items"]
    assert [(h["principal"], h["queries"]) for h in before] == [("svc-a", 32), ("svc-lime", 64)]
    assert "Held back" not in client.get("/models/card-fraud").text
    assert client.get("/api/v1/models/none/held_back").status_code == 404


def test_a_long_list_of_who_is_held_back_is_shown_in_part(
    scene: sa.Engine, browse: Browse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page says how many there are and shows them all to who asks; what is read is bounded."""
    client = browse(scene)
    monkeypatch.setattr("monitor.web.scope.HELD_SHOWN", 1)
    page = client.get("/models/credit-limit").text
    assert "svc-a</a>" in page
    assert "svc-b</a>" not in page
    assert '<a href="/models/credit-limit?held=all">Show all 3 callers</a>' in page
    assert "svc-lime</a>" in client.get("/models/credit-limit?held=all").text
    monkeypatch.setattr("monitor.store.held.MOST", 1)
    newest = client.get("/api/v1/models/credit-limit/held_back").json()["items"]
    assert [h["principal"] for h in newest] == ["svc-a", "svc-b"]  # one finding about both


def test_who_is_held_back_has_a_page_whatever_its_name(
    scene: sa.Engine, hostile_scene: sa.Engine, browse: Browse
) -> None:
    """The list links it, and it says what the list says; markup and controls in the name stay text on both."""
    for engine, names in (
        (scene, ("svc-a", "svc-b", "svc-lime")),
        (hostile_scene, [f"{scenes.HOSTILE}-{c}" for c in ("a", "b", "lime")]),
    ):
        client = browse(engine, hostile=engine is hostile_scene)
        page = client.get("/models/credit-limit").text
        links = re.findall(r'href="(/models/credit-limit/principal[^"]*)"', page[page.index('id="h-held"') :])
        assert [parse_qs(urlsplit(unescape(link)).query)["name"] for link in links[:3]] == [[n] for n in names]
        for link in links[:3]:
            answer = client.get(unescape(link))
            assert answer.status_code == 200
            assert '<h2 id="h-held">Held back</h2>' in answer.text
            assert "<img src=x" not in answer.text
            assert not set("\u202e\x1b\x07\r") & set(answer.text)


def test_whose_traffic_it_is_is_shown_on_the_models_page(scene: sa.Engine, browse: Browse) -> None:
    """How many callers, networks and labelers there are, and the share of the busiest of each."""
    page = browse(scene).get("/models/card-fraud").text
    table = page[page.index("Where the newest windows came from") :].split("</table>")[0]
    cells = re.sub(r"<[^>]+>", " ", table).split()
    for words, count, share in (("Callers", "12", "81%"), ("Networks", "3", "90%"), ("Labelers", "4", "62%")):
        assert cells[cells.index(words) + 1] == count
        assert share in cells[cells.index(words) :]
    assert "/principal?name=svc-" in table


def test_an_incident_of_a_segment_shows_the_evidence_of_the_segment(tmp_path: Path, browse: Browse) -> None:
    """Its chart is drawn from the segment's windows, so a segment that was never judged has none."""
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(engine)
    scenes.seed(engine, windows=24)
    with write(engine) as conn:
        (drift,) = [a for a in alertlog.open_alerts(conn) if a.event == "FeatureDrift"]
        told = {
            name: replace(drift, subject=Subject("segment", f"country:{name}"), alert_id=f"of-{name}")
            for name in ("QA", "ZZ")
        }
        alertlog.write(conn, list(told.values()), [], scenes.NOW_US)
    pages = {name: browse(engine).get(f"/incidents/{alert.alert_id}").text for name, alert in told.items()}
    assert "Running evidence of amount" in pages["QA"]
    assert "Running evidence of amount" not in pages["ZZ"]
    engine.dispose()


def test_a_break_of_one_window_tells_how_often_they_come(tmp_path: Path, browse: Browse) -> None:
    """The measured rate without any change stands among the key facts of its incident, not as a table of evidence."""
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(engine)
    scenes.seed(engine, windows=24)
    with write(engine) as conn:
        (drift,) = [a for a in alertlog.open_alerts(conn) if a.event == "FeatureDrift"]
        evidence = {"features": [{"name": "amount", "share": 1.0}], "expected": dict(BREAKS_EXPECTED)}
        broke = replace(drift, event=Event.DISTRIBUTION_BREAK, alert_id="broke", evidence=evidence, text="")
        alertlog.write(conn, [broke], [], scenes.NOW_US)
    page = browse(engine).get("/incidents/broke").text
    assert "<dt>Expected</dt><dd>Outside the budget: 0 to 3.6 in 720 windows are 3 times stranger" in page
    assert "shuffled rows 0" not in page
    engine.dispose()


def test_the_page_of_references_tells_what_moved(scene: sa.Engine, browse: Browse) -> None:
    """What most changed against the version that was in use before, beside who approved; the twin has the numbers."""
    client = browse(scene)
    page = client.get("/models/card-fraud/reports").text
    assert (
        "amount: JS 0.21, PSI 0.3, mean 20.5 to 27.2<br>country: JS 0.1, PSI 0.1, came amount<br>added: amount" in page
    )
    assert "against version 1" in page
    (version,) = client.get("/api/v1/models/card-fraud/references").json()["items"]
    assert version["compared"]["features"][0]["mean"] == [20.5, 27.25]


def test_errors_of_the_api_are_problem_documents(scene: sa.Engine, browse: Browse) -> None:
    """RFC 9457, for a missing thing and for a parameter that does not fit."""
    client = browse(scene)
    for address, status in (("/api/v1/models/none", 404), ("/api/v1/incidents?limit=0", 422), ("/api/v1/none", 404)):
        answer = client.get(address)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail"} == set(answer.json())


def test_openapi_describes_every_address(scene: sa.Engine, browse: Browse) -> None:
    """The description is OpenAPI 3.1, and every operation in it says what it answers."""
    spec = browse(scene).get("/api/v1/openapi.json").json()
    assert spec["openapi"].startswith("3.1")
    assert all({"200", "201"} & set(op["responses"]) for path in spec["paths"].values() for op in path.values())
    assert "/api/v1/incidents/{alert_id}" in spec["paths"]
    json.dumps(spec)
