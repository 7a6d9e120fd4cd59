"""From a file on the disk to a conversation with the trained model, through the pages alone."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.support.server import start_server, stop_server
from tests.web.browser import send, visit, wait_answer, wait_until
from tests.web.test_admin_accessibility import go

KEY = "an admin's secret"
SLOW = 60_000
"""Milliseconds for what waits on a worker's start."""


def line(question, answer):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


GOOD = [line(f"猫は{n}匹ですか。", f"はい、猫は{n}匹います。") for n in range(24)]
BAD = [*GOOD[:2], '{"messages": [', GOOD[2], '{"messages": "<img src=x onerror=hacked=1>"}', "[]"]


@pytest.fixture(scope="module")
def admin(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("admin")
    environment = {"HAGANE_ADMIN_KEY": KEY, "HAGANE_API_KEYS": "a-users-key"}
    flags = ("--data-dir", str(folder / "data"))
    server = start_server(tiny_model_dir, folder / "log", *flags, **environment)
    server.wait_ready()
    yield server
    stop_server(server)


@pytest.fixture
def page(browser, admin):
    with visit(browser, f"{admin.url}/admin", "#sign-in:not([hidden])") as page:
        page.fill("#sign-in [name=key]", KEY)
        page.press("#sign-in [name=key]", "Enter")
        page.wait_for_selector("#figures dd")
        yield page


def upload(page, name, lines):
    go(page, "files")
    file = {"name": name, "mimeType": "application/jsonl", "buffer": "\n".join(lines).encode()}
    page.set_input_files("#upload [name=file]", file)
    page.click("#upload .primary")
    page.wait_for_selector("#report .facts", timeout=SLOW)
    return page.inner_text("#report")


def start(page, **values):
    page.click(".card:has-text('good.jsonl') a:has-text('Fine-tune')")
    page.wait_for_selector("#create-form [name=training_file] option", state="attached")
    for name, value in values.items():
        field = f"#create-form [name={name}]"
        if page.eval_on_selector(field, "field => field.tagName") == "SELECT":
            page.select_option(field, value)
        else:
            page.fill(field, value)
    page.click("#create-form .primary")


def test_wrong_keys_stay_outside(browser, admin):
    with visit(browser, f"{admin.url}/admin", "#sign-in:not([hidden])") as page:
        for wrong, words in (("guess", "Missing or incorrect"), ("a-users-key", "does not open")):
            page.fill("#sign-in [name=key]", wrong)
            page.press("#sign-in [name=key]", "Enter")
            page.wait_for_selector(f"#notice:has-text('{words}')")
            assert page.is_visible("#sign-in")
            assert not page.is_visible("#sections")


def test_the_overview_shows_the_engine(page):
    assert "ready" in page.inner_text("#figures")
    page.wait_for_selector("#chart-cache svg")


def test_every_bad_line_is_named(page):
    report = upload(page, "<b>bad</b>.jsonl", BAD)
    assert "3 lines cannot be trained on." in report
    rows = page.locator("#report tbody tr td:first-child").all_inner_texts()
    assert rows == ["3", "5", "6"]
    assert page.inner_text("#file-list h3") == "<b>bad</b>.jsonl"
    page.click("#file-list .remove")
    page.click("#ask .primary")
    page.wait_for_selector("#file-list h3", state="detached")


def test_from_upload_to_conversation(page):
    report = upload(page, "good.jsonl", GOOD)
    assert "Every line can be trained on." in report
    assert "24" in report
    start(page, suffix="cats", learning_rate_multiplier="5000")
    page.wait_for_selector("#create-error:has-text('learning_rate_multiplier')")
    assert page.evaluate("document.activeElement.name") == "learning_rate_multiplier"
    page.fill("#create-form [name=learning_rate_multiplier]", "")
    page.fill("#create-form [name=n_epochs]", "3")
    page.fill("#create-form [name=batch_size]", "4")
    page.evaluate("document.querySelector('#create details').open = true")
    page.select_option("#create-form [name=promote]", "always")
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.click("#create-form .primary")
    assert "quantize" not in asked.value.post_data_json["extra"], "the server's own holds"
    page.wait_for_selector("#job-title .badge.running, #job-title .badge.succeeded", timeout=SLOW)
    page.wait_for_selector("#chart-loss .line", timeout=SLOW)
    page.wait_for_selector("#job-title .badge.succeeded", timeout=SLOW)
    page.evaluate("document.querySelector('#chart-loss details').open = true")
    wait_until(page, "document.querySelectorAll('#chart-loss tbody tr').length >= 12")
    assert "successfully completed" in page.inner_text("#event-list")
    assert page.locator("#checkpoint-list .card").count() >= 2
    name = page.inner_text("#job-title").split()[0]
    page.click("#job-head a:has-text('Chat with it')")
    page.fill("#key-dialog [name=key]", "a-users-key")
    page.click("#key-dialog .primary")
    page.wait_for_selector("#model option", state="attached")
    page.click("#open-settings")
    page.fill("#settings [name=maxTokens]", "8")
    page.click("#settings .primary")
    page.wait_for_selector("#model optgroup", state="attached")
    assert page.input_value("#model") == name
    with page.expect_response("**/v1/chat/completions") as answered:
        send(page, "猫は3匹ですか。")
    assert answered.value.request.post_data_json["model"] == name
    assert answered.value.status == 200
    wait_answer(page)
    assert page.locator(".error").count() == 0


def test_aliases_point_and_roll_back(page):
    go(page, "models")
    page.wait_for_selector("#adapter-list h3:has-text('cats')")
    name = page.inner_text("#adapter-list h3").split()[0]
    for target, candidate, words in (("tiny", "", "tiny"), ("tiny", name, f"25 % go to {name}")):
        page.click("#alias-list .change" if candidate else "#new-alias")
        page.wait_for_selector("#alias[open]")
        if not candidate:
            page.fill("#alias [name=name]", "support")
        page.select_option("#alias [name=target]", target)
        page.select_option("#alias [name=candidate]", candidate)
        page.fill("#alias [name=percentage]", "25" if candidate else "0")
        page.click("#alias .primary")
        page.wait_for_selector(f"#alias-list .card:has-text('{words}')")
        if not candidate:
            page.click("#alias-list .rollback")
            page.wait_for_selector("#notice:has-text('no earlier generation')")
    page.click("#alias-list .history")
    page.wait_for_selector("#alias-list .generations li >> nth=1")
    page.click("#alias-list .rollback")
    page.click("#ask .primary")
    page.wait_for_selector("#alias-list :text('Generation 3')")
    assert "25 %" not in page.inner_text("#alias-list > .card > p >> nth=0")
    assert page.get_attribute("#alias-list a[href^='./']", "href") == f"./#model={quote('support')}"


def test_jobs_are_paused_and_cancelled(page):
    go(page, "files")
    start(page, n_epochs="50", batch_size="1")
    page.wait_for_selector("#job-title .badge.running", timeout=SLOW)
    page.click("#job-head .pause")
    page.wait_for_selector("#job-title .badge.paused")
    page.wait_for_selector("#event-list :text('was paused')")
    page.click("#job-head .resume")
    page.click("#job-head .cancelJob")
    page.click("#ask .primary")
    page.wait_for_selector("#job-title .badge.cancelled")
    assert page.locator("#job-head button").count() == 0
    go(page, "jobs")
    page.wait_for_selector("#job-list .badge.cancelled")
