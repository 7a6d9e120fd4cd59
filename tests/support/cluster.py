"""What tests of a cluster ask of it, and how they wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import openai
import psutil

from tests.support.server import ADMIN_KEY

ASK = {"messages": [{"role": "user", "content": "Once upon a time " * 8}], "temperature": 0}
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
PATIENCE_SECONDS = 120
# Ray kills its own parts where the machine's memory is full, of whatever else runs there.
ALONE = {"RAY_memory_monitor_refresh_ms": "0"}


@dataclass
class Load:
    """What clients saw that asked all the time."""

    answers: list[str] = field(default_factory=list)
    failures: list[openai.OpenAIError] = field(default_factory=list)


@contextmanager
def load(client, clients: int) -> Iterator[Load]:
    """So many clients with a request each at any time."""
    seen, stopped = Load(), threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            try:
                seen.answers.append(answer(client))
            except openai.OpenAIError as error:
                seen.failures.append(error)
                time.sleep(0.1)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def until(condition) -> float:
    """Wait for it; returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + PATIENCE_SECONDS
        time.sleep(0.2)
    return time.monotonic() - started


def running(url: str) -> int:
    return httpx.get(f"{url}/admin/status", headers=ADMIN).json()["requests"]["running"]


def answer(client, **more) -> str:
    given = {"model": "tiny", "max_tokens": 12, **ASK, **more}
    return client.chat.completions.create(**given).choices[0].message.content


def worker_of(job_id: str) -> psutil.Process | None:
    """The process that trains a job."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "hagane.training.jobs.worker" in command and job_id in command:
            return process
    return None
