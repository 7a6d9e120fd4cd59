"""The HTTP API as its users meet it: a real process, the stock OpenAI client, plain HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from hagane.kernels import cpu
from transformers import AutoModelForCausalLM

from tests.support.server import hagane

MESSAGES = [{"role": "user", "content": "Once upon a time 今日は"}]
KEY = {"Authorization": "Bearer two"}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def post(server, path: str, **body) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def chat(server, **body) -> httpx.Response:
    return post(server, "/v1/chat/completions", **{"model": "tiny", "messages": MESSAGES, **body})


def complete(server, **body) -> httpx.Response:
    return post(server, "/v1/completions", **{"model": "tiny", "prompt": "Once upon", **body})


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "hagane"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_streamed_chat_equals_whole_chat(client):
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=40
    )
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    finish = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finish[-1] == whole.choices[0].finish_reason
    assert not any(finish[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_final_message_is_continued(server):
    begun = [*MESSAGES, {"role": "assistant", "content": "Yes, and"}]
    answer = chat(
        server, messages=begun, continue_final_message=True, temperature=0, max_tokens=12
    ).json()["choices"][0]["message"]["content"]
    prompt = (
        f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>assistant\nYes, and"
    )
    text = complete(server, prompt=prompt, temperature=0, max_tokens=12).json()["choices"][0][
        "text"
    ]
    assert answer == text
    refused = chat(server, continue_final_message=True)
    assert refused.json()["error"]["param"] == "continue_final_message"


def test_greedy_tokens_equal_transformers(server, tiny_model_dir):
    prompt = [5, 70, 71, 90, 12, 33]
    reference = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        ids = reference.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=2
        )[0, len(prompt) :].tolist()
    expected = post(server, "/detokenize", tokens=[i for i in ids if i != 2]).json()["prompt"]
    answer = complete(
        server, prompt=prompt, max_tokens=40, temperature=0, skip_special_tokens=False
    )
    assert answer.json()["choices"][0]["text"] == expected


async def test_concurrent_streams_equal_the_same_requests_alone(server):
    def body(i: int) -> dict:
        return {
            "model": "tiny",
            "prompt": [3 + (7 * i + j) % 300 for j in range(5 + 3 * (i % 20))],
            "max_tokens": 10 + i % 15,
            "ignore_eos": True,
            **[
                {"temperature": 0},
                {"temperature": 0, "repetition_penalty": 1.3},
                {"temperature": 1.2, "seed": i, "top_p": 0.9},
                {"temperature": 0.8, "seed": i, "top_k": 20, "presence_penalty": 1},
            ][i % 4],
        }

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

        async def text(i: int) -> str:
            response = await http.post("/v1/completions", json=body(i))
            assert response.status_code == 200, response.text
            return response.json()["choices"][0]["text"]

        alone = [await text(i) for i in range(64)]
        together = await asyncio.gather(*(text(i) for i in range(64)))
    assert together == alone


def test_seed_and_choices(server):
    answers = [
        complete(server, max_tokens=12, seed=5, n=3, ignore_eos=True).json() for _ in range(2)
    ]
    texts = [[choice["text"] for choice in answer["choices"]] for answer in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert answers[0]["usage"]["completion_tokens"] == 36


def test_stop_string_is_never_leaked(server):
    plain = complete(server, max_tokens=40, temperature=0, ignore_eos=True).json()
    text = plain["choices"][0]["text"]
    stop = text[15:18]
    with httpx.stream(
        "POST",
        f"{server.url}/v1/completions",
        json={"model": "tiny", "prompt": "Once upon", "max_tokens": 40, "temperature": 0,
              "ignore_eos": True, "stop": [stop], "stream": True},
    ) as response:  # fmt: skip
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert "".join(c["choices"][0]["text"] for c in chunks) == text[: text.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_echo_with_logprobs_scores_the_prompt(server, tiny_model_dir):
    prompt = [5, 70, 71, 90, 12, 33, 44]
    answer = complete(server, prompt=prompt, echo=True, logprobs=1, max_tokens=0, temperature=0)
    report = answer.json()["choices"][0]["logprobs"]
    reference = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        logprobs = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = [logprobs[i, token].item() for i, token in enumerate(prompt[1:])]
    assert report["token_logprobs"][0] is None
    assert report["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
    assert len(report["tokens"]) == len(prompt)


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    for entry in answer.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.token == entry.top_logprobs[0].token
        assert entry.logprob <= 0


def test_prefix_cache_hit_is_reported(server):
    prompt = [3 + i % 250 for i in range(100)]
    for expected in (0, 96):
        usage = complete(server, prompt=prompt, max_tokens=1, cache_salt="hit").json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == expected
    usage = complete(server, prompt=prompt, max_tokens=1, cache_salt="other").json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


ERRORS = [
    ({"temperature": 3.5}, "temperature", "decimal_above_max_value"),
    ({"temperature": -1}, "temperature", "integer_below_min_value"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 17}, "n", "invalid_value"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ({"audio": {}}, "audio", "unsupported_parameter"),
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"max_tokens": 600}, "messages", "context_length_exceeded"),
    ({"model": None}, "model", "invalid_type"),
    ({"speculation": "draft"}, "speculation", "invalid_value"),
    ({"speculation": "guess"}, "speculation", "invalid_value"),
]


@pytest.mark.parametrize(("change", "param", "code"), ERRORS)
def test_bad_parameters_are_named(server, change, param, code):
    response = chat(server, **change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_context_overflow_names_both_numbers(server):
    response = complete(server, prompt=[5] * 700, max_tokens=4)
    error = response.json()["error"]
    assert error["message"].startswith("This model's maximum context length is 512 tokens.")
    assert "704" in error["message"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


@pytest.mark.parametrize("content", [b"{", b'{"model": NaN', b"\xff\xfe{}", b"", b"[]"])
def test_broken_bodies_are_refused(server, content):
    headers = {"content-type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    response = httpx.post(url, content=content, headers=headers)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_huge_body_and_wrong_route(server):
    response = httpx.post(f"{server.url}/v1/completions", content=b"x" * (9 << 20))
    assert response.status_code == 413
    assert httpx.get(f"{server.url}/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def test_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_request_id_travels(server):
    url = f"{server.url}/health/live"
    assert httpx.get(url, headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = httpx.get(url, headers={"X-Request-Id": "bad id"}).headers["x-request-id"]
    assert made.startswith("req_")


def test_disconnect_frees_the_blocks(server):
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 500, "ignore_eos": True, "n": 16,
            "stream": True}  # fmt: skip
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        # The iterator must live: httpx closes the response with it.
        lines = response.iter_lines()
        next(lines)
        assert server.metric("hagane_kv_cache_blocks_used") > 0
    deadline = time.monotonic() + 5
    while server.metric("hagane_kv_cache_blocks_used") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric("hagane_kv_cache_blocks_used") == 0
    assert server.metric("hagane_requests_running") == 0


def test_deadline(server):
    response = complete(server, max_tokens=500, ignore_eos=True, timeout=0.001)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


def test_keys_and_a_full_queue(narrow_server):
    server = narrow_server
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    wrong = {"Authorization": "Bearer three"}
    refused = httpx.get(f"{server.url}/v1/models", headers=wrong)
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/v1/models", headers=KEY).status_code == 200

    async def flood() -> list[httpx.Response]:
        body = {"model": "tiny", "prompt": "a", "max_tokens": 100, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=server.url, headers=KEY, timeout=60) as http:
            posts = (http.post("/v1/completions", json=body) for _ in range(8))
            return list(await asyncio.gather(*posts))

    responses = asyncio.run(flood())
    assert {r.status_code for r in responses} == {200, 429}
    for response in responses:
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_exceeded"


def test_engine_killed_in_mid_stream(narrow_server):
    url = f"{narrow_server.url}/v1/completions"
    pid = narrow_server.wait_ready()["engine_pid"]
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 500, "ignore_eos": True,
            "stream": True}  # fmt: skip
    with httpx.stream("POST", url, json=body, headers=KEY) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(pid, signal.SIGKILL)
        rest = [line for line in lines if line.startswith("data: ")]
    assert json.loads(rest[-1][6:])["error"]["code"] == "engine_crashed"
    assert narrow_server.wait_ready()["engine_pid"] != pid
    assert httpx.post(url, json=body | {"stream": False}, headers=KEY).status_code == 200
    assert narrow_server.metric("hagane_engine_restarts_total") == 1


@pytest.mark.slow
def test_what_cannot_be_served_is_one_line_and_status_2(tiny_model_dir, tmp_path):
    """Models of which a file is missing or cut, and a cache that needs the native kernels."""
    attempts = {"kv_cache_dtype": ["--model", str(tiny_model_dir), "--dtype", "float16",
                                   "--kv-cache-dtype", "int8"]}  # fmt: skip
    for breakage in ("config.json", "tokenizer.json", "model.safetensors"):
        broken = tmp_path / breakage
        broken.mkdir()
        for file in tiny_model_dir.iterdir():
            if file.name == breakage == "model.safetensors":
                (broken / file.name).write_bytes(file.read_bytes()[:5000])
            elif file.name != breakage:
                (broken / file.name).symlink_to(file)
        attempts[breakage] = ["--model", str(broken)]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda flags: hagane("serve", "--port", "0", *flags), attempts.values())
    for part, result in zip(attempts, results, strict=True):
        assert result.returncode == 2, part
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("hagane: ")
        assert part in last
        assert "Traceback" not in result.stderr


def test_a_request_chooses_who_guesses(narrow_server):
    body = {"model": "tiny", "prompt": [5, 6, 7] * 9, "max_tokens": 40, "temperature": 0}
    texts = set()
    for speculation in ("off", "auto", "lookup", "draft"):
        choice = {"speculation": speculation, "cache_salt": speculation}
        url = f"{narrow_server.url}/v1/completions"
        response = httpx.post(url, json=body | choice, headers=KEY)
        assert response.status_code == 200, response.text
        texts.add(response.json()["choices"][0]["text"])
    assert len(texts) == 1
    counts = httpx.get(f"{narrow_server.url}/metrics").text
    for proposer in ("draft", "lookup"):
        labels = f'{{model="tiny",proposer="{proposer}"}}'
        assert f"hagane_speculation_proposed_tokens_total{labels}" in counts


def test_an_int8_cache_holds_more_tokens_in_the_same_memory(server, narrow_server):
    if not cpu.available():
        pytest.skip("kernels not built")
    body = {"model": "tiny", "prompt": [5] * 40, "max_tokens": 20}
    response = httpx.post(f"{narrow_server.url}/v1/completions", json=body, headers=KEY)
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] > 0
    # Float32 against one byte and a scale for each head.
    blocks = "hagane_kv_cache_blocks_total"
    assert narrow_server.metric(blocks) > 2 * server.metric(blocks)
