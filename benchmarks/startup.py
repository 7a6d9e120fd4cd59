"""From the command to readiness and to a first answer, quantizing at load, alone and alongside busy
processes.

Usage: python benchmarks/startup.py DIRECTORY ... [--formats int8 int4] [--busy N] [--rounds N]

Each process of `--busy` computes without end, so that the server's threads share their cores. Files
are read once before, so that they come from memory. `--module app.cli` with PYTHONPATH at an older
checkout measures that one.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def start(module: str, model: Path, form: str, seconds: float) -> tuple[float, float] | None:
    """Seconds until the server is ready, and until it has answered; None after `seconds`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, "serve", "--model", str(model), "--quantize", form,
               "--port", str(port), "--context-length", "1024"]  # fmt: skip
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while time.monotonic() < started + seconds:
                with contextlib.suppress(httpx.TransportError):
                    url = f"http://127.0.0.1:{port}/health/ready"
                    if httpx.get(url, timeout=10).status_code == 200:
                        ready = time.monotonic() - started
                        ask(port, model.name)
                        return ready, time.monotonic() - started
                if server.poll() is not None:
                    raise SystemExit("the server ended before it was ready")
                time.sleep(0.05)
            return None
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(port: int, model: str) -> None:
    """One short answer."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 1}
    url = f"http://127.0.0.1:{port}/v1/completions"
    httpx.post(url, json=body, timeout=60).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--formats", nargs="+", default=["int8", "int4"])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--module", default="hagane.cli")
    parser.add_argument("--seconds", type=float, default=150.0, help="given up after so long")
    options = parser.parse_args()
    limit = f"over {options.seconds:.0f} s"
    for model in options.models:
        for path in model.glob("*.safetensors"):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
        for form in options.formats:
            with busy(options.busy):
                times = [
                    start(options.module, model, form, options.seconds)
                    for _ in range(options.rounds)
                ]
            known = [both for both in times if both is not None]
            ready, answered = (
                f"{statistics.median(column):.1f} s" if known else limit
                for column in (zip(*known, strict=True) if known else ((), ()))
            )
            row = (model.name, form, f"{options.busy} busy", ready, answered)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
