"""Ranges that cannot be had are answered in the error shape."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from hagane.api.downloads import Download


@pytest.fixture
async def client(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "empty").touch()
    app = FastAPI()

    @app.get("/{name}", response_model=None)
    def get(name: str) -> Download:
        return Download(tmp_path / name)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


@pytest.mark.parametrize(
    ("name", "wanted", "status"),
    [
        ("file", "bytes=20-30", 416),
        ("file", "bytes=a-b", 400),
        ("file", "lines=1-2", 400),
        ("empty", "bytes=0-1", 416),
    ],
)
async def test_a_range_that_cannot_be_had(client, name, wanted, status):
    response = await client.get(f"/{name}", headers={"range": wanted})
    assert response.status_code == status
    assert response.json()["error"]["code"] == "invalid_range"
    assert "Range" in response.json()["error"]["message"]


async def test_whole_files_and_parts_of_them(client):
    assert (await client.get("/file")).content == b"0123456789"
    part = await client.get("/file", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, b"234")
    assert (await client.get("/empty")).content == b""
