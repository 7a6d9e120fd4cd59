"""Take the pictures of docs/: `python -m tests.web.screenshots [--model MODEL] [chat] [admin]`.

Those in the repository are of Qwen2.5-Coder-0.5B-Instruct with `--quantize int8`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from tests.support.server import Server, start_server, stop_server
from tests.web.browser import ROOT, choose, chromium, send, visit, wait_answer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KEY = "for-pictures"
ENGLISH = ("Write a Python function for the area of a circle. Only the code, no explanation.",
           "Show the formula for it in LaTeX, in one line.")  # fmt: skip
JAPANESE = ("こんにちは。", "円の面積の公式をLaTeXで書いてください。")
COMPARED = "Where is the goat?"
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
def serving(model: Path, quantize: str, folder: Path) -> Iterator[Server]:
    flags = ("--data-dir", str(folder / "data"), "--quantize", quantize)
    server = start_server(model, folder / "log", *flags, HAGANE_ADMIN_KEY=KEY)
    try:
        server.wait_ready(300)
        yield server
    finally:
        stop_server(server)


def train(server: Server) -> dict[str, Any]:
    """A job from upload to success."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=30) as client:
        upload = {"file": ("ships-log.jsonl", examples())}
        file = client.post("/files", files=upload, data={"purpose": "fine-tune"}).json()
        method = {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}
        body = {
            "model": client.get("/models").json()["data"][0]["id"],
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
        return job


def chat(page: Page, messages: tuple[str, ...]) -> None:
    choose(page, temperature=0)
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


def take_chat(browser: Browser, server: Server, job: dict[str, Any]) -> None:
    for name, messages, options in (
        ("chat-light", ENGLISH, WIDE),
        ("chat-dark-phone", JAPANESE, PHONE),
    ):
        with visit(browser, server.url, **options) as page:
            chat(page, messages)
            picture(page, name)
    with visit(browser, server.url, **WIDE) as page:
        page.wait_for_selector("#model option", state="attached")
        choose(page, temperature=0)
        page.click("#compare")
        page.select_option("#second", job["fine_tuned_model"])
        send(page, COMPARED)
        page.wait_for_selector("#log[aria-busy=false] .compared .better >> nth=1")
        picture(page, "chat-compare")


def take_admin(browser: Browser, server: Server, job: dict[str, Any]) -> None:
    tall = {**WIDE, "viewport": {"width": 1100, "height": 900}}
    for name, section, ready, options in (
        ("admin-job", f"job/{job['id']}", "#chart-loss .line", tall),
        ("admin-phone", f"job/{job['id']}", "#chart-loss .line", PHONE),
        ("admin-overview", "overview", "#chart-latency .line", WIDE),
    ):
        with visit(browser, f"{server.url}/admin", "#sign-in", **options) as page:
            administer(page, section, ready)
            picture(page, name)


TAKEN = {"chat": take_chat, "admin": take_admin}


def main() -> None:
    """Take the pictures of the parts that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(TAKEN))
    parser.add_argument("--model", type=Path, default=Path("hagane-mini"))
    parser.add_argument("--quantize", default="none")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(given.model, given.quantize, Path(folder)) as server,
        chromium() as browser,
    ):
        job = train(server)
        for part in given.parts or TAKEN:
            TAKEN[part](browser, server, job)


if __name__ == "__main__":
    main()
