"""Diagrams in a frame apart: drawn, shown as source, refused, and harmless."""

from __future__ import annotations

import pytest

from tests.web.browser import PATIENCE, send, visit, wait_answer, wait_until
from tests.web.test_chat_tools import chunks

FLOW = "```mermaid\nflowchart LR\n  A[お茶] -->|or| B[Coffee]\n```\n\nDone."
SEQUENCE = "```mermaid\nsequenceDiagram\n  Alice->>Bob: Hello\n```"


def write(page, text):
    """Have the model write `text`."""
    body = chunks(*({"content": piece} for piece in text.splitlines(keepends=True)))
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    send(page, "Draw")
    wait_answer(page)


def frame(page):
    return page.frame_locator(".drawing iframe")


def test_a_diagram_is_drawn_and_its_source_shown(browser, endless):
    with visit(browser, endless.url, color_scheme="dark") as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_selector("#model option", state="attached")
        assert not any("mermaid" in url for url in asked)
        write(page, FLOW)
        page.wait_for_selector(".code .toggle:has-text('Source')")
        assert any("mermaid.tiny.js" in url for url in asked)
        assert "お茶" in frame(page).locator("svg").text_content()
        assert page.locator(".drawing iframe").bounding_box()["height"] > 50
        assert not page.is_visible(".code pre")
        page.click(".code .toggle")
        assert page.inner_text(".code pre").startswith("flowchart LR")
        assert not page.is_visible(".drawing")
        page.click(".code .toggle")
        assert page.is_visible(".drawing")


@pytest.mark.slow
def test_several_diagrams(page):
    write(page, f"{FLOW}\n\n{SEQUENCE}")
    wait_until(page, "document.querySelectorAll('.toggle:not([hidden])').length === 2")
    assert "Alice" in page.frame_locator(".drawing iframe >> nth=1").locator("svg").text_content()


@pytest.mark.slow
def test_many_diagrams_wait_until_they_are_asked_for(page):
    shapes = [f"```mermaid\nflowchart LR\n  A{at} --> B\n```" for at in range(12)]
    write(page, "\n\n".join(shapes))
    asked_for = ".toggle:has-text('Diagram')"
    assert page.locator(".drawing iframe").count() == 10
    wait_until(page, "document.querySelectorAll('.toggle:not([hidden])').length === 12")
    assert page.locator(asked_for).count() == 2
    assert page.locator(".code > pre").last.is_visible()
    page.locator(asked_for).last.click()
    wait_until(page, "[...document.querySelectorAll('.toggle')].at(-1).textContent === 'Source'")
    assert page.locator(".drawing iframe").count() == 11
    drawn = page.frame_locator(".drawing iframe >> nth=10").locator("svg").text_content()
    assert "A11" in drawn
    assert not page.locator(".code > pre").last.is_visible()


def test_what_is_no_diagram_stays_source(page):
    write(page, "```mermaid\nflowchart LR\n  A -->\n```")
    page.wait_for_selector(".drawing:has-text('cannot be drawn')")
    assert page.inner_text(".code > pre").startswith("flowchart LR")
    assert not page.is_visible(".toggle")
    write(page, "```mermaid\nflowchart LR\n  A --> B")
    page.wait_for_selector("#log[aria-busy=false] .message:nth-child(4)")
    assert page.locator(".message:last-child iframe").count() == 0, "it is not closed"


@pytest.fixture
def watched(browser, endless):
    """A page whose policy may be violated, which others' tests forbid; and what it loaded."""
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    loaded = []
    page.on("requestfinished", lambda request: loaded.append(request.url))
    page.goto(endless.url)
    page.wait_for_selector("#model option", state="attached")
    yield page, loaded
    context.close()


def test_a_hostile_diagram_reaches_nothing(watched):
    page, loaded = watched
    write(page, """```mermaid
%%{init: {"securityLevel": "loose", "theme": "base", "themeCSS": "@import url(//evil.example/a)"}}%%
flowchart LR
  A["<img src=//evil.example/b onerror='parent.hacked=1'>"] --> B
  click A href "javascript:parent.hacked=1"
```""")  # fmt: skip
    page.wait_for_selector(".drawing p, .toggle:not([hidden])")
    assert not any("evil" in url for url in loaded)
    assert page.evaluate("'hacked' in window") is False
    inside = page.frames[-1]
    assert inside.evaluate("origin") == "null"
    for what in ("document.cookie", "localStorage.length", "parent.document.title"):
        refused = f"(() => {{ try {{ return {what}; }} catch (error) {{ return error.name; }} }})()"
        assert inside.evaluate(refused) == "SecurityError"
    left = inside.evaluate("fetch('/v1/models').then(() => 'read', (error) => error.name)")
    assert left == "TypeError"
