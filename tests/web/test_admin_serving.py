"""Models, keys, comparisons, feedback, data sets and trials through the pages alone."""

from __future__ import annotations

import httpx
import pytest

from tests.web.browser import STUDIO_KEY, visit, wait_until
from tests.web.test_admin_accessibility import PHONE, go

KEY = STUDIO_KEY
HEADERS = {"Authorization": f"Bearer {KEY}"}
SLOW = 60_000
"""Milliseconds for what waits on a process's start."""


@pytest.fixture(scope="module")
def admin(studio):
    return studio


@pytest.fixture(params=[{}, PHONE], ids=["wide", "phone"], scope="module")
def page(request, browser, admin):
    with visit(browser, f"{admin.url}/admin", "#sign-in:not([hidden])", **request.param) as page:
        page.fill("#sign-in [name=key]", KEY)
        page.press("#sign-in [name=key]", "Enter")
        page.wait_for_selector("#figures dd")
        yield page


def open_section(page, name, ready):
    page.evaluate("to => (location.hash = `#/${to}`)", name)
    page.wait_for_selector(ready, state="attached")


def answer(server, model="tiny", **extra):
    """A completion that the server keeps; returns its id."""
    messages = [{"role": "user", "content": f"猫は{extra.pop('number', 0)}匹ですか。"}]
    body = {"model": model, "messages": messages, "max_tokens": 6, "store": True, **extra}
    url = f"{server.url}/v1/chat/completions"
    response = httpx.post(url, json=body, headers=HEADERS, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["id"]


def judge(server, completion, **given):
    body = {"completion_id": completion, **given}
    response = httpx.post(f"{server.url}/v1/feedback", json=body, headers=HEADERS)
    assert response.status_code == 200, response.text


def test_the_overview_says_what_is_left(page):
    figures = page.inner_text("#figures")
    for term in ("Memory available", "Disk available", "Version"):
        assert term in figures
    assert " GB of " in figures


def test_models_are_loaded_pinned_and_unloaded(page, admin):
    url = f"{admin.url}/admin/models/unload"
    httpx.post(url, json={"model": "second"}, headers=HEADERS).raise_for_status()
    go(page, "engines")
    card = "#engine-list .card:has(h3:has-text('second'))"
    assert page.locator("#engine-list .card:has-text('default') button").count() == 0
    assert "on disk" in page.inner_text(card)
    page.click(f"{card} .loadPinned")
    page.wait_for_selector(f"{card}:has-text('in memory'):has-text('pinned')", timeout=SLOW)
    page.click(f"{card} .unpin")
    page.wait_for_selector(f"{card} .pin")
    page.click(f"{card} .unload")
    page.click("#ask .primary")
    page.wait_for_selector(f"{card}:has-text('on disk')")


def test_answers_stand_side_by_side(page):
    open_section(page, "compare", "#compare-form option")
    page.fill("#compare-form [name=prompt]", "今日は")
    page.fill("#compare-form [name=max_tokens]", "12")
    for at in (0, 1):
        page.select_option(f"#compare-form select >> nth={at}", "tiny")
    page.click("#compare-form .primary")
    finished = "document.querySelectorAll('#answers [aria-busy=false]').length === 2"
    wait_until(page, finished)
    first, second = page.locator("#answers .answer").all_text_contents()
    assert first == second != "", "at temperature 0 the same model says the same"
    assert "12 tokens" in page.inner_text("#answers .card >> nth=1")
    assert page.is_hidden("#compare-stop")


def test_feedback_becomes_a_data_set(page, admin):
    judge(admin, answer(admin, number=1), thumbs="up", comment="gut", author="a")
    for number, word in enumerate("二三四", 2):
        judge(admin, answer(admin, number=number), correction=f"はい、{word}匹います。")
    open_section(page, "feedback", "#feedback-list .card")
    page.select_option("#feedback-form [name=kind]", "correction")
    page.wait_for_selector("#feedback-list :text('はい、四匹います。')")
    page.click("#feedback-list .showAnswer >> nth=0")
    page.wait_for_selector("#feedback-list .messages :text('猫は4匹ですか。')")
    open_section(page, "datasets", "#dataset-fields input")
    page.click("#new-dataset > summary")
    name = f"cats-{page.viewport_size['width']}"
    page.fill("#dataset-form [name=name]", name)
    page.fill("#dataset-form [name=validation]", "0")
    page.select_option("#dataset-form [name=duplicates]", "keepDuplicates")
    page.click("#preview")
    page.wait_for_selector("#preview-body .record", timeout=SLOW)
    assert "Taken: corrected" in page.inner_text("#preview-body")
    page.click("#dataset-form .primary")
    card = f"#dataset-list .card:has-text('{name}')"
    page.wait_for_selector(card, timeout=SLOW)
    page.click(f"{card} .edit")
    page.wait_for_selector("#editor .record")
    before = page.locator("#editor .record").count()
    page.fill("#editor textarea >> nth=0", "いいえ。")
    page.check("#editor .checks input >> nth=1")
    page.click("#editor .primary")
    edited = f"{card}:has-text('version 2')"
    page.wait_for_selector(edited, timeout=SLOW)
    page.click(f"{edited} .edit")
    wait_until(page, f"document.querySelectorAll('#editor .record').length === {before - 1}")
    assert page.input_value("#editor textarea >> nth=0") == "いいえ。"


def test_a_candidate_is_tried_out(page, admin):
    name = f"support-{page.viewport_size['width']}"
    open_section(page, "models", "#new-alias")
    page.click("#new-alias")
    page.wait_for_selector("#alias[open]")
    page.fill("#alias [name=name]", name)
    page.select_option("#alias [name=target]", "tiny")
    page.select_option("#alias [name=candidate]", "second")
    page.fill("#alias [name=percentage]", "50")
    page.click("#alias summary")
    page.check("#alias [name=judged]")
    page.fill("#alias [name=min_requests]", "40")
    page.click("#alias .primary")
    page.click(f"#alias-list .card:has-text('{name}') a:has-text('Trial')")
    page.wait_for_selector("#trial-body .badge:has-text('on trial')")
    for number in range(4):
        answer(admin, name, number=number, user=str(number))
    page.wait_for_selector("#trial-body :text('of 40 requests to each arm')", timeout=SLOW)
    cells = "#trial-body tbody td:nth-child(3)"
    wait_until(
        page, f"[...document.querySelectorAll('{cells}')].some(one => one.textContent > '0')"
    )
    page.click("#trial-change")
    page.wait_for_selector("#alias[open]")
    assert page.is_checked("#alias [name=judged]"), "a change does not end the trial unasked"
    assert page.input_value("#alias [name=min_requests]") == "40"
    page.uncheck("#alias [name=judged]")
    page.click("#alias .primary")
    page.wait_for_selector("#trial-body .badge:has-text('ended by hand')")
    assert page.locator("#trial-body .generations >> nth=-1 >> li").count() == 2


def test_keys_are_made_limited_and_revoked(page, admin):
    open_section(page, "keys", "#key-fields input")
    name = f"shop-{page.viewport_size['width']}"
    page.click("#new-key")
    page.fill("#key-dialog [name=name]", name)
    page.fill("#key-dialog [name=requests_per_minute]", "60")
    page.fill("#key-dialog [name=expires]", "2199-12-31")
    page.press("#key-dialog [name=name]", "Enter")
    page.wait_for_selector("#made-key:not([hidden])")
    key = page.inner_text("#made-key-text")
    assert key.startswith("sk-hagane-")
    ask = {"headers": {"Authorization": f"Bearer {key}"}}
    assert httpx.get(f"{admin.url}/v1/models", **ask).status_code == 200
    card = f"#key-list .card:has-text('{name}')"
    assert "Requests a minute: 60" in page.inner_text(card)
    page.click(f"{card} .change")
    assert page.input_value("#key-dialog [name=expires]") == "2199-12-31"
    page.fill("#key-dialog [name=concurrent_requests]", "2")
    page.click("#key-dialog .primary")
    page.wait_for_selector("#status:has-text('Done.')")
    page.wait_for_selector(f"{card}:has-text('Requests at a time: 2')")
    page.click(f"{card} .revoke")
    page.click("#ask .primary")
    page.wait_for_selector(f"{card} .badge:has-text('revoked')")
    assert httpx.get(f"{admin.url}/v1/models", **ask).status_code == 401
    assert page.is_hidden("#made-key"), "it opens nothing any more"
    go(page, "overview")
    go(page, "keys")
    assert page.is_hidden("#made-key"), "a key is shown once"
    assert key not in page.content()
