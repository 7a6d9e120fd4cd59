"""The page of administration for keyboards, screen readers, weak eyes and narrow screens."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.web.audit import REFERENCES, tab_around, unnamed, weak
from tests.web.browser import visit, wait_until
from tests.web.fake import pretend

SECTIONS = {
    "overview": "#chart-rate svg",
    "jobs": "#job-list .card",
    "job/ftjob-1": "#chart-loss .line",
    "files": "#file-list li",
    "models": "#alias-list li",
    "trial/polite": "#trial-body table",
    "engines": "#engine-list .card",
    "compare": "#compare-form [name=model] option >> nth=0",
    "datasets": "#dataset-list .card",
    "feedback": "#feedback-list .card",
    "keys": "#use-table table",
    "evals": "#eval-list .card",
    "eval/eval-1": "#run-answers .card",
    "logs": "#log-list p",
}
# Reached from another section, which the list of sections marks.
WITHIN = {"job": "jobs", "trial": "models", "eval": "evals"}

PHONE = {"viewport": {"width": 390, "height": 700}, "has_touch": True, "is_mobile": True}
LIGHT = {"color_scheme": "light"}
DARK = {"color_scheme": "dark", **PHONE}
# Fields of forms without a line of help, by themselves or in a group that has one.
UNEXPLAINED = """() => [...document.querySelectorAll("form :is(input, select, textarea)")]
  .filter(one => one.checkVisibility() && !one.closest("[aria-describedby]")
    && !one.matches("#ask-value, #editor *")).map(one => one.form.id + " " + one.name)"""


def sign_in(page):
    page.fill("#sign-in [name=key]", "secret")
    page.press("#sign-in [name=key]", "Enter")
    page.wait_for_selector("#overview svg")


def go(page, section):
    page.evaluate("to => (location.hash = `#/${to}`)", section)
    page.wait_for_selector(SECTIONS[section], state="attached")


def poll_now(page):
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def open_everything(page):
    """Every fold on the section in view, and the report on a file."""
    if page.is_visible("#files"):
        page.click("#file-list .check")
        page.wait_for_selector("#report table")
    if page.is_visible("#datasets"):
        page.evaluate("document.getElementById('new-dataset').open = true")
        page.click("#preview")
        page.wait_for_selector("#preview-body .record")
        page.click("#dataset-list .edit")
        page.wait_for_selector("#editor-records .record")
    if page.is_visible("#feedback"):
        page.click("#feedback-list .showAnswer >> nth=0")
        page.wait_for_selector("#feedback-list .messages")
    page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")


@pytest.fixture(scope="module", params=[LIGHT, DARK], ids=["light-wide", "dark-phone"])
def page(request, browser, server):
    with visit(browser, f"{server.url}/admin", "#sign-in:not([hidden])", **request.param) as page:
        pretend(page, "polite")
        sign_in(page)
        yield page


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_keep_to_the_rules(page, section):
    go(page, section)
    open_everything(page)
    assert weak(page) == []
    assert unnamed(page) == []
    assert page.evaluate(REFERENCES) == []
    assert page.evaluate(UNEXPLAINED) == []
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    levels = page.evaluate("""() => [...document.querySelectorAll("h1,h2,h3,h4")]
      .filter(one => one.checkVisibility()).map(one => Number(one.tagName[1]))""")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    name = section.split("/")[0]
    current = page.get_attribute("#sections [aria-current=page]", "href")
    assert current == f"#/{WITHIN.get(name, name)}"


@pytest.mark.parametrize(
    ("section", "opener"),
    [("models", "#new-alias"), ("models", "#alias-list .change"), ("models", "#alias-list .remove"),
     ("engines", "#engine-list .unload"), ("engines", "#engine-list .remove"),
     ("models", "#adapter-list .makeFile"),
     ("evals", "#eval-list .remove"), ("keys", "#new-key"), ("keys", "#key-list .revoke")],
)  # fmt: skip
def test_dialogs_keep_to_the_rules(page, section, opener):
    go(page, section)
    page.focus(opener)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.evaluate("document.querySelectorAll('dialog details').forEach(one => (one.open = true))")
    assert weak(page) == []
    assert unnamed(page) == []
    assert page.evaluate(REFERENCES) == []
    assert page.evaluate(UNEXPLAINED) == []
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    assert page.evaluate("selector => document.activeElement.matches(selector)", opener)


@pytest.mark.parametrize("section", ["jobs", "engines", "evals", "eval/eval-1", "logs"])
def test_tab_reaches_everything_visibly(page, section):
    go(page, section)
    page.evaluate("document.querySelectorAll('main details').forEach(one => (one.open = true))")
    reached = tab_around(page, "sign-out")
    names = [focus["name"] for focus in reached]
    for name in ("skip", "to-chat", "language", "theme"):
        assert name in names
    assert [focus["name"] for focus in reached if not focus["outlined"]] == []
    assert [focus["name"] for focus in reached if focus["size"] < 18] == []


def test_polling_keeps_the_focus_and_what_is_open(page):
    go(page, "models")
    page.evaluate("window.card = document.querySelector('#alias-list .card')")
    page.focus("#alias-list .rollback")
    poll_now(page)
    page.wait_for_timeout(200)
    assert page.evaluate("card === document.querySelector('#alias-list .card')")
    assert page.evaluate("document.activeElement.className") == "rollback"
    changed = {"name": "polite", "target": "tiny", "candidate": None, "percentage": 0,
               "generation": 4, "created_at": 1_760_000_400}  # fmt: skip
    answer = {"data": [changed], "has_more": False}
    page.route("**/admin/aliases", lambda route: route.fulfill(json=answer))
    poll_now(page)
    page.wait_for_selector("#alias-list :text('Generation 4')")
    assert page.evaluate("document.activeElement.className") == "rollback"
    page.unroute("**/admin/aliases")
    pretend(page, "polite")


def test_the_loss_curve_can_be_read_as_text(page):
    go(page, "job/ftjob-1")
    legend = page.inner_text("#chart-loss .legend")
    assert "Training: 1.157" in legend
    assert "Validation: 1.337" in legend
    page.get_by_role("progressbar", name="Step 120 of 240").wait_for()
    axes = page.locator("#chart-loss .name")
    assert axes.all_text_contents() == ["Loss in nats per token", "Steps"]
    page.evaluate("document.querySelector('#chart-loss details').open = true")
    wait_until(page, "document.querySelectorAll('#chart-loss tbody tr').length >= 50")


def test_text_can_be_twice_as_large(browser, server):
    """A window of half the width is what zooming to 200 % leaves."""
    size = {"width": 640, "height": 400}
    with visit(browser, f"{server.url}/admin", "#sign-in", viewport=size) as page:
        pretend(page, "polite")
        sign_in(page)
        page.evaluate("document.documentElement.style.fontSize = '32px'")
        for section in SECTIONS:
            go(page, section)
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 640
