"""Batches with the stock client against a real server process, which is killed in between."""

from __future__ import annotations

import json
import sqlite3
import time

import httpx
import openai
import pytest
from hagane.api.openai.batch_input import BatchRequest, check_input
from hagane.pool.messages import IDLE_PRIORITY

from tests.support.server import ADMIN_KEY, CHAT_KEY, start_server, stop_server

ENDPOINT = "/v1/chat/completions"
# The tiny model makes some 30,000 tokens a second: a batch that is stopped while it runs has many.
LONG = 400
MANY = 2000


def lines(count: int, **fields) -> bytes:
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "Once"}],
        "max_tokens": 4, "temperature": 0, **fields,
    }  # fmt: skip
    every = [
        {"custom_id": f"r{number}", "method": "POST", "url": ENDPOINT, "body": body}
        for number in range(count)
    ]
    return "\n".join(map(json.dumps, every)).encode()


def start(client, content: bytes, endpoint: str = ENDPOINT):
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )


def wait(client, batch, *statuses: str, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = client.batches.retrieve(batch.id)
        if found.status in statuses:
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {found.status}: {found.request_counts}")


def results(client, file_id) -> dict[str, dict]:
    text = client.files.content(file_id).text
    return {line["custom_id"]: line for line in map(json.loads, text.splitlines())}


def test_a_batch_is_run_and_its_results_sorted(admin):
    content = lines(20) + b"\n" + lines(1, max_tokens=-1).replace(b'"r0"', b'"bad"') + b"\n\n"
    batch = start(admin, content)
    assert batch.status == "validating"
    done = wait(admin, batch, "completed")
    assert (done.request_counts.total, done.request_counts.completed) == (21, 20)
    assert done.request_counts.failed == 1
    assert done.completed_at >= done.in_progress_at >= done.created_at
    assert done.metadata == {"a": "b"}
    good = results(admin, done.output_file_id)
    assert set(good) == {f"r{number}" for number in range(20)}
    texts = {r["response"]["body"]["choices"][0]["message"]["content"] for r in good.values()}
    assert len(texts) == 1
    (bad,) = results(admin, done.error_file_id).values()
    assert bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["param"] == "max_tokens"
    assert next(each.id for each in admin.batches.list()) == batch.id
    with pytest.raises(openai.ConflictError):
        admin.batches.cancel(batch.id)


@pytest.mark.parametrize("named", [{}, {"priority": 3}, {"timeout": 5}])
def test_requests_run_at_idle_priority_for_a_day_unless_they_say_otherwise(named):
    sent = json.loads(BatchRequest(1, "a", ENDPOINT, {"model": "tiny", **named}).as_json())
    assert sent == {"model": "tiny", "priority": IDLE_PRIORITY, "timeout": 86_400, **named}


def test_embeddings_and_responses_come_in_batches_too(admin):
    line = {"custom_id": "a", "method": "POST"}
    for endpoint, body in (
        ("/v1/embeddings", {"model": "tiny", "input": "Once"}),
        ("/v1/responses", {"model": "tiny", "input": "Once", "max_output_tokens": 3}),
    ):
        content = json.dumps({**line, "url": endpoint, "body": body}).encode()
        done = wait(admin, start(admin, content, endpoint), "completed")
        assert results(admin, done.output_file_id)["a"]["response"]["status_code"] == 200


def test_a_wrong_file_fails_with_its_lines(admin):
    content = b'{"custom_id": "a"}\nno json\n' + lines(1) + b"\n" + lines(1)
    content += b"\n" + b"[" * 100_000 + b'\n{"\\ud800":1}\n' + b"1"
    failed = wait(admin, start(admin, content), "failed")
    problems = [(error.line, error.code, error.param) for error in failed.errors.data]
    assert problems == [
        (1, "invalid_method", "method"),
        (2, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_json_line", None),
        (6, "invalid_json_line", None),
        (7, "invalid_request", None),
    ]
    file = admin.files.create(file=("in.jsonl", lines(1)), purpose="batch")
    with pytest.raises(openai.BadRequestError) as refused:
        admin.batches.create(input_file_id=file.id, endpoint="/v1/files", completion_window="24h")
    assert refused.value.param == "endpoint"
    with pytest.raises(openai.NotFoundError):
        admin.batches.create(input_file_id="file-x", endpoint=ENDPOINT, completion_window="24h")


def test_a_line_without_end_is_not_read_whole(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"[1," * (12 << 20) + b"\n" + lines(1))
    count, errors = check_input(path, ENDPOINT)
    assert (count, [(e.line, e.code) for e in errors]) == (2, [(1, "invalid_request")])


def test_batches_are_cancelled_expired_and_resumed(tiny_model_dir, tmp_path):
    def serve(log):
        running = start_server(
            tiny_model_dir, tmp_path / log, "--data-dir", str(tmp_path / "data"),
            HAGANE_ADMIN_KEY=ADMIN_KEY, HAGANE_API_KEYS=CHAT_KEY,
        )  # fmt: skip
        running.wait_ready()
        return running, openai.OpenAI(
            base_url=f"{running.url}/v1", api_key=ADMIN_KEY, max_retries=0
        )

    server, client = serve("first")
    # Chance leaves nothing to guess: the steps are as many as the tokens.
    slow = lines(MANY, max_tokens=LONG, ignore_eos=True, temperature=1)
    with client:
        cancelled = start(client, slow)
        while client.batches.retrieve(cancelled.id).request_counts.completed < 1:
            time.sleep(0.05)
        client.batches.cancel(cancelled.id)
        done = wait(client, cancelled, "cancelled")
        assert 0 < done.request_counts.completed < MANY
        assert len(results(client, done.output_file_id)) == done.request_counts.completed
        expired = start(client, slow)
        wait(client, expired, "in_progress")
        database = sqlite3.connect(tmp_path / "data" / "hagane.sqlite3", timeout=30)
        with database:
            database.execute("UPDATE batches SET expires_at = 1 WHERE id = ?", (expired.id,))
        done = wait(client, expired, "expired")
        late = results(client, done.error_file_id)
        assert len(late) == MANY - done.request_counts.completed
        assert next(iter(late.values()))["error"]["code"] == "batch_expired"
        count = 400
        resumed = start(client, lines(count, max_tokens=LONG, ignore_eos=True, temperature=1))
        while client.batches.retrieve(resumed.id).request_counts.completed < 10:
            time.sleep(0.05)
        with pytest.raises(openai.ConflictError):
            client.files.delete(resumed.input_file_id)
    server.process.kill()
    server.process.wait()
    log = (tmp_path / "data" / "batches" / f"{resumed.id}.log").read_bytes()
    before = log.count(b"\n")
    (tmp_path / "data" / "batches" / f"{resumed.id}.log").write_bytes(log + b"+ 1 {cut")
    server, client = serve("second")
    with client:
        done = wait(client, resumed, "completed", seconds=120)
        assert done.request_counts.completed == count
        assert len(results(client, done.output_file_id)) == count
        made = server.metric("hagane_generated_tokens_total")
        assert made <= (count - before) * LONG, "what was done before the crash is not done again"
        # Others go first: nothing new is begun while they run.
        again = start(client, slow)
        wait(client, again, "in_progress")
        body = {"model": "tiny", "prompt": "Once", "max_tokens": 5}
        key = {"authorization": f"Bearer {CHAT_KEY}"}
        assert httpx.post(f"{server.url}/v1/completions", json=body, headers=key).is_success
        client.batches.cancel(again.id)
        wait(client, again, "cancelled")
    stop_server(server)
