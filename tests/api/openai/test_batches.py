"""Batches with the stock client against a real server process."""

from __future__ import annotations

import codecs
import json
import sqlite3
import time

import httpx
import openai
import pytest
from hagane.api.openai.batch_input import BatchRequest, check_input, read_requests
from hagane.pool.messages import IDLE_PRIORITY

from tests.support.batches import ENDPOINT, begin, lines, results, wait
from tests.support.server import CHAT_KEY

# The tiny model makes some 30,000 tokens a second: a batch that is stopped while it runs has many.
LONG = 400
MANY = 500


def test_a_batch_is_run_and_its_results_sorted(admin):
    content = lines(20) + b"\n" + lines(1, max_tokens=-1).replace(b'"r0"', b'"bad"') + b"\n\n"
    batch = begin(admin, content)
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
        done = wait(admin, begin(admin, content, endpoint), "completed")
        assert results(admin, done.output_file_id)["a"]["response"]["status_code"] == 200


def test_a_wrong_file_fails_with_its_lines(admin):
    content = b'{"custom_id": "a"}\nno json\n' + lines(1) + b"\n" + lines(1)
    content += b"\n" + b"[" * 100_000 + b'\n{"\\ud800":1}\n' + b"1"
    failed = wait(admin, begin(admin, content), "failed")
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


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + lines(2))
    assert check_input(path, ENDPOINT) == (2, [])
    assert [request.number for request in read_requests(path)] == [1, 2]
    path.write_bytes(codecs.BOM_UTF8 + b"\n" + codecs.BOM_UTF8 + lines(1))
    assert [(e.line, e.code) for e in check_input(path, ENDPOINT)[1]] == [(2, "invalid_json_line")]


def test_batches_are_cancelled_expired_and_let_others_go_first(admin, admin_server):
    # Chance leaves nothing to guess: the steps are as many as the tokens.
    slow = lines(MANY, max_tokens=LONG, ignore_eos=True, temperature=1)
    cancelled = begin(admin, slow)
    while admin.batches.retrieve(cancelled.id).request_counts.completed < 1:
        time.sleep(0.05)
    admin.batches.cancel(cancelled.id)
    done = wait(admin, cancelled, "cancelled")
    assert 0 < done.request_counts.completed < MANY
    assert len(results(admin, done.output_file_id)) == done.request_counts.completed
    expired = begin(admin, slow)
    wait(admin, expired, "in_progress")
    # Others go first: nothing new is begun while they run.
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 5}
    key = {"authorization": f"Bearer {CHAT_KEY}"}
    assert httpx.post(f"{admin_server.url}/v1/completions", json=body, headers=key).is_success
    data = admin_server.log.parent / "data"
    database = sqlite3.connect(data / "hagane.sqlite3", timeout=30)
    with database:
        database.execute("UPDATE batches SET expires_at = 1 WHERE id = ?", (expired.id,))
    done = wait(admin, expired, "expired")
    late = results(admin, done.error_file_id)
    assert len(late) == MANY - done.request_counts.completed
    assert next(iter(late.values()))["error"]["code"] == "batch_expired"
