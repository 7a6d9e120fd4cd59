"""The contract as stock clients use it: what they send back, leave empty, or only hint at."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "Once upon a time 今日は"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def post(server, path: str, **body) -> httpx.Response:
    subject = {"messages": MESSAGES} if path == CHAT else {"prompt": "Once upon"}
    sampling = {} if path == "/tokenize" else {"max_tokens": 4, "temperature": 0}
    whole = {"model": "tiny"} | sampling | subject | body
    return httpx.post(
        f"{server.url}{path}",
        content=json.dumps(whole),
        headers={"content-type": "application/json"},
        timeout=60,
    )


def refused(response: httpx.Response) -> dict:
    assert response.status_code == 400, response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def test_an_answer_can_be_sent_back_as_it_came(client):
    messages = list(MESSAGES)
    for turn in range(2):
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
        messages.append(answer.choices[0].message)
        messages.append({"role": "user", "content": f"more {turn}"})
    assert len(messages) == 5


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("message", [
    {"content": "x", "refusal": None, "annotations": [], "audio": None, "function_call": None,
     "tool_calls": None},
    {"content": "x", "tool_calls": []},
    {"content": None, "tool_calls": [CALL]},
    {"tool_calls": [CALL]},
    {"content": None, "function_call": {"name": "f", "arguments": "{}"}},
    {"content": [{"type": "refusal", "refusal": "no"}]},
    {"content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"content": "x", "reasoning_content": "hm"},
])  # fmt: skip
def test_assistant_messages_of_every_client_are_accepted(server, message):
    history = [*MESSAGES, {"role": "assistant", **message}, *MESSAGES]
    assert post(server, CHAT, messages=history).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_null_is_not_given_for_every_optional_field(server, path):
    shown = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    schema = shown["ChatBody" if path == CHAT else "CompletionBody"]
    optional = set(schema["properties"]) - set(schema["required"])
    assert len(optional) > 25
    plain = post(server, path).json()
    empty = post(server, path, **dict.fromkeys(optional - {"max_tokens", "temperature"}))
    assert empty.status_code == 200, empty.text
    texts = [(choice.get("text"), choice.get("message")) for choice in plain["choices"]]
    assert [(c.get("text"), c.get("message")) for c in empty.json()["choices"]] == texts
    for name in sorted(optional):
        assert post(server, path, **{name: None}).status_code == 200, name


HINTS = {
    "prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "u",
    "verbosity": "low", "modalities": ["text"], "tools": [], "functions": [], "store": True,
    "service_tier": "auto", "user": "u", "metadata": {"a": "b"}, "tool_choice": "none",
    "parallel_tool_calls": True, "reasoning_effort": "low",
}  # fmt: skip


@pytest.mark.parametrize("hint", HINTS)
def test_hints_are_accepted(server, hint):
    assert post(server, CHAT, **{hint: HINTS[hint]}).status_code == 200


UNSUPPORTED = [
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     "messages[0].content[0]", "images"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
     "messages[0].content[0]", "audio"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities[1]", "output other than text"),
    (CHAT, {"audio": {"voice": "a"}}, "audio", "audio output"),
    (CHAT, {"web_search_options": {}}, "web_search_options", "web search"),
    (CHAT, {"prediction": {"type": "content"}}, "prediction", "predicted output"),
    (TEXT, {"suffix": "x"}, "suffix", "filling in the middle"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change", "param", "words"), UNSUPPORTED)
def test_what_is_not_supported_is_named(server, path, change, param, words):
    error = refused(post(server, path, **change))
    assert error["param"] == param
    assert words in error["message"]
    assert error["code"].startswith("unsupported_")


def test_continuous_usage(server):
    body = {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    for path in (CHAT, TEXT):
        lines = post(server, path, ignore_eos=True, **body).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 4
        assert chunks[-1]["choices"] == []


@pytest.mark.parametrize("logprobs", [0, 1])
def test_the_sampled_token_is_always_among_the_top(server, logprobs):
    body = {"logprobs": logprobs, "temperature": 2, "seed": 3, "max_tokens": 24, "ignore_eos": True}
    report = post(server, TEXT, **body).json()["choices"][0]["logprobs"]
    for token, value, top in zip(
        report["tokens"], report["token_logprobs"], report["top_logprobs"], strict=True
    ):
        assert top[token] == value
        assert len(top) <= logprobs + 1


def test_scoring_generates_nothing_and_offsets_are_those_of_the_text(server):
    body = {"echo": True, "logprobs": 0, "max_tokens": 0}
    prompt = [1, *range(70, 76), 2, *range(80, 83)]
    answer = post(server, TEXT, prompt=prompt, **body).json()
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == len(prompt)
    choice = answer["choices"][0]
    report = choice["logprobs"]
    for token, offset in zip(report["tokens"], report["text_offset"], strict=True):
        if not token.startswith("<|") and "\ufffd" not in token:
            assert choice["text"][offset : offset + len(token)] == token
    assert report["text_offset"][:2] == [0, 0], "a special token takes no room"


def test_empty_bodies_and_unknown_routes(server):
    empty = httpx.post(f"{server.url}{CHAT}", headers={"content-type": "application/json"})
    assert "empty" in refused(empty)["message"]
    plain = httpx.post(f"{server.url}{CHAT}", content="{}", headers={"content-type": "text/plain"})
    assert refused(plain)["code"] == "invalid_content_type"
    missing = httpx.post(f"{server.url}/v1/images/generations", json={})
    assert missing.status_code == 404
    assert "/v1/images/generations" in missing.json()["error"]["message"]
    wrong = httpx.get(f"{server.url}/v1/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_health_and_version(server):
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "version" in httpx.get(f"{server.url}/version").json()


HALF = "\ud800"
FIELDS = [
    (CHAT, {"model": HALF}, "model"),
    (CHAT, {"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" + HALF}]}]},
     "messages[0].content[0].text"),
    (CHAT, {"messages": [{"role": HALF, "content": "x"}]}, "messages[0].role"),
    (CHAT, {"stop": ["x", HALF]}, "stop[1]"),
    (CHAT, {"chat_template_kwargs": {"x": {"y": [HALF]}}}, "chat_template_kwargs.x.y[0]"),
    (CHAT, {"metadata": {"a": HALF}}, "metadata.a"),
    (CHAT, {"metadata": {HALF: "a"}}, "metadata"),
    (TEXT, {"prompt": ["x", HALF]}, "prompt[1]"),
    (TEXT, {"cache_salt": HALF}, "cache_salt"),
    (TEXT, {HALF: 1}, None),
    ("/tokenize", {"prompt": HALF}, "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change", "param"), FIELDS)
def test_half_a_surrogate_pair_is_refused_by_field(server, path, change, param):
    error = refused(post(server, path, **change))
    assert (error["param"], error["code"]) == (param, "invalid_unicode")


def test_whole_surrogate_pairs_are_text(server):
    assert post(server, TEXT, prompt="\\ud83d\\udc08").status_code == 200
    body = b'{"model": "tiny", "max_tokens": 1, "prompt": "\\ud83d\\udc08"}'
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{server.url}{TEXT}", content=body, headers=headers).status_code == 200


TOO_MUCH = [
    (CHAT, {"messages": [{"role": "user", "content": ""}] * 600}, "context_length_exceeded"),
    (CHAT, {"messages": [{"role": "user", "content": "x " * 100_000}]}, "context_length_exceeded"),
    (TEXT, {"prompt": "x" * 4_000_000}, "context_length_exceeded"),
    (TEXT, {"prompt": ["x"] * 200, "n": 2}, "invalid_value"),
    (TEXT, {"prompt": []}, "invalid_value"),
    (TEXT, {"stop": "b" * 1001}, "invalid_value"),
    (TEXT, {"stop": ["b"] * 17}, "invalid_value"),
    (TEXT, {"logit_bias": {str(i): 1 for i in range(1025)}}, "invalid_value"),
    (TEXT, {"stop_token_ids": list(range(129))}, "invalid_value"),
    (CHAT, {"model": "x" * 1000}, "invalid_value"),
]


@pytest.mark.parametrize(("path", "change", "code"), TOO_MUCH)
def test_too_much_of_anything_is_refused(server, path, change, code):
    error = refused(post(server, path, **change))
    assert error["code"] == code
    assert len(error["message"]) < 600
    if code == "context_length_exceeded":
        assert error["message"].startswith("This model's maximum context length is 512 tokens.")


@pytest.mark.parametrize("body", [
    b'{"prompt": [' + b"[]," * 300_000 + b"[]]}",
    b'{"prompt": [' + b'{"a":1},' * 300_000 + b"1]}",
    b'{"prompt": "\\"' + b'\\",' * 300_000,
    b"[" * 300_000,
])  # fmt: skip
def test_bodies_of_very_many_values_are_refused_before_they_are_parsed(server, body):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}{TEXT}", content=body, headers=headers, timeout=60)
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["code"] in ("request_too_large", "invalid_json")


def test_long_text_full_of_commas_is_no_structure(server):
    answer = post(server, "/tokenize", prompt="1,2," * 130_000)
    assert answer.status_code == 200
    assert answer.json()["count"] > 100_000


def test_a_stop_string_never_leaks_at_the_last_token(server):
    ids = post(server, "/tokenize", prompt="に").json()["tokens"]
    first = ids[0]
    body = {"max_tokens": len(ids), "logit_bias": {str(first): 100}, "stop": ["に"]}
    text = post(server, TEXT, prompt="x", **body).json()["choices"][0]["text"]
    assert "に" not in text


def test_breaks_that_only_some_clients_know_are_escaped_in_streams(server):
    breaks = "\u2028\u2029\u0085"
    body = {"prompt": f"a{breaks}b", "echo": True, "stream": True, "max_tokens": 0}
    answer = post(server, TEXT, **body)
    data = [line for line in answer.content.decode().split("\n") if line.startswith("data: {")]
    assert not set(breaks) & set(answer.content.decode())
    assert json.loads(data[0][6:])["choices"][0]["text"].startswith(f"a{breaks}b")
