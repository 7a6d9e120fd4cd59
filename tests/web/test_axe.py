"""axe, the common checker of accessibility, finds nothing on any page, dialog or menu.

Its script comes from the package axe-playwright-python: it is too large for this repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.browser import visit
from tests.web.fake import pretend
from tests.web.test_accessibility import fill_with_everything
from tests.web.test_admin_accessibility import SECTIONS, go, open_everything, sign_in

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True}
WAYS = [
    {"locale": "en-US", "color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
    {"locale": "ja-JP", "color_scheme": "dark", **PHONE},
    {"locale": "en-US", "color_scheme": "dark", **PHONE},
    {"locale": "ja-JP", "color_scheme": "light", "viewport": {"width": 1280, "height": 800}},
]
NAMES = ["en-light-wide", "ja-dark-phone", "en-dark-phone", "ja-light-wide"]
CHAT = ["#open-settings", "#use-tools", "#compare", "#list-menu", ".more", "#show-list",
        "#list-menu > #menu .showShortcuts", ".more > #menu .rename", ".more > #menu .remove",
        ".message .edit", "#open-settings > #open-key"]  # fmt: skip
DIALOGS = [("models", "#new-alias"), ("models", "#alias-list .change"),
           ("models", "#alias-list .remove"), ("models", "#adapter-list .makeFile"),
           ("engines", "#engine-list .unload"), ("engines", "#engine-list .remove"),
           ("evals", "#eval-list .remove"), ("keys", "#new-key"),
           ("keys", "#key-list .revoke")]  # fmt: skip
RUN = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html.slice(0, 120))]);
}"""


@pytest.fixture(scope="module")
def script():
    package = pytest.importorskip(
        "axe_playwright_python", reason="axe is missing: pip install axe-playwright-python"
    )
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def violations(script):
    def found(page):
        if not page.evaluate("'axe' in window"):
            page.evaluate(script)
        return page.evaluate(RUN)

    return found


def press(page, way):
    """Press what `way` names, one after the other. By script: a drawer may hide some of it."""
    for step in way.split(" > "):
        page.wait_for_selector(step, state="attached")
        page.evaluate("selector => document.querySelector(selector).click()", step)


@pytest.mark.parametrize("options", WAYS, ids=NAMES)
def test_the_chat_page(browser, server, violations, options):
    # Without motion: colours are looked at, and not in the middle of a transition.
    with visit(browser, server.url, reduced_motion="reduce", **options) as page:
        page.wait_for_selector("#use-tools:not([hidden])")
        assert violations(page) == []
        fill_with_everything(page)
        assert violations(page) == []
        for way in CHAT:
            press(page, way)
            assert violations(page) == [], way
            page.keyboard.press("Escape")
            page.keyboard.press("Escape")


@pytest.mark.parametrize("options", WAYS, ids=NAMES)
def test_the_administration_page(browser, server, violations, options):
    with visit(browser, f"{server.url}/admin", "#sign-in:not([hidden])", **options) as page:
        assert violations(page) == []
        pretend(page, "polite")
        sign_in(page)
        for section in SECTIONS:
            go(page, section)
            open_everything(page)
            assert violations(page) == [], section
        for section, opener in DIALOGS:
            go(page, section)
            press(page, opener)
            page.wait_for_selector("dialog[open]")
            assert violations(page) == [], opener
            page.keyboard.press("Escape")
            page.wait_for_selector("dialog[open]", state="detached")
