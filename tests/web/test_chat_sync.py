"""Conversations on the server: in two browsers, which never lose what the other one wrote."""

from __future__ import annotations

import httpx
import pytest

from tests.support.server import start_server, stop_server
from tests.web.browser import choose, manage, send, visit, wait_answer, wait_until

# Leaves so many characters of the browser's storage.
FILL = """(left) => {
  let text = "";
  for (let step = 2 ** 22; step >= 1; step /= 2) {
    try {
      localStorage.filler = text + "x".repeat(step);
      text = localStorage.filler;
    } catch {
      // Too long.
    }
  }
  localStorage.filler = text.slice(left);
}"""
LISTED = "document.querySelectorAll('#conversations li').length"
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


def put(url, name, *said, key="", **entry):
    """Have the server keep a conversation with these messages of a user."""
    messages = [
        {"id": f"m{at}", "parent": f"m{at - 1}" if at else None, "role": "user", "content": text,
         "at": at, "kept": at}
        for at, text in enumerate(said)
    ]  # fmt: skip
    begun = {"title": "", "begins": name, "updated": 1, "system": "", "leaf": f"m{len(said) - 1}"}
    put_document(url, name, begun | entry | {"messages": messages}, key)


def put_document(url, name, document, key=""):
    body = {"revision": 0, "conversation": document}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    httpx.put(f"{url}/v1/chats/{name}", json=body, headers=headers).raise_for_status()


@pytest.mark.parametrize(("name", "system"), [("partly", ""), ("not-at-all", "s" * 4000)])
def test_what_a_full_browser_cannot_keep_stays_on_the_server(page, chats, endless, name, system):
    """The conversation's entry has room but not its messages; or not even the entry."""
    keep_on_server(page)
    page.evaluate(FILL, 2000)
    put(endless.url, name, "A", "b" * 5000, "c" * 5000, system=system)
    for _ in range(4):
        page.evaluate(NOW)
        page.wait_for_timeout(150)
    assert chats()[name]["revision"] == 1
    exchanged(page, "document.querySelector('#notice').textContent.includes('storage is full')")
    assert page.evaluate(LISTED) == 0
    page.evaluate("localStorage.removeItem('filler')")
    page.reload()
    exchanged(page, f"{LISTED} === 1")
    page.click("#conversations .choose")
    assert page.locator(".message.user .text").all_inner_texts() == ["A", "b" * 5000, "c" * 5000]
    page.evaluate(NOW)
    page.wait_for_timeout(150)
    assert chats()[name]["revision"] == 1


def test_answers_that_are_none_do_not_end_the_exchange(page, chats):
    bodies = ["<h1>Sign in to the network</h1>", '{"data": 1}', '{"data": [']
    page.route(
        "**/v1/chats",
        lambda route: route.fulfill(body=bodies.pop()) if bodies else route.fallback(),
    )
    keep_on_server(page)
    say(page, "Hello")
    exchanged(page, f"{KNOWN}.length === 1")
    assert len(chats()) == 1


def test_documents_that_are_no_conversations_keep_no_other_one_back(page, chats, endless):
    put(endless.url, "good", "Hello")
    hostile = [5, None, {"id": "x"}, {"id": "y", "role": "user", "content": {}, "at": 1}]
    kept = {"id": "m0", "role": "assistant", "content": "Kept", "at": 1, "stats": {"tokens": "x"},
            "note": "constructor", "steps": [{"calls": 1}], "error": 3, "files": [{}]}  # fmt: skip
    put_document(endless.url, "half", {"title": {}, "updated": 1e300, "messages": [*hostile, kept]})
    odd = {"title": 1, "updated": 1e300, "messages": {"length": 1}}
    for name, document in (("empty", {}), ("odd", odd)):
        put_document(endless.url, name, document)
    keep_on_server(page)
    exchanged(page, f"{KNOWN}.length === 2")
    page.click("#conversations .choose:has-text('New conversation')")
    assert page.locator(".message .text").all_inner_texts() == ["Kept"]
    page.click("#conversations .choose:has-text('good')")
    assert page.locator(".message .text").all_inner_texts() == ["Hello"]
    page.evaluate(NOW)
    page.wait_for_timeout(150)
    assert {name: chat["revision"] for name, chat in chats().items()} == {
        "good": 1, "half": 1, "empty": 1, "odd": 1,
    }  # fmt: skip


@pytest.fixture
def two_keys(endless_dir, tmp_path):
    flags = ("--data-dir", str(tmp_path / "data"), "--stored-chats", "1MiB")
    server = start_server(endless_dir, tmp_path / "log", *flags, HAGANE_API_KEYS="first,second")
    server.wait_ready()
    yield server
    stop_server(server)


def enter_key(page, key):
    if not page.is_visible("#key-dialog"):
        page.click("#open-settings")
        page.click("#open-key")
    page.fill("#key-dialog [name=key]", key)
    with page.expect_response("**/v1/chats"):
        page.click("#key-dialog .primary")
    page.wait_for_selector("#key-dialog", state="hidden")
    if page.is_visible("#settings"):
        page.keyboard.press("Escape")


@pytest.mark.slow
def test_conversations_of_another_key_stay_in_its_account(browser, two_keys):
    """Who enters a key on a shared computer gets neither copies nor a say over the other's."""

    def kept(key):
        asked = httpx.get(f"{two_keys.url}/v1/chats", headers={"Authorization": f"Bearer {key}"})
        return {chat["id"] for chat in asked.json()["data"] if not chat["deleted"]}

    put(two_keys.url, "mine", "Private", key="first")
    put(two_keys.url, "also-mine", "Private, too", key="first")
    with visit(browser, two_keys.url) as page:
        page.wait_for_selector("#key-dialog[open]")
        enter_key(page, "first")
        keep_on_server(page)
        exchanged(page, f"{KNOWN}.length === 2")
        enter_key(page, "second")
        page.click("#conversations .choose:has-text('also-mine')")
        manage(page, "remove")
        page.click("#ask .primary")
        page.click("#new-chat")
        say(page, "Of the second key")
        exchanged(page, f"{KNOWN}.length === 1")
        assert len(kept("second")) == 1
        assert kept("first") == {"mine", "also-mine"}
        enter_key(page, "first")
        exchanged(page, f"{KNOWN}.length === 2")
        assert kept("first") == {"mine", "also-mine"}
        assert kept("second").isdisjoint(kept("first"))
