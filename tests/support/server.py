"""Real processes of the `hagane` command: a server, and commands that end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

ADMIN_KEY, CHAT_KEY, OTHER_KEY = "admin-key", "chat-key", "other-key"


def clean_environment() -> dict[str, str]:
    """This process's environment without Hagane's own settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith("HAGANE_")}


@dataclass(frozen=True)
class Server:
    """A running `hagane serve`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        match = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert match, f"{name} is not among the metrics"
        return float(match[1])

    def wait_ready(self, seconds: float = 60) -> dict:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                response = httpx.get(f"{self.url}/health/ready")
                if response.status_code == 200:
                    return response.json()
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s:\n{self.log.read_text()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(
    model: Path,
    log: Path,
    *flags: str,
    prefix: tuple[str, ...] = (),
    python: Path = Path(sys.executable),
    **environment: str,
) -> Server:
    """`prefix` is a command that runs the server's as its arguments; `python` has it installed."""
    port = free_port()
    command = [str(python), "-m", "hagane.cli", "serve", "--model", str(model)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, *command, "--port", str(port), "--threads", "1", *flags],
            stdout=output,
            stderr=output,
            env=clean_environment() | environment,
        )
    return Server(process, f"http://127.0.0.1:{port}", log)


def stop_server(server: Server) -> int:
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise


def hagane(
    *arguments: str, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hagane.cli", *arguments],
        capture_output=True,
        text=True,
        input=text,
        env=clean_environment() | environment,
        timeout=60,
        check=False,
    )
