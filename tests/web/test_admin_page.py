"""The page of administration in a real browser."""

from __future__ import annotations

import pytest

from tests.web.browser import visit
from tests.web.fake import pretend
from tests.web.test_admin_accessibility import SECTIONS, go, open_everything, sign_in

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>"\'&amp;'


@pytest.fixture
def page(browser, server):
    with visit(browser, f"{server.url}/admin", "#sign-in:not([hidden])") as page:
        yield page


def test_hostile_names_run_nothing(page):
    pretend(page, HOSTILE)
    sign_in(page)
    seen = ""
    for section in SECTIONS:
        if section.startswith("trial"):
            page.click("#alias-list a[href^='#/trial']")
            page.wait_for_selector("#trial-body table")
        else:
            go(page, section)
        open_everything(page)
        seen += page.inner_text("main")
    page.wait_for_timeout(50)
    assert seen.count(HOSTILE) > 30
    assert " critical " in seen
    assert page.locator("main :is(img, script, iframe)").count() == 0
    assert page.evaluate("'hacked' in window") is False
    link = page.get_attribute("#adapter-list a[href^='./#model']", "href")
    assert "<" not in link
    assert '"' not in link
    go(page, "models")
    page.click("#alias-list .change")
    page.wait_for_selector("#alias[open]")
    assert page.input_value("#alias [name=name]") == HOSTILE
    assert page.evaluate("'hacked' in window") is False


def test_pretraining_jobs_are_shown_as_well(page):
    pretend(page, "stories")
    sign_in(page)
    go(page, "jobs")
    page.click("#pretraining-list a:has-text('stories')")
    page.wait_for_selector("#job-title:has-text('stories')")
    facts = page.inner_text("#job-facts")
    assert "491,520" in facts
    assert "Held-out bits per byte: stories\n1.42" in facts
    page.wait_for_selector("#chart-loss .line")


def test_a_job_is_made_again_with_changes(page):
    pretend(page, "stories")
    sign_in(page)
    page.evaluate("location.hash = '#/job/ftjob-2'")
    page.wait_for_selector("#job-facts :text('int8')")
    facts = page.inner_text("#job-facts")
    twice = "Layers computed twice (checkpointing)\nnever"
    for said in ("Rank\n8", "Patience (checkpoints)\n3", "Adapted matrices\nq_proj", twice):
        assert said in facts
    page.click("#job-head a:has-text('Run again')")
    page.wait_for_selector("#create-kept:has-text('patience 3')")
    for name, value in {"n_epochs": "3", "rank": "8", "quantize": "int8", "seed": "7"}.items():
        assert page.input_value(f"#create-form [name={name}]") == value
    assert page.input_value("#create-form [name=checkpointing]") == "false"
    assert page.input_value("#create-form [name=trained_tokens]") == "<a>\n<b c>"
    page.fill("#create-form [name=rank]", "32")
    page.select_option("#create-form [name=checkpointing]", "true")
    page.fill("#create-form [name=trained_tokens]", "<a>\n\n<b c>\n")
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.click("#create-form .primary")
    body = asked.value.post_data_json
    assert body["suffix"] == "stories"
    assert body["extra"] == {
        "rank": 32, "patience": 3, "quantize": "int8", "promote": "if_better", "rslora": True,
        "dora": True, "full": False, "target_modules": ["q_proj"], "checkpointing": True,
        "trained_tokens": ["<a>", "<b c>"],
    }  # fmt: skip


def test_any_checkpoint_can_be_served_and_the_result_is_marked(page):
    pretend(page, "stories")
    sign_in(page)
    page.evaluate("location.hash = '#/job/ftjob-2'")
    page.wait_for_selector("#checkpoint-list .badge:has-text('the result')")
    page.click("#checkpoint-list .serveAs")
    page.wait_for_selector("#alias[open]")
    name = "ft:tiny:stories:ckpt-step-80"
    assert page.input_value("#alias [name=target]") == name
    page.fill("#alias [name=name]", "best")
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.click("#alias .primary")
    expected = {"name": "best", "target": name, "expected_generation": 0}
    assert asked.value.post_data_json == expected


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_language_and_theme_are_shared_with_the_chat_page(page, server, theme):
    pretend(page, "polite")
    page.click("#language")
    assert page.inner_text("#sign-in button") == "サインイン"
    if theme == "dark":
        page.click("#theme")
    sign_in(page)
    assert "実行中" in page.inner_text("#figures")
    page.goto(server.url)
    page.wait_for_selector("#send:has-text('送信')")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if theme == "light" else "rgb(21, 24, 27)")


def test_in_japanese_on_a_phone_heads_are_lines_and_reasons_words(browser, server):
    phone = {"viewport": {"width": 390, "height": 760}, "locale": "ja-JP"}
    with visit(browser, f"{server.url}/admin", "#sign-in:not([hidden])", **phone) as page:
        pretend(page, "polite")
        sign_in(page)
        go(page, "keys")
        page.wait_for_selector("#use-table th")
        heights = "[...document.querySelectorAll('#use-table th')].map((head) => head.clientHeight)"
        assert max(page.evaluate(heights)) < 70
        go(page, "datasets")
        page.wait_for_selector("#dataset-list :text('除外: 似たものの重複')")
        go(page, "jobs")
        page.wait_for_selector("#job-list :text('tiny · 教師あり')")


def test_signing_in_leaves_the_header_in_sight(page):
    pretend(page, "polite")
    sign_in(page)
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.evaluate("scrollY") == 0


def test_the_key_stays_in_the_tab_and_out_of_addresses(page):
    pretend(page, "polite")
    asked = []
    page.on("request", lambda request: asked.append(request))
    sign_in(page)
    go(page, "job/ftjob-1")
    assert all("secret" not in request.url for request in asked)
    data = [request for request in asked if request.resource_type == "fetch"]
    assert len(data) >= 3
    assert {request.headers["authorization"] for request in data} == {"Bearer secret"}
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    page.wait_for_selector("#chart-loss .line")
    page.click("#sign-out")
    assert page.is_visible("#sign-in")
    assert page.evaluate("JSON.stringify(sessionStorage)") == "{}"


def test_a_lost_server_is_told_and_found_again(page):
    pretend(page, "polite")
    sign_in(page)
    page.route("**/admin/status", lambda route: route.abort())
    page.wait_for_selector("#notice:has-text('could not be reached')")
    page.unroute("**/admin/status")
    pretend(page, "polite")
    page.wait_for_selector("#notice", state="hidden")
