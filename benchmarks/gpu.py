"""Measure Hagane on a GPU, against its hardware limits and transformers: one call, one table.

Usage: python benchmarks/gpu.py [--parts NAME ...] [--rounds N] [--directory DIR] [--json FILE]
                                [--dry-run]

Parts, each a few minutes at most, results saved after every one:

    rates         bytes a second of a copy, operations a second of a bf16 matrix product
    bf16          Llama-3.1-8B's shape: one stream, prefill, a cached prefix, 256 streams
    int4          the same shape with 4-bit weights: one stream
    fp8           the same shape with 8-bit floats: one stream, prefill, 256 streams
    small         Qwen3-0.6B's shape: one stream, where Python's time rules
    transformers  continuous batching of 256 streams of the 8B shape
    training      LoRA on the 8B shape with a 4-bit base
    pretraining   Qwen3-0.6B's shape from its first step on

Weights are random. DIR (best in memory: default /dev/shm/hagane-gpu) takes 18 GB. --dry-run runs
every part with a tiny model on the CPU: it shows that this script works, and measures nothing.
Exits with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpu_shapes import LLAMA_8B, QWEN3_06B, TINY, Shape, write_model
from hagane.pool.client import EngineClient
from hagane.pool.messages import GenerateRequest, SamplingParams
from hagane.server.engine_config import engine_config
from hagane.system.settings import Settings

HERE = Path(__file__).resolve().parent
PARTS = ("rates", "bf16", "int4", "fp8", "small", "transformers", "training", "pretraining")
GROUP = 64


@dataclass(frozen=True)
class Load:
    """Sizes of everything, in tokens, streams and repetitions."""

    device: str
    large: Shape
    small: Shape
    context: int
    new_tokens: int
    prompts: tuple[int, ...]
    prefix: int
    streams: int
    stream_prompt: int
    stream_new: int
    batch_tokens: int
    rounds: int
    training: dict
    pretraining: dict


FULL = Load(
    "cuda", LLAMA_8B, QWEN3_06B, 128, 256, (2048, 8192), 4096, 256, 512, 256, 8192, 3,
    {"length": 1024, "batch": 8, "steps": 4, "quantize": "int4"},
    {"length": 2048, "batch": 16, "micro_rows": 4, "steps": 8},
)  # fmt: skip
DRY = Load(
    "cpu", TINY, TINY, 16, 8, (32, 128), 64, 4, 16, 8, 128, 1,
    {"length": 32, "batch": 2, "steps": 1, "quantize": "int4"},
    {"length": 32, "batch": 2, "micro_rows": 2, "steps": 1},
)  # fmt: skip


class Bench:
    """Runs the parts; `results` has their figures."""

    def __init__(self, load: Load, directory: Path) -> None:
        self.load, self.directory = load, directory
        self.results: dict = {}
        self._rng = random.Random(0)

    def run(self, part: str) -> None:
        begin = time.monotonic()
        found = getattr(self, part)()
        self.results[part] = found | {"part_seconds": time.monotonic() - begin}

    def rates(self) -> dict:
        cuda = self.load.device == "cuda"
        size = 1 << (32 if cuda else 22)
        source = torch.zeros(size, dtype=torch.uint8, device=self.load.device)
        target = torch.empty_like(source)
        side = 8192 if cuda else 128
        left, right = (
            torch.randn(side, side, device=self.load.device, dtype=torch.bfloat16) for _ in range(2)
        )
        return {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "torch": torch.__version__,
            "bytes_per_second": 2 * size / self._seconds(lambda: target.copy_(source)),
            "operations_per_second": 2 * side**3 / self._seconds(lambda: left @ right),
        }

    def _seconds(self, run: Callable[[], object], times: int = 10) -> float:
        """Seconds of one call: the mean of ten after three for warm-up."""
        for _ in range(3):
            run()
        self._wait()
        begin = time.monotonic()
        for _ in range(times):
            run()
        self._wait()
        return (time.monotonic() - begin) / times

    def _wait(self) -> None:
        if self.load.device == "cuda":
            torch.cuda.synchronize()

    def bf16(self) -> dict:
        return asyncio.run(self._serve_large("none"))

    def fp8(self) -> dict:
        return asyncio.run(self._serve_large("fp8"))

    async def _serve_large(self, quantize: str) -> dict:
        load = self.load
        async with self.engine(load.large, quantize) as client:
            info = client.info
            assert info is not None
            return {
                "ready_seconds": info.load_seconds,
                "kv_cache_tokens": info.blocks_total * info.block_size,
                "one_stream": await self.one_stream(client, load.large),
                "prefill": {n: await self.prefill(client, n, load.large) for n in load.prompts},
                "cached_prefix_seconds": await self.cached_prefix(client, load.large),
                "many_streams": await self.many_streams(client, load.large),
            }

    def int4(self) -> dict:
        return asyncio.run(self._serve_one_stream(self.load.large, "int4"))

    def small(self) -> dict:
        return asyncio.run(self._serve_one_stream(self.load.small, "none"))

    async def _serve_one_stream(self, shape: Shape, quantize: str) -> dict:
        async with self.engine(shape, quantize) as client:
            info = client.info
            assert info is not None
            rate = await self.one_stream(client, shape)
            return {"ready_seconds": info.load_seconds, "one_stream": rate}

    @asynccontextmanager
    async def engine(self, shape: Shape, quantize: str) -> AsyncIterator[EngineClient]:
        load = self.load
        settings = Settings(
            device=load.device,
            dtype="bfloat16",
            quantize=quantize,  # type: ignore[arg-type]
            group_size=GROUP,
            max_batch_tokens=load.batch_tokens,
            max_sequences=load.streams,
            max_waiting=4 * load.streams,
        )
        client = EngineClient(engine_config(settings, str(self.model(shape))))
        await client.start()
        try:
            while client.state != "ready":
                if client.failure is not None or client.restarts:
                    failure = client.failure
                    raise RuntimeError(failure.message if failure else "the engine died")
                await asyncio.sleep(0.05)
            await self.decode(client, self.prompt(load.context, shape), load.new_tokens)
            yield client
        finally:
            await client.stop(grace=10.0)

    def model(self, shape: Shape) -> Path:
        name = f"{shape.architecture}-{shape.layers}-{shape.hidden}"
        directory = write_model(shape, self.directory / name, self.load.device)
        if self.load.device == "cuda":
            # The next parts run in other processes, which need the device's memory.
            torch.cuda.empty_cache()
        return directory

    def prompt(self, length: int, shape: Shape) -> tuple[int, ...]:
        return tuple(self._rng.randrange(10, shape.vocab_size) for _ in range(length))

    async def one_stream(self, client: EngineClient, shape: Shape) -> float:
        """Tokens per second after the first, the median of some runs."""
        rates = []
        for _ in range(self.load.rounds):
            prompt = self.prompt(self.load.context, shape)
            moments = await self.decode(client, prompt, self.load.new_tokens)
            rates.append((len(moments) - 1) / (moments[-1] - moments[0]))
        return statistics.median(rates)

    async def prefill(self, client: EngineClient, length: int, shape: Shape) -> float:
        """Prompt tokens per second to the first token, the median of some runs."""
        seconds = [
            await self.first_token(client, self.prompt(length, shape))
            for _ in range(self.load.rounds)
        ]
        return length / statistics.median(seconds)

    async def cached_prefix(self, client: EngineClient, shape: Shape) -> float:
        """Seconds to the first token of a prompt that is cached except for its last 16 tokens."""
        prefix = self.prompt(self.load.prefix, shape)
        await self.first_token(client, prefix)
        seconds = [
            await self.first_token(client, prefix + self.prompt(16, shape))
            for _ in range(3 * self.load.rounds)
        ]
        return statistics.median(seconds)

    async def many_streams(self, client: EngineClient, shape: Shape) -> float:
        """Output tokens per second over the whole load, the best of some runs."""
        load, best = self.load, 0.0
        for _ in range(load.rounds):
            prompts = [self.prompt(load.stream_prompt, shape) for _ in range(load.streams)]
            begin = time.monotonic()
            done = await asyncio.gather(
                *(self.decode(client, prompt, load.stream_new) for prompt in prompts)
            )
            best = max(best, sum(map(len, done)) / (time.monotonic() - begin))
        return best

    async def first_token(self, client: EngineClient, prompt: tuple[int, ...]) -> float:
        begin = time.monotonic()
        (moment,) = await self.decode(client, prompt, 1)
        return moment - begin

    async def decode(self, client: EngineClient, prompt: tuple[int, ...], new: int) -> list[float]:
        """The moment of every new token."""
        sampling = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True)
        request = GenerateRequest(
            request_id=f"{self._rng.getrandbits(64):016x}", prompt=prompt, sampling=sampling
        )
        moments: list[float] = []
        async for delta in client.generate(request):
            moments += [time.monotonic()] * len(delta.tokens)
        return moments

    def transformers(self) -> dict:
        load = self.load
        plan = {
            "prompt": load.stream_prompt, "new_tokens": load.stream_new, "streams": load.streams,
            "rounds": load.rounds,
        }  # fmt: skip
        return self.child("peer_transformers_gpu.py", plan, load.large)

    def training(self) -> dict:
        return self.child("gpu_training.py", self.load.training, self.load.large)

    def pretraining(self) -> dict:
        return self.child("gpu_pretraining.py", self.load.pretraining, self.load.small)

    def child(self, script: str, plan: dict, shape: Shape) -> dict:
        """Run a script in a process of its own, so that it frees the device; returns its output."""
        path = self.directory / "plan.json"
        path.write_text(
            json.dumps(plan | {"device": self.load.device, "vocab_size": shape.vocab_size})
        )
        command = [sys.executable, str(HERE / script), str(self.model(shape)), str(path)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found: dict = json.loads(output.strip().splitlines()[-1])
        return found


def table(load: Load, results: dict) -> str:
    """Format as Markdown: the figures, the device's limits, and the targets."""
    rates, large = results["rates"], load.large
    rows = [
        f"| {rates['device']}, torch {rates['torch']} | measured | of what | share | aim |",
        "|---|---|---|---|---|",
    ]

    def row(name: str, value: float, unit: str, best: float, of: str, aim: str) -> None:
        share = f"{value / best:.2f}" if best else ""
        rows.append(f"| {name} | {value:,.1f} {unit} | {of} | {share} | {aim} |")

    bandwidth, operations = rates["bytes_per_second"], rates["operations_per_second"]
    row("copy", bandwidth / 1e9, "GB/s", 0, "", "")
    row("bf16 matrix product", operations / 1e12, "TFLOP/s", 0, "", "")
    if "bf16" in results:
        found = results["bf16"]
        whole = 2 * (large.layer_weights + large.head_weights)
        name = f"{bandwidth / whole:,.0f} tok/s: all weights once a token"
        row("8B bf16, one stream", found["one_stream"], "tok/s", bandwidth / whole, name, ">= 0.80")
        for length, rate in found["prefill"].items():
            n = int(length)
            each = 2 * large.layer_weights + large.attention_operations(n) / n
            row(f"8B bf16, prefill of {n}", rate, "tok/s", operations / each,
                f"{operations / each:,.0f} tok/s: the product's rate", ">= 0.50")  # fmt: skip
        row("8B bf16, cached prefix, first token", 1e3 * found["cached_prefix_seconds"], "ms",
            0, f"{load.prefix} tokens cached", "< 25 ms")  # fmt: skip
        peer = results.get("transformers", {}).get("tokens_per_second", 0.0)
        row(f"8B bf16, {load.streams} streams", found["many_streams"], "tok/s", peer,
            f"transformers' {peer:,.0f} tok/s", ">= 3")  # fmt: skip
    if "int4" in results:
        whole = large.layer_weights * (0.5 + 2 / GROUP) + large.head_weights
        name = f"{bandwidth / whole:,.0f} tok/s: all weights once a token"
        row("8B int4, one stream", results["int4"]["one_stream"], "tok/s", bandwidth / whole, name,
            ">= 0.60")  # fmt: skip
    if "fp8" in results:
        found = results["fp8"]
        whole = large.layer_weights + large.head_weights
        name = f"{bandwidth / whole:,.0f} tok/s: all weights once a token"
        row("8B fp8, one stream", found["one_stream"], "tok/s", bandwidth / whole, name, "")
        for length, rate in found["prefill"].items():
            each = 2 * large.layer_weights + large.attention_operations(int(length)) / int(length)
            row(f"8B fp8, prefill of {length}", rate, "tok/s", operations / each,
                f"{operations / each:,.0f} tok/s: the bf16 product's rate", "")  # fmt: skip
        row(f"8B fp8, {load.streams} streams", found["many_streams"], "tok/s", 0, "", "")
    if "small" in results:
        whole = 2 * (load.small.layer_weights + load.small.head_weights)
        name = f"{bandwidth / whole:,.0f} tok/s: all weights once a token"
        row("0.6B bf16, one stream", results["small"]["one_stream"], "tok/s", bandwidth / whole,
            name, ">= 600 tok/s")  # fmt: skip
    trained = (
        ("training", "8B LoRA, int4 base", large, "<= 24 GB"),
        ("pretraining", "0.6B pretraining", load.small, ""),
    )
    for part, name, shape, aim in trained:
        if part not in results:
            continue
        found, length = results[part], getattr(load, part)["length"]
        best = operations / shape.training_operations(length, frozen=part == "training")
        row(name, found["tokens_per_second"], "tok/s", best,
            f"{best:,.0f} tok/s: MFU of the product's rate", "")  # fmt: skip
        row(f"{name}, memory", found["peak_memory"] / 1e9, "GB", 0, "the tensors' peak", aim)
        if found.get("utilisation") is not None:
            row(f"{name}, MFU", 100 * found["utilisation"], "%", 0, "the data sheet's rate", "")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="repetitions of each measurement")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm/hagane-gpu"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    load = DRY if options.dry_run else FULL
    load = replace(load, rounds=options.rounds or load.rounds)
    options.directory.mkdir(parents=True, exist_ok=True)
    bench = Bench(load, options.directory)
    bench.run("rates")
    failed = False
    for part in options.parts:
        if part == "rates":
            continue
        try:
            bench.run(part)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            # One failed part must not cost the others.
            print(f"{part} failed: {error}", file=sys.stderr)
            failed = True
        if options.json:
            options.json.write_text(json.dumps(bench.results, indent=1))
    print(table(load, bench.results))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
