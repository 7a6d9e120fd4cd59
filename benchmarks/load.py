"""Load time, memory and tokens per second of a random model in Qwen3-0.6B's shape, by quantization.

"cached" starts from what `hagane quantize` wrote beforehand; the other rows quantize at load.
Memory is the engine's, with a KV cache of 1 GiB.

Usage: python benchmarks/load.py [DIRECTORY]   (about 1.2 GB are written there once)
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import torch
from model import make_model

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 128, 32, 3


async def generate(url: str, streams: int, seed: int) -> float:
    """Output tokens per second of `streams` requests at a time."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(10, 8000, (streams, PROMPT_TOKENS), generator=generator).tolist()
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        started = time.monotonic()
        calls = (
            http.post("/v1/completions", json={"model": "m", "prompt": prompt, "temperature": 0,
                                               "max_tokens": NEW_TOKENS, "ignore_eos": True})
            for prompt in prompts
        )  # fmt: skip
        for response in await asyncio.gather(*calls):
            response.raise_for_status()
    return streams * NEW_TOKENS / (time.monotonic() - started)


def measure(directory: Path, label: str, *arguments: str) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(directory),
               "--port", str(port), "--served-model-name", "m",
               "--context-length", "4096", "--kv-cache-memory", "1GiB", *arguments]  # fmt: skip
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                ready = httpx.get(f"{url}/health/ready")
                if ready.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if server.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.05)
        seconds = time.monotonic() - started
        engine = psutil.Process(ready.json()["engine_pid"])
        asyncio.run(generate(url, 1, seed=99))
        rates = {
            n: statistics.median(
                asyncio.run(generate(url, n, seed=1000 * n + i)) for i in range(ROUNDS)
            )
            for n in (1, 16)
        }
        # An idle engine prefaults its KV cache, so memory is still lower right after the start.
        status = Path(f"/proc/{engine.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e6
        server.terminate()
    return f"| {label} | {seconds:.1f} s | {peak:.2f} GB | {rates[1]:.1f} | {rates[16]:.1f} |"


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/qwen3-0.6b-shape")
    if not (directory / "config.json").is_file():
        make_model(directory)
    print("| weights | start to ready | peak memory | 1 stream, tok/s | 16 streams, tok/s |")
    print("|---|---|---|---|---|")
    print(measure(directory, "none"), flush=True)
    for quantize in ("int8", "int4"):
        print(measure(directory, quantize, "--quantize", quantize), flush=True)
        cached = directory.with_name(f"{directory.name}-{quantize}")
        if not (cached / "config.json").is_file():
            command = [sys.executable, "-m", "hagane.cli", "quantize", str(directory), str(cached)]
            subprocess.run([*command, f"--{quantize}"], check=True, stderr=subprocess.DEVNULL)
        print(measure(cached, f"{quantize} cached"), flush=True)


if __name__ == "__main__":
    main()
