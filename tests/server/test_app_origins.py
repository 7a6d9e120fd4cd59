"""The permissions of pages of other origins."""

from __future__ import annotations

import httpx
import pytest
from hagane.server.app import create_app
from hagane.system.settings import Settings

FRIEND, STRANGER = "https://friend.example", "https://evil.example"


@pytest.fixture
async def client(tiny_model_dir, tmp_path):
    settings = Settings(
        _cli_parse_args=False, model=str(tiny_model_dir), data_dir=tmp_path, cors_origins=FRIEND
    )
    transport = httpx.ASGITransport(create_app(settings, lambda: None))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("origin", "allowed"), [(FRIEND, True), (STRANGER, False), ("null", False)]
)
async def test_only_named_origins_and_never_with_credentials(client, origin, allowed):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked = await client.options("/v1/chat/completions", headers=headers)
    read = await client.get("/v1/models", headers={"Origin": origin})
    for answer in (asked, read):
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_form_of_another_page_starts_nothing(client, kind):
    """Browsers send these without asking first; JSON they do not."""
    headers = {"Origin": STRANGER} | ({"Content-Type": kind} if kind else {})
    body = b'{"model": "tiny", "prompt": "a"}'
    answer = await client.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400
