"""Random and extreme bodies for every route that generates, and streams that must not notice them.

Values of every field are drawn from its extremes, from other fields' values and from plain ones, in
pairs, so that each body has two fields that are odd.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATHS = (CHAT, TEXT, "/tokenize", "/detokenize")
# The statuses of a healthy server, whatever it was sent.
EXPECTED = {200, 400, 404, 408, 413, 429, 503, 504}

NUMBERS: list[Any] = [
    0, 1, -1, 2, 17, 0.5, 1e-9, 5e-324, -0.0, 1e308, -1e308, 2**31, 2**53, 2**63 - 1, 2**63, 2**64,
    -(2**63), -(2**63) - 1, 10**400,
]  # fmt: skip
TEXTS: list[Any] = [
    "", "a", "Once upon a time", "\x00", "\ud800", "\U0001f408", "\u202e", "に" * 300, "b" * 5000,
    "<|im_end|>", "<tool_call>", "{", "a\u0301" * 50, "../../etc/passwd",
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"": None}, [1, 2, 3], [[1], [2]], ["a"] * 40,
    {"type": "text"}, {"7": 1e308}, {"a": {"b": {"c": [1]}}}, [{"role": "user", "content": "x"}],
]  # fmt: skip
# Values that mean something to a field, so that two meaningful fields meet.
FITTING: dict[str, list[Any]] = {
    "messages": [
        [{"role": "user", "content": "Hello"}],
        [{"role": "user", "content": "x"}] * 50,
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "tool", "tool_call_id": "x", "content": "1"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ],
    "prompt": ["Once", [1, 2, 3], ["a", "b"], [[5], [6, 7]], "x" * 3000, [319], [320], ["a"] * 64],
    "stop": ["a", ["a", "b"], "b" * 999, ["に"] * 16],
    "logit_bias": [{"5": 100}, {"319": -100, "7": 3.5}, {str(i): -100 for i in range(320)}],
    "stop_token_ids": [[1], [2, 319], [320]],
    "stream_options": [{"include_usage": True}, {"continuous_usage_stats": True}],
    "response_format": [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}},
    ],
    "structured_outputs": [{"regex": "a*"}, {"choice": ["a", "に"]}, {"json": {"type": "array"}}],
    "guided_regex": ["(a|a)*", "(.*)*(.*)*!", "a{9999}", "("],
    "guided_choice": [["x", "y"]],
    "guided_json": [{"type": "object"}, {"enum": []}],
    "grammar": ['start: "a" start | "b"', 'root ::= "a"*', "start: start"],
    "tools": [[{"type": "function", "function": {"name": "f", "parameters": {}}}]],
    "tool_choice": ["required", "auto", {"type": "function", "function": {"name": "f"}}],
    "chat_template_kwargs": [{"self": 1}, {"bos_token": "x"}, {"messages": []}],
    "model": ["tiny", "nothing", "TINY"],
    # The edges of what each number may be.
    "temperature": [0, 1e-9, 0.7, 2],
    "top_p": [1e-9, 0.5, 1],
    "top_k": [-1, 0, 1, 5, 2**31, 2**62],
    "min_p": [0, 0.5, 1],
    "repetition_penalty": [0.01, 1, 10],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "n": [1, 2, 16],
    "seed": [0, -1, 2**63 - 1, -(2**63)],
    "max_tokens": [1, 2, 40],
    "max_completion_tokens": [1, 40],
    "min_tokens": [0, 1, 4],
    "logprobs": [True, 0, 1, 20],
    "top_logprobs": [0, 20],
    "timeout": [0.001, 1, 1e6],
    "priority": [0, 1000],
    "cache_salt": ["x", "に" * 256],
    "echo": [True],
    "ignore_eos": [True],
    "skip_special_tokens": [False],
    "stream": [True],
    "add_generation_prompt": [False],
    "add_special_tokens": [False],
    "parallel_tool_calls": [False],
    "reasoning_effort": ["low", "none"],
    "best_of": [1, 2],
    "tokens": [[1, 2], [319], [320], [2**40], list(range(300)) * 9],
}


@dataclass
class Bodies:
    """Bodies by seed; `fields` are the properties of each route's schema in openapi.json."""

    fields: dict[str, list[str]]
    rng: random.Random

    @classmethod
    def of(cls, url: str, seed: int) -> Bodies:
        """For the server at `url`."""
        schemas = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
        names = ("ChatBody", "CompletionBody", "TokenizeBody", "DetokenizeBody")
        fields = {
            path: sorted(schemas[name]["properties"])
            for path, name in zip(PATHS, names, strict=True)
        }
        return cls(fields, random.Random(seed))

    def draw(self) -> tuple[str, bytes]:
        """(path, body)."""
        rng = self.rng
        path = rng.choices(PATHS, (6, 6, 1, 1))[0]
        return path, self.body(path, rng.sample(self.fields[path], 2))

    def pairs(self, path: str) -> Iterator[bytes]:
        """One body for every pair of the route's fields."""
        fields = self.fields[path]
        for i, first in enumerate(fields):
            for second in fields[i + 1 :]:
                yield self.body(path, [first, second])

    def body(self, path: str, odd: list[str]) -> bytes:
        """A plain body in which the fields `odd` have odd values."""
        rng = self.rng
        plain: dict[str, dict[str, Any]] = {
            CHAT: {"messages": FITTING["messages"][0], "max_tokens": 4},
            TEXT: {"prompt": "Once", "max_tokens": 4},
            "/tokenize": {"prompt": "Once"},
            "/detokenize": {"tokens": [1, 2]},
        }
        body = {"model": "tiny"} | plain[path]
        for name in odd:
            kind = rng.random()
            fitting = FITTING.get(name, [])
            if fitting and kind < 0.75:
                body[name] = rng.choice(fitting)
            else:
                body[name] = rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS)))
        if rng.random() < 0.1:
            body["stream"] = True
        text = json.dumps(body).encode()
        if rng.random() < 0.03:
            # Cut, or with a byte that is none of JSON's.
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice((b"", b"\xff", b"NaN", b'"')) + text[place + 1 :]
        return text


@dataclass
class Report:
    """The answers to hostile clients: statuses, and those that should not have been."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[str, bytes, str]] = field(default_factory=list)

    def count(self, path: str, body: bytes, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        text = response.text
        if response.status_code not in EXPECTED or "engine_crashed" in text:
            self.wrong.append((path, body[:2000], f"{response.status_code} {text[:500]}"))


HEADERS = {"content-type": "application/json"}


async def send(client: httpx.AsyncClient, report: Report, path: str, body: bytes) -> None:
    """One hostile request."""
    try:
        response = await client.post(path, content=body, headers=HEADERS)
    except httpx.TransportError as error:
        report.wrong.append((path, body[:2000], f"no answer: {error!r}"))
        return
    report.count(path, body, response)


async def watched_text(client: httpx.AsyncClient, seed: int) -> str:
    """The text of a stream that nobody may disturb."""
    body = {
        "model": "tiny", "prompt": f"Once upon a time {seed}", "max_tokens": 60, "stream": True,
        "temperature": seed % 2, "seed": seed, "ignore_eos": True,
    }  # fmt: skip
    while True:
        text = ""
        async with client.stream("POST", TEXT, json=body) as response:
            if response.status_code == 429:
                # The queue is full of others' prompts: that is what it is for.
                await asyncio.sleep(0.05)
                continue
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    text += event["choices"][0]["text"]
        return text
