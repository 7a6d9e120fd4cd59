"""Fine-tuning jobs, driven by the stock client against a real server and real workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
from hagane.store.store import Store
from safetensors.torch import load_file, save_file

from tests.support.fine_tuning import examples, supervised, wait
from tests.support.server import ADMIN_KEY, Server, start_server, stop_server

HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture(scope="module")
def training_file(admin) -> str:
    return admin.files.create(file=("examples.jsonl", examples()), purpose="fine-tune").id


def test_a_job_from_file_to_model(admin, admin_server, training_file):
    jobs = admin.fine_tuning.jobs
    made = jobs.create(
        model="tiny", training_file=training_file, suffix="cats", seed=7,
        metadata={"team": "a"}, method=supervised(n_epochs=2, batch_size=4),
        extra_body={"extra": {"rank": 4, "promote": "always"}},
    )  # fmt: skip
    assert (made.object, made.status, made.seed) == ("fine_tuning.job", "validating_files", 7)
    assert made.fine_tuned_model is None
    url = f"{admin_server.url}/v1/fine_tuning/jobs/{made.id}/events?stream=true"
    with httpx.stream("GET", url, headers=HEADERS, timeout=60) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    streamed = [json.loads(line) for line in lines[:-1]]
    nothing_more = httpx.get(f"{url}&after={streamed[-1]['id']}", headers=HEADERS, timeout=60)
    assert nothing_more.text.strip() == "data: [DONE]"

    done = wait(admin, made.id, "succeeded")
    assert done.fine_tuned_model == f"ft:tiny:cats:{made.id[-8:]}"
    assert done.error is None
    assert done.finished_at >= done.created_at
    assert done.trained_tokens > 0
    assert done.hyperparameters.n_epochs == 2
    assert done.method.supervised.hyperparameters.batch_size == 4
    assert done.metadata == {"team": "a"}
    assert done.extra["result"]["promoted"]

    listed = list(jobs.list_events(made.id, limit=5))
    assert [event.id for event in listed] == [event["id"] for event in streamed[::-1]]
    metrics = [event for event in listed[::-1] if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == list(range(1, len(metrics) + 1))
    assert {
        "train_loss",
        "learning_rate",
        "tokens_per_second",
        "memory_bytes",
        "eta_seconds",
    } <= set(metrics[0].data)
    table = admin.files.content(done.result_files[0]).text.splitlines()
    assert table[0].startswith("step,train_loss,")
    assert len(table) == len(metrics) + 1

    points = list(jobs.checkpoints.list(made.id, limit=2))
    assert points[0].step_number == len(metrics)
    assert points[0].fine_tuned_model_checkpoint == (
        f"{done.fine_tuned_model}:ckpt-step-{len(metrics)}"
    )
    assert points[0].metrics.full_valid_loss == points[0].metrics.valid_loss
    assert jobs.list(limit=1, metadata={"team": "a"}).data[0].id == made.id
    assert jobs.list(metadata={"team": "b"}).data == []
    _chat_with(admin, done.fine_tuned_model, points[-1].fine_tuned_model_checkpoint)


def _chat_with(admin, model: str, checkpoint: str) -> None:
    """Both answer at once, by their own names and by an alias, until the model is deleted."""

    def answer(name: str) -> str:
        asked = admin.chat.completions.create(
            model=name, temperature=0, max_tokens=4,
            messages=[{"role": "user", "content": "Once upon 3"}],
        )  # fmt: skip
        return asked.choices[0].message.content

    assert model in [listed.id for listed in admin.models.list()]
    assert answer(checkpoint) is not None
    alias = {"name": "cats", "target": model}
    admin.post("/../admin/aliases", cast_to=httpx.Response, body=alias)
    assert answer("cats") == answer(model)
    with pytest.raises(openai.ConflictError, match="cats"):
        admin.models.delete(model)
    admin.delete("/../admin/aliases/cats", cast_to=httpx.Response)
    assert admin.models.delete(model).deleted
    for gone in (model, checkpoint):
        with pytest.raises(openai.NotFoundError):
            answer(gone)


def test_a_bad_file_fails_the_job_with_every_line_named(admin):
    bad = examples(3) + b'{"messages": []}\nnot json\n' + examples(2)
    file = admin.files.create(file=("bad.jsonl", bad), purpose="fine-tune")
    job = admin.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    failed = wait(admin, job.id, "failed")
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    assert "line 4: " in failed.error.message
    assert "line 5: " in failed.error.message
    with pytest.raises(openai.ConflictError):
        admin.fine_tuning.jobs.resume(job.id)
    admin.files.delete(file.id)


def test_a_run_refused_for_its_memory_may_be_asked_for_again(admin, admin_server, training_file):
    jobs = admin.fine_tuning.jobs
    made = jobs.create(model="tiny", training_file=training_file)
    jobs.cancel(made.id)
    store = Store.open(admin_server.log.parent / "data")
    refusal = {"code": "out_of_memory", "message": "too large", "param": None}
    store.jobs.record(made.id, status="failed", plan=None, error=refusal)
    store.close()
    again = jobs.resume(made.id)
    assert (again.status, again.error) == ("validating_files", None)
    wait(admin, made.id, "queued", "running")
    jobs.cancel(made.id)


def test_a_failed_job_does_not_go_on_without_its_file(admin, admin_server):
    jobs = admin.fine_tuning.jobs
    file = admin.files.create(file=("gone.jsonl", examples(9)), purpose="fine-tune")
    made = jobs.create(model="tiny", training_file=file.id)
    jobs.cancel(made.id)
    store = Store.open(admin_server.log.parent / "data")
    store.jobs.record(made.id, status="failed", plan={"steps": 1})
    store.close()
    admin.files.delete(file.id)
    with pytest.raises(openai.ConflictError, match="has been deleted or has expired") as caught:
        jobs.resume(made.id)
    assert caught.value.code == "file_gone"


def test_a_report_tells_beforehand(admin, admin_server, training_file):
    url = f"{admin_server.url}/v1/files/{training_file}/report"
    report = httpx.get(url, params={"model": "tiny"}, headers=HEADERS, timeout=60).json()
    assert report["training"]["examples"] == 24
    assert report["training"]["problems"] == []
    assert report["plan"]["steps"] > 0
    assert httpx.get(url, params={"model": "x"}, headers=HEADERS).status_code == 404


def test_few_files_are_read_at_a_time(admin_server, training_file):
    url = f"{admin_server.url}/v1/files/{training_file}/report"
    server = psutil.Process(admin_server.process.pid)
    most = 0
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(httpx.get, url, headers=HEADERS, timeout=60) for _ in range(6)]
        while not all(answer.done() for answer in asked):
            found = [child for child in server.children() if reads_files(child)]
            most = max(most, len(found))
            time.sleep(0.02)
    assert [answer.result().status_code for answer in asked] == [200] * 6
    assert 1 <= most <= 2


def reads_files(process: psutil.Process) -> bool:
    try:
        return "hagane.training.jobs.inspection" in process.cmdline()
    except psutil.Error:
        return False


def test_pausing_resuming_and_cancelling(admin, admin_server, training_file):
    jobs = admin.fine_tuning.jobs
    job = jobs.create(
        model="tiny", training_file=training_file, method=supervised(n_epochs=50, batch_size=1)
    )
    queued = jobs.create(model="tiny", training_file=training_file)
    wait(admin, queued.id, "queued")
    wait(admin, job.id, "running")
    with pytest.raises(openai.ConflictError) as caught:
        admin.files.delete(training_file)
    assert caught.value.code == "file_in_use"
    while not jobs.retrieve(job.id).extra["progress"]:
        time.sleep(0.05)
    text = httpx.get(f"{admin_server.url}/metrics").text
    for name in ("step", "train_loss", "learning_rate", "tokens_per_second", "eta_seconds"):
        assert f'hagane_fine_tuning_{name}{{job="{job.id}"}}' in text
    assert jobs.pause(job.id).status == "paused"
    assert jobs.cancel(queued.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        jobs.pause(queued.id)
    while workers(admin_server):
        time.sleep(0.05)
    assert jobs.resume(job.id).status in ("queued", "running")
    wait(admin, job.id, "running")
    assert jobs.cancel(job.id).status == "cancelled"
    while workers(admin_server):
        time.sleep(0.05)
    assert jobs.retrieve(job.id).status == "cancelled"


# Only the base model can be asked in a job.
OPINION = {"type": "score_model", "name": "opinion", "model": "other",
           "input": [{"role": "user", "content": "Rate {{ sample.output_text }}."}]}  # fmt: skip


def rewarded(operation: str = "ilike", **hyperparameters) -> dict:
    """The `method` of a job that rewards a letter."""
    grader = {"type": "string_check", "name": "letter", "operation": operation,
              "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}  # fmt: skip
    block = {"grader": grader, "hyperparameters": hyperparameters}
    return {"type": "reinforcement", "reinforcement": block}


@pytest.mark.slow
def test_a_job_is_rewarded(admin, admin_server):
    lines = [json.dumps({"messages": [{"role": "user", "content": f"Say {i}"}], "answer": "e"})
             for i in range(8)]  # fmt: skip
    file = admin.files.create(file=("t.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    method = rewarded(n_epochs=1, batch_size=3, eval_interval=1)
    job = admin.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, method=method, seed=1,
        extra_body={"extra": {"max_completion_tokens": 4, "group_size": 4, "promote": "always"}},
    )  # fmt: skip
    done = wait(admin, job.id, "succeeded", seconds=180)
    assert done.method.reinforcement.grader.name == "letter"
    assert done.method.reinforcement.hyperparameters.eval_interval == 1
    events = [e.message for e in admin.fine_tuning.jobs.list_events(job.id, limit=50)]
    assert any("training reward=" in message for message in events)
    table = admin.files.content(done.result_files[0]).text.splitlines()
    assert "train_reward_mean" in table[0] and len(table) == 3
    answer = admin.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Say 1"}], max_tokens=4
    )
    assert answer.choices[0].finish_reason


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"model": "other"}, "model", 404),
        ({"training_file": "file-nowhere"}, "training_file", 400),
        ({"validation_file": "file-nowhere"}, "validation_file", 400),
        ({"suffix": "a b"}, "suffix", 400),
        ({"method": supervised(n_epochs=51)}, "method.supervised.hyperparameters.n_epochs", 400),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
         "method.dpo.hyperparameters.beta", 400),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", 400),
        ({"method": {"type": "kto", "kto": {"hyperparameters": {"beta": 3}}}},
         "method.kto.hyperparameters.beta", 400),
        ({"method": {"type": "kto"}, "extra": {"full": True}}, "extra", 400),
        ({"method": {"type": "orpo"}, "extra": {"neftune_alpha": 5}}, "extra", 400),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement", 400),
        ({"method": rewarded(operation="is")},
         "method.reinforcement.grader.string_check.operation", 400),
        ({"method": rewarded(), "extra": {"group_size": 1}}, "extra.group_size", 400),
        ({"method": rewarded(), "extra": {"full": True}}, "extra", 400),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": OPINION}}},
         "extra", 400),
        ({"extra": {"kl": 0.1}}, "extra.kl", 400),
        ({"extra": {"data_parallel": 0}}, "extra.data_parallel", 400),
        ({"extra": {"teacher": "nobody"}}, "extra.teacher", 400),
        ({"extra": {"rank": 0}}, "extra.rank", 400),
        ({"extra": {"target_modules": ["lm_head"]}}, "extra.target_modules", 400),
        ({"extra": {"dropout": 0.1}}, "extra.dropout", 400),
        ({"extra": {"full": True, "quantize": "int8"}}, "extra", 400),
        ({"integrations": [{"type": "wandb"}]}, "integrations", 400),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(admin_server, training_file, body, param, status):
    url = f"{admin_server.url}/v1/fine_tuning/jobs"
    whole = {"model": "tiny", "training_file": training_file, **body}
    answer = httpx.post(url, json=whole, headers=HEADERS)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert "Path" not in answer.text


def test_chat_keys_never_train(admin_server):
    headers = {"Authorization": "Bearer chat-key"}
    url = f"{admin_server.url}/v1/fine_tuning/jobs"
    assert httpx.get(url, headers=headers).status_code == 403
    assert httpx.post(url, headers=headers, json={}).status_code == 403


def workers(server: Server) -> list[psutil.Process]:
    """Every live worker of the server's data directory, whoever started it."""
    arguments = server.process.args
    data = arguments[arguments.index("--data-dir") + 1]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "hagane.training.jobs.worker" in command and data in command:
            found.append(process)
    return found


def test_kills_of_worker_engine_and_server_do_not_change_a_bit(tiny_model_dir, tmp_path):
    """The same job undisturbed and with everything killed under it ends in the same adapter."""

    def start() -> tuple[Server, openai.OpenAI]:
        flags = ("--data-dir", str(tmp_path / "data"), "--training-threads", "1")
        server = start_server(tiny_model_dir, tmp_path / "log", *flags, HAGANE_ADMIN_KEY=ADMIN_KEY)
        server.wait_ready()
        return server, openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY)

    def passed(job_id: str, count: int) -> None:
        """Wait until the job has so many checkpoints and some steps beyond."""
        deadline = time.monotonic() + 60
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            made = client.fine_tuning.jobs.checkpoints.list(job_id, limit=100).data
            if len(made) >= count and job.extra["progress"]["step"] > made[0].step_number:
                assert job.status == "running"
                return
            assert time.monotonic() < deadline, job
            time.sleep(0.02)

    server, client = start()
    try:
        file = client.files.create(file=("e.jsonl", examples(20)), purpose="fine-tune")

        def create():
            return client.fine_tuning.jobs.create(
                model="tiny", training_file=file.id, seed=3,
                method=supervised(n_epochs=50, batch_size=1),
                extra_body={"extra": {"rank": 4, "promote": "always"}},
            ).id  # fmt: skip

        undisturbed = create()
        wait(client, undisturbed, "succeeded")

        # Not before: it must not be over when it is looked at.
        disturbed = create()
        passed(disturbed, 1)
        (worker,) = workers(server)
        worker.kill()
        os.kill(server.wait_ready()["engine_pid"], signal.SIGKILL)
        passed(disturbed, 2)
        server.process.kill()
        server.process.wait()
        server, client = start()
        wait(client, disturbed, "running")
        assert len(workers(server)) == 1
        wait(client, disturbed, "succeeded")
        while workers(server):
            time.sleep(0.05)
        assert server.wait_ready()["status"] == "ready"
    finally:
        stop_server(server)
    adapters = [
        (tmp_path / "data" / "jobs" / job / "adapter" / "adapter_model.safetensors").read_bytes()
        for job in (undisturbed, disturbed)
    ]
    assert adapters[0] == adapters[1]


def test_what_goes_wrong_with_a_job_leaves_the_server_alone(tiny_model_dir, tmp_path):
    """A base with NaN in its weights, and one that is gone, under real workers."""
    model, log = tmp_path / "tiny", tmp_path / "log"
    shutil.copytree(tiny_model_dir, model)
    flags = ("--data-dir", str(tmp_path / "data"), "--log-format", "pretty")
    server = start_server(model, log, *flags, HAGANE_ADMIN_KEY=ADMIN_KEY)
    try:
        server.wait_ready()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ADMIN_KEY, max_retries=0)
        file = client.files.create(file=("e.jsonl", examples(20)), purpose="fine-tune")

        def answer() -> list[float]:
            asked = client.completions.create(
                model="tiny", prompt="Once", max_tokens=8, temperature=0, logprobs=1
            )
            return asked.choices[0].logprobs.token_logprobs

        def failure():
            job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
            failed = wait(client, job.id, "failed")
            assert answer() == before
            return failed

        before = answer()
        weights = load_file(model / "model.safetensors")
        weights["model.norm.weight"][0] = float("nan")
        (model / "model.safetensors").unlink()  # the engine has mapped it
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        failed = failure()
        assert failed.error.code == "invalid_model"
        assert "model.norm.weight" in failed.error.message
        # The worker logs in the configured format, under the job's id.
        assert f"ERROR   __main__ [{failed.id}] job {failed.id} failed" in log.read_text()
        shutil.rmtree(model)
        assert failure().error.code == "invalid_model"
        assert server.wait_ready()["status"] == "ready"
    finally:
        stop_server(server)
