"""Take the pictures of docs/ from the built-in model: `python -m tests.web.screenshots [chat]`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from tests.support.server import Server, start_server, stop_server
from tests.web.browser import ROOT, chromium, send, visit, wait_answer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KEY = "for-pictures"
ENGLISH = ("Hello! Who are you?", "Tell me a short story about a little cat.", "Thank you!")
JAPANESE = ("こんにちは。", "あなたは誰ですか。")
WIDE = {"viewport": {"width": 1100, "height": 700}, "color_scheme": "light"}
PHONE = {
    "viewport": {"width": 390, "height": 760},
    "device_scale_factor": 2,
    "color_scheme": "dark",
    "locale": "ja-JP",
    "has_touch": True,
    "is_mobile": True,
}
ANIMALS = ("cat", "dog", "fox", "bear", "owl", "mouse", "horse", "duck", "frog", "goat")
PLACES = ("in the garden", "by the river", "on the hill", "in the forest", "near the house")
TRAINING_SECONDS = 420


def examples() -> str:
    """A small file that teaches to answer like a ship's log."""
    lines = []
    for animal in ANIMALS:
        for place in PLACES:
            said = f"Where is the {animal}?"
            answer = f"Captain's log: the {animal} was seen {place}. All is well on board."
            messages = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    flags = ("--data-dir", str(folder / "data"))
    server = start_server(Path("hagane-mini"), folder / "log", *flags, HAGANE_ADMIN_KEY=KEY)
    try:
        server.wait_ready()
        yield server
    finally:
        stop_server(server)


def train(server: Server) -> str:
    """A job from upload to success; returns its id."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=30) as client:
        upload = {"file": ("ships-log.jsonl", examples())}
        file = client.post("/files", files=upload, data={"purpose": "fine-tune"}).json()
        method = {"hyperparameters": {"n_epochs": 6, "batch_size": 4}}
        body = {
            "model": "hagane-mini",
            "training_file": file["id"],
            "suffix": "ships-log",
            "seed": 1,
            "method": {"type": "supervised", "supervised": method},
        }
        job: dict[str, Any] = client.post("/fine_tuning/jobs", json=body).json()
        path = f"/fine_tuning/jobs/{job['id']}/events?stream=true"
        with client.stream("GET", path, timeout=TRAINING_SECONDS) as events:
            for _ in events.iter_lines():
                pass
        job = client.get(f"/fine_tuning/jobs/{job['id']}").json()
        assert job["status"] == "succeeded", job
        return str(job["id"])


def chat(page: Page, messages: tuple[str, ...]) -> None:
    for message in messages:
        send(page, message)
        wait_answer(page)


def administer(page: Page, section: str, ready: str) -> None:
    page.fill("#sign-in [name=key]", KEY)
    page.press("#sign-in [name=key]", "Enter")
    page.wait_for_selector("#figures dd")
    page.evaluate("to => (location.hash = `#/${to}`)", section)
    page.wait_for_selector(ready)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(300)


def picture(page: Page, name: str) -> None:
    """A screenshot of few colours, which is a quarter of the size."""
    path = ROOT / "docs" / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as taken:
        taken.convert("RGB").quantize(96).save(path, optimize=True)


def take_chat(browser: Browser, server: Server) -> None:
    for name, messages, options in (
        ("chat-light", ENGLISH, WIDE),
        ("chat-dark-phone", JAPANESE, PHONE),
    ):
        with visit(browser, server.url, **options) as page:
            chat(page, messages)
            picture(page, name)
    with visit(browser, server.url, **WIDE) as page:
        page.wait_for_selector("#model option", state="attached")
        page.click("#compare")
        send(page, ENGLISH[1])
        page.wait_for_selector("#log[aria-busy=false] .compared .better >> nth=1")
        picture(page, "chat-compare")


def take_admin(browser: Browser, server: Server) -> None:
    job = train(server)
    tall = {**WIDE, "viewport": {"width": 1100, "height": 900}}
    for name, section, ready, options in (
        ("admin-job", f"job/{job}", "#chart-loss .line", tall),
        ("admin-phone", f"job/{job}", "#chart-loss .line", PHONE),
        ("admin-overview", "overview", "#chart-latency .line", WIDE),
    ):
        with visit(browser, f"{server.url}/admin", "#sign-in", **options) as page:
            administer(page, section, ready)
            picture(page, name)


def main(*parts: str) -> None:
    """Take the pictures of `chat`, of `admin`, or without parts of both."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder)) as server,
        chromium() as browser,
    ):
        for part, take in {"chat": take_chat, "admin": take_admin}.items():
            if part in (parts or (part,)):
                take(browser, server)


if __name__ == "__main__":
    main(*sys.argv[1:])
