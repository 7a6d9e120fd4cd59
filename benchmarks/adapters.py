"""Compare 16 streams of the base model with 16 streams over 8 adapters of rank 16, on one server.

The model is random, in Qwen3-0.6B's shape. Rounds of both kinds alternate; medians are shown.

Usage: python benchmarks/adapters.py [DIRECTORY ...]   (1.5 GB are written there once)
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import torch
from hagane.lora.config import AdapterConfig
from hagane.lora.files import linear_shapes, save_adapter
from hagane.weights.sources.config import load_config
from model import make_model

STREAMS, ADAPTERS, RANK = 16, 8, 16
PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 32, 48, 3
NAMES = [f"adapter-{i}" for i in range(ADAPTERS)]


def write_adapters(directory: Path, model: Path) -> None:
    """Random ones, on all linear layers."""
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        factors = {
            module: (
                torch.randn(RANK, width, generator=generator) * width**-0.5,
                torch.randn(out, RANK, generator=generator) * 0.01,
            )
            for module, (out, width) in linear_shapes(load_config(model)).items()
        }
        save_adapter(directory / name, AdapterConfig(rank=RANK, alpha=2.0 * RANK), factors)


async def generate(url: str, models: list[str], seed: int) -> tuple[float, float]:
    """Output tokens per second of all streams together, and while all were decoding."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(10, 8000, (STREAMS, PROMPT_TOKENS), generator=generator).tolist()
    arrivals: list[list[float]] = [[] for _ in prompts]

    async def stream(http: httpx.AsyncClient, index: int) -> None:
        body = {"model": models[index % len(models)], "prompt": prompts[index], "temperature": 0,
                "max_tokens": NEW_TOKENS, "ignore_eos": True, "stream": True}  # fmt: skip
        async with http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    arrivals[index].append(time.monotonic())

    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        started = time.monotonic()
        await asyncio.gather(*(stream(http, i) for i in range(STREAMS)))
    begin, end = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    inside = sum(begin < moment <= end for times in arrivals for moment in times)
    total = STREAMS * NEW_TOKENS / (max(times[-1] for times in arrivals) - started)
    return total, inside / (end - begin)


def wait_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if server.poll() is not None:
            raise SystemExit("the server ended before it was ready")
        time.sleep(0.05)


def measure(model: Path, data: Path) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(model),
               "--port", str(port), "--served-model-name", "base",
               "--context-length", "1024"]  # fmt: skip
    for name in NAMES:
        command += ["--adapter", f"{name}={data / name}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        wait_ready(url, server)
        kinds = {"base": ["base"], "adapters": NAMES}
        for models in kinds.values():
            asyncio.run(generate(url, models, seed=99))
        rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for seed in range(ROUNDS):
            for kind, models in kinds.items():
                rates[kind].append(asyncio.run(generate(url, models, seed)))
        server.terminate()
    total = {kind: statistics.median(t for t, _ in pairs) for kind, pairs in rates.items()}
    decode = {kind: statistics.median(d for _, d in pairs) for kind, pairs in rates.items()}
    return (
        f"| {model.name} | {decode['base']:.1f} | {decode['adapters']:.1f} "
        f"| {decode['adapters'] / decode['base']:.1%} | {total['base']:.1f} "
        f"| {total['adapters']:.1f} | {total['adapters'] / total['base']:.1%} |"
    )


def main() -> None:
    models = [Path(name) for name in sys.argv[1:]]
    if not models:
        models = [Path("runs/qwen3-0.6b-shape")]
        if not (models[0] / "config.json").is_file():
            make_model(models[0])
    data = models[0].with_name("adapters-of-rank-16")
    if not data.is_dir():
        write_adapters(data, models[0])
    print("| model | base, tok/s decoding | adapters | ratio | with prefill | adapters | ratio |")
    print("|---|---|---|---|---|---|---|")
    for model in models:
        print(measure(model, data), flush=True)


if __name__ == "__main__":
    main()
