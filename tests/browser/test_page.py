"""The page in a real Chromium: nothing runs that should not, everyone can read it, and live parts are calm."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from monitor.reports import owner
from monitor.store import alertlog, lookups, queries
from monitor.store.engine import migrate, open_state, write
from tests import evidence, scenes
from tests.browser.conftest import Open, Served, Watch, serving

AXE = Axe()
NAMES = (
    "overview",
    "model",
    "measure",
    "reports",
    "feature",
    "incidents",
    "drift",
    "attack",
    "principal",
    "cleared",
    "sources",
)


def address(served: Served, name: str) -> str:
    """The address of a page by a short name."""
    incidents = {i.event: i.alert_id for i in lookups.incidents(served.engine)[0]}
    first = lookups.incident(served.engine, incidents["FeatureDrift"])
    assert first is not None
    feature = first.evidence["features"][0]["name"]
    attack = lookups.incident(served.engine, incidents["AttackSuspected"])
    assert attack is not None
    caller = {"name": attack.subject_id, "incident": attack.alert_id}
    paths = {
        "overview": "/",
        "model": "/models/card-fraud",
        "measure": "/models/card-fraud?measure=psi&range=24h",
        "reports": "/models/card-fraud/reports",
        "feature": "/models/card-fraud/feature?" + urlencode({"name": feature}),
        "incidents": "/incidents?state=all",
        "drift": f"/incidents/{incidents['FeatureDrift']}",
        "attack": f"/incidents/{incidents['AttackSuspected']}",
        "principal": "/models/credit-limit/principal?" + urlencode(caller),
        "cleared": f"/incidents/{incidents['TrafficAnomaly']}",
        "sources": "/sources?reason=bad_json",
    }
    return served.url + paths[name]


def assert_readable(page: Page, watch: Watch) -> None:
    """No error, no foreign request, no sideways scrolling, every picture named, no axe violation."""
    assert watch.all == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
    unnamed = page.locator("svg[role=img]:not([aria-label]), svg:not([role=img]):not([aria-hidden=true]):not(svg svg)")
    assert unnamed.count() == 0
    result = AXE.run(page)
    assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_readable_by_everyone(page_served: Served, look: Open, name: str) -> None:
    """Light on a desk, dark on a desk, and 320 pixels wide: no console error, no foreign request, axe finds nothing."""
    page, watch = look(address(page_served, name), color_scheme="light")
    expect(page.locator("h1")).to_be_visible()
    assert_readable(page, watch)
    page.emulate_media(color_scheme="dark")
    assert_readable(page, watch)
    page.set_viewport_size({"width": 320, "height": 900})
    assert_readable(page, watch)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_do_nothing(hostile_served: Served, look: Open, name: str) -> None:
    """Markup in names of features, callers, categories, marks and messages is shown as text and nothing runs."""
    page, watch = look(address(hostile_served, name), width=320)
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("document.scripts.length") == 1
    assert_readable(page, watch)


def test_the_page_says_everything_without_javascript(page_served: Served, look: Open) -> None:
    """Charts, numbers, filter and paging work with scripts switched off."""
    page, watch = look(page_served.url + "/incidents", java_script_enabled=False)
    page.get_by_label("State").select_option("closed")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("link", name="Unusual traffic")).to_be_visible()
    page.goto(address(page_served, "model"))
    page.get_by_text("The numbers as a table").click()
    expect(page.get_by_role("region", name="Numbers of")).to_be_visible()
    segments = page.get_by_role("region", name="Segments").get_by_role("row")
    expect(segments).to_have_count(4)
    expect(segments.filter(has_text="country:QA")).to_contain_text("as usual")
    expect(segments.filter(has_text="country:QA")).to_contain_text("40")
    box = segments.nth(1).locator("svg").bounding_box()
    assert box is not None
    assert box["height"] < 30  # a sign beside the word, not a picture
    assert watch.all == []


def test_an_analyst_reads_the_chain_and_takes_the_rows(page_served: Served, look: Open) -> None:
    """From the incident to its caller, along the chain, and the export, all without scripts."""
    page, watch = look(address(page_served, "attack"), java_script_enabled=False)
    page.get_by_role("link", name=evidence.ATTACKER).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(evidence.ATTACKER)
    expect(page.get_by_role("region", name="The queries")).to_be_visible()
    assert page.locator(".chain ins").count() > 20
    assert page.locator("circle.c-raised").count() > 20
    shown = page.locator(".chain tbody th").first.inner_text()
    page.get_by_role("link", name="earlier").click()
    assert page.locator(".chain tbody th").first.inner_text() != shown
    page.get_by_label("Who").fill("ann")
    with page.expect_download() as taken:
        page.get_by_role("button", name="Export").click()
    assert taken.value.suggested_filename == "rows.csv"
    assert taken.value.path().read_text().count("\n") == evidence.QUERIES + 1
    assert watch.all == []


def test_a_filter_changes_the_address_and_back_restores(page_served: Served, look: Open) -> None:
    """What is shown is always what the address says."""
    page, watch = look(page_served.url + "/incidents")
    expect(page.get_by_role("link", name="Unusual traffic")).to_have_count(0)
    page.get_by_label("State").select_option("closed")
    expect(page.get_by_role("link", name="Unusual traffic")).to_be_visible()
    assert "state=closed" in page.url
    page.go_back()
    expect(page.get_by_role("link", name="Unusual traffic")).to_have_count(0)
    assert "state=closed" not in page.url
    assert watch.all == []


def test_a_new_incident_appears_by_itself(fresh_served: Served, look: Open) -> None:
    """The overview refreshes in place; what the reader has opened stays open, and where he is stays where it was."""
    page, watch = look(fresh_served.url + "/models/card-fraud")
    page.get_by_text("The numbers as a table").first.click()
    page.get_by_role("link", name="merchant_age_days").focus()
    with write(fresh_served.engine) as conn:
        (drift,) = [a for a in alertlog.open_alerts(conn) if a.event == "FeatureDrift"]
        again = scenes.reopened(drift)
        alertlog.write(conn, [again], [], scenes.NOW_US)
    expect(page.get_by_role("link", name="Prediction drift")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("region", name="Numbers of").first).to_be_visible()
    assert page.evaluate("document.activeElement.textContent") == "merchant_age_days"
    assert watch.all == []


def test_the_reader_can_stop_the_page_from_moving(page_served: Served, look: Open) -> None:
    """Paused, the page asks for nothing until it is told to go on; the pause is in the address."""
    page, watch = look(page_served.url + "/")
    page.get_by_role("link", name="Live").click()
    expect(page.get_by_role("link", name="go live")).to_be_visible()
    page.wait_for_load_state("networkidle")  # its own pictures belong to the page
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url))
    page.wait_for_timeout(6_500)
    assert asked == []
    assert "live=off" in page.url
    assert watch.all == []


def test_the_keyboard_reaches_the_content_first(page_served: Served, look: Open) -> None:
    """The first stop of the tab key is a link that skips to the content."""
    page, _ = look(page_served.url + "/")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    shown = page.evaluate("document.activeElement.closest('main') !== null")
    assert shown
    assert outline != "none" or page.evaluate("document.activeElement.closest('.alarm') !== null")


def test_print_shows_the_findings_and_not_the_controls(page_served: Served, look: Open) -> None:
    """On paper there are charts and tables, and no navigation."""
    page, _ = look(address(page_served, "model"))
    page.emulate_media(media="print")
    expect(page.get_by_role("navigation", name="Main")).to_be_hidden()
    expect(page.get_by_role("list", name="Measure")).to_be_hidden()
    assert page.locator("svg.strip").first.is_visible()
    assert len(page.pdf()) > 10_000


def test_dark_is_dark(page_served: Served, look: Open) -> None:
    """The page follows the system's choice of colours, charts included."""
    shades = []
    for scheme in ("light", "dark"):
        page, _ = look(page_served.url + "/", color_scheme=scheme)
        shades.append(
            page.evaluate(
                "[document.body, document.querySelector('.c-bar')].map(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).fill])"
            )
        )
    assert shades[0][0][0] != shades[1][0][0]
    assert shades[0][1][1] != shades[1][1][1]


def test_an_empty_service_is_readable_too(tmp_path: Path, look: Open) -> None:
    """The first minute of a new installation has designed pages."""
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(engine)
    with serving(engine) as served:
        for path in ("/", "/incidents", "/sources"):
            page, watch = look(served.url + path, width=320)
            assert_readable(page, watch)


@pytest.mark.parametrize("hostile", [False, True])
def test_the_report_is_a_page_that_runs_nothing(
    page_served: Served, hostile_served: Served, look: Open, tmp_path: Path, hostile: bool
) -> None:
    """As a file and under the page's sandbox: no script, no request, no console error, axe finds nothing."""
    served = hostile_served if hostile else page_served
    model = queries.one_model(served.engine, "card-fraud", scenes.NOW_US, clock="wall", grace_us=0)
    assert model is not None
    made = owner.report(
        served.engine,
        model,
        0,
        scenes.END_US,
        environment="Production",
        owner="cards-ml",
        made_us=scenes.NOW_US,
        version="1",
    )
    file = tmp_path / "report.html"
    file.write_text(made.html, encoding="utf-8")
    page, watch = look(file.as_uri())
    assert page.evaluate("document.scripts.length") == 0
    assert_readable(page, watch)
    page.set_viewport_size({"width": 320, "height": 900})
    assert_readable(page, watch)
    page, watch = look(served.url + "/models/card-fraud/report")
    expect(page.locator("h1")).to_have_text("card-fraud")
    assert watch.all == []
