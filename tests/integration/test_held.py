"""Whoever looks like a tool through the whole service: held back, suggested, and seen on its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient

from monitor.config import load
from monitor.service.compose import open_service
from monitor.web import create_app
from tests.scenes import HOSTILE

LANNER = Path(sys.executable).parent / "lanner"
START_MS = 1_790_000_000_000
NAMES = [f"x{j}" for j in range(6)]
TOLD = ("look_alike", "queries", "flagged", "onset", "time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged log: customers, an explainer that draws whole columns about three cases, a thief who draws over the ranges,
    one who begins like the explainer, and an explainer with markup and controls for a name.
    """
    where, rng = tmp_path_factory.mktemp("held"), np.random.default_rng(11)
    mixing = rng.normal(size=(2, 6))

    def honest(n: int) -> Any:
        return (rng.normal(size=(n, 2)) @ mixing + rng.normal(0, 0.2, (n, 6))).round(4)

    reference = honest(2000)
    cases = [np.concatenate([honest(1), rng.permuted(reference, axis=0)[:100]]) for _ in range(3)]
    sent = {f"client-{k}": honest(40) for k in range(4)}
    thief = rng.uniform(reference.min(0), reference.max(0), (200, 6)).round(4)
    sent |= {"explainer": np.concatenate(cases), "thief": thief, "turner": np.concatenate([cases[0], thief[::-1]])}
    others = [np.concatenate([honest(1), rng.permuted(reference, axis=0)[:100]]) for _ in range(3)]
    sent[HOSTILE] = np.concatenate(others)
    timed = [
        (START_MS + 20_000 * i + k, {"model": "m", "principal": who, "features": dict(zip(NAMES, row, strict=True))})
        for k, (who, rows) in enumerate(sent.items())
        for i, row in enumerate(rows.tolist())
    ]
    events = [{**fields, "event_time": at_ms} for at_ms, fields in sorted(timed, key=lambda e: e[0])]
    (where / "ref.jsonl").write_text(
        "\n".join(json.dumps({"features": dict(zip(NAMES, r, strict=True))}) for r in reference.tolist())
    )
    (where / "log.jsonl").write_text("\n".join(json.dumps(e) for e in events))
    source = {"type": "files", "paths": ["log.jsonl"], "follow": False}
    written = {
        "models": {"m": {"reference": {"file": "ref.jsonl"}}}, "clock": "log", "privacy": {"principals": "plain"},
        "sources": {"old": source},
    }  # fmt: skip
    (where / "lanner.yaml").write_text(json.dumps(written))
    for words in (("collect", "--once"), ("check",)):
        done = subprocess.run([LANNER, *words], cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return where


def test_a_tool_opens_no_incident_and_is_suggested(folder: Path) -> None:
    """The thieves have incidents, whatever they began like; the explainers have none, and an entry that says what they do."""
    service = open_service(load(folder / "lanner.yaml"), "test")
    client = TestClient(create_app(service.config, service.engine, log=service.log), base_url="http://127.0.0.1")
    open_now = client.get("/api/v1/incidents").json()["items"]
    assert {i["subject"]["id"] for i in open_now if i["event"] == "AttackSuspected"} == {"thief", "turner"}
    said = client.get("/api/v1/models/m/principal", params={"name": "explainer"}).json()
    assert said["incident"] is None
    assert said["held_back"]["look_alike"]["profile"] == "explainer"
    page = client.get("/models/m/principal", params={"name": "explainer"}).text
    assert "Held back" in page
    assert said["held_back"]["look_alike"]["why"].split(";")[0] in page
    for name in ("thief", "turner"):
        assert "Held back" not in client.get("/models/m/principal", params={"name": name}).text
    service.close()
    done = subprocess.run(
        [LANNER, "principals", "suggest", "m", "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    found = {p["name"]: p for p in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"explainer", HOSTILE}
    assert (found["explainer"]["profile"], found["explainer"]["incident"]) == ("explainer", None)


def test_the_models_page_lists_who_is_held_back(folder: Path) -> None:
    """With what is said on each caller's own page, which it links; nobody with an incident; a name is text whatever it holds."""
    service = open_service(load(folder / "lanner.yaml"), "test")
    client = TestClient(create_app(service.config, service.engine, log=service.log), base_url="http://127.0.0.1")
    told = {h["principal"]: h for h in client.get("/api/v1/models/m/held_back").json()["items"]}
    assert set(told) == {"explainer", HOSTILE}
    page = client.get("/models/m").text
    table = page[page.index('<h2 id="h-held">') :].split("</table>")[0]
    assert "<img src=x" not in page
    assert not set("\u202e\x1b\x07\r") & set(page)
    linked = {parse_qs(urlsplit(a).query)["name"][0]: a for a in map(unescape, re.findall(r'href="([^"]+)"', table))}
    assert set(linked) == set(told)
    for name, address in linked.items():
        own = client.get(f"/api/v1{address}").json()["held_back"]
        assert told[name] == {"principal": name, "others": 0} | {k: own[k] for k in TOLD}
        assert own["look_alike"]["why"] in table
        assert '<h2 id="h-held">' in client.get(address).text
    before = {"range": "24h", "until": told["explainer"]["onset"]}
    assert client.get("/api/v1/models/m/held_back", params=before).json()["items"] == []
    assert "Held back" not in client.get("/models/m", params=before).text
    service.close()


def test_a_replay_says_who_is_held_back(folder: Path) -> None:
    """On stderr, beside the counts; stdout has the incidents."""
    done = subprocess.run(
        [LANNER, "replay", "--json", "log.jsonl"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "held back on m: explainer looks like explainer: " in done.stderr
    assert "turner looks like" not in done.stderr
    assert {json.loads(x)["subject"]["id"] for x in done.stdout.splitlines()} == {"thief", "turner"}
