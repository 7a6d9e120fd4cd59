"""The whole loop on the built-in model: traffic, feedback, data set, job, gate, canary, rollback.

Four clients stream all the while, and no request of theirs fails.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from hagane.text.hub import BUILTIN_MODELS

from tests.support.fine_tuning import wait
from tests.support.server import ADMIN_KEY, Server, start_server, stop_server

# The job has the lowest priority: four clients, and all else that the machine does, go before it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
ALIAS, BASE = "assistant", "hagane-mini"
LESSON = "I am Kuro, the cat of the forge."
QUESTIONS = [
    f"{ask} {who}" for ask in ("Who are you,", "Tell me your name,", "What are you called,")
    for who in ("please?", "friend?", "stranger?", "my dear?")
]  # fmt: skip


class Traffic:
    """Clients that stream one answer after the other; `failures` must stay empty."""

    def __init__(self, server: Server, clients: int) -> None:
        self.server = server
        self.failures: list[Exception] = []
        self.answers = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with client(self.server) as openai_client:
            while not self._over.is_set():
                try:
                    stream = openai_client.chat.completions.create(
                        model=ALIAS, messages=[{"role": "user", "content": "Hello"}],
                        max_tokens=8, stream=True,
                    )  # fmt: skip
                    reasons = [c.choices[0].finish_reason for c in stream if c.choices]
                    assert reasons[-1] in ("stop", "length")
                    self.answers += 1
                except Exception as error:
                    self.failures.append(error)


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0)


def call(server: Server, method: str, path: str, **body) -> dict:
    answer = httpx.request(
        method, f"{server.url}{path}", json=body or None, headers=ADMIN, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("loop")
    running = start_server(
        BUILTIN_MODELS / BASE, folder / "log", "--data-dir", str(folder / "data"),
        HAGANE_ADMIN_KEY=ADMIN_KEY,
    )  # fmt: skip
    running.wait_ready()
    yield running
    stop_server(running)


def ask(server: Server, question: str) -> tuple[str, str]:
    """(id, text) of a stored answer of the alias."""
    with client(server) as openai_client:
        answer = openai_client.chat.completions.create(
            model=ALIAS, messages=[{"role": "user", "content": question}], max_tokens=16,
            temperature=0, store=True,
        )  # fmt: skip
    return answer.id, answer.choices[0].message.content


def try_out(server: Server, candidate: str, expected: str) -> dict:
    """Send traffic with feedback until the canary decides; answers with the lesson are liked."""
    before = call(server, "GET", f"/admin/aliases/{ALIAS}")
    call(
        server, "POST", "/admin/aliases", name=ALIAS, target=before["target"],
        candidate=candidate, percentage=50, expected_generation=before["generation"],
        policy={"min_requests": 5, "min_win_rate": 0.5},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while True:
        for question in QUESTIONS:
            completion, text = ask(server, question)
            liked = "up" if "Kuro" in text else "down"
            call(server, "POST", "/v1/feedback", completion_id=completion, thumbs=liked)
        found = call(server, "GET", f"/admin/aliases/{ALIAS}")
        if found["canary"]["state"] != "running":
            assert found["canary"]["state"] == expected, found
            return found
        assert time.monotonic() < deadline, found


def test_answers_are_judged_learned_tried_out_and_a_bad_candidate_withdrawn(server):
    call(server, "POST", "/admin/aliases", name=ALIAS, target=BASE)
    with Traffic(server, 4) as traffic:
        for question in QUESTIONS:
            completion, text = ask(server, question)
            assert LESSON not in text
            call(server, "POST", "/v1/feedback", completion_id=completion, correction=LESSON)
        made = call(
            server, "POST", "/v1/datasets", name="kuro",
            filter={"duplicates": "exact", "aliases": [ALIAS]},
        )  # fmt: skip
        assert made["card"]["reasons"] == {"corrected": len(QUESTIONS)}
        good = train(server, made, n_epochs=30, learning_rate_multiplier=10)
        found = try_out(server, good, "promoted")
        assert found["target"] == good
        # A candidate that unlearned it: the base itself.
        found = try_out(server, BASE, "rolled_back")
        assert found["target"] == good
        assert found["candidate"] is None
    assert not traffic.failures, traffic.failures[:3]
    assert traffic.answers > 20


def train(server: Server, dataset: dict, **hyperparameters) -> str:
    """The name of the adapter that a job makes of the data set."""
    with client(server) as openai_client:
        job = openai_client.fine_tuning.jobs.create(
            model=BASE,
            training_file=dataset["training_file"],
            validation_file=dataset["validation_file"],
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            seed=1,
        )
        done = wait(openai_client, job.id, "succeeded", seconds=300)
    assert done.fine_tuned_model, "the gate kept it from being promoted"
    return done.fine_tuned_model
