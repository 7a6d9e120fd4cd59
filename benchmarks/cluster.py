"""What the way through Ray Serve costs, and what routing by prefix brings, with local replicas.

    python benchmarks/cluster.py overhead [--model DIRECTORY] [FLAG=VALUE ...]
    python benchmarks/cluster.py routing  [--model DIRECTORY] [FLAG=VALUE ...]

`overhead` compares a plain server with a cluster of one replica, at 1 and 16 clients. `routing`
compares prefix with random routing over two replicas: 24 documents of 512 tokens, and questions of
32 tokens about them; with kv_cache_memory=150MiB a replica's cache holds about 20 documents of the
built-in model. It measures step times, too, with which benchmarks/simulate.py is held to this run.
FLAG=VALUE are settings of both, such as quantize=int8. Needs `hagane[cluster]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

NEW_TOKENS = 32
ROUNDS = 2
DOCUMENTS, DOCUMENT_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 24, 512, 32, 8
# Of a step, as set here.
BATCH_TOKENS = 256
READY_SECONDS = 180
BLOCKS, BLOCK_TOKENS = "hagane_replica_kv_cache_blocks_total{", 16
# Ray kills its own parts where the machine's memory is full, of whatever else runs there.
ALONE = {"RAY_memory_monitor_refresh_ms": "0"}


@dataclass
class Answer:
    """Seconds until the first token and until the last, and the prompt tokens from the cache."""

    first: float
    last: float
    cached: int


@contextmanager
def serving(settings: dict[str, object], replicas: int | None, routing: str) -> Iterator[str]:
    """The URL of a plain server, or of a cluster with `replicas`."""
    port = random.randint(20000, 30000)
    settings = {**settings, "port": port, "served_model_name": "m"}
    with tempfile.TemporaryDirectory() as folder:
        if replicas is None:
            flags = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
            command = ["serve", "--data-dir", f"{folder}/data", *flags]
        else:
            lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
            text = [f'routing = "{routing}"', "[settings]", f'data_dir = "{folder}/data"', *lines,
                    "[engines]", f"replicas = {replicas}", "cpus = 0.5"]  # fmt: skip
            config = Path(folder, "cluster.toml")
            config.write_text("\n".join(text))
            command = ["cluster", "serve", str(config)]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hagane.cli", *command], stdout=log, stderr=log,
                env=os.environ | ALONE,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            wait_ready(url, process, Path(folder, "log"))
            yield url
        finally:
            process.terminate()
            process.wait(60)


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(log.read_text()[-3000:])


async def ask(http: httpx.AsyncClient, prompt: list[int], new_tokens: int) -> Answer:
    body = {"model": "m", "prompt": prompt, "max_tokens": new_tokens, "temperature": 0,
            "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    started, first, cached = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - started
            if (usage := json.loads(line[6:]).get("usage")) is not None:
                cached = usage["prompt_tokens_details"]["cached_tokens"]
    return Answer(first, time.perf_counter() - started, cached)


async def run_clients(
    url: str, clients: int, prompts: list[list[int]], new_tokens: int
) -> tuple[list[Answer], float]:
    """The answers to all prompts by so many clients at a time, and the seconds it took."""
    waiting = iter(prompts)
    answers: list[Answer] = []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:

        async def client() -> None:
            for prompt in waiting:
                answers.append(await ask(http, prompt, new_tokens))  # noqa: PERF401

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return answers, time.perf_counter() - started


def tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(300, 1500) for _ in range(count)]


def overhead(settings: dict[str, object]) -> None:
    """Alternates between both servers, so that a change of the machine's speed meets both."""
    kinds = {"plain": None, "cluster, one replica": 1}
    answers: dict[tuple[str, int], list[Answer]] = defaultdict(list)
    spent: dict[tuple[str, int], float] = defaultdict(float)
    for round_ in range(ROUNDS):
        for name, replicas in kinds.items():
            with serving(settings, replicas, "prefix") as url:
                for clients, count in ((1, 32), (16, 160)):
                    generator = random.Random(clients + 100 * round_)
                    prompts = [tokens(generator, 64) for _ in range(count)]
                    asyncio.run(run_clients(url, clients, prompts[:clients], 4))
                    prompts = [tokens(generator, 64) for _ in range(count)]
                    got, seconds = asyncio.run(run_clients(url, clients, prompts, NEW_TOKENS))
                    answers[name, clients] += got
                    spent[name, clients] += seconds
                    rate = len(got) * NEW_TOKENS / seconds
                    print(f"<!-- {name}, {clients}: {rate:.0f} tokens/s -->", flush=True)
    print("| server | clients | first token, ms | request, ms | tokens/s |")
    print("|---|---|---|---|---|")
    for (name, clients), got in answers.items():
        first = statistics.median(a.first for a in got) * 1000
        last = statistics.median(a.last for a in got) * 1000
        rate = len(got) * NEW_TOKENS / spent[name, clients]
        print(f"| {name} | {clients} | {first:.1f} | {last:.0f} | {rate:.0f} |", flush=True)


def questions() -> list[tuple[int, list[int]]]:
    """The prompts of `routing`, each with the number of the document that it begins with."""
    generator = random.Random(0)
    documents = [tokens(generator, DOCUMENT_TOKENS) for _ in range(DOCUMENTS)]
    chosen = [generator.randrange(DOCUMENTS) for _ in range(240)]
    return [(n, documents[n] + tokens(generator, QUESTION_TOKENS)) for n in chosen]


def routing(settings: dict[str, object]) -> None:
    prompts = [prompt for _, prompt in questions()]
    print("| routing | prompt tokens from the cache | median first token, ms | 95th |")
    print("|---|---|---|---|")
    for kind in ("random", "prefix"):
        with serving(settings, 2, kind) as url:
            answers, _ = asyncio.run(run_clients(url, 4, prompts, ANSWER_TOKENS))
            later = answers[len(answers) // 4 :]
            total = len(later) * (DOCUMENT_TOKENS + QUESTION_TOKENS)
            share = sum(a.cached for a in later) / total
            first = statistics.quantiles([a.first * 1000 for a in later], n=20)
            print(f"| {kind} | {share:.0%} | {first[9]:.0f} | {first[18]:.0f} |", flush=True)
            if kind == "prefix":
                machine = step_times(url)
    print(f"python benchmarks/simulate.py documents --replicas 2 {machine}")


def step_times(url: str) -> str:
    """What both replicas do while both compute, as flags of `benchmarks/simulate.py`."""
    generator = random.Random(2)
    answers, _ = asyncio.run(
        run_clients(url, 2, [tokens(generator, QUESTION_TOKENS) for _ in range(12)], 96)
    )
    step = statistics.median((a.last - a.first) / 95 for a in answers)
    length = DOCUMENT_TOKENS + QUESTION_TOKENS
    prompts = [tokens(generator, length) for _ in range(40)]
    new, _ = asyncio.run(run_clients(url, 2, prompts, 1))
    # The latest ones are cached: one step, and what lies between client and engine.
    known, _ = asyncio.run(run_clients(url, 2, 5 * prompts[-8:], 1))
    of_new, of_known = (statistics.median(a.first for a in answers) for answers in (new, known))
    found = statistics.median(a.cached for a in known)
    path = of_known - step
    prefill = found / (of_new - path - step * math.ceil(length / BATCH_TOKENS))
    rows = httpx.get(f"{url}/metrics").text.splitlines()
    sizes = [float(row.split()[-1]) for row in rows if row.startswith(BLOCKS)]
    return (
        f"--step {step * 1000:.2f} --row 0 --prefill {prefill:.0f} --budget {BATCH_TOKENS} "
        f"--path {path * 1000:.1f} --kv {min(sizes) * BLOCK_TOKENS:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("overhead", "routing"))
    parser.add_argument("settings", nargs="*", help="such as quantize=int8")
    parser.add_argument("--model", default="hagane-mini")
    options = parser.parse_args()
    given: dict[str, object] = dict(pair.split("=", 1) for pair in options.settings)
    settings: dict[str, object] = {
        "model": options.model, "threads": 1, "max_sequences": 16,
        "max_batch_tokens": BATCH_TOKENS, **given,
    }  # fmt: skip
    {"overhead": overhead, "routing": routing}[options.what](settings)


if __name__ == "__main__":
    main()
