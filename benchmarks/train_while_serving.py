"""Measure what a fine-tuning job costs streams served meanwhile: time between tokens.

Usage: python benchmarks/train_while_serving.py [--model DIRECTORY] [--rounds N] [--threads N]
                                                [--tokens N] [--json FILE] [-- SERVE FLAGS...]

Every round measures without a job, with one, and without again. Medians over the rounds are shown;
a round's figure is the mean over all tokens after the first of every stream.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil
from http_load import serving
from model import make_model
from openai import AsyncOpenAI

KEY = "benchmark"
STREAMS, PROMPT_TOKENS = 4, 64


async def gaps(http: AsyncOpenAI, prompt: list[int], tokens: int) -> list[float]:
    """Seconds between the tokens of one stream."""
    chunks = await http.completions.create(
        model="m", prompt=prompt, max_tokens=tokens, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    moments = [time.monotonic() async for chunk in chunks if chunk.choices]
    return [after - before for before, after in itertools.pairwise(moments)]


async def load(url: str, tokens: int, seed: int) -> dict[str, float]:
    """Milliseconds between tokens: the mean and the 99th percentile."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(10, 4000) for _ in range(PROMPT_TOKENS)] for _ in range(STREAMS)]
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=600) as http:
        seen = await asyncio.gather(*(gaps(http, prompt, tokens) for prompt in prompts))
    ordered = sorted(gap for stream in seen for gap in stream)
    return {
        "mean": 1000 * statistics.fmean(ordered),
        "p99": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
    }


def examples() -> bytes:
    """Plain texts of about 500 tokens, whatever the vocabulary."""
    rng = random.Random(0)
    texts = (" ".join(f"t{rng.randrange(10, 4000)}" for _ in range(500)) for _ in range(64))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@contextmanager
def training(client: openai.OpenAI, file: str) -> Iterator[psutil.Process]:
    """Measure while a job's worker trains."""
    job = client.fine_tuning.jobs.create(model="m", training_file=file, seed=0)
    try:
        yield busy_worker()
    finally:
        client.fine_tuning.jobs.cancel(job.id)
        while any(map(is_worker, psutil.process_iter(["cmdline"]))):
            time.sleep(0.1)


def is_worker(process: psutil.Process) -> bool:
    return "hagane.training.jobs.worker" in (process.info["cmdline"] or [])


def busy_worker() -> psutil.Process:
    """Wait for the worker to load the model and train for some seconds; returns its process."""
    while True:
        for process in psutil.process_iter(["cmdline"]):
            if is_worker(process):
                while process.cpu_times().user < 12:
                    time.sleep(0.1)
                return process
        time.sleep(0.1)


def measure(url: str, options: argparse.Namespace) -> list[dict[str, float]]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY)
    file = client.files.create(file=("examples.jsonl", examples()), purpose="fine-tune").id
    asyncio.run(load(url, 16, seed=99))
    rounds = []
    for number in range(options.rounds):
        # New prompts each time: tokens of an answer that was given before are guessed.
        before = asyncio.run(load(url, options.tokens, seed=3 * number))
        with training(client, file) as worker:
            spent, started = sum(worker.cpu_times()[:2]), time.monotonic()
            during = asyncio.run(load(url, options.tokens, seed=3 * number + 1))
            spent = sum(worker.cpu_times()[:2]) - spent
            share = spent / (time.monotonic() - started)
        after = asyncio.run(load(url, options.tokens, seed=3 * number + 2))
        alone = {key: (before[key] + after[key]) / 2 for key in before}
        rounds.append(
            {"alone": alone["mean"], "alone_p99": alone["p99"], "with_job": during["mean"],
             "with_job_p99": during["p99"], "rise": during["mean"] / alone["mean"] - 1,
             "worker_cores": share}
        )  # fmt: skip
        print(rounds[-1], file=sys.stderr, flush=True)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("runs/qwen3-0.6b-shape"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="of every stream")
    parser.add_argument("--threads", type=int, help="of the job; default: the server's")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    parser.add_argument("serve", nargs="*", help="more flags of hagane serve")
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        make_model(options.model)
    command = [sys.executable, "-m", "hagane.cli", "serve", "--model", str(options.model)]
    command += ["--served-model-name", "m", "--context-length", "1024"]
    command += ["--kv-cache-memory", "1GiB", *options.serve]
    if options.threads:
        command += ["--training-threads", str(options.threads)]
    with (
        tempfile.TemporaryDirectory() as data,
        serving(command, HAGANE_ADMIN_KEY=KEY, HAGANE_DATA_DIR=data) as (url, _),
    ):
        rounds = measure(url, options)
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))
    middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(f"{os.cpu_count()} cores, {STREAMS} streams, medians of {len(rounds)} rounds")
    print("| between tokens | alone | with a job | rise |\n|---|---|---|---|")
    print(f"| mean | {middle['alone']:.1f} ms | {middle['with_job']:.1f} ms "
          f"| {100 * middle['rise']:.1f}% |")  # fmt: skip
    print(f"| 99th percentile | {middle['alone_p99']:.1f} ms | {middle['with_job_p99']:.1f} ms | |")
    print(f"The job had {middle['worker_cores']:.2f} cores meanwhile.")


if __name__ == "__main__":
    main()
