"""How much a large batch slows interactive requests: their latency without it and while it runs.

Usage: python benchmarks/batches.py [--model MODEL] [--quantize int8] [--lines 2000] [--requests 20]
       [--pause 0.5] [--rounds 2] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from hagane.text.hub import resolve_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.server import ADMIN_KEY, start_server, stop_server  # noqa: E402

BODY = {"model": "m", "messages": [{"role": "user", "content": "Tell me about the sea."}],
        "max_tokens": 32, "ignore_eos": True, "temperature": 0}  # fmt: skip


def latencies(client: httpx.Client, count: int, pause: float) -> dict[str, list[float]]:
    """Seconds to the first token and to the end of so many requests, one after another."""
    first, whole = [], []
    for _ in range(count):
        start = time.perf_counter()
        seen = None
        with client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as reply:
            for line in reply.iter_lines():
                if seen is None and '"content":"' in line.replace('"content":""', ""):
                    seen = time.perf_counter() - start
        first.append(seen or 0.0)
        whole.append(time.perf_counter() - start)
        time.sleep(pause)
    return {"first": first, "whole": whole}


def start_batch(client: httpx.Client, lines: int) -> str:
    request = {"method": "POST", "url": "/v1/chat/completions", "body": BODY | {"max_tokens": 64}}
    text = "".join(json.dumps({"custom_id": str(n), **request}) + "\n" for n in range(lines))
    upload = client.post(
        "/v1/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"}
    ).json()
    body = {"input_file_id": upload["id"], "endpoint": "/v1/chat/completions",
            "completion_window": "24h"}  # fmt: skip
    batch = client.post("/v1/batches", json=body)
    batch.raise_for_status()
    return str(batch.json()["id"])


def completed(client: httpx.Client, batch: str) -> int:
    return int(client.get(f"/v1/batches/{batch}").json()["request_counts"]["completed"])


def rate(client: httpx.Client, batch: str, seconds: float = 8.0) -> float:
    """Requests of a batch done in a second while nobody else asks for anything."""
    start, before = time.perf_counter(), completed(client, batch)
    time.sleep(seconds)
    return (completed(client, batch) - before) / (time.perf_counter() - start)


def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    alone: dict[str, list[float]] = {"first": [], "whole": []}
    beside: dict[str, list[float]] = {"first": [], "whole": []}
    done, rates = 0, []
    with httpx.Client(base_url=url, headers=headers, timeout=600) as client:
        latencies(client, 2, 0)  # warm up
        for _ in range(options.rounds):
            for name, values in latencies(client, options.requests, options.pause).items():
                alone[name] += values
            batch = start_batch(client, options.lines)
            while completed(client, batch) == 0:
                time.sleep(0.1)
            rates.append(rate(client, batch))
            before = completed(client, batch)
            for name, values in latencies(client, options.requests, options.pause).items():
                beside[name] += values
            done += completed(client, batch) - before
            client.post(f"/v1/batches/{batch}/cancel")
            while client.get(f"/v1/batches/{batch}").json()["status"] != "cancelled":
                time.sleep(0.1)
    found: dict[str, Any] = {
        "batch_requests_per_second_alone": round(statistics.median(rates), 2),
        "batch_requests_done_meanwhile": done,
    }
    for name in alone:
        without, with_batch = statistics.median(alone[name]), statistics.median(beside[name])
        found[name] = {
            "alone_ms": round(1e3 * without, 1),
            "beside_ms": round(1e3 * with_batch, 1),
            "slower_percent": round(100 * (with_batch / without - 1), 1),
            "worst_alone_ms": round(1e3 * max(alone[name]), 1),
            "worst_beside_ms": round(1e3 * max(beside[name]), 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between requests")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--quantize", options.quantize, "--served-model-name", "m"]
        flags += ["--threads", str(options.threads)]
        environment = {"HAGANE_ADMIN_KEY": ADMIN_KEY, "HAGANE_DATA_DIR": str(Path(folder) / "d")}
        model = resolve_model(options.model)
        server = start_server(model, Path(folder) / "log", *flags, **environment)
        try:
            server.wait_ready(300)
            found = measure(server.url, options)
        finally:
            stop_server(server)
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
