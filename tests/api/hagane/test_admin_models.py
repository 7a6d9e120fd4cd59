"""Several models in one server: those of a store and of the settings, loaded when asked for."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.encoder import encoder
from tests.support.engine import make_adapter
from tests.support.server import ADMIN_KEY, hagane, start_server, stop_server


@pytest.fixture(scope="module")
def store(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(tiny_model_dir, folder / "second")
    return folder


@pytest.fixture(scope="module")
def server(tiny_model_dir, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    running = start_server(
        tiny_model_dir, folder / "log", "--data-dir", str(folder / "data"),
        "--models-dir", str(store), "--models", f"embed={encoder(folder / 'bert', 'bert')}",
        "--resident-models", "1", "--served-model-name", "first", HAGANE_ADMIN_KEY=ADMIN_KEY,
    )  # fmt: skip
    running.wait_ready()
    yield running
    stop_server(running)


def admin(server, method: str, path: str = "", **options) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{server.url}/admin/models{path}"
    return httpx.request(method, url, headers=headers, timeout=60, **options)


def states(server) -> dict[str, str]:
    return {one["id"]: one["state"] for one in admin(server, "GET").json()["data"]}


def complete(server, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "Once upon", "max_tokens": 4, "temperature": 0}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


def embed(server) -> httpx.Response:
    body = {"model": "embed", "input": "cat"}
    return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60)


def test_requests_load_models_of_the_store_and_of_the_settings(server, store):
    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert {model["id"] for model in listed} == {"first", "second", "embed"}
    assert states(server) == {"first": "ready", "second": "on_disk", "embed": "on_disk"}
    expected = complete(server, "first").json()["choices"][0]["text"]
    assert complete(server, "second").json()["choices"][0]["text"] == expected
    assert states(server) == {"first": "ready", "second": "ready", "embed": "on_disk"}
    # One place: the one that nobody uses makes room.
    assert len(embed(server).json()["data"][0]["embedding"]) == 32
    assert states(server) == {"first": "ready", "second": "on_disk", "embed": "ready"}

    shutil.copytree(store / "second", store / "third")
    answers = (complete(server, "third") for _ in range(40))
    answer = next(answer for answer in answers if answer.status_code != 404)
    assert answer.json()["choices"][0]["text"] == expected


def test_admins_load_pin_and_unload(server):
    loaded = admin(server, "POST", "/load", json={"model": "second", "pinned": True}).json()
    assert (loaded["id"], loaded["state"], loaded["pinned"]) == ("second", "ready", True)
    assert loaded["weight_bytes"] > 0 and loaded["pid"]
    refused = embed(server)
    assert refused.status_code == 503
    assert "pinned" in refused.json()["error"]["message"]
    unloaded = admin(server, "POST", "/unload", json={"model": "second"}).json()
    assert (unloaded["state"], unloaded["pinned"]) == ("on_disk", False)
    assert embed(server).status_code == 200
    for path in ("/load", "/unload"):
        assert admin(server, "POST", path, json={"model": "none"}).status_code == 404
        base = admin(server, "POST", path, json={"model": "first"})
        assert base.status_code == 409
        assert "always loaded" in base.json()["error"]["message"]
    removed = httpx.delete(
        f"{server.url}/v1/models/embed", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
    )
    assert removed.status_code == 409
    assert "hagane models rm" in removed.json()["error"]["message"]


def test_an_adapter_of_another_model_runs_in_its_engine(server, store, tiny_model_dir):
    make_adapter(store / "changes", tiny_model_dir, 1)

    def post(path: str, **body) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)

    loads = {"lora_name": "second-changed", "lora_path": "changes"}
    for base, status in (("none", 404), ("embed", 400)):
        assert post("/v1/load_lora_adapter", **loads, base_model=base).status_code == status
    loaded = post("/v1/load_lora_adapter", **loads, base_model="second").json()
    assert (loaded["id"], loaded["parent"]) == ("second-changed", "second")
    twice = post("/v1/load_lora_adapter", lora_name="x", lora_path="changes",
                 base_model="second-changed")  # fmt: skip
    assert twice.json()["error"]["param"] == "base_model"
    post("/v1/load_lora_adapter", lora_name="first-changed", lora_path="changes")

    # The same weights and the same changes, in two engines.
    changed = complete(server, "first-changed").json()["choices"][0]["text"]
    assert complete(server, "second-changed").json()["choices"][0]["text"] == changed
    assert changed != complete(server, "second").json()["choices"][0]["text"]
    assert "second-changed" not in states(server)
    # An unloaded base comes back for its adapter.
    assert admin(server, "POST", "/unload", json={"model": "second"}).status_code == 200
    assert states(server)["second"] == "on_disk"
    assert complete(server, "second-changed").json()["choices"][0]["text"] == changed
    refused = admin(server, "POST", "/unload", json={"model": "second-changed"})
    assert "adapter" in refused.json()["error"]["message"]
    assert post("/v1/unload_lora_adapter", lora_name="second-changed").status_code == 200
    assert complete(server, "second-changed").status_code == 404


@pytest.mark.slow
def test_settings_that_cannot_be(tiny_model_dir):
    wrong = {"=x": "a name of its own", "embed=/nowhere": "/nowhere", "tiny=hagane-mini": "'tiny'"}

    def serve(models: str):
        return hagane("serve", "--model", str(tiny_model_dir), "--models", models)

    with ThreadPoolExecutor(3) as pool:
        for result, part in zip(pool.map(serve, wrong), wrong.values(), strict=True):
            assert result.returncode == 2
            (line,) = result.stderr.strip().splitlines()
            assert part in line
