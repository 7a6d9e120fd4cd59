"""A headless Chromium for the tests of the pages; they skip where there is none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
STUDIO_KEY = "an admin's secret"
PATIENCE = 15_000
"""Milliseconds that a page may take for what it promises; the machine may be busy."""
ANSWERS = """Object.keys(localStorage).filter((key) => key.startsWith("hagane.message."))
  .map((key) => JSON.parse(localStorage[key])).filter(({ role }) => role === "assistant")"""
"""The answers that the chat page has stored."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, driven by Playwright."""
    missing = "Playwright is not installed: pip install playwright"
    api = pytest.importorskip("playwright.sync_api", reason=missing)
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium fonts-noto-cjk")
    with api.sync_playwright() as playwright:
        # Containers run as root and have little shared memory; nothing shall call out.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-quic"]  # fmt: skip
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, url: str, ready: str = "#send:not(:empty)", **options: object
) -> Iterator[Page]:
    """A page in a profile of its own. Errors in its scripts or its policy fail the test."""
    context = browser.new_context(**{"locale": "en-US", **options})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if violates(said.text) else None)
    page.goto(url)
    page.wait_for_selector(ready)
    yield page
    context.close()
    assert errors == []


def violates(text: str) -> bool:
    return "Content Security Policy" in text or "TrustedHTML" in text


def wait_until(page: Page, condition: str) -> None:
    """Wait for a JavaScript expression; Playwright's own way needs the eval that the page forbids.

    Raises AssertionError when it stays false.
    """
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    # With Control: alone, Enter makes a new line on phones.
    page.press("#prompt", "Control+Enter")


def wait_answer(page: Page) -> str:
    """The last answer's text, once it is complete."""
    page.wait_for_selector("#log[aria-busy=false] .message.assistant:last-child")
    return page.inner_text(".message.assistant:last-child > .text")


def choose(page: Page, **values: object) -> None:
    """Fill fields of the chat page's settings."""
    page.click("#open-settings")
    for name, value in values.items():
        page.fill(f"#settings [name={name}]", str(value))
    page.click("#settings .primary")


def manage(page: Page, what: str) -> None:
    """Choose from the menu of the conversation that is open."""
    page.click("#conversations li:has([aria-current]) .more")
    page.click(f"#menu .{what}")


def endless_model(directory: Path) -> Path:
    """The built-in model without anything that ends its text: it writes until it is stopped."""
    copy = directory / "endless"
    shutil.copytree(ROOT / "models" / "hagane-mini", copy)
    (copy / "generation_config.json").unlink()
    for name, key in (("config.json", "eos_token_id"), ("tokenizer_config.json", "eos_token")):
        raw = json.loads((copy / name).read_text(encoding="utf-8"))
        raw[key] = None
        if "chat_template" in raw:
            # A token that the template ends answers with would end them.
            raw["chat_template"] = raw["chat_template"].replace("<|im_end|>", "")
        (copy / name).write_text(json.dumps(raw), encoding="utf-8")
    return copy
