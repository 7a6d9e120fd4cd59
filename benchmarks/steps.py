"""Break down the time of a CPU step by operation, and compare it with the hardware limits.

Usage: python benchmarks/steps.py MODEL [--prefill N ...] [--streams N ...] [--context N]
       [--kv-cache bf16|int8]

MODEL is a directory; its weights are used as they are stored. A prefill is one chunk of N tokens, a
decode step brings one token each of N sequences of `context` tokens. Limits are measured first: the
bytes that the kernels' own threads read per second, and operations of int8 and bf16 products.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hagane.kernels import cpu
from hagane.kernels.arena import Arena
from hagane.kernels.cpu import extension, operations
from hagane.kernels.cpu.recording import Workspace
from hagane.kernels.layout import PagedLayout
from hagane.models.attention import Paged
from hagane.models.decoder import Transformer
from hagane.system.machine import usable_cores
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config
from torch import Tensor

BLOCK = 16
ROUNDS = 7


@dataclass(frozen=True)
class Limits:
    """Bytes and operations per second."""

    memory: float
    int8: float
    bf16: float


def best(run: Callable[[], object], rounds: int = 20) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def measure_limits() -> Limits:
    """Measure memory bandwidth by the maximum of a gigabyte of floats."""
    floats = torch.ones(64, 1 << 22)
    floats = Arena(floats.nbytes).put(floats)
    memory = floats.nbytes / best(lambda: cpu.argmax(floats), 5)
    torch.set_num_threads(len(usable_cores()))
    rows, weights = torch.ones(512, 1024), torch.ones(6144, 1024)
    work = 2.0 * rows.numel() * weights.shape[0]
    narrow, narrow_weights = rows.bfloat16(), weights.bfloat16().T
    codes, weight_codes = rows.char(), weights.char().T
    return Limits(
        memory,
        work / best(lambda: torch._int_mm(codes, weight_codes)),
        work / best(lambda: narrow @ narrow_weights),
    )


class Timed:
    """Wrap the extension's module, and time every call by operation."""

    def __init__(self, module: Any, names: dict[int, str]) -> None:
        self._module, self._names = module, names
        self.seconds: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments, **options)
            kind = self._names.get(id(arguments[0]), name) if name == "linear" else name
            self.seconds[kind] += time.perf_counter() - begin
            return result

        return timed


def layout_of(queries: int, contexts: list[int]) -> tuple[PagedLayout, Tensor]:
    """Sequences that bring `queries` tokens each, and their positions."""
    most = -(-max(contexts) // BLOCK)
    tables = torch.arange(len(contexts) * most, dtype=torch.int32).view(len(contexts), most)
    rows = [torch.arange(c - queries, c) for c in contexts]
    slots = [
        tables[i, p // BLOCK].long() * BLOCK + p % BLOCK for i, p in enumerate(rows)
    ]  # fmt: skip
    starts = torch.arange(len(contexts) + 1, dtype=torch.int32) * queries
    layout = PagedLayout(
        slots=torch.cat(slots),
        block_tables=tables,
        starts=starts,
        lengths=torch.tensor(contexts, dtype=torch.int32),
        query_starts=tuple(starts.tolist()),
        context_lengths=tuple(contexts),
        decodes=len(contexts) if queries == 1 else 0,
        block_size=BLOCK,
    )
    return layout, torch.cat(rows)


def fill(cache: Tensor, value: float, scales: int) -> None:
    """Every key or value of a cache with `value`; an int8 block ends with that many scales."""
    if cache.dtype != torch.int8:
        cache.fill_(value)
        return
    cache.fill_(127)
    cache[:, -4 * scales :].view(torch.float32).fill_(value / 127)


class Step:
    """A model and a cache, in bfloat16 or int8, that hold `contexts` tokens of each sequence."""

    def __init__(
        self, model: Transformer, kept: torch.dtype, queries: int, contexts: list[int]
    ) -> None:
        self.model = model
        self.layout, self.positions = layout_of(queries, contexts)
        blocks = self.layout.block_tables.numel()
        self.caches = [
            cpu.allocate_cache(
                blocks, BLOCK, spec.kv_heads, spec.head_dim, kept, None, shared=spec.shared
            )
            for spec in model.caches
        ]
        for spec, (keys, values) in zip(model.caches, self.caches, strict=True):
            fill(keys, 0.5, BLOCK * spec.kv_heads)
            if not spec.shared:
                fill(values, 0.25, BLOCK * spec.kv_heads)
        self.ids = torch.randint(10, model.config.vocab_size, self.positions.shape)
        # The last token of every sequence is sampled from.
        self.last = self.layout.starts[1:].long() - 1

    def hidden(self) -> Tensor:
        """Run all tokens without the head; a decode step as the engine runs it."""
        prefetch = bool(self.layout.decodes)
        context = Paged(self.positions, self.layout, self.caches, cpu, prefetch=prefetch)
        return self.model(self.ids, context)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        return self.model.logits(self.hidden()[self.last])


def names_of(model: Transformer) -> dict[int, str]:
    """The linear layers by the identity of their packed weights."""
    names = {id(model.head.weight.handle): "head"}
    for path, module in model.named_modules():
        if path.endswith("_proj") and hasattr(module, "weight"):
            names[id(module.weight.handle)] = path.rpartition(".")[2]
    return names


def work_of(step: Step) -> dict[str, tuple[float, float]]:
    """Operations, and bytes read, of the kinds that have a limit; of matrices and of attention."""
    model, layout, sampled = step.model, step.layout, len(step.last)
    rows = layout.query_starts[-1]
    work: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    names = names_of(model)
    weights = [
        m.weight
        for m in model.modules()
        if isinstance(getattr(m, "weight", None), cpu.PackedWeight)
    ]
    for weight in weights:
        name = names[id(weight.handle)]
        count = sampled if name == "head" else rows
        operations, size = work[name]
        work[name] = (
            operations + 2.0 * count * weight.out_features * weight.in_features,
            size + weight.nbytes,
        )
    config = model.config
    pairs = sum(
        (stop - start) * (context - (stop - start) / 2 + 0.5)
        for start, stop, context in zip(
            layout.query_starts, layout.query_starts[1:], layout.context_lengths, strict=False
        )
    )
    kept = sum(keys.nbytes + values.nbytes for keys, values in step.caches)
    work["attention"] = (
        4.0 * pairs * config.layers * config.heads * config.head_dim,
        kept * sum(layout.context_lengths) / (layout.block_tables.numel() * BLOCK),
    )
    return work


def timed_run(step: Step) -> tuple[float, dict[str, float]]:
    """Seconds of one step, and of each kind of operation in it."""
    timed = Timed(extension, names_of(step.model))
    operations.extension = timed
    try:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin, timed.seconds
    finally:
        operations.extension = extension


def report(title: str, step: Step, limits: Limits) -> None:
    step()
    whole, spent = min((timed_run(step) for _ in range(ROUNDS)), key=lambda run: run[0])
    work = work_of(step)
    print(
        f"\n{title}: {1000 * whole:.2f} ms, of which outside of kernels "
        f"{1000 * (whole - sum(spent.values())):.2f} ms\n"
    )
    print("| | ms | share | GOP/s | GB/s | of its limit |\n|---|---|---|---|---|---|")
    for name, value in sorted(spent.items(), key=lambda item: -item[1]):
        operations, size = work.get(name, (0.0, 0.0))
        product = limits.bf16 if name == "attention" else limits.int8
        bound = max(operations / product, size / limits.memory)
        cells = f"{operations / value / 1e9:.0f} | {size / value / 1e9:.1f} | {bound / value:.0%}"
        print(
            f"| {name} | {1000 * value:.2f} | {value / whole:.1%} | "
            f"{cells if bound else '- | - | -'} |"
        )


def replayed(step: Step) -> float:
    """Seconds of a step without Python between its kernels."""
    with torch.inference_mode():
        return best(cpu.record(step.hidden, Workspace()), ROUNDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prefill", nargs="*", type=int, default=[512, 2048])
    parser.add_argument("--streams", nargs="*", type=int, default=[1, 16, 32])
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--kv-cache", choices=["bf16", "int8"], default="bf16")
    parser.add_argument("--instructions")
    options = parser.parse_args()
    chosen = cpu.start(None, options.instructions)
    limits = measure_limits()
    torch.set_num_threads(1)
    figures = f"int8 {limits.int8 / 1e9:.0f} GOP/s, bf16 {limits.bf16 / 1e9:.0f} GOP/s"
    print(f"{chosen}; limits: memory {limits.memory / 1e9:.0f} GB/s, {figures}")
    config = load_config(options.model)
    model, _ = load_model(
        options.model, device="cpu", dtype=torch.bfloat16, quantization=config.quantization,
        operations=cpu,
    )  # fmt: skip
    model.eval()
    kept = torch.int8 if options.kv_cache == "int8" else torch.bfloat16
    for tokens in options.prefill:
        step = Step(model, kept, tokens, [tokens])
        report(f"Prefill of {tokens}", step, limits)
        print(f"\nreplayed, without head: {1000 * replayed(step):.2f} ms")
    for streams in options.streams:
        step = Step(model, kept, 1, [options.context] * streams)
        report(f"Decode of {streams} at {options.context}", step, limits)
        print(f"\nreplayed, without head: {1000 * replayed(step):.2f} ms")


if __name__ == "__main__":
    main()
