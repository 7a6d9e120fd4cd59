"""Adapters as files to take away, over HTTP."""

from __future__ import annotations

import io
import shutil
import time
import zipfile

import httpx
import pytest

from tests.support.engine import make_adapter
from tests.support.server import ADMIN_KEY

MODEL = "to-export"


@pytest.fixture(scope="module")
def client(admin_server, tiny_model_dir):
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=admin_server.url, headers=headers, timeout=60) as client:
        make_adapter(admin_server.log.parent / "data/exported", tiny_model_dir, seed=5)
        body = {"lora_name": MODEL, "lora_path": "exported"}
        client.post("/v1/load_lora_adapter", json=body).raise_for_status()
        yield client
        for export in client.get("/admin/exports").json()["data"]:
            client.delete(f"/admin/exports/{export['id']}")
        client.post("/v1/unload_lora_adapter", json={"lora_name": MODEL}).raise_for_status()


def export(client, **body):
    made = client.post("/admin/exports", json={"model": MODEL, **body})
    assert made.status_code == 200, made.text
    path = f"/admin/exports/{made.json()['id']}"
    deadline = time.monotonic() + 60
    while (found := client.get(path).json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return path, found


def test_an_adapter_is_downloaded(client):
    path, found = export(client, format="adapter")
    assert (found["status"], found["filename"]) == ("succeeded", "to-export.zip")
    answer = client.get(f"{path}/content")
    assert answer.headers["content-disposition"] == 'attachment; filename="to-export.zip"'
    assert len(answer.content) == found["bytes"]
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert "to-export/adapter_config.json" in names
    assert client.delete(path).json() == {
        "id": found["id"], "object": "export", "deleted": True,
    }  # fmt: skip
    assert client.get(path).status_code == 404


def test_an_adapter_becomes_a_file_for_llama_cpp(client):
    path, found = export(client, format="gguf", type="F16")
    assert (found["type"], found["error"]) == ("F16", None)
    part = client.get(f"{path}/content", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"GGUF")


@pytest.fixture
def stored(admin_server):
    """A directory without a usable configuration, and a GGUF file, in the server's store."""
    folder = admin_server.log.parent / "data/pulled"
    (folder / "unreadable").mkdir(parents=True)
    (folder / "unreadable/config.json").write_text("{}")
    (folder / "alone.gguf").write_bytes(b"GGUF")
    yield
    shutil.rmtree(folder / "unreadable")
    (folder / "alone.gguf").unlink()


def test_refusals(client, stored):
    def refusal(**body):
        answer = client.post("/admin/exports", json=body)
        return answer.status_code, answer.json()["error"]["code"]

    assert refusal(model="nobody", format="model") == (404, "model_not_found")
    assert refusal(model="tiny", format="adapter") == (409, "conflict")
    assert refusal(model="unreadable", format="gguf") == (400, "invalid_model")
    assert refusal(model="alone", format="model") == (409, "conflict")
    assert refusal(model=MODEL, format="tar")[0] == 400
    assert client.get("/admin/exports/none").status_code == 404
    chat = {"Authorization": "Bearer chat-key"}
    assert client.get("/admin/exports", headers=chat).status_code == 403
