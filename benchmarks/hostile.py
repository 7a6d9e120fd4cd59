"""Whether a request can hurt another: random and extreme bodies on a real server under load.

Counts restarts of the engine, statuses, and streams whose text is not that of their run alone; then
measures `GET /health/live` while clients send bodies of 8 MB.

Usage: python benchmarks/hostile.py [--model DIRECTORY] [--bodies N] [--no-pairs] [--seed N]
                                    [--large-seconds S] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.hostile import (  # noqa: E402
    CHAT,
    HEADERS,
    TEXT,
    Bodies,
    Report,
    send,
    watched_text,
)
from tests.support.server import Server, start_server, stop_server  # noqa: E402

SENDERS, STREAMS, LARGE_CLIENTS = 16, 4, 50
LARGE = 8 << 20


def every_body(bodies: Bodies, count: int, with_pairs: bool) -> Iterator[tuple[str, bytes]]:
    """All pairs of fields of both generating routes, then `count` random bodies."""
    pairs = ((path, body) for path in (CHAT, TEXT) for body in bodies.pairs(path))
    return chain(pairs if with_pairs else (), (bodies.draw() for _ in range(count)))


async def attack(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every body once, from many clients, alongside watched streams."""
    report = Report()
    remaining = every_body(Bodies.of(url, arguments.seed), arguments.bodies, arguments.pairs)
    compared = different = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        alone = [await watched_text(client, seed) for seed in range(STREAMS)]

        async def hostile() -> None:
            for path, body in remaining:
                await send(client, report, path, body)

        async def watched(seed: int) -> None:
            nonlocal compared, different
            while not senders.done():
                different += await watched_text(client, seed) != alone[seed]
                compared += 1

        senders = asyncio.gather(*(hostile() for _ in range(SENDERS)))
        await asyncio.gather(senders, *(watched(seed) for seed in range(STREAMS)))
    for path, body, answer in report.wrong[:10]:
        print(f"WRONG {path} {body[:300]!r}\n  {answer}", file=sys.stderr)
    return {
        "bodies": sum(report.statuses.values()),
        "statuses": {str(status): n for status, n in sorted(report.statuses.items())},
        "wrong": len(report.wrong),
        "streams_compared": compared,
        "streams_different": different,
    }


def large_bodies() -> list[tuple[str, bytes]]:
    """8 MB as one text, as a conversation, as a stop string, as tokens, and no JSON."""
    message = {"role": "user", "content": "x"}
    several = [{"role": "user", "content": "Once upon a time. " * 5000}] * 90
    bodies: list[tuple[str, Any]] = [
        (TEXT, {"model": "tiny", "prompt": "Once upon a time " * (LARGE // 17 - 10)}),
        (TEXT, {"model": "tiny", "prompt": "a", "stop": "b" * (LARGE - 100)}),
        (TEXT, {"model": "tiny", "prompt": [7] * (LARGE // 3 - 30)}),
        (CHAT, {"model": "tiny", "messages": [message] * (LARGE // 34 - 10)}),
        (CHAT, {"model": "tiny", "messages": several}),
        ("/tokenize", {"model": "tiny", "prompt": "に" * (LARGE // 6 - 30)}),
        ("/detokenize", {"model": "tiny", "tokens": [7] * (LARGE // 3 - 30)}),
    ]
    encoded = [(path, json.dumps(body).encode()[:LARGE]) for path, body in bodies]
    return [*encoded, (TEXT, b"[" * LARGE), (TEXT, b'{"a":' * (LARGE // 5))]


async def send_large(url: str, seconds: float, bodies: list[tuple[str, bytes]]) -> dict[str, int]:
    """Bodies of 8 MB from many clients, each in turn; how many answers of which status came."""
    statuses: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None)
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def large(turn: int) -> None:
            while time.monotonic() < until:
                path, body = bodies[turn % len(bodies)]
                turn += 1
                answer = await client.post(path, content=body, headers=HEADERS)
                statuses[str(answer.status_code)] += 1

        await asyncio.gather(*(large(number) for number in range(LARGE_CLIENTS)))
    return dict(sorted(statuses.items()))


def run_senders(url: str, seconds: float, out: Connection) -> None:
    """`send_large` as a process of its own, on one core, that gives way to the prober there.

    The server is measured: it has the other cores, and the prober does not wait for those
    who send.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.nice(19)
    bodies = large_bodies()
    out.send("ready")
    out.send(asyncio.run(send_large(url, seconds, bodies)))


def health_under_large_bodies(server: Server, seconds: float) -> dict[str, Any]:
    """Milliseconds of GET /health/live, 5 ms apart, and the server's memory before and after."""
    before = resident(server)
    times: list[float] = []
    answers, out = multiprocessing.Pipe(duplex=False)
    senders = multiprocessing.get_context("spawn").Process(
        target=run_senders, args=(server.url, seconds, out)
    )
    senders.start()
    answers.recv()
    host, port = server.url.removeprefix("http://").split(":")
    # Without a client's library, which takes longer than the server.
    with socket.create_connection((host, int(port)), timeout=120) as health:
        while not answers.poll():
            started = time.perf_counter()
            ask_health(health)
            times.append((time.perf_counter() - started) * 1000)
            time.sleep(0.005)
    peak = resident(server)
    time.sleep(4)
    cuts = statistics.quantiles(times, n=100)
    return {
        "probes": len(times),
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
        "worst_ms": round(max(times), 2),
        "statuses": answers.recv(),
        "resident_mb": {"before": before, "at_the_end": peak, "4_s_later": resident(server)},
    }


def ask_health(connection: socket.socket) -> None:
    """One GET /health/live, answered."""
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b'"live"}'):
        answer += connection.recv(4096)


def resident(server: Server) -> int:
    """Memory of the server's process, MB."""
    text = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def main() -> None:
    """Start a server, attack it, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "hagane-mini")
    parser.add_argument("--bodies", type=int, default=5000)
    parser.add_argument("--pairs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--large-seconds", type=float, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(
            arguments.model, Path(folder) / "log", "--served-model-name", "tiny",
            "--context-length", "512", "--log-level", "error",
            PYTHONPATH=os.environ.get("PYTHONPATH", str(ROOT / "app")),
        )  # fmt: skip
        try:
            server.wait_ready(120)
            report: dict[str, Any] = {}
            if arguments.bodies or arguments.pairs:
                report["attack"] = asyncio.run(attack(server.url, arguments))
            if arguments.large_seconds:
                report["large_bodies"] = health_under_large_bodies(server, arguments.large_seconds)
            report["engine_restarts"] = server.metric("hagane_engine_restarts_total")
        finally:
            stop_server(server)
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
