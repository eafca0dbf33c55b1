"""What is quoted from a log can do no harm where an alert is shown."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts import lifecycle
from alerts.alertarows import payload, resource
from alerts.ocsf import finding
from alerts.policy import SEVERITY, Named, Policy, policy
from alerts.syslog import cef
from alerts.techniques import table, techniques
from alerts.text import LINE_CHARS, duration, number, render, shown
from detectors.base import LOOK_ALIKES, LOOKS
from detectors.decide.naming import Tool, bound, look_alike
from monitor.config import Config
from monitor.model import UNREGISTERED, Action, Decision, Event, Family, Subject
from tests.alerting import alert, attack, drift, missing, opened
from tests.servers import ROOT

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg/onload=alert(1)>', "{{7*7}}", "javascript:alert(1)",
    "=cmd|' /C calc'!A0", "\x1b[2J\x1b[31mFORGED", "a\r\nb: forged", "\u202egnp.exe", "\u2028line", "\x00nul", "&lt;b&gt;",
    "' OR 1=1 --", "`id`", "$(id)", "%3Cscript%3E", "\ud800", "a" * 5000, "\u200b\ufeffhidden", "<!--", "]]>",
]  # fmt: skip


def harmless(text: str) -> bool:
    """No markup, no control, format or surrogate character."""
    return not set(text) & set("<>&\"'`$={}") and not any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text
    )


def test_a_suspect_that_may_be_a_tool_is_called_one() -> None:
    """The text of such a warning says which tool and how much of the traffic it explains; other alerts say nothing of it."""
    told = Tool("explainer", 84, 97).told()
    text = render(alert(evidence={"look_alike": told, "queries": 97}), Action.OPEN, tier=2)
    assert "looks like a tool (explainer): 84 of 97 strange queries are samples around rows" in text
    assert max(map(len, text.splitlines())) <= LINE_CHARS
    assert "looks like a tool" not in render(
        alert(evidence={"look_alike": look_alike(Family.EVASION)}), Action.OPEN, tier=2
    )


def test_why_an_incident_is_not_more_severe_yet_is_told() -> None:
    """The reason for a bound on the severity, unless it is the tool that the text names anyway."""
    few = bound(12, 20, [0] * len(LOOK_ALIKES), [0] * len(LOOKS))
    assert few is not None
    evidence = {"look_alike": look_alike(Family.EVASION), "bounded": few.why}
    text = render(alert(evidence=evidence), Action.OPEN, tier=2)
    assert "not more severe yet: fewer than 100 queries speak against it" in text
    tool = {"look_alike": Tool("explainer", 84, 97).told(), "bounded": Tool("explainer", 84, 97).why}
    assert "not more severe yet" not in render(alert(evidence=tool), Action.OPEN, tier=2)


def test_exposure_of_a_cluster_is_told_as_bounds() -> None:
    """Members may share rows and were read at different times; without a reading nothing is said."""
    cluster = {"principals": ["a", "b"], "queries": 136, "exposure": {"kappa": 0.4, "distinct_rows": 128, "callers": 2}}
    text = render(alert(evidence=cluster), Action.OPEN, tier=2)
    assert "136 queries; exposure last read: at most 128 rows, kappa at least 0.4; first seen" in text
    assert harmless(text.replace("\n", " "))
    for nothing in ({}, {"exposure": "x"}, {"exposure": {"kappa": 0.4, "distinct_rows": None}}):
        assert "exposure" not in render(alert(evidence=nothing), Action.OPEN, tier=2)


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_words_are_spelled_out(word: str) -> None:
    """Markup, controls and marks of direction appear as escapes, bounded in length."""
    assert harmless(shown(word))
    assert len(shown(word)) <= 80


@given(st.text(max_size=60))
def test_any_word_is_harmless(word: str) -> None:
    """Whatever a log says, what is shown has no active character."""
    assert harmless(shown(word))


@given(st.text(max_size=30), st.text(max_size=30))
def test_different_subjects_stay_different_resources(one: str, other: str) -> None:
    """Escaping never makes one resource out of two."""
    assert (resource(alert(one)) == resource(alert(other))) == (one == other)


def test_long_subjects_stay_apart_and_bounded() -> None:
    """Names that agree in their first thousand characters are still two resources of at most 200."""
    one, other = resource(alert("x" * 1000 + "1")), resource(alert("x" * 1000 + "2"))
    assert one != other
    assert max(len(one), len(other)) <= 210


@pytest.mark.parametrize("word", HOSTILE)
def test_nothing_hostile_leaves_for_the_console(word: str) -> None:
    """Text, value, resource and every attribute of an alert are harmless whatever the log named things."""
    word = word.encode("utf-8", "replace").decode()  # what passed a decoder is UTF-8
    group = {"kind": "segment", "feature": word, "value": word, "explains": 0.9}
    evidence = {
        "features": [{"name": word, "share": 0.5}], "principals": [word], "queries": 5, "detail": word, "explained_by": group,
        "changes": [{"name": word, "measure": f"share of {word}", "before": 1.0, "after": 2.0, "unit": word}],
        "causes": [{"name": word, "cause": "new values", "value": word, "share": 0.4}],
        "versions": [{"version": word, "first_seen": word}], "technique": word, "look_alike": {"profile": word, "why_not": word},
        "model_version": word, "detector_version": word, "confidence": word,
    }  # fmt: skip
    decision = attack(1, word, model=word, detector=word, evidence=evidence)
    step = lifecycle.step([decision], (), {}, Policy(models={word: Named(owner=word)}))
    sent = payload(step.transitions[0])
    strings = [sent["resource"], sent["value"], *sent["service"], *(str(v) for v in sent["attributes"].values())]
    assert all(harmless(s) for s in [*strings, *sent["text"].splitlines()])


def test_the_text_answers_why_what_not_do_and_where() -> None:
    """Six lines, each with its question, the owner and the runbook among them."""
    evidence = {
        "principals": ["c-7f3a"], "queries": 41230, "detectors": [{"name": "queries", "log_e": 9.0}, {"name": "shape", "log_e": 2.0}],
        "flagged": 38000, "technique": "made_up_rows", "confidence": 0.987, "look_alike": look_alike(Family.EXTRACTION),
        "exposure": {"kappa": 0.8349, "distinct_rows": 32768},
    }  # fmt: skip
    decision = attack(1, "c-7f3a", family=Family.EXTRACTION, evidence=evidence)
    policy = Policy(models={"m": Named(owner="cards-ml", tier=1)})
    text = lifecycle.step([decision], (), {}, policy).transitions[0].alert.text.splitlines()
    assert [line.split()[0] for line in text] == ["[CRITICAL]", "WHY", "WHAT", "NOT", "DO", "LINK"]
    assert "Model extraction suspected: principal c-7f3a on m (tier 1, owner: cards-ml)" in text[0]
    assert "also shape" in text[1]
    asked = "41,230 queries, 38,000 of them flagged; looks like made up rows 99%"
    assert f"{asked}; exposure last read: 32,768 rows, kappa 0.83; first seen" in text[2]
    assert "closest honest use explainer, but its made-up rows are not spread around rows that it sent" in text[3]
    assert max(map(len, text)) <= 240
    assert "docs/runbooks/AttackSuspected.md" in text[4]
    assert "AML.T0024.002" in text[5]


def test_alerts_about_lanner_itself_name_no_model() -> None:
    """A sink, a disk or a detector has no tier and no owner, and is of the service lanner."""
    decision = replace(
        missing(700), model=UNREGISTERED, event=Event.DELIVERY_DEGRADED, family=Family.MONITOR,
        subject=Subject("sink", "soc"),
    )  # fmt: skip
    (t,) = lifecycle.step([decision], (), {}, Policy()).transitions
    assert t.alert.text.splitlines()[0] == "[MAJOR] Alert delivery degraded: sink soc"
    assert (payload(t)["service"], payload(t)["resource"]) == (["lanner"], "model:_unregistered/sink:soc")


def test_links_lead_to_the_page_and_the_runbook() -> None:
    """With addresses configured, text, Alerta, CEF and OCSF all carry them; without, the command and the file."""
    config = Config.model_validate(
        {"models": {"m": {"owner": "cards-ml"}}, "server": {"url": "https://lanner.example.org/"},
         "alerting": {"runbooks": "https://wiki.example.org/lanner/"}}
    )  # fmt: skip
    (t,) = lifecycle.step([attack(1)], (), {}, policy(config)).transitions
    page, runbook = (
        f"https://lanner.example.org/incidents/{t.alert.alert_id}",
        "https://wiki.example.org/lanner/AttackSuspected.md",
    )
    assert f"LINK  {page}" in t.alert.text
    assert runbook in t.alert.text
    sent = payload(t)["attributes"]
    assert (sent["evidence_url"], sent["runbook"], sent["owner"]) == (page, runbook, "cards-ml")
    assert f"request={page}" in cef(t)
    assert finding(t)["finding_info"]["src_url"] == page
    assert finding(t)["remediation"]["references"] == [runbook]
    (plain,) = lifecycle.step([attack(1)], (), {}, Policy()).transitions
    assert f"LINK  lanner alerts show {plain.alert.alert_id}" in plain.alert.text
    assert payload(plain)["attributes"]["evidence_url"] == ""


def test_what_is_about_a_model_links_the_newest_report_of_its_owner() -> None:
    """Beside the page of the incident, where people reach it; not for callers, nor for names that no address can hold."""
    told = policy(Config.model_validate({"models": {"m": {}}, "server": {"url": "https://lanner.example.org"}}))

    def link(decision: Decision, how: Policy = told) -> str:
        (t,) = lifecycle.step([decision], (), {}, how).transitions
        return t.alert.text.splitlines()[-1]

    assert "   report https://lanner.example.org/models/m/reports/newest   seq 1" in link(drift(1))
    segment = replace(drift(1), subject=Subject("segment", "country:QA"))
    assert "/models/m/reports/newest" in link(segment)
    assert "reports/newest" not in link(attack(1))
    assert "reports/newest" not in link(drift(1), Policy())
    assert "reports/newest" not in link(drift(1, model="m/../x"))
    far = replace(told, page="https://lanner.example.org/" + "a" * 80)
    assert "/models/" not in link(drift(1), far)  # half an address is none
    assert "seq 1" in link(drift(1), far)


def test_the_page_says_where_incidents_begin() -> None:
    """The table of severities in the docs is the one of the code."""
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    for event in Event:
        assert event.value in rows[SEVERITY[event].value], event


def test_the_page_names_tests_that_exist() -> None:
    """What the docs call proof is there to be run."""
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", page)
    code = "\n".join(f.read_text(encoding="utf-8") for f in (ROOT / "tests").rglob("test_*.py"))
    missing = [n for n in named if not (ROOT / n).exists() and f"def {n}(" not in code]
    assert len(named) >= 15
    assert missing == []


def test_values_hold_still_until_they_move_by_ten_percent() -> None:
    """Alerta keeps a hundred history rows, and each change of a value costs one."""
    assert number(12.31) == number(12.29)
    assert number(0.31) != number(0.35)
    assert duration(3 * 86_400_000_000) == "3 d"


def test_every_technique_has_a_name_and_a_version() -> None:
    """The table names each id it uses and the release it was taken from."""
    known = table()
    used = {t for ids in (*known.by_family.values(), *known.by_event.values()) for t in ids}
    assert used <= set(known.names)
    assert set(known.by_family) <= {f.value for f in Family}
    assert set(known.by_event) <= {e.value for e in Event}
    assert set(known.versions) == {"atlas", "owasp_llm", "owasp_ml"}
    assert techniques(Event.ATTACK_SUSPECTED, Family.ANOMALY) == ("AML.T0040",)


def test_a_payload_carries_no_state_in_its_tags_and_no_id() -> None:
    """Tags only ever grow in Alerta, ids match by prefix, and its clock must stamp the alert."""
    sent = payload(opened(subject="p1"))
    assert sent["tags"] == ["lanner"]
    assert sent["correlate"] == []
    assert not {"id", "createTime"} & set(sent)
    assert sent["timeout"] == 0
    assert not any("." in key or "$" in key for key in sent["attributes"])
    assert len(sent["attributes"]) <= 30
    assert payload(opened(event=Event.FEATURE_DRIFT, subject="m"))["timeout"] >= 3600
    assert Subject("principal", "p1") == opened("p1").alert.subject


@pytest.mark.parametrize("event", list(Event))
def test_every_event_has_a_runbook(event: Event) -> None:
    """A runbook per event, with questions, reversible first actions and how it ends, linked from the alerts page."""
    page = (ROOT / "docs" / "runbooks" / f"{event.value}.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        f"# {event.value}", "## Ask", "## First actions (reversible)", "## End",
    ]  # fmt: skip
    ask, act = page.split("## Ask")[1].split("## First actions (reversible)")
    assert ask.count("?") >= 2
    assert len(re.findall(r"^\d+\. ", act, re.MULTILINE)) >= 2
    assert f"(runbooks/{event.value}.md)" in (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
