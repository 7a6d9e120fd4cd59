"""The administration page by keyboard alone, in both languages, on a real server."""

from __future__ import annotations

import pytest

from tests.web.browser import STUDIO_KEY, visit

HERE = "selector => document.activeElement.matches(selector)"


def reach(page, selector):
    """Press Tab until `selector` has the focus."""
    for _ in range(200):
        if page.evaluate(HERE, selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def use(page, selector, text=None):
    """Go to a control by Tab: write into it, or press it."""
    reach(page, selector)
    if text is None:
        page.keyboard.press("Enter")
    else:
        page.keyboard.insert_text(text)


@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
def test_keys_and_aliases(browser, studio, locale):
    with visit(browser, f"{studio.url}/admin", "#sign-in:not([hidden])", locale=locale) as page:
        use(page, "#sign-in [name=key]", STUDIO_KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#figures dd")
        name = f"typed-{locale.lower()}"

        use(page, "a[href='#/keys']")
        page.wait_for_selector("#new-key")
        use(page, "#new-key")
        page.wait_for_selector("dialog[open]")
        use(page, "dialog [name=name]", name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#key-list :text('{name}')")
        page.keyboard.press("Escape")
        use(page, "#key-list .revoke")
        page.wait_for_selector("dialog[open]")
        reach(page, "dialog[open] .primary")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open]", state="detached")

        use(page, "a[href='#/models']")
        page.wait_for_selector("#new-alias")
        use(page, "#new-alias")
        page.wait_for_selector("dialog[open]")
        use(page, "dialog[open] [name=name]", name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#alias-list :text('{name}')")
        use(page, "#alias-list .remove")
        page.wait_for_selector("dialog[open]")
        reach(page, "dialog[open] .primary")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#alias-list :text('{name}')", state="detached")
