"""Decode with and without guessed tokens, alternately on one server, and compare the answers.

Usage: python benchmarks/speculation.py --model DIRECTORY [--quantize int4] [--rounds N]
                                        [--streams N ...] [--tokens N]
                                        [--llama PYTHON --gguf FILE]

Tasks, from much repetition to none: rewrite a file with one change, answer from a given text, write
a function, write a story. Every request is made twice a round, once with "speculation": "off"; the
order alternates. Tokens per second are those after the first token. The answers have to be equal.

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
from pathlib import Path

from http_load import serving
from openai import AsyncOpenAI

HERE = Path(__file__).parent


def tasks() -> dict[str, str]:
    """A user's message for each."""
    code = (HERE / "optimizers.py").read_text()[:3600]
    text = (HERE.parent / "docs" / "pretraining.md").read_text()[:3600]
    return {
        "edit code": f"Rewrite this file. Rename the function main to run and change nothing else. "
        f"Answer with the whole file and nothing else.\n\n```python\n{code}\n```",
        "answer from text": f"{text}\n\nRepeat the second and the third paragraph of the text "
        "above word for word.",
        "write code": "Write a Python module with a class for a least-recently-used cache with "
        "expiry times, and tests for it.",
        "write prose": "Write a long story about a smith who forges steel on a small island.",
    }


async def ask(client: AsyncOpenAI, task: str, tokens: int, speculation: str, salt: int) -> dict:
    begin, first, text = time.perf_counter(), 0.0, ""
    count = 0
    chunks = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": task}], max_tokens=tokens, temperature=0,
        stream=True, stream_options={"include_usage": True},
        extra_body={"speculation": speculation, "cache_salt": str(salt)},
    )  # fmt: skip
    async for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter()
            text += chunk.choices[0].delta.content
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return {"text": text, "rate": (count - 1) / (time.perf_counter() - first), "begin": begin}


async def measure(url: str, rounds: int, streams: int, tokens: int) -> list[str]:
    rows = []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=900) as client:
        for name, task in tasks().items():
            rates: dict[str, list[float]] = {"off": [], "auto": []}
            texts: dict[str, list[str]] = {"off": [], "auto": []}
            for turn in range(rounds):
                for kind in ("off", "auto") if turn % 2 == 0 else ("auto", "off"):
                    # A number before each task: no stream shares its prompt's beginning.
                    found = await asyncio.gather(
                        *(
                            ask(client, f"Task {i}. {task}", tokens, kind, turn)
                            for i in range(streams)
                        )
                    )
                    rates[kind].append(sum(one["rate"] for one in found))
                    texts[kind] = [one["text"] for one in found]
            off, auto = (statistics.median(rates[kind]) for kind in ("off", "auto"))
            equal = "equal" if texts["off"] == texts["auto"] else "DIFFERENT"
            rows.append(
                f"{name:18} {streams:3}  {off:8.1f}  {auto:8.1f}  x{auto / off:.2f}  {equal}"
            )
            print(rows[-1], flush=True)
    return rows


def measure_llama(python: str, gguf: str, tokens: int) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as plan:
        json.dump({name: f"Task 0. {task}" for name, task in tasks().items()}, plan)
        plan.flush()
        peer = [python, str(HERE / "peer_llama_lookup.py"), gguf, plan.name, str(tokens)]
        subprocess.run(peer, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantize", default="int4")
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
    print("task           streams  tok/s off      auto  ratio  answers", flush=True)
    with serving(command) as (url, _):
        for streams in options.streams:
            asyncio.run(measure(url, options.rounds, streams, options.tokens))
    if options.llama:
        measure_llama(options.llama, options.gguf, options.tokens)


if __name__ == "__main__":
    main()
