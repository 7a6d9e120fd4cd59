"""A disk that is really full, under a running server and its worker: a small file system."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest

from tests.support.fine_tuning import examples, supervised, wait
from tests.support.server import ADMIN_KEY, start_server, stop_server
from tests.training.jobs.test_supervisor_crashes import METHODS

MOUNT = 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$@"'


def mountable(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return not subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNT, folder, "true"], capture_output=True, check=False
    ).returncode


def fill(folder: Path, left: int) -> Path:
    """Take up all but `left` bytes of the file system."""
    hog = folder / "hog"
    space = os.statvfs(folder)
    hog.write_bytes(bytes(max(space.f_bavail * space.f_frsize - left, 0)))
    return hog


@pytest.fixture
def small_disk(tiny_model_dir, tmp_path):
    """(a server whose data directory has 24 MB, that directory as seen from here)"""
    data = tmp_path / "data"
    data.mkdir()
    if not mountable(data):
        pytest.skip("needs the right to mount")
    server = start_server(
        tiny_model_dir, tmp_path / "log", "--data-dir", str(data), "--training-threads", "1",
        prefix=("unshare", "-m", "sh", "-c", MOUNT, str(data)), HAGANE_ADMIN_KEY=ADMIN_KEY,
    )  # fmt: skip
    server.wait_ready()
    yield server, Path(f"/proc/{server.process.pid}/root{data}")
    stop_server(server)


@pytest.mark.slow
def test_a_full_disk_costs_a_job_no_more_than_the_steps_since_its_checkpoint(small_disk):
    server, data = small_disk
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0)
    file = client.files.create(file=("e.jsonl", examples()), purpose="fine-tune")

    def create() -> str:
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, seed=3,
            method=supervised(n_epochs=3, batch_size=4),
            extra_body={"extra": {"full": True, "learning_rate": 1e-3, "promote": "manual"}},
        ).id  # fmt: skip

    def weights(job: str) -> bytes:
        return (data / "jobs" / job / "model" / "model.safetensors").read_bytes()

    def answer() -> str:
        asked = client.completions.create(model="tiny", prompt="Once", max_tokens=8, temperature=0)
        return asked.choices[0].text

    undisturbed, before = create(), answer()
    wait(client, undisturbed, "succeeded")
    # A checkpoint is a model, and its state three times that: the second one will not fit.
    hog = fill(data, left=6 * len(weights(undisturbed)))
    job = create()
    failed = wait(client, job, "failed")
    assert failed.error.code == "disk_full"
    assert len(client.fine_tuning.jobs.checkpoints.list(job).data) >= 1
    assert answer() == before

    worse = fill(data / "files", left=0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.files.create(file=("more.jsonl", examples(1000)), purpose="fine-tune")
    assert (caught.value.status_code, caught.value.code) == (507, "disk_full")
    assert not list(data.glob("files/*.partial"))
    assert answer() == before
    assert server.wait_ready()["status"] == "ready"

    worse.unlink()
    hog.unlink()
    client.post(f"/fine_tuning/jobs/{job}/resume", cast_to=object)
    wait(client, job, "succeeded")
    assert weights(job) == weights(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["reinforcement", "dpo"])
def test_a_full_disk_under_another_method(small_disk, kind):
    server, data = small_disk
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0)
    asked = METHODS[kind]
    file = client.files.create(file=("lines.jsonl", asked.content), purpose="fine-tune")
    extra = {"rank": 64, "promote": "manual"} | asked.body.get("extra", {})

    def create() -> str:
        return client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, seed=3, method=asked.body["method"],
            extra_body={"extra": extra},
        ).id  # fmt: skip

    def adapter(job: str) -> bytes:
        return (data / "jobs" / job / "adapter" / "adapter_model.safetensors").read_bytes()

    undisturbed = create()
    wait(client, undisturbed, "succeeded", seconds=300)
    # The state is three adapters, and the last one stays until the next is whole.
    hog = fill(data, left=6 * len(adapter(undisturbed)))
    job = create()
    assert wait(client, job, "failed", seconds=300).error.code == "disk_full"
    hog.unlink()
    client.post(f"/fine_tuning/jobs/{job}/resume", cast_to=object)
    wait(client, job, "succeeded", seconds=300)
    assert adapter(job) == adapter(undisturbed)
