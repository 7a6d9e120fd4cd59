"""HumanEval's pass@1 of a running server, greedy, and how fast it wrote the answers.

HumanEval: Chen et al., 2021, arXiv:2107.03374; FILE is `data/HumanEval.jsonl.gz` of
https://github.com/openai/human-eval. Any server with OpenAI's route for text completions can be
asked, so that the same weights can be compared in several. **The models' answers are run on this
machine**, each in a process of its own with bounded time, memory and files, but no sandbox.

Usage: python benchmarks/humaneval.py FILE --url URL --model NAME [--count 164] [--streams 4]
       [--tokens 384] [--extra '{"speculation": "off"}'] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

STOPS = ["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```", "\n@"]
SECONDS = 10
MEMORY, FILES = 2 << 30, 1 << 20


def problems(path: Path, count: int) -> list[dict[str, str]]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [json.loads(line) for line in lines if line.strip()][:count]


def confine() -> None:
    """In the process that runs an answer, before it does."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))


def passes(problem: dict[str, str], answer: str) -> bool:
    program = f"{problem['prompt']}{answer}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program], cwd=folder, env={}, capture_output=True,
                timeout=3 * SECONDS, check=False, preexec_fn=confine,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


async def ask(
    client: httpx.AsyncClient, options: argparse.Namespace, problem: dict[str, str]
) -> dict[str, Any]:
    body = {
        "model": options.model, "prompt": problem["prompt"], "max_tokens": options.tokens,
        "temperature": 0, "stop": STOPS, "stream": True, "stream_options": {"include_usage": True},
        **options.extra,
    }  # fmt: skip
    text, tokens, first = "", 0, None
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            for choice in event["choices"]:
                first = first or time.perf_counter()
                text += choice["text"]
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    ended = time.perf_counter()
    return {
        "task": problem["task_id"],
        "text": text,
        "tokens": tokens,
        "seconds": ended - started,
        "decode_seconds": ended - (first or ended),
    }


async def collect(
    options: argparse.Namespace, wanted: list[dict[str, str]]
) -> tuple[list[dict[str, Any]], float]:
    """The answers, in the problems' order, and the seconds that all of them took."""
    places = asyncio.Semaphore(options.streams)
    async with httpx.AsyncClient(base_url=options.url, timeout=1800) as client:

        async def one(problem: dict[str, str]) -> dict[str, Any]:
            async with places:
                return await ask(client, options, problem)

        started = time.perf_counter()
        answers = await asyncio.gather(*(one(problem) for problem in wanted))
    return answers, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=164)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--extra", type=json.loads, default={}, help="more fields of the requests")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = problems(options.file, options.count)
    answers, seconds = asyncio.run(collect(options, wanted))
    for problem, answer in zip(wanted, answers, strict=True):
        answer["passed"] = passes(problem, answer["text"])
    right = sum(answer["passed"] for answer in answers)
    tokens = sum(answer["tokens"] for answer in answers)
    print(f"{right} of {len(wanted)} pass: {100 * right / len(wanted):.1f}%")
    decoding = sum(answer["decode_seconds"] for answer in answers) / options.streams
    print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} a second, ", end="")
    print(f"{(tokens - len(wanted)) / max(decoding, 1e-9):.1f} after an answer's first token")
    if options.json:
        options.json.write_text(json.dumps(answers, indent=2) + "\n")


if __name__ == "__main__":
    main()
