"""Conversations on the server: in two browsers, which never lose what the other one wrote."""

from __future__ import annotations

import httpx
import pytest

from tests.web.browser import choose, manage, send, visit, wait_answer, wait_until

NOW = "window.dispatchEvent(new Event('focus'))"
KNOWN = "Object.keys(JSON.parse(localStorage['hagane.exchanged'] ?? '{}').known ?? {})"


@pytest.fixture
def chats(endless):
    """What the server has, which had nothing before and has nothing afterwards."""

    def listed():
        found = httpx.get(f"{endless.url}/v1/chats").json()["data"]
        return {chat["id"]: chat for chat in found if not chat["deleted"]}

    yield listed
    for name in listed():
        httpx.delete(f"{endless.url}/v1/chats/{name}")


@pytest.fixture
def other(browser, endless):
    """The same page in another browser."""
    with visit(browser, endless.url) as page:
        page.wait_for_selector("#model option", state="attached")
        yield page


def keep_on_server(page):
    page.click("#open-settings")
    page.fill("#settings [name=maxTokens]", "3")
    page.check("#settings [name=onServer]")
    page.click("#settings .primary")


def say(page, text):
    send(page, text)
    last = "[...document.querySelectorAll('.message.user .text')].at(-1)?.textContent"
    wait_until(page, f"{last} === '{text}'")
    return wait_answer(page)


def exchanged(page, condition):
    """Exchange until a condition holds."""
    for _ in range(30):
        page.evaluate(NOW)
        page.wait_for_timeout(100)
        if page.evaluate(condition):
            return
    raise AssertionError(condition)


def test_nothing_leaves_the_browser_unless_its_user_wants_it(page, chats):
    page.click("#open-settings")
    assert page.is_visible("#keeping")
    assert "after 365 days" in page.inner_text("#keeping-hint")
    page.keyboard.press("Escape")
    choose(page, maxTokens=3)
    say(page, "Private")
    page.evaluate(NOW)
    page.wait_for_timeout(300)
    assert chats() == {}


def test_two_browsers_keep_what_each_wrote(page, other, chats):
    keep_on_server(page)
    say(page, "From the first")
    exchanged(page, f"{KNOWN}.length === 1")
    assert len(chats()) == 1
    keep_on_server(other)
    exchanged(other, "document.querySelectorAll('#conversations li').length === 1")
    other.click("#conversations .choose")
    assert other.inner_text(".message.user .text") == "From the first"
    # Both go on before either hears of the other.
    say(page, "More from the first")
    say(other, "And from the second")
    exchanged(page, f"{KNOWN}.length === 1")
    messages = "Object.keys(localStorage).filter((key) => key.startsWith('hagane.message.'))"
    whole = f"{messages}.length === 6"
    exchanged(other, whole)
    exchanged(page, whole)
    assert page.inner_text(".message.user:nth-of-type(3) .text") == "More from the first"
    assert page.locator(".message.user").last.locator(".count").inner_text() == "1/2"
    (chat,) = chats().values()
    page.wait_for_timeout(300)
    for one in (page, other):
        one.evaluate(NOW)
        one.wait_for_timeout(300)
    assert chats()[chat["id"]]["revision"] == chat["revision"], "they go on writing the same"


def test_names_and_deletions_travel(page, other, chats):
    keep_on_server(page)
    keep_on_server(other)
    say(page, "Hello")
    exchanged(page, f"{KNOWN}.length === 1")
    exchanged(other, "document.querySelectorAll('#conversations li').length === 1")
    manage(page, "rename")
    page.fill("#ask-value", "Renamed")
    page.click("#ask .primary")
    exchanged(page, f"{KNOWN}.length === 1")
    page.wait_for_timeout(300)
    exchanged(other, "document.querySelector('#conversations .choose')?.textContent === 'Renamed'")
    other.click("#conversations .choose")
    manage(other, "remove")
    other.click("#ask .primary")
    exchanged(other, f"{KNOWN}.length === 0")
    assert chats() == {}
    exchanged(page, "document.querySelectorAll('#conversations li').length === 0")
    assert page.locator(".message").count() == 0
