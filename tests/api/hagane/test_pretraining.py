"""Pretraining jobs against a real server and real workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from hagane.models.families import read_config_file
from hagane.text.hub import local_model
from hagane.text.tokenizer import Tokenizer

from tests.support.server import ADMIN_KEY

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
CONFIG = {
    "vocab_size": 300, "sequence_length": 32, "batch_rows": 2, "warmup_steps": 2, "compile": False,
    "held_out": 0.1, "validation_rows": 2, "parameters": 100_000, "checkpoint_every": 10,
    "log_every": 5, "optimizer": "adamw", "learning_rate": 1e-3,
}  # fmt: skip


def ask(server, method: str, path: str = "", **body) -> httpx.Response:
    url = f"{server.url}/admin/pretraining/jobs{path}"
    return httpx.request(method, url, headers=HEADERS, json=body or None, timeout=60)


def wait(server, job_id: str, done, seconds: float = 90) -> dict:
    deadline = time.monotonic() + seconds
    while not done(job := ask(server, "GET", f"/{job_id}").json()):
        assert time.monotonic() < deadline, job
        assert job["status"] in ("queued", "running"), job
        time.sleep(0.05)
    return job


def worker_of(job_id: str) -> int:
    for process in psutil.process_iter(["cmdline"]):
        if job_id in (process.info["cmdline"] or []):
            return process.pid
    raise AssertionError("no worker runs")


def test_a_job_survives_its_worker_and_writes_a_model(admin_server, admin):
    lines = [json.dumps({"text": f"{i}: The cat is small. 猫です。"}) for i in range(400)]
    content = "\n".join(lines).encode()
    file = admin.files.create(file=("text.jsonl", content), purpose="fine-tune")
    config = CONFIG | {"steps": 120, "corpora": [{"path": file.id}]}
    made = ask(admin_server, "POST", name="small", config=config).json()
    assert (made["object"], made["status"], made["name"]) == ("pretraining.job", "queued", "small")
    wait(admin_server, made["id"], lambda job: (job["progress"] or {}).get("step", 0) >= 10)
    os.kill(worker_of(made["id"]), signal.SIGKILL)
    done = wait(admin_server, made["id"], lambda job: job["status"] == "succeeded")
    assert done["trained_tokens"] == 120 * 2 * 32
    directory = Path(done["result"]["directory"])
    assert read_config_file(directory).vocab_size == 300
    assert (directory / "loss.png").is_file()

    answer = ask(admin_server, "GET", f"/{made['id']}/events?limit=1000").json()
    steps = [e["data"]["step"] for e in answer["data"][::-1] if e["type"] == "metrics"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 120
    assert any("signal 9" in event["message"] for event in answer["data"])
    listed = ask(admin_server, "GET").json()["data"]
    assert made["id"] in {job["id"] for job in listed}
    assert made["id"] not in {job.id for job in admin.fine_tuning.jobs.list()}


@pytest.mark.slow
def test_a_gate_decides_which_model_gets_a_name(admin_server, admin):
    content = "\n".join(f"{i}: The dog is big. 犬です。" for i in range(1500)).encode()
    file = admin.files.create(file=("text.txt", content), purpose="fine-tune")
    config = CONFIG | {"steps": 20, "corpora": [{"path": file.id}]}

    def run(**body) -> dict:
        job = ask(admin_server, "POST", **body).json()
        return wait(admin_server, job["id"], lambda job: job["status"] == "succeeded")

    first = run(name="first", config=config, max_bits_per_byte=50)
    assert first["model"] == f"first-{first['id'][-8:]}"
    assert first["result"]["promoted"]
    assert first["result"]["base_bits_per_byte"] is None
    named = local_model(first["model"], [Path(first["result"]["directory"]).parents[2] / "models"])
    assert named == Path(first["result"]["directory"])

    _live(admin_server, admin, first["model"], named)

    # It goes on from the first by its name, and does better, but not as well as asked for.
    scratch = ("parameters", "vocab_size")
    going_on = {key: value for key, value in config.items() if key not in scratch}
    going_on |= {"start_from": first["model"], "learning_rate": 1e-2}
    second = run(name="second", config=going_on, max_bits_per_byte=0.001)
    bits, base = (second["result"][key] for key in ("bits_per_byte", "base_bits_per_byte"))
    assert base == pytest.approx(first["result"]["bits_per_byte"], abs=0.02)  # stored in 16 bits
    assert sum(bits.values()) < sum(base.values())
    assert (second["model"], second["result"]["promoted"]) == (None, False)
    promoted = ask(admin_server, "POST", f"/{second['id']}/promote").json()
    assert promoted["model"] == f"second-{second['id'][-8:]}"
    assert ask(admin_server, "GET", f"/{second['id']}").json()["model"] == promoted["model"]
    assert promoted["model"] in [model.id for model in admin.models.list()]
    assert admin.models.delete(promoted["model"]).deleted
    assert not (named.parents[2] / "models" / promoted["model"]).is_symlink()


def _live(server, admin, name: str, directory: Path) -> None:
    """It answers alongside the server's base, with its own tokenizer."""
    listed = admin.models.retrieve(name)
    assert (listed.root, listed.parent, listed.max_model_len) == (name, None, 32)
    body = {"model": name, "prompt": "The dog is big."}
    url, headers = f"{server.url}/tokenize", {"Authorization": f"Bearer {ADMIN_KEY}"}
    ids = httpx.post(url, json=body, headers=headers).json()["tokens"]
    assert ids == Tokenizer.load(directory).encode(body["prompt"])
    assert ids != httpx.post(url, json=body | {"model": "tiny"}, headers=headers).json()["tokens"]
    asked = admin.completions.create(**body, max_tokens=5, temperature=0, logprobs=0)
    assert asked.usage.prompt_tokens == len(ids)
    assert asked.choices[0].logprobs.tokens
    # A request for more than its context is refused by its own limit, not by the base's.
    with pytest.raises(openai.BadRequestError, match="32 tokens"):
        admin.completions.create(model=name, prompt="a", max_tokens=100)


def test_a_config_that_cannot_work_is_refused_by_its_key(admin_server):
    for change, param in (
        ({"steps": 0, "corpora": [{"path": "/text.txt"}]}, "config.steps"),
        ({"steps": 5, "corpora": [{"path": "text.txt"}]}, "config.corpora[0].path"),
        ({"steps": 5, "corpora": [{"path": "file-none"}]}, None),
        ({"steps": 5, "corpora": [{"path": "/text.txt"}], "output": "/x"}, "config.output"),
        ({"steps": 5, "corpora": [{"path": "/t.txt"}], "start_from": "nix"}, "config.start_from"),
    ):
        answer = ask(admin_server, "POST", config=CONFIG | change)
        assert answer.status_code in (400, 404), answer.text
        if param is not None:
            assert answer.json()["error"]["param"] == param
    made = ask(admin_server, "POST", name="../up", config=CONFIG | {"steps": 5})
    assert (made.status_code, made.json()["error"]["param"]) == (400, "name")
    assert httpx.post(f"{admin_server.url}/admin/pretraining/jobs", json={}).status_code == 401
