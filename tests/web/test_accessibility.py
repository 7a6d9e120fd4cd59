"""The chat page for keyboards, screen readers, weak eyes and narrow screens."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.web.audit import REFERENCES, nodes, tab_around, unnamed, weak
from tests.web.browser import send, visit, wait_answer

SAMPLE = """# Title

Text with `code`, **bold** and a [link](https://example.org).

### Below

> A quotation

```python
print("a line that is far too wide for a telephone, and goes on, and on, and on, and on, and on")
```

| a | b | c | d | e |
|---|---|---|---|---|
| a cell that is wide | another wide cell | and one more | and still more | unbreakable_words |

https://example.org/a/very/long/address/that/nobody/would/ever/want/to/read/to/its/very/end/at/all
"""


def fill_with_everything(page):
    """A finished answer, a sample of all Markdown, and an error."""
    page.click("#open-settings")
    page.fill("#settings [name=maxTokens]", "3")
    page.click("#settings .primary")
    send(page, "Hi")
    wait_answer(page)
    page.evaluate(
        """async (text) => {
          const find = (role) => Object.keys(localStorage).find((key) =>
            key.startsWith("hagane.message.") && JSON.parse(localStorage[key]).role === role);
          const key = find("assistant");
          const first = JSON.parse(localStorage[key]);
          const put = (changes) => {
            const message = { ...first, note: undefined, ...changes };
            localStorage[key.replace(first.id, message.id)] = JSON.stringify(message);
          };
          const error = { message: "No.", code: "queue_full", status: 429, retryAfter: 2 };
          const call = { id: "c", name: "clock", arguments: "{}", result: text };
          const calls = [call, { ...call, failed: true }, { ...call, result: undefined }];
          const said = { content: text, reasoning: text };
          put({ ...said, steps: [{ ...said, calls }] });
          put({ id: "u2", role: "user", parent: first.id, at: first.at + 1, content: text,
            files: [{ name: "a.txt", text: "a" }] });
          put({ id: "a2", parent: "u2", at: first.at + 2, content: "", error });
          put({ id: "a3", parent: "u2", at: first.at + 3, content: "Cut", error });
          const conversation = `hagane.conversation.${key.split(".")[2]}`;
          localStorage[conversation] = JSON.stringify({
            ...JSON.parse(localStorage[conversation]), leaf: "a3" });
        }""",
        SAMPLE,
    )
    page.reload()
    page.wait_for_selector(".error")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request, browser, server):
    with visit(browser, server.url, color_scheme=request.param) as page:
        fill_with_everything(page)
        yield page


def open_dialog(page, way):
    for step in way.split(" > "):
        page.click(step)


DIALOGS = ["body", "#open-settings", "#use-tools", ".more", ".more > #menu .rename", "#list-menu"]


@pytest.mark.parametrize("dialog", DIALOGS)
def test_every_control_has_a_name(page, dialog):
    open_dialog(page, dialog)
    found = unnamed(page)
    page.keyboard.press("Escape")
    assert found == []


def test_names_say_which_and_what(page):
    found = nodes(page)
    assert {
        ("combobox", "Model"),
        ("textbox", "Message"),
        ("button", "Send"),
        ("log", "Messages"),
        ("button", "Settings"),
        ("button", "New chat"),
    } <= set(found)


@pytest.mark.parametrize("dialog", [*DIALOGS, ".edit"])
def test_contrast_is_at_least_aa(page, dialog):
    open_dialog(page, dialog)
    found = weak(page)
    page.keyboard.press("Escape")
    assert found == []


def test_headings_are_in_order(page):
    levels = page.evaluate(
        """[...document.querySelectorAll("#page :is(h1,h2,h3,h4,h5,h6)")]
          .map((heading) => Number(heading.tagName[1]))"""
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert {2, 3, 4} <= set(levels)
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_references_and_ids_hold(page):
    assert page.evaluate(REFERENCES) == []
    assert page.get_attribute("#log", "aria-live") == "polite"
    assert page.get_attribute("#log", "aria-busy") == "false"


def test_tab_reaches_everything_visibly(page):
    page.reload()
    page.wait_for_selector(".error")
    reached = tab_around(page, "send")
    names = [focus["name"] for focus in reached]
    assert names[0] == "skip"
    for name in ("new-chat", "search", "choose", "more", "list-menu", "model", "theme",
                 "open-settings", "log", "edit", "retry", "attach", "use-tools", "prompt",
                 "send"):  # fmt: skip
        assert name in names
    assert [focus["name"] for focus in reached if not focus["outlined"]] == []
    assert [focus["name"] for focus in reached if focus["size"] < 24] == []


def test_skip_link_leads_to_the_message_field(page):
    page.evaluate("document.querySelector('.skip').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_focus_returns_from_dialogs_and_editing(page):
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.name") == "system"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"
    page.focus(".edit")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == "Edit the message"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "edit"


def test_the_end_of_an_answer_is_announced(browser, server):
    with visit(browser, server.url) as page:
        fill_with_everything(page)
        page.click("#new-chat")
        send(page, "Hi")
        page.wait_for_selector("#status:has-text('limit of tokens')", state="attached")
        assert page.get_attribute("#status", "role") == "status"


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scrolling(browser, server, width):
    size = {"width": width, "height": 700}
    with visit(browser, server.url, viewport=size, has_touch=True, is_mobile=True) as page:
        fill_with_everything(page)
        widest = "document.scrollingElement.scrollWidth"
        assert page.evaluate(widest) == width
        assert page.evaluate("document.getElementById('log').scrollWidth") <= width
        page.tap("#show-list")
        assert page.get_attribute("#show-list", "aria-expanded") == "true"
        assert page.evaluate("document.activeElement.id") == "new-chat"
        assert page.evaluate(widest) == width
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.id") == "show-list"
        assert not page.is_visible("#sidebar")
        page.tap("#show-list")
        page.touchscreen.tap(width - 10, 400)
        assert not page.is_visible("#sidebar")
        page.tap("#open-settings")
        assert page.evaluate(widest) == width


def test_text_can_be_twice_as_large(browser, server):
    """A window of half the width is what zooming to 200 % leaves."""
    with visit(browser, server.url, viewport={"width": 640, "height": 400}) as page:
        page.add_style_tag(url="/web/shared/base.css")
        page.evaluate("document.documentElement.style.fontSize = '32px'")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 640
        assert page.is_visible("#send")
