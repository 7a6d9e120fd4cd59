"""The tools over HTTP: listed in the form that requests take, called, refused."""

from __future__ import annotations

import httpx
import openai
import pytest


@pytest.fixture
def post(server):
    def send(**body):
        return httpx.post(f"{server.url}/v1/tools/call", json=body)

    return send


def test_the_list_is_what_a_chat_completion_takes(server):
    listed = httpx.get(f"{server.url}/v1/tools").json()
    assert listed["object"] == "list"
    assert [tool["function"]["name"] for tool in listed["data"]] == ["calculator", "clock"]
    tools = [{"type": tool["type"], "function": tool["function"]} for tool in listed["data"]]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], tools=tools, max_tokens=2,
            tool_choice="none",
        )  # fmt: skip
    assert answer.usage.completion_tokens == 2


def test_calls(post):
    good = post(name="calculator", arguments={"expression": "6*7"})
    assert good.json() == {"content": "42", "is_error": False}
    bad = post(name="calculator", arguments={"expression": "6*"})
    assert bad.status_code == 200
    assert bad.json()["is_error"] is True
    local = post(name="clock", arguments={}, time_zone="Asia/Tokyo").json()["content"]
    assert local.endswith("Asia/Tokyo (UTC+09:00)")
    asked = post(name="clock", arguments={"time_zone": "UTC"}, time_zone="Asia/Tokyo")
    assert asked.json()["content"].endswith("UTC (UTC+00:00)")


def test_refusals(post, server):
    assert post(name="fetch", arguments={"url": "http://example.com"}).status_code == 404
    assert post(name="calculator", arguments="6*7").status_code == 400
    assert post(arguments={}).status_code == 400
    plain = httpx.post(f"{server.url}/v1/tools/call", content="{}")
    assert plain.status_code == 400, "a page from elsewhere could send this without asking"


def test_a_key_is_wanted_where_there_are_keys(admin_server):
    assert httpx.get(f"{admin_server.url}/v1/tools").status_code == 401
    called = httpx.post(f"{admin_server.url}/v1/tools/call", json={"name": "clock"})
    assert called.status_code == 401
