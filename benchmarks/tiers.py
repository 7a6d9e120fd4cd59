"""Time to the first token with and without memory below the KV cache.

Usage: python benchmarks/tiers.py restart|trace|agent MODEL [--trace FILE] [--rounds N]
                                  [FLAG=VALUE ...]

`restart`: a system prompt of 4,096 tokens, cold, and again after the server was ended and started.
`trace`: a sample of conversations out of a trace of prompts known by the hashes of their blocks
(Mooncake's, https://github.com/kvcache-ai/Mooncake), a sixteenth as long, one request after the
other; with a KV cache for all of it, with one for a quarter, and with a quarter above host memory
and disk. `agent`: 30 turns of an agent whose prompt grows by a call and its result, other work in
between that drives its blocks out of the KV cache; next to the time that its new tokens take alone.
FLAG=VALUE are settings of all servers, such as quantize=int8; they replace the agent's, too, whose
KV cache of 24 MiB and host memory of 64 MiB suit models of half a billion parameters.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cluster import serving

SYSTEM_TOKENS, QUESTION_TOKENS = 4096, 16
# Tokens of the trace's blocks as it is replayed; they had 512.
BLOCK_TOKENS = 32
CONVERSATIONS = 100  # one in so many is replayed
TURNS, FIRST_TOKENS, TURN_TOKENS = 30, 512, 64
# Other prompts between an agent's turns: more than its KV cache holds.
OTHERS, OTHER_TOKENS = 2, 2000
IDS = range(100, 30_000)  # ordinary tokens in every vocabulary at hand
# One for all: to make a client takes 20 ms, which a request's time is not meant to hold.
CLIENT = httpx.Client(timeout=600)


@dataclass(frozen=True)
class First:
    """Milliseconds until the first token, and the prompt tokens that were found."""

    ms: float
    cached: int


def ask(url: str, prompt: list[int]) -> First:
    """The first token of an answer to token ids."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    start = time.perf_counter()
    answer = CLIENT.post(f"{url}/v1/completions", json=body)
    elapsed = 1000 * (time.perf_counter() - start)
    answer.raise_for_status()
    return First(elapsed, answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def ids(seed: object, count: int) -> list[int]:
    """The same random tokens for the same seed."""
    rng = random.Random(str(seed))
    return [rng.choice(IDS) for _ in range(count)]


def metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


@contextmanager
def warm(settings: dict[str, object]) -> Iterator[str]:
    """A server that has answered once."""
    with serving(settings, None, "prefix") as url:
        ask(url, ids("warm", 64))
        yield url


def restart(settings: dict[str, object], rounds: int) -> None:
    print("| | first token | tokens found | of cold |\n|---|---|---|---|")
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as disk:
            below = settings | {"kv_cache_disk": disk}
            system = ids(f"system {turn}", SYSTEM_TOKENS)
            with warm(below) as url:
                cold = ask(url, system + ids("a", QUESTION_TOKENS))
                again = ask(url, system + ids("b", QUESTION_TOKENS))
                time.sleep(2)
            with warm(below) as url:
                after = ask(url, system + ids("c", QUESTION_TOKENS))
            with warm(below) as url:
                at_once = ask(url, system + ids("d", QUESTION_TOKENS))
        names = ("cold", "from the KV cache", "after a restart", "after another one")
        for name, first in zip(names, (cold, again, after, at_once), strict=True):
            print(f"| {name} | {first.ms:.1f} ms | {first.cached} | {first.ms / cold.ms:.1%} |")


def conversations(trace: Path) -> list[list[int]]:
    """Block hashes of the prompts of some whole conversations, in order of arrival."""
    rows = [json.loads(line)["hash_ids"] for line in trace.read_text().splitlines()]
    rows = [row for row in rows if len(row) > 1]
    roots = sorted({row[1] for row in rows})
    chosen = set(random.Random(1).sample(roots, len(roots) // CONVERSATIONS))
    return [row for row in rows if row[1] in chosen]


def replay(settings: dict[str, object], prompts: list[list[int]], name: str) -> None:
    with warm(settings) as url:
        firsts = [
            ask(url, [t for block in prompt for t in ids(block, BLOCK_TOKENS)])
            for prompt in prompts
        ]
        restored, loaded = (
            metric(url, f"hagane_kv_blocks_{kind}_total") for kind in ("restored", "loaded")
        )
    tokens = sum(len(prompt) for prompt in prompts) * BLOCK_TOKENS
    share = sum(first.cached for first in firsts) / tokens
    times = [first.ms for first in firsts]
    median, mean = statistics.median(times), statistics.fmean(times)
    found = [first.ms for first in firsts if first.cached >= 2 * BLOCK_TOKENS]
    of_found = f"{statistics.median(found or [0.0]):.0f} ms ({len(found)})"
    times_of_all = f"{median:.0f} ms | {mean:.0f} ms | {of_found}"
    print(f"| {name} | {share:.1%} | {times_of_all} | {restored:.0f} | {loaded:.0f} |", flush=True)


def replay_trace(settings: dict[str, object], trace: Path) -> None:
    prompts = conversations(trace)
    longest = max(map(len, prompts)) * BLOCK_TOKENS + 8
    working_set = len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))}) * BLOCK_TOKENS
    settings = settings | {"context_length": longest}
    with warm(settings | {"kv_cache_memory": "512MiB"}) as url:
        status = httpx.get(f"{url}/metrics").text
    blocks = next(
        float(line.rpartition(" ")[2])
        for line in status.splitlines()
        if line.startswith("hagane_kv_cache_blocks_total{")
    )
    whole = int((512 << 20) / (blocks * 16) * working_set)
    print(f"{len(prompts)} prompts, {working_set} distinct tokens, {whole / 1e6:.0f} MB of blocks")
    print("| KV cache | found | median first token | mean | median of those that found some | "
          "restored | loaded |\n|---|---|---|---|---|---|---|")  # fmt: skip
    replay(settings | {"kv_cache_memory": whole * 11 // 10}, prompts, "for all")
    quarter = settings | {"kv_cache_memory": whole // 4}
    replay(quarter, prompts, "a quarter")
    with tempfile.TemporaryDirectory() as disk:
        half = {"kv_cache_host_memory": whole // 4, "kv_cache_disk": disk}
        replay(quarter | half, prompts, "a quarter, a quarter in host memory, disk")


def run_agent(settings: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as disk:
        below = {"kv_cache_memory": "24MiB", "kv_cache_host_memory": "64MiB",
                 "kv_cache_disk": disk, "context_length": 3072}  # fmt: skip
        with warm(below | settings) as url:
            prompt, ratios, found = ids("agent", FIRST_TOKENS), [], []
            ask(url, prompt)
            for turn in range(TURNS):
                for number in range(OTHERS):
                    ask(url, ids(f"other {turn} {number}", OTHER_TOKENS))
                alone = ask(url, ids(f"alone {turn}", TURN_TOKENS))
                prompt += ids(f"turn {turn}", TURN_TOKENS)
                first = ask(url, prompt)
                ratios.append(first.ms / alone.ms)
                found.append(first.cached / (len(prompt) - TURN_TOKENS))
                print(f"turn {turn + 1}: {len(prompt)} tokens, {first.cached} found, ", end="")
                print(f"{first.ms:.0f} ms; new tokens alone {alone.ms:.0f} ms", flush=True)
    print(f"ratio: median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}; ", end="")
    print(f"found {statistics.fmean(found):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("restart", "trace", "agent"))
    parser.add_argument("model")
    parser.add_argument("settings", nargs="*", metavar="FLAG=VALUE")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    given = dict(setting.split("=", 1) for setting in options.settings)
    settings: dict[str, object] = {"model": options.model, **given}
    if options.task == "restart":
        restart(settings | {"context_length": 8192}, options.rounds)
    elif options.task == "agent":
        run_agent(settings)
    elif options.trace is None:
        parser.error("trace needs --trace FILE")
    else:
        replay_trace(settings, options.trace)


if __name__ == "__main__":
    main()
