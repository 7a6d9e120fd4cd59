"""`hagane bench`: how fast a model runs here, measured through the engine as the server uses it."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.progress import Progress

from hagane.cli.command import Options, read
from hagane.pool.client import EngineClient
from hagane.pool.messages import EngineConfig, GenerateRequest, SamplingParams
from hagane.server.engine_config import engine_config
from hagane.system.errors import HaganeError
from hagane.system.logging import configure_logging
from hagane.system.settings import Settings
from hagane.system.weight_formats import FormatChoice
from hagane.text.hub import resolve_model
from hagane.weights.sources.config import load_config

# Token ids from here on are text in every vocabulary that Hagane serves.
_FIRST_TOKEN = 10
# Tokens after a prefix that is already cached: more than a cache block.
_TAIL = 32


@dataclass(frozen=True)
class BenchPlan:
    """The measurements to make: lengths are in tokens, every figure is the median of `rounds`."""

    streams: tuple[int, ...] = (1, 4, 16, 32)
    prompts: tuple[int, ...] = (512,)
    context: int = 128
    new_tokens: int = 32
    rounds: int = 3


class BenchOptions(Options):
    """Measure how fast a model runs on this machine."""

    model: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    quantize: FormatChoice = Field("none", description="weights")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of computation")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int | None = Field(None, description="default: one per usable core")
    streams: list[int] = Field(list(BenchPlan.streams), description="such as 1,4,16")
    prompts: list[int] = Field(list(BenchPlan.prompts), description="lengths to prefill")
    new_tokens: int = Field(BenchPlan.new_tokens, ge=2, description="of a stream")
    rounds: int = Field(BenchPlan.rounds, description="figures are medians")
    as_json: bool = Field(False, alias="json", description="print one JSON object")


def run(arguments: list[str]) -> int:
    """Measure, and print the figures."""
    options = read(BenchOptions, arguments, "bench")
    configure_logging("warning", "auto")
    directory = resolve_model(options.model)
    config = load_config(directory)
    plan = BenchPlan(
        tuple(options.streams),
        tuple(options.prompts),
        BenchPlan.context,
        options.new_tokens,
        options.rounds,
    )
    settings = Settings(
        _cli_parse_args=False,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        threads=options.threads,
        # What models say after random tokens repeats itself, and would be guessed.
        speculation="off",
        context_length=min(
            config.max_position_embeddings,
            max(*plan.prompts, plan.context) + plan.new_tokens + 1,
        ),
    )
    result = asyncio.run(measure(engine_config(settings, str(directory)), config.vocab_size, plan))
    print(json.dumps(result.as_json()) if options.as_json else result.as_text())
    return 0


@dataclass(frozen=True)
class Result:
    """Seconds from the engine's start to ready, its peak memory in bytes, tokens per second.

    `decode` counts all streams together, from the moment when the last one had its first token to
    the moment when the first one had its last.
    `prefill` is the prompt's length over the time to the first token of a lone request, and
    `prefix_hit` the seconds to the first token of one that differs from an earlier one of that
    length in its last tokens alone.
    """

    ready_seconds: float
    peak_memory: int
    prefill: dict[int, float]
    prefix_hit: dict[int, float]
    decode: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """One figure a line."""
        lines = [
            f"ready after {self.ready_seconds:.2f} s, peak memory {self.peak_memory / 1e6:.0f} MB"
        ]
        for length, rate in self.prefill.items():
            hit = 1000 * self.prefix_hit[length]
            lines.append(
                f"prefill of {length} tokens: {rate:.0f} tokens/s; {hit:.0f} ms on a prefix hit"
            )
        lines += [
            f"decode, {streams} streams: {rate:.1f} tokens/s"
            for streams, rate in self.decode.items()
        ]
        return "\n".join(lines)


async def measure(config: EngineConfig, vocab_size: int, plan: BenchPlan) -> Result:
    """Run `plan` on an engine of its own. Raises HaganeError if the engine cannot start."""
    started = time.monotonic()
    client = EngineClient(config)
    await client.start()
    info = await client.ready()
    ready = time.monotonic() - started
    rng = random.Random(0)  # noqa: S311 - reproducible prompts

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(_FIRST_TOKEN, vocab_size) for _ in range(length))

    with Progress(transient=True) as progress:
        bar = progress.add_task("measuring", total=len(plan.prompts) + len(plan.streams))
        # As in a server that has been up for a moment: the engine prepares its memory while idle.
        await asyncio.sleep(1)
        await _decode(client, [prompt(plan.context)], 4)
        prefill, prefix_hit, decode = {}, {}, {}
        for length in plan.prompts:
            fresh, hits = [], []
            for _ in range(plan.rounds):
                first = prompt(length)
                fresh.append(await _prefill(client, first))
                hits.append(await _prefill(client, first[:-_TAIL] + prompt(min(length, _TAIL))))
            prefill[length] = length / statistics.median(fresh)
            prefix_hit[length] = statistics.median(hits)
            progress.advance(bar)
        for streams in plan.streams:
            rates = []
            for _ in range(plan.rounds):
                prompts = [prompt(plan.context) for _ in range(streams)]
                rates.append(await _decode(client, prompts, plan.new_tokens))
            decode[streams] = statistics.median(rates)
            progress.advance(bar)
    peak = _peak_memory(info.pid)
    await client.stop(grace=5.0)
    return Result(ready, peak, prefill, prefix_hit, decode)


def _peak_memory(pid: int) -> int:
    """Bytes; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


async def _prefill(client: EngineClient, prompt: tuple[int, ...]) -> float:
    """Seconds to the first token."""
    started = time.monotonic()
    async for _ in client.generate(_request(prompt, 1)):
        return time.monotonic() - started
    raise HaganeError("the engine answered without a token")


async def _decode(client: EngineClient, prompts: list[tuple[int, ...]], new_tokens: int) -> float:
    """Tokens per second of all prompts together."""
    arrivals: list[list[float]] = [[] for _ in prompts]

    async def run(index: int, prompt: tuple[int, ...]) -> None:
        async for delta in client.generate(_request(prompt, new_tokens)):
            arrivals[index] += [time.monotonic()] * len(delta.tokens)

    await asyncio.gather(*(run(i, prompt) for i, prompt in enumerate(prompts)))
    return rate(arrivals)


def rate(arrivals: list[list[float]]) -> float:
    """Tokens per second while all streams decode, from the seconds at which their tokens came.

    Where the first stream ended before the last one began, as it may on a busy machine, from the
    first token of any to the last one.
    """
    begin = max(times[0] for times in arrivals)
    end = min(times[-1] for times in arrivals)
    if end <= begin:
        begin = min(times[0] for times in arrivals)
        end = max(times[-1] for times in arrivals)
    return sum(begin < moment <= end for times in arrivals for moment in times) / (end - begin)


def _request(prompt: tuple[int, ...], new_tokens: int) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    request_id = f"{random.getrandbits(64):016x}"
    return GenerateRequest(request_id=request_id, prompt=prompt, sampling=sampling)
