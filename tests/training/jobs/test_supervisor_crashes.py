"""Whatever is killed under a job, and whenever: it ends with the bits that it would have had.

Jobs of every method that `tests/api/openai/test_fine_tuning.py` does not kill.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.fine_tuning import examples
from tests.support.server import ADMIN_KEY, Server, start_server, stop_server

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
GRADER = {"type": "string_check", "name": "letter", "operation": "ilike",
          "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}  # fmt: skip
PAIRS = [{"prompt": f"Once {i}", "chosen": " there was a cat.", "rejected": f" no {i}."}
         for i in range(12)]  # fmt: skip
JUDGED = [{"prompt": f"Once {i}", "completion": f" there was {i}.", "label": bool(i % 2)}
          for i in range(12)]  # fmt: skip
TASKS = [{"prompt": f"Say {i}", "answer": "e"} for i in range(12)]
TEXTS = [{"text": f"{i}: The cat is small. 猫です。"} for i in range(200)]
CONTINUED = {
    "batch_rows": 2, "sequence_length": 32, "warmup_steps": 2, "compile": False, "held_out": 0.1,
    "validation_rows": 2, "checkpoint_every": 20, "log_every": 1, "optimizer": "adamw",
    "learning_rate": 1e-4, "steps": 60, "start_from": "tiny",
}  # fmt: skip
EPOCHS = {"n_epochs": 10, "batch_size": 2}


@dataclass(frozen=True)
class Method:
    """A job's file, the path that takes it, and its body but for the file."""

    lines: list[dict] | bytes
    body: dict
    path: str = "/v1/fine_tuning/jobs"

    @property
    def content(self) -> bytes:
        if isinstance(self.lines, bytes):
            return self.lines
        return "\n".join(map(json.dumps, self.lines)).encode()


def method(kind: str, hyperparameters: dict, **block: object) -> dict:
    return {"type": kind, kind: {"hyperparameters": hyperparameters, **block}}


METHODS = {
    "dpo": Method(PAIRS, {"method": method("dpo", EPOCHS)}),
    "kto": Method(JUDGED, {"method": method("kto", EPOCHS)}),
    "distillation": Method(
        examples(12), {"method": method("supervised", EPOCHS), "extra": {"teacher": "tiny"}}
    ),
    "parallel": Method(
        examples(12), {"method": method("supervised", EPOCHS), "extra": {"data_parallel": 2}}
    ),
    "reinforcement": Method(
        TASKS,
        {
            "method": method(
                "reinforcement", {"n_epochs": 3, "batch_size": 2, "eval_interval": 5}, grader=GRADER
            ),
            "extra": {"max_completion_tokens": 8, "group_size": 4},
        },
    ),
    "continued": Method(TEXTS, {"name": "more", "config": CONTINUED}, "/admin/pretraining/jobs"),
}


class House:
    """A server with a data directory, which may be killed and started again."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder, self.client = model, folder, httpx.Client(timeout=60)
        self.server = self._start()

    def _start(self) -> Server:
        server = start_server(
            self.model, self.folder / "log", "--data-dir", str(self.folder / "data"),
            "--models-dir", str(self.model.parent), "--training-threads", "1",
            HAGANE_ADMIN_KEY=ADMIN_KEY,
        )  # fmt: skip
        server.wait_ready()
        return server

    def ask(self, verb: str, path: str, **arguments: object) -> dict:
        url = f"{self.server.url}{path}"
        answer = self.client.request(verb, url, headers=HEADERS, **arguments)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def create(self, asked: Method) -> str:
        form = {"files": {"file": ("lines.jsonl", asked.content)}, "data": {"purpose": "fine-tune"}}
        file = self.ask("POST", "/v1/files", **form)["id"]
        if "config" in asked.body:
            config = asked.body["config"] | {"corpora": [{"path": file}]}
            body = asked.body | {"config": config}
        else:
            extra = {"rank": 4, "promote": "always"} | asked.body.get("extra", {})
            body = asked.body | {"model": "tiny", "training_file": file, "seed": 3, "extra": extra}
        return self.ask("POST", asked.path, json=body)["id"]

    def until(self, asked: Method, job: str, step: int | None) -> None:
        """Wait until the job has made `step` steps, or for its success."""
        deadline = time.monotonic() + 600
        while True:
            now = self.ask("GET", f"{asked.path}/{job}")
            progress = now.get("progress") or now.get("extra", {}).get("progress") or {}
            if now["status"] == "succeeded" and step is None:
                return
            if step is not None and now["status"] == "running" and progress.get("step", 0) >= step:
                return
            assert now["status"] in ("validating_files", "queued", "running"), now
            assert time.monotonic() < deadline, now
            time.sleep(0.05)

    def worker(self, job: str) -> psutil.Process:
        """The job's worker, once it is there."""
        while True:
            for process in psutil.process_iter(["cmdline"]):
                command = process.info["cmdline"] or []
                if job in command and "hagane.training.jobs.worker" in command:
                    return process
            time.sleep(0.02)

    def kill_worker(self, job: str) -> None:
        self.worker(job).kill()

    def kill_engines(self, job: str) -> None:
        """The server's, and the one that answers for a run."""
        for process in self.worker(job).children():
            if "hagane.engine" in process.cmdline():
                process.kill()
        os.kill(self.server.wait_ready()["engine_pid"], signal.SIGKILL)

    def kill_rank(self, job: str) -> None:
        """The second process of a data-parallel run."""
        while True:
            for process in self.worker(job).children():
                if "hagane.training.parallel" in process.cmdline():
                    process.kill()
                    return
            time.sleep(0.02)

    def kill_server(self, job: str) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self.server = self._start()

    def result(self, job: str) -> bytes:
        folder = self.folder / "data" / "jobs" / job
        for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
            if (folder / name).is_file():
                return (folder / name).read_bytes()
        raise AssertionError(sorted(folder.rglob("*")))


@pytest.fixture(scope="module")
def house(tiny_model_dir, tmp_path_factory) -> Iterator[House]:
    made = House(tiny_model_dir, tmp_path_factory.mktemp("house"))
    yield made
    made.client.close()
    stop_server(made.server)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", METHODS)
def test_kills_at_any_phase_do_not_change_a_bit(house, name):
    asked = METHODS[name]
    undisturbed = house.create(asked)
    house.until(asked, undisturbed, None)
    job = house.create(asked)
    # While it loads, before and after the first checkpoint, and with everything at once.
    house.kill_worker(job)
    steps = (1, 6, 10) if name == "reinforcement" else (1, 25, 35)
    for step, kill in zip(
        steps, (house.kill_engines, house.kill_worker, house.kill_server), strict=True
    ):
        house.until(asked, job, step)
        kill(job)
    house.until(asked, job, None)
    assert house.result(job) == house.result(undisturbed)


@pytest.mark.slow
def test_a_job_goes_on_when_one_of_its_ranks_is_killed(house):
    asked = METHODS["parallel"]
    undisturbed, job = house.create(asked), house.create(asked)
    for step in (1, 25):
        house.until(asked, job, step)
        house.kill_rank(job)
    house.until(asked, job, None)
    house.until(asked, undisturbed, None)
    assert house.result(job) == house.result(undisturbed)
    events = house.ask("GET", f"{asked.path}/{job}/events?limit=100")["data"]
    assert sum("rank 1 ended with signal 9" in event["message"] for event in events) == 2
