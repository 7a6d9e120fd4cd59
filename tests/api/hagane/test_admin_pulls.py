"""Models pulled into a server's store and deleted from it, from a hub on loopback."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.support.engine import make_adapter
from tests.support.gguf import write_gguf
from tests.support.hub import hub
from tests.support.server import ADMIN_KEY, start_server, stop_server


@pytest.fixture(scope="module")
def remote(tiny_model_dir, tmp_path_factory):
    path = write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "x.gguf")
    data = path.read_bytes()
    with hub({"me/tiny/x.gguf": data, "me/two/a.gguf": data, "me/two/b.gguf": data}) as running:
        yield running


@pytest.fixture(scope="module")
def store(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for name in ("first", "named"):
        shutil.copytree(tiny_model_dir, folder / name)
    return folder


@pytest.fixture(scope="module")
def server(remote, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pulls")
    running = start_server(
        store / "first", folder / "log", "--data-dir", str(folder / "data"),
        "--models-dir", str(store), "--models", "other=named",
        HAGANE_ADMIN_KEY=ADMIN_KEY, HF_ENDPOINT=remote.url, HF_HOME=str(folder / "hub"),
    )  # fmt: skip
    running.wait_ready()
    yield running
    stop_server(running)


def admin(server, method: str, path: str = "", **options) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    url = f"{server.url}/admin/models{path}"
    return httpx.request(method, url, headers=headers, timeout=60, **options)


def pull(server, model: str, **options) -> httpx.Response:
    return admin(server, "POST", "/pull", json={"model": model, **options})


@contextmanager
def adapter(server, name: str, *, base: str) -> Iterator[None]:
    """An adapter of another model, served in the context."""
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as client:
        body = {"lora_name": name, "lora_path": name, "base_model": base}
        client.post("/load_lora_adapter", json=body).raise_for_status()
        yield
        client.post("/unload_lora_adapter", json={"lora_name": name}).raise_for_status()


def ended(server, pull_id: str) -> dict:
    while True:
        found = admin(server, "GET", f"/pulls/{pull_id}").json()
        if found["finished_at"] is not None:
            return found
        time.sleep(0.02)


def test_a_pulled_model_is_listed_served_unloaded_and_deleted(server, store, tiny_model_dir):
    started = pull(server, "me/tiny", name="pulled").json()
    done = ended(server, started["id"])
    assert (done["status"], done["name"], done["error"]) == ("succeeded", "pulled", None)
    assert done["received_bytes"] == done["total_bytes"] == (store / "pulled/x.gguf").stat().st_size
    listed = {one["id"]: one for one in admin(server, "GET").json()["data"]}
    assert listed["pulled"]["removable"] and not listed["first"]["removable"]
    assert listed["pulled"]["weight_bytes"] == done["total_bytes"]
    body = {"model": "pulled", "prompt": "Once", "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200

    make_adapter(server.log.parent / "data/style", tiny_model_dir, seed=1)
    with adapter(server, "style", base="pulled"):
        refused = admin(server, "DELETE", "/pulled")
        assert refused.status_code == 409
        assert "The adapter 'style' changes 'pulled'" in refused.json()["error"]["message"]
    refused = admin(server, "DELETE", "/pulled")
    assert refused.status_code == 409
    assert "/admin/models/unload" in refused.json()["error"]["message"]
    assert pull(server, "me/tiny", name="pulled").json()["error"]["code"] == "name_taken"
    assert admin(server, "POST", "/unload", json={"model": "pulled"}).status_code == 200
    removed = admin(server, "DELETE", "/pulled").json()
    assert (removed["deleted"], removed["freed_bytes"]) == (True, done["total_bytes"])
    assert not (store / "pulled").exists()
    assert admin(server, "DELETE", "/pulled").status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [
        ("/first", 409, "started on"),
        ("/named", 409, "offers it as 'other'"),
        ("/hagane-mini", 409, "built-in"),
        ("/nothing", 404, "nothing"),
        ("/%2e%2e%2fstore", 404, "no model"),
        ("/.pulls", 404, "no model"),
        ("/me/tiny", 404, "no model"),
    ],
)
def test_what_is_not_deleted(server, store, path, status, part):
    refused = admin(server, "DELETE", path)
    assert refused.status_code == status
    assert part in refused.json()["error"]["message"]
    assert (store / "first").is_dir() and (store / "named").is_dir()


@pytest.mark.parametrize(
    ("model", "options", "status", "part"),
    [
        ("nothing", {}, 400, "no hub id"),
        ("../x/y.gguf", {}, 400, "no hub id"),
        ("me/none", {}, 400, "not found on the hub"),
        ("me/two", {}, 400, "me/two/a.gguf, me/two/b.gguf"),
        ("me/tiny", {"name": "../x"}, 400, "name"),
        ("me/tiny", {"name": "first"}, 409, "taken"),
    ],
)
def test_what_is_not_pulled(server, model, options, status, part):
    refused = pull(server, model, **options)
    assert refused.status_code == status
    assert part in refused.json()["error"]["message"]


def test_pulls_are_bounded_and_cancelled(server, remote, store):
    remote.held = True
    started = [pull(server, f"me/two/{name}.gguf").json() for name in "ab"]
    assert [one["status"] for one in started] == ["running", "running"]
    assert pull(server, "me/tiny").status_code == 429
    for one in started:
        cancelled = admin(server, "POST", f"/pulls/{one['id']}/cancel").json()
        assert cancelled["status"] == "cancelling"
    remote.held = False
    assert {ended(server, one["id"])["status"] for one in started} == {"cancelled"}
    assert not list((store / ".pulls").glob("*"))
    listed = [one["id"] for one in admin(server, "GET", "/pulls").json()["data"]]
    assert listed[:2] == [one["id"] for one in reversed(started)]
    assert admin(server, "GET", "/pulls/none").status_code == 404
