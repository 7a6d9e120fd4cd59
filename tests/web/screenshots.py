"""Take the pictures of docs/ from the built-in model: `python -m tests.web.screenshots`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.conftest import start_server, stop_server
from tests.web.browser import ROOT, chromium, send, visit, wait_answer

ENGLISH = ("Hello! Who are you?", "Tell me a short story about a little cat.", "Thank you!")
JAPANESE = ("こんにちは。", "あなたは誰ですか。")
VIEWS = {
    "chat-light.png": (ENGLISH, {"viewport": {"width": 1100, "height": 700}}),
    "chat-dark-phone.png": (
        JAPANESE,
        {
            "viewport": {"width": 390, "height": 760},
            "device_scale_factor": 2,
            "color_scheme": "dark",
            "locale": "ja-JP",
            "has_touch": True,
            "is_mobile": True,
        },
    ),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path("hagane-mini"), Path(folder) / "log")
        try:
            server.wait_ready()
            with chromium() as browser:
                for name, (messages, options) in VIEWS.items():
                    with visit(browser, server.url, **options) as page:
                        for message in messages:
                            send(page, message)
                            wait_answer(page)
                        page.screenshot(path=ROOT / "docs" / name)
        finally:
            stop_server(server)


if __name__ == "__main__":
    main()
