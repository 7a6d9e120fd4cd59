"""Streams of /v1/completions are the whole answers in pieces."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest


def ask(server, **body) -> dict:
    body = {"model": "tiny", "temperature": 0, "max_tokens": 12} | body
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server, **body) -> tuple[dict[int, dict], list[dict]]:
    """Choices put together by index, and all chunks."""
    body = {"model": "tiny", "temperature": 0, "max_tokens": 12, "stream": True} | body
    choices: dict[int, dict] = {}
    chunks = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        chunks.append(json.loads(line))
        for part in chunks[-1]["choices"]:
            whole = choices.setdefault(part["index"], {"text": "", "logprobs": None})
            assert whole.get("finish_reason") is None, "nothing follows the end"
            whole["text"] += part["text"]
            whole["finish_reason"] = part["finish_reason"]
            if part["logprobs"] is not None:
                if whole["logprobs"] is None:
                    whole["logprobs"] = {key: [] for key in part["logprobs"]}
                for key, values in part["logprobs"].items():
                    whole["logprobs"][key] += values
    return choices, chunks


@pytest.fixture(scope="module")
def served(server):
    name = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    return server, name


CASES = {
    "several prompts": {"prompt": ["The cat", "今日は", "x"]},
    "several lists of tokens": {"prompt": [[5, 6, 7], [9], [5, 6]]},
    "several prompts, several answers": {"prompt": ["The cat", "今日は"], "n": 2, "seed": 7,
                                         "temperature": 1.0},
    "echo": {"prompt": "The cat", "echo": True},
    "echo of several": {"prompt": ["The cat", "今日は"], "echo": True, "n": 2},
    "echo with log-probabilities": {"prompt": "The cat", "echo": True, "logprobs": 2},
    "scores alone": {"prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 0},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_stream_adds_up_to_the_whole_answer(served, case):
    server, name = served
    body = CASES[case] | {"model": name}
    whole = ask(server, **body)
    pieces, chunks = stream(server, **body, stream_options={"include_usage": True})
    assert sorted(pieces) == [choice["index"] for choice in whole["choices"]]
    for choice in whole["choices"]:
        streamed = pieces[choice["index"]]
        assert streamed["text"] == choice["text"]
        assert streamed["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is not None:
            assert streamed["logprobs"]["tokens"] == choice["logprobs"]["tokens"]
            assert streamed["logprobs"]["text_offset"] == choice["logprobs"]["text_offset"]
            assert streamed["logprobs"]["token_logprobs"] == choice["logprobs"]["token_logprobs"]
    assert chunks[-1]["choices"] == []
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][key] == whole["usage"][key]


def test_one_bad_prompt_refuses_the_whole_stream(served):
    server, name = served
    body = {"model": name, "prompt": [[5], [10**6]], "stream": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"


def test_seeded_text_never_depends_on_the_batch_or_the_cache(served):
    """Sampled at temperature 1, alone first, then from the prefix cache and in full batches."""
    server, name = served
    prompts = [f"The {word} sat on the mat and looked at the moon for a long time" * 2
               for word in ("cat", "dog", "今日は", "bird")]  # fmt: skip

    def body(index: int) -> dict:
        return {"model": name, "prompt": prompts[index % 4], "seed": index, "temperature": 1.0,
                "max_tokens": 24, "ignore_eos": True}  # fmt: skip

    def text(index: int) -> tuple[str, int]:
        answer = httpx.post(f"{server.url}/v1/completions", json=body(index), timeout=60).json()
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["text"], cached

    alone = [text(i)[0] for i in range(12)]
    assert len(set(alone)) == 12
    with ThreadPoolExecutor(12) as pool:
        for _ in range(3):
            together = list(pool.map(text, range(12)))
            assert [answer for answer, _ in together] == alone
    assert any(cached > 0 for _, cached in together)


def test_the_token_that_ends_a_text_has_a_score_but_no_text(served):
    """Clients that score prompts (lm-evaluation-harness) take off one entry for what follows."""
    server, name = served
    body = {"prompt": [5, 6, 7], "echo": True, "logprobs": 1, "max_tokens": 1}
    ended = ask(server, model=name, logit_bias={"2": 100}, **body)["choices"][0]
    assert ended["finish_reason"] == "stop"
    went_on = ask(server, model=name, logit_bias={"2": -100}, **body)["choices"][0]
    assert len(ended["logprobs"]["token_logprobs"]) == 4
    assert ended["logprobs"]["tokens"][3] == "<|im_end|>"
    assert went_on["text"].startswith(ended["text"])
    for key in ("tokens", "token_logprobs"):
        assert ended["logprobs"][key][:3] == went_on["logprobs"][key][:3]


@pytest.mark.parametrize("number", [1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, 1 << 70])
@pytest.mark.parametrize("field", ["top_k", "min_tokens", "max_tokens", "seed", "n", "logprobs"])
def test_extreme_integers_hurt_nobody(served, field, number):
    """Whatever is refused is 400; the engine lives."""
    server, name = served
    pid = httpx.get(f"{server.url}/health/ready").json()["engine_pid"]
    for temperature in (0, 1):
        body = {"model": name, "prompt": [5], "max_tokens": 2, "temperature": temperature}
        answer = httpx.post(f"{server.url}/v1/completions", json=body | {field: number})
        assert answer.status_code in (200, 400), answer.text
        assert number < 1 << 63 or answer.status_code == 400
    assert httpx.get(f"{server.url}/health/ready").json()["engine_pid"] == pid


def test_token_ids_and_prompt_logprobs_are_shown_on_request(server):
    asked = {
        "model": "tiny", "max_tokens": 6, "temperature": 0, "return_token_ids": True,
        "prompt_logprobs": 2, "logprobs": 1, "echo": True,
    }  # fmt: skip
    url = f"{server.url}/v1/completions"
    choice = httpx.post(url, json={**asked, "prompt": "Once upon"}).json()["choices"][0]
    prompt, tokens = choice["prompt_token_ids"], choice["token_ids"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["prompt_logprobs"][0] is None
    for token, entry, logprob in zip(
        prompt[1:],
        choice["prompt_logprobs"][1:],
        choice["logprobs"]["token_logprobs"][1 : len(prompt)],
        strict=True,
    ):
        assert entry[str(token)]["logprob"] == pytest.approx(logprob)
    text = httpx.post(f"{server.url}/detokenize", json={"tokens": [*prompt, *tokens]}).json()
    assert text["prompt"] == choice["text"]
    body = {**asked, "prompt": "Once upon", "stream": True, "echo": False, "logprobs": None}
    lines = [line for line in httpx.post(url, json=body).text.splitlines() if "{" in line]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert [token for chunk in chunks for token in chunk["token_ids"]] == tokens
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [prompt] + [None] * (
        len(chunks) - 1
    )
    chat = {
        "model": "tiny", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 4,
        "return_token_ids": True, "prompt_logprobs": 0, "temperature": 0,
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat).json()
    shown = httpx.post(f"{server.url}/v1/chat/completions/render", json=chat).json()
    assert answer["prompt_token_ids"] == shown["prompt_token_ids"]
    assert shown["prompt"].startswith("<|im_start|>user\nOnce")
    assert shown["count"] == answer["usage"]["prompt_tokens"] == len(answer["prompt_logprobs"])
    assert len(answer["choices"][0]["token_ids"]) <= 4
    streamed = httpx.post(f"{server.url}/v1/chat/completions", json={**chat, "stream": True})
    lines = [line for line in streamed.text.splitlines() if "{" in line]
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    ids = [token for piece in pieces for token in piece.get("token_ids", [])]
    assert ids == answer["choices"][0]["token_ids"]


def test_a_suffix_is_filled_in_where_the_model_has_the_tokens(server, marked_server):
    url = "/v1/completions"
    body = {"model": "tiny", "prompt": "def a():", "suffix": "return 1", "max_tokens": 5}
    body |= {"temperature": 0, "return_token_ids": True}
    refused = httpx.post(server.url + url, json=body)
    assert refused.json()["error"]["param"] == "suffix"
    (filled,) = httpx.post(marked_server.url + url, json=body).json()["choices"]
    whole = {**body, "suffix": None, "prompt": filled["prompt_token_ids"]}
    (same,) = httpx.post(marked_server.url + url, json=whole).json()["choices"]
    asked = {"tokens": filled["prompt_token_ids"]}
    shown = httpx.post(f"{marked_server.url}/detokenize", json=asked).json()["prompt"]
    assert shown == "<|fim_prefix|>def a():<|fim_suffix|>return 1<|fim_middle|>"
    assert filled["text"] == same["text"]
