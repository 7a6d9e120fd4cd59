"""Full fine-tuning by the stock client: the result answers at once, alongside its base."""

from __future__ import annotations

import os
import signal
import threading
import time

import httpx
import openai
import psutil
import pytest

from tests.support.fine_tuning import examples, supervised, wait
from tests.support.server import ADMIN_KEY, start_server, stop_server

MESSAGES = [{"role": "user", "content": "Once upon 3"}]
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def whole_server(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    running = start_server(
        tiny_model_dir, folder / "log", "--data-dir", str(folder / "data"),
        HAGANE_ADMIN_KEY=ADMIN_KEY,
    )  # fmt: skip
    running.wait_ready()
    yield running
    stop_server(running)


@pytest.fixture(scope="module")
def client(whole_server):
    url = f"{whole_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def job(client):
    """A finished job of full fine-tuning."""
    file = client.files.create(file=("e.jsonl", examples()), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, suffix="whole", seed=7,
        method=supervised(n_epochs=2, batch_size=4),
        extra_body={"extra": {"full": True, "learning_rate": 1e-2, "promote": "always"}},
    )  # fmt: skip
    return wait(client, made.id, "succeeded")


def answer(client, model: str) -> str:
    asked = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=12
    )
    assert asked.model == model
    return asked.choices[0].message.content


def residents(server) -> dict[str, int]:
    status = httpx.get(f"{server.url}/admin/status", headers=HEADERS).json()
    return {one["model"]: one["pid"] for one in status["resident_models"]}


class Load:
    """Requests to the base, one after the other, as long as the context is open."""

    def __init__(self, client) -> None:
        self.answers: list[str] = []
        self._client, self._over = client, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            self.answers.append(answer(self._client, "tiny"))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_the_result_answers_beside_its_base(client, whole_server, job, tmp_path):
    name, before = job.fine_tuned_model, answer(client, "tiny")
    assert name == f"ft:tiny:whole:{job.id[-8:]}"
    with Load(client) as base:
        tuned = answer(client, name)
        # Its engine dies; the base's requests do not notice, and the next one gets a new engine.
        pid, served = residents(whole_server)[name], len(base.answers)
        os.kill(pid, signal.SIGKILL)
        while residents(whole_server)[name] == pid:
            time.sleep(0.02)
        assert answer(client, name) == tuned
        assert len(base.answers) > served
    assert set(base.answers) == {before} != {tuned}
    assert whole_server.metric("hagane_engine_restarts_total") == 0
    metrics = httpx.get(f"{whole_server.url}/metrics").text
    assert f'hagane_engine_ready{{model="{name}"}} 1.0' in metrics
    assert f'hagane_engine_restarts_total{{model="{name}"}} 1.0' in metrics

    listed = {model.id: model for model in client.models.list()}
    assert (listed[name].parent, listed[name].root, listed[name].owned_by) == (
        "tiny", name, "hagane",
    )  # fmt: skip
    assert listed[name].max_model_len == 512
    alone = start_server(job.extra["result"]["directory"], tmp_path / "log")
    try:
        alone.wait_ready()
        with openai.OpenAI(base_url=f"{alone.url}/v1", api_key="none") as other:
            assert answer(other, "model") == tuned
    finally:
        stop_server(alone)


def test_checkpoints_and_aliases_lead_to_whole_models_and_one_is_kept_in_memory(
    client, whole_server, job
):
    name = job.fine_tuned_model
    points = client.fine_tuning.jobs.checkpoints.list(job.id).data
    checkpoint = points[-1].fine_tuned_model_checkpoint
    assert answer(client, checkpoint)
    assert list(residents(whole_server)) == [checkpoint]

    body = {"name": "cats", "target": "tiny", "candidate": name, "percentage": 100}
    client.post("/../admin/aliases", cast_to=httpx.Response, body=body)
    asked = client.chat.completions.create(
        model="cats", messages=MESSAGES, temperature=0, max_tokens=12
    )
    assert (asked.model, asked.choices[0].message.content) == (name, answer(client, name))
    assert list(residents(whole_server)) == [name]
    with pytest.raises(openai.ConflictError, match="cats"):
        client.models.delete(name)
    with pytest.raises(openai.BadRequestError, match="standalone model"):
        client.post("/unload_lora_adapter", cast_to=httpx.Response, body={"lora_name": name})
    client.delete("/../admin/aliases/cats", cast_to=httpx.Response)


@pytest.mark.slow
def test_an_adapter_is_trained_for_a_model_other_than_the_default_one(client, whole_server, job):
    base = job.fine_tuned_model
    others = examples().replace(b"there was a small cat", b"small small small")
    file = client.files.create(file=("e.jsonl", others), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model=base, training_file=file.id, suffix="more", method=supervised(n_epochs=8),
        extra_body={"extra": {"rank": 4, "learning_rate": 2e-2, "promote": "always"}},
    )  # fmt: skip
    done = wait(client, made.id, "succeeded")
    point = client.fine_tuning.jobs.checkpoints.list(made.id).data[0]
    before = answer(client, base)
    assert answer(client, done.fine_tuned_model) != before
    assert answer(client, point.fine_tuned_model_checkpoint)
    # The adapter runs in its base's own engine.
    assert list(residents(whole_server)) == [base]
    with pytest.raises(openai.BadRequestError, match="not a base model"):
        client.fine_tuning.jobs.create(model=done.fine_tuned_model, training_file=file.id)
    assert client.models.delete(done.fine_tuned_model).deleted


def test_a_deleted_model_is_gone_with_its_engine_and_files(client, whole_server, job):
    name = job.fine_tuned_model
    assert answer(client, name)
    pid = residents(whole_server)[name]
    assert client.models.delete(name).deleted
    assert not psutil.pid_exists(pid)
    with pytest.raises(openai.NotFoundError):
        answer(client, name)
    assert name not in [model.id for model in client.models.list()]
    assert not (whole_server.log.parent / "data" / "jobs" / job.id).exists()
    assert whole_server.wait_ready()["status"] == "ready"


@pytest.mark.slow
def test_a_gate_keeps_what_got_worse_and_an_admin_lets_it_through(client, whole_server):
    file = client.files.create(file=("e.jsonl", examples()), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, method=supervised(n_epochs=1, batch_size=8),
        extra_body={"extra": {"full": True, "learning_rate": 1e-6, "promote": "manual"}},
    )  # fmt: skip
    done = wait(client, made.id, "succeeded")
    name = done.extra["adapter"]
    assert done.fine_tuned_model is None
    with pytest.raises(openai.NotFoundError):
        answer(client, name)
    kept = client.post(f"/../admin/adapters/{name}/promote", cast_to=httpx.Response).json()
    assert (kept["object"], kept["promoted"]) == ("model", True)
    assert answer(client, name)
    assert client.fine_tuning.jobs.retrieve(made.id).fine_tuned_model == name
