"""Files and batches of API keys with the stock client: each has its own, within bounds."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.support.batches import ENDPOINT, begin, lines, results, wait
from tests.support.server import ADMIN_KEY, CHAT_KEY, OTHER_KEY

MANY = 500


def client_of(server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def mine(admin_server):
    with client_of(admin_server, CHAT_KEY) as client:
        yield client
        for file in client.files.list():
            client.files.delete(file.id)


def test_a_key_runs_batches_that_no_other_key_sees(admin_server, admin, mine):
    batch = begin(mine, lines(3))
    done = wait(mine, batch, "completed")
    good = results(mine, done.output_file_id)
    assert {line["response"]["status_code"] for line in good.values()} == {200}
    assert batch.id in {each.id for each in mine.batches.list()}
    owned = {done.input_file_id, done.output_file_id}
    assert owned <= {file.id for file in mine.files.list()}
    with client_of(admin_server, OTHER_KEY) as other:
        assert list(other.batches.list()) == list(other.files.list()) == []
        for file in owned:
            for read in (other.files.retrieve, other.files.content, other.files.delete):
                with pytest.raises(openai.NotFoundError):
                    read(file)
        for change in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                change(batch.id)
        for after in (other.batches, other.files):
            with pytest.raises(openai.BadRequestError):
                after.list(after=batch.id if after is other.batches else done.input_file_id)
        with pytest.raises(openai.NotFoundError):
            other.batches.create(
                input_file_id=done.input_file_id, endpoint=ENDPOINT, completion_window="24h"
            )
    assert admin.batches.retrieve(batch.id).status == "completed"
    assert admin.files.content(done.output_file_id).read()


def test_a_batch_runs_with_the_rights_of_its_key(mine):
    content = lines(1, priority=-1)
    done = wait(mine, begin(mine, content), "completed")
    (line,) = results(mine, done.error_file_id).values()
    assert line["response"]["status_code"] == 403
    request = {"custom_id": "a", "method": "POST", "url": "/v1/responses",
               "body": {"model": "tiny", "input": "Once", "max_output_tokens": 3}}  # fmt: skip
    done = wait(mine, begin(mine, json.dumps(request).encode(), "/v1/responses"), "completed")
    (line,) = results(mine, done.output_file_id).values()
    assert mine.responses.retrieve(line["response"]["body"]["id"]).output_text


def test_files_of_keys_are_for_batches_and_bounded(mine, admin):
    for purpose in ("fine-tune", "evals"):
        with pytest.raises(openai.PermissionDeniedError, match=purpose):
            mine.files.create(file=("a.jsonl", lines(1)), purpose=purpose)
    large = ("a.jsonl", b"{}\n" * 900_000)
    first = mine.files.create(file=large, purpose="batch")
    with pytest.raises(openai.APIStatusError, match="key_file_bytes") as refused:
        mine.files.create(file=large, purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (413, "file_quota_exceeded")
    admin.files.delete(admin.files.create(file=large, purpose="batch").id)
    mine.files.delete(first.id)
    mine.files.create(file=large, purpose="batch")


def test_a_key_has_so_many_batches_and_its_revocation_ends_them(admin_server, admin):
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    made = httpx.post(
        f"{admin_server.url}/admin/keys", json={"name": "to be revoked"}, headers=headers
    ).json()
    slow = lines(MANY, max_tokens=400, ignore_eos=True, temperature=1)
    with client_of(admin_server, made["key"]) as client, client_of(admin_server, CHAT_KEY) as mine:
        first = begin(client, slow)
        for _ in range(2):
            later = begin(client, lines(1))
        with pytest.raises(openai.RateLimitError, match="key_batches"):
            begin(client, lines(1))
        # Another key's batch does not wait for the end of this one's.
        wait(mine, begin(mine, lines(2)), "completed")
        assert client.batches.retrieve(first.id).status == "in_progress"
    url = f"{admin_server.url}/admin/keys/{made['id']}"
    assert httpx.delete(url, headers=headers).is_success
    for batch in (first, later):
        failed = wait(admin, batch, "failed")
        (error,) = failed.errors.data
        assert error.code == "key_revoked"
    counts = admin.batches.retrieve(first.id).request_counts
    assert (counts.completed < MANY, counts.failed) == (True, 0)


def test_a_server_without_keys_has_batches_that_no_web_page_can_begin(server):
    with client_of(server, "none") as client:
        done = wait(client, begin(client, lines(2)), "completed")
        assert len(results(client, done.output_file_id)) == 2
        with pytest.raises(openai.PermissionDeniedError, match="admin key"):
            client.files.create(file=("a.jsonl", lines(1)), purpose="fine-tune")
    form = {"files": {"file": ("a.jsonl", lines(1))}, "data": {"purpose": "batch"}}
    for origin, status in (("http://evil.example", 403), (server.url, 200)):
        answer = httpx.post(f"{server.url}/v1/files", headers={"Origin": origin}, **form)
        assert answer.status_code == status
    headers = {"Origin": "http://evil.example", "Authorization": "Bearer none"}
    assert httpx.post(f"{server.url}/v1/files", headers=headers, **form).is_success
