"""What a server leaves to the next one on its data directory, ended by a signal or killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.support.batches import begin, lines, results, wait
from tests.support.server import ADMIN_KEY, CHAT_KEY, Server, start_server, stop_server

# The tiny model makes some 30,000 tokens a second: the batch takes a second or more.
LONG, COUNT = 400, 120


def client(server: Server, key: str = CHAT_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def start(tiny_model_dir: Path, tmp_path: Path) -> Callable[[], Server]:
    """Starts a server over the same data directory each time."""

    def run() -> Server:
        server = start_server(
            tiny_model_dir, tmp_path / "log", "--data-dir", str(tmp_path / "data"),
            HAGANE_ADMIN_KEY=ADMIN_KEY, HAGANE_API_KEYS=CHAT_KEY,
        )  # fmt: skip
        server.wait_ready()
        return server

    return run


def test_answers_and_batches_outlive_their_server(start, tmp_path):
    server = start()
    with client(server) as asking:
        stored = store_many(asking)
    stop_server(server)

    server = start()
    with client(server) as asking, client(server, ADMIN_KEY) as admin:
        assert {c.id for c in asking.chat.completions.list(limit=100)} == stored
        assert server.metric("hagane_stored_completion_bytes") > 0
        batch = begin(admin, lines(COUNT, max_tokens=LONG, ignore_eos=True, temperature=1))
        while admin.batches.retrieve(batch.id).request_counts.completed < 10:
            time.sleep(0.02)
        with pytest.raises(openai.ConflictError):
            admin.files.delete(batch.input_file_id)
        answer = asking.responses.create(
            model="tiny", input="Once upon", background=True, max_output_tokens=490,
            temperature=0, extra_body={"ignore_eos": True},
        )  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            admin.responses.retrieve(answer.id)
    server.process.kill()
    server.process.wait()
    log = tmp_path / "data" / "batches" / f"{batch.id}.log"
    before = log.read_bytes()
    log.write_bytes(before + b"+ 1 {cut")

    server = start()
    with client(server) as asking, client(server, ADMIN_KEY) as admin:
        found = asking.responses.retrieve(answer.id)
        assert found.status == "failed"
        assert "ended before" in found.error.message
        done = wait(admin, batch, "completed", seconds=120)
        assert done.request_counts.completed == COUNT
        assert len(results(admin, done.output_file_id)) == COUNT
        made = server.metric("hagane_generated_tokens_total")
        left = COUNT - before.count(b"\n")
        assert made <= left * LONG, "what was done before the crash is not done again"
    stop_server(server)


def store_many(asking: openai.OpenAI) -> set[str]:
    """Have 48 answers stored, 16 at a time; returns their ids."""

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"Once upon {number}"}]
        return asking.chat.completions.create(
            model="tiny", messages=messages, max_tokens=6, store=True
        ).id

    with ThreadPoolExecutor(16) as pool:
        return set(pool.map(ask, range(48)))
