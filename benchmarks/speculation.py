"""Decode with and without guessed tokens, alternately on one server, and compare the answers.

Usage: python benchmarks/speculation.py --model DIRECTORY [--draft DIRECTORY] [--quantize int4]
                                        [--rounds N] [--streams N ...] [--tokens N]
                                        [--only TASK ...] [--kinds KIND ...]
                                        [--llama PYTHON --gguf FILE]

Tasks, from much repetition to none: rewrite a file with one change, answer from a given text, write
short functions by their docstrings, write a module, write a story. Every request is made once a
round with each kind of "speculation"; the order alternates. Tokens per second are those after the
first token. The answers have to be equal.

With --llama, the interpreter of an environment with llama-cpp-python, the same tasks run there with
its own prompt look-up, for one stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from http_load import serving
from openai import AsyncOpenAI

HERE = Path(__file__).parent


# In the manner of HumanEval (Chen et al., 2021, arXiv:2107.03374).
FUNCTIONS = (
    """def running_median(numbers: list[float]) -> list[float]:
    \"\"\"For each place of the list, the median of the numbers up to there.
    >>> running_median([3, 1, 2])
    [3, 2.0, 2]
    \"\"\"
""",
    """def balanced(text: str) -> bool:
    \"\"\"Whether every bracket of text, of the kinds (), [] and {}, is closed by its own kind.
    >>> balanced("a[b]{c}")
    True
    >>> balanced("(]")
    False
    \"\"\"
""",
    """def roman(number: int) -> str:
    \"\"\"A number from 1 to 3999 in Roman numerals.
    >>> roman(1994)
    'MCMXCIV'
    \"\"\"
""",
    """def merge_intervals(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    \"\"\"The union of closed intervals, sorted, overlapping ones joined.
    >>> merge_intervals([(5, 8), (1, 3), (2, 4)])
    [(1, 4), (5, 8)]
    \"\"\"
""",
    """def longest_common_prefix(words: list[str]) -> str:
    \"\"\"The longest beginning that all words share.
    >>> longest_common_prefix(["flower", "flow", "flight"])
    'fl'
    \"\"\"
""",
    """def prime_factors(number: int) -> dict[int, int]:
    \"\"\"The prime factors of a number greater than 1, and how often each divides it.
    >>> prime_factors(360)
    {2: 3, 3: 2, 5: 1}
    \"\"\"
""",
)
KINDS = ("off", "lookup", "draft", "auto")


def tasks() -> dict[str, list[str]]:
    """A user's messages for each, of separate conversations."""
    code = (HERE / "optimizers.py").read_text()[:3600]
    text = (HERE.parent / "docs" / "pretraining.md").read_text()[:3600]
    return {
        "edit code": [
            "Rewrite this file. Rename the function main to run and change nothing else. "
            f"Answer with the whole file and nothing else.\n\n```python\n{code}\n```"
        ],
        "answer from text": [
            f"{text}\n\nRepeat the second and the third paragraph of the text above word for word."
        ],
        "write functions": [
            f"Complete this function. Answer with the code alone.\n\n```python\n{function}```"
            for function in FUNCTIONS
        ],
        "write code": [
            "Write a Python module with a class for a least-recently-used cache with expiry "
            "times, and tests for it."
        ],
        "write prose": ["Write a long story about a smith who forges steel on a small island."],
    }


@dataclass(frozen=True)
class Answer:
    """Tokens after the first one, and the seconds that they took."""

    text: str
    tokens: int
    seconds: float


async def ask(client: AsyncOpenAI, task: str, tokens: int, speculation: str, salt: str) -> Answer:
    first, text, count = 0.0, "", 0
    chunks = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": task}], max_tokens=tokens, temperature=0,
        stream=True, stream_options={"include_usage": True},
        extra_body={"speculation": speculation, "cache_salt": salt},
    )  # fmt: skip
    async for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter()
            text += chunk.choices[0].delta.content
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return Answer(text, count - 1, time.perf_counter() - first)


async def ask_all(
    client: AsyncOpenAI, task: list[str], tokens: int, kind: str, streams: int, salt: str
) -> tuple[float, list[str]]:
    """Tokens per second of all streams together, each of which asks one message after the other."""

    async def stream(number: int) -> list[Answer]:
        # A number before each message: no stream shares its prompt's beginning.
        return [
            await ask(client, f"Task {number}. {message}", tokens, kind, salt) for message in task
        ]

    answers = await asyncio.gather(*(stream(number) for number in range(streams)))
    rate = sum(sum(a.tokens for a in each) / sum(a.seconds for a in each) for each in answers)
    return rate, [answer.text for each in answers for answer in each]


async def measure(url: str, options: argparse.Namespace, streams: int, kinds: list[str]) -> None:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=900) as client:
        for kind in kinds:
            # Steps of new sizes are recorded, and their times measured.
            await ask_all(client, tasks()["write functions"][:2], 60, kind, streams, kind)
        for name, task in tasks().items():
            if options.only and name not in options.only:
                continue
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            texts: dict[str, list[str]] = {}
            for turn in range(options.rounds):
                for kind in kinds if turn % 2 == 0 else reversed(kinds):
                    rate, texts[kind] = await ask_all(
                        client, task, options.tokens, kind, streams, f"{turn}{kind}"
                    )
                    rates[kind].append(rate)
            medians = {kind: statistics.median(found) for kind, found in rates.items()}
            figures = "".join(
                f"  {rate:7.1f} x{rate / medians['off']:.2f}" for rate in medians.values()
            )
            equal = all(text == texts["off"] for text in texts.values())
            print(
                f"{name:18} {streams:3}{figures}  {'equal' if equal else 'DIFFERENT'}", flush=True
            )


def measure_llama(python: str, gguf: str, tokens: int) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as plan:
        json.dump({name: f"Task 0. {task[0]}" for name, task in tasks().items()}, plan)
        plan.flush()
        peer = [python, str(HERE / "peer_llama_lookup.py"), gguf, plan.name, str(tokens)]
        subprocess.run(peer, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", help="a smaller model of the same vocabulary")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--only", nargs="+", help="tasks")
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--llama", help="Python of an environment with llama-cpp-python")
    parser.add_argument("--gguf", help="the same weights for it")
    options = parser.parse_args()
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", options.model]
    command += ["--served-model-name", "m", "--context-length", "8192"]
    if options.quantize != "none":
        command += ["--quantize", options.quantize]
    if options.draft:
        command += ["--draft-model", options.draft]
    kinds = ["off", *(options.kinds or (KINDS[1:] if options.draft else ["lookup"]))]
    print("task           streams" + "".join(f"{kind:>15}" for kind in kinds), flush=True)
    with serving(command) as (url, _):
        for streams in options.streams:
            asyncio.run(measure(url, options, streams, kinds))
        print("\n".join(line for line in httpx.get(f"{url}/metrics").text.splitlines()
                        if line.startswith("hagane_speculation")))  # fmt: skip
    if options.llama:
        measure_llama(options.llama, options.gguf, options.tokens)


if __name__ == "__main__":
    main()
