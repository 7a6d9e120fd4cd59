"""Conversations over HTTP, where the operator allows them."""

from __future__ import annotations

import httpx
import pytest

from tests.support.server import CHAT_KEY, OTHER_KEY, start_server, stop_server


@pytest.fixture(scope="module")
def keeping(tiny_model_dir, tmp_path_factory):
    """A server that keeps 2,000 bytes for each of two keys."""
    folder = tmp_path_factory.mktemp("chats")
    server = start_server(
        tiny_model_dir, folder / "log", "--data-dir", str(folder / "data"),
        "--stored-chats", "2000", HAGANE_API_KEYS=f"{CHAT_KEY},{OTHER_KEY}",
    )  # fmt: skip
    server.wait_ready()
    yield server
    stop_server(server)


@pytest.fixture
def call(keeping):
    def send(method, path="", status=200, key=CHAT_KEY, **body):
        answer = httpx.request(
            method,
            f"{keeping.url}/v1/chats{path}",
            headers={"Authorization": f"Bearer {key}"},
            json=body or None,
        )
        assert answer.status_code == status, answer.text
        return answer.json()

    return send


def test_the_life_of_a_chat(call):
    document = {"title": "猫", "messages": [{"id": "m", "content": "にゃー"}]}
    made = call("PUT", "/a1", revision=0, conversation=document)
    assert (made["object"], made["revision"], made["deleted"]) == ("chat", 1, False)
    assert call("GET", "/a1")["conversation"] == document
    refused = call("PUT", "/a1", 409, revision=0, conversation={})
    assert refused["error"]["code"] == "conflict"
    call("PUT", "/a1", revision=1, conversation={"title": "いぬ"})
    listed = call("GET")
    assert [(chat["id"], chat["revision"]) for chat in listed["data"]] == [("a1", 2)]
    assert (listed["max_bytes"], listed["days"]) == (2000, 365)
    assert listed["bytes"] == listed["data"][0]["bytes"]
    call("GET", "/a1", 404, key=OTHER_KEY)
    assert call("GET", key=OTHER_KEY)["data"] == []
    call("DELETE", "/a1", 404, key=OTHER_KEY)
    call("DELETE", "/a1")
    assert call("GET")["data"][0]["deleted"] is True


def test_bounds_and_refusals(call):
    call("PUT", "/b", 413, revision=0, conversation={"text": "x" * 2000})
    call("PUT", "/b", 400, revision=-1, conversation={})
    call("PUT", "/b", 400, revision=0, conversation=[])
    call("PUT", "/b.c", 400, revision=0, conversation={})
    call("GET", "", 401, key="wrong")


def test_off_unless_allowed(server):
    answer = httpx.get(f"{server.url}/v1/chats")
    assert answer.status_code == 404
    assert "stored_chats" in answer.json()["error"]["message"]
