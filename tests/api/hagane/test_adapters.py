"""Adapters over HTTP: loaded, chatted with, replaced, unloaded while in use."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from hagane.system.errors import ConfigurationError
from hagane.system.settings import Settings

from tests.support.engine import make_adapter, merged

PROMPT = list(range(40, 60))
TOKENS = 10


@pytest.fixture
def call(admin_server):
    def send(method: str, path: str, status: int = 200, **body) -> dict:
        answer = httpx.request(
            method,
            f"{admin_server.url}{path}",
            headers={"Authorization": "Bearer admin-key"},
            json=body or None,
            timeout=60,
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    return send


@pytest.fixture
def data(admin_server) -> Path:
    """Where the server lets adapters come from."""
    return admin_server.log.parent / "data"


def complete(call, model: str, tokens: int = TOKENS, **fields) -> dict:
    return call(
        "POST", "/v1/completions", model=model, prompt=PROMPT, temperature=0, max_tokens=tokens,
        ignore_eos=True, skip_special_tokens=False, **fields,
    )  # fmt: skip


def text_of(call, model: str, tokens: int = TOKENS) -> str:
    answer = complete(call, model, tokens)
    assert answer["model"] == model
    return answer["choices"][0]["text"]


@torch.inference_mode()
def merged_text(call, model: Path, adapter) -> str:
    """The answer of transformers with the adapter merged into the weights."""
    reference, ids = merged(model, adapter), list(PROMPT)
    for _ in range(TOKENS):
        ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
    return call("POST", "/detokenize", tokens=ids[len(PROMPT) :])["prompt"]


def test_adapters_named_at_the_start_are_served(narrow_server, named_adapter, tiny_model_dir):
    def call(method: str, path: str, **body) -> dict:
        url, headers = f"{narrow_server.url}{path}", {"Authorization": "Bearer one"}
        answer = httpx.request(method, url, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert [model["id"] for model in call("GET", "/v1/models")["data"]] == ["tiny", "mine"]
    assert text_of(call, "mine") == merged_text(call, tiny_model_dir, named_adapter)
    assert text_of(call, "tiny") == merged_text(call, tiny_model_dir, None)


@pytest.mark.parametrize("given", ["mine", "=path", "mine="])
def test_an_adapter_at_the_start_needs_a_name_and_a_path(given):
    with pytest.raises(ConfigurationError, match="NAME=PATH"):
        _ = Settings(adapter=[given]).adapters


def load(call, name: str, status: int = 200, **fields) -> dict:
    return call("POST", "/v1/load_lora_adapter", status, lora_name=name, **fields)


def test_the_life_of_an_adapter(call, data, tiny_model_dir):
    first = make_adapter(data / "first", tiny_model_dir, 1)
    made = load(call, "team.first", lora_path="first")
    assert (made["id"], made["root"], made["parent"]) == ("team.first", "team.first", "tiny")
    assert made in call("GET", "/v1/models")["data"]
    assert call("GET", "/v1/models/team.first") == made
    assert text_of(call, "team.first") == merged_text(call, tiny_model_dir, first)
    assert text_of(call, "tiny") == merged_text(call, tiny_model_dir, None)
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    assert call("POST", "/v1/chat/completions", model="team.first", **chat)["choices"]
    assert call("POST", "/tokenize", model="team.first", prompt="hi")["count"]

    call("POST", "/admin/aliases", name="support", target="team.first")
    answer = complete(call, "support")
    assert answer["model"] == "team.first"
    assert answer["choices"][0]["text"] == text_of(call, "team.first")
    call("POST", "/v1/unload_lora_adapter", 409, lora_name="team.first")
    call("DELETE", "/admin/aliases/support")

    second = make_adapter(data / "second", tiny_model_dir, 2)
    path = str(data / "second")
    assert load(call, "team.first", 409, lora_path=path)["error"]["param"] == "lora_name"
    load(call, "team.first", lora_path=path, load_inplace=True)
    assert text_of(call, "team.first") == merged_text(call, tiny_model_dir, second)
    call("POST", "/v1/unload_lora_adapter", lora_name="team.first")
    for method, path, body in (
        ("POST", "/v1/completions", {"model": "team.first", "prompt": "a"}),
        ("POST", "/tokenize", {"model": "team.first", "prompt": "a"}),
        ("GET", "/v1/models/team.first", {}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "team.first"}),
    ):
        assert call(method, path, 404, **body)["error"]["code"] == "model_not_found"


def test_what_cannot_be_served_is_refused_with_the_reason(call, data, tiny_model_dir, tmp_path):
    outside = make_adapter(tmp_path / "outside", tiny_model_dir, 3)
    (data / "link").symlink_to(outside.directory)
    pickled = Path(make_adapter(data / "pickled", tiny_model_dir, 4).directory)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    shaped = Path(make_adapter(data / "shaped", tiny_model_dir, 5).directory)
    settings = json.loads((shaped / "adapter_config.json").read_text())
    (shaped / "adapter_config.json").write_text(json.dumps(settings | {"r": 7}))
    (data / "empty").mkdir()
    sound = make_adapter(data / "sound", tiny_model_dir, 6)
    for path, reason in (
        (outside.directory, "adapter_roots"),
        ("../outside", "adapter_roots"),
        ("link", "adapter_roots"),
        ("nowhere", "adapter_roots"),
        ("empty", "adapter_config.json"),
        ("pickled", "adapter_model"),
        ("shaped", "rank"),
    ):
        error = load(call, "bad", 400, lora_path=path)["error"]
        assert error["param"] == "lora_path"
        assert reason in error["message"]
    assert load(call, "tiny", 409, lora_path=sound.name)["error"]["code"] == "name_taken"
    assert load(call, "a b", 400, lora_path="x")["error"]["param"] == "lora_name"
    call("GET", "/v1/models/bad", 404)


def test_unloading_waits_for_running_requests_and_frees_memory(
    call, data, tiny_model_dir, admin_server
):
    before = admin_server.metric("hagane_adapters_loaded")
    make_adapter(data / "busy", tiny_model_dir, 7)
    load(call, "busy", lora_path="busy")
    whole = text_of(call, "busy", 400)
    with ThreadPoolExecutor(2) as pool:
        # Sixteen at a time take long enough to be seen.
        running = pool.submit(complete, call, "busy", 400, n=16)
        while admin_server.metric("hagane_requests_running") == 0:
            assert not running.done()
        unloading = pool.submit(call, "POST", "/v1/unload_lora_adapter", lora_name="busy")
        assert {choice["text"] for choice in running.result(60)["choices"]} == {whole}
        assert unloading.result(60)["deleted"]
    for _ in range(200):
        if admin_server.metric("hagane_adapters_loaded") == before:
            break
        text_of(call, "tiny", 1)
    else:
        raise AssertionError("the adapter is still in memory")
    text = httpx.get(f"{admin_server.url}/metrics").text
    assert re.search(r'^hagane_adapter_requests_total\{adapter="busy"\} 2.0$', text, re.MULTILINE)
    assert admin_server.metric("hagane_adapter_loads_total") >= 1


def test_files_that_vanish_fail_their_requests_alone(call, data, tiny_model_dir):
    adapter = make_adapter(data / "vanishing", tiny_model_dir, 8)
    load(call, "vanishing", lora_path="vanishing")
    call("POST", "/v1/unload_lora_adapter", lora_name="vanishing")
    load(call, "vanishing", lora_path="vanishing")
    weights = Path(adapter.directory) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert text_of(call, "vanishing")  # in memory still, as it was
    load(call, "vanishing", 400, lora_path="vanishing", load_inplace=True)
    assert text_of(call, "vanishing")
    shutil.rmtree(adapter.directory)
    call("POST", "/v1/completions", 404, model="vanishing", prompt="a")
    assert text_of(call, "tiny")
