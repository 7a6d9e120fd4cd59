"""Two server processes on one PostgreSQL database and one S3 bucket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from hagane.api.keyring import KeyRing
from hagane.api.limits import Accounts
from hagane.api.shared_state import SharedState
from hagane.store.catalogue import Catalogue
from hagane.store.jobs import Job, new_job_id
from hagane.store.store import Store, StoreAddress
from hagane.system.settings import Settings
from prometheus_client import CollectorRegistry

from tests.support.adapted import adapted_pair
from tests.support.fine_tuning import examples, supervised, wait
from tests.support.server import ADMIN_KEY, hagane, start_server, stop_server

pytestmark = pytest.mark.slow
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}"}
# What is promised; a test never waits as long.
WITHIN_SECONDS = 1.0


@pytest.fixture(scope="module")
def servers(postgres, s3, tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    shared = {
        "HAGANE_DATABASE_URL": postgres.url(),
        "HAGANE_BLOB_URL": f"s3://{s3.bucket()}/hagane",
        "HAGANE_ADMIN_KEY": ADMIN_KEY,
        **s3.variables,
    }
    with contextlib.ExitStack() as stack:
        running = []
        for name in ("a", "b"):
            server = start_server(
                tiny_model_dir, folder / f"{name}.log", "--data-dir", str(folder / name),
                "--adapter-roots", str(tmp_path_factory.getbasetemp()), **shared,
            )  # fmt: skip
            stack.callback(stop_server, server)
            running.append(server)
        for server in running:
            server.wait_ready()
        yield running


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    adapted_pair(tiny_model_dir, directory)
    return directory / "adapter"


def call(server, method: str, path: str, status: int = 200, **body) -> dict:
    answer = httpx.request(
        method, server.url + path, headers=HEADERS, json=body or None, timeout=30
    )
    assert answer.status_code == status, answer.text
    return answer.json()


def chat(server, model: str, key: str = ADMIN_KEY, **more) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Once"}], "max_tokens": 8,
            "temperature": 0, **more}  # fmt: skip
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json=body, timeout=30)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_an_alias_switches_on_both_servers_and_streams_keep_their_generation(servers, adapter):
    one, other = servers
    call(one, "POST", "/v1/load_lora_adapter", lora_name="mine", lora_path=str(adapter))
    call(one, "POST", "/admin/aliases", name="team", target="tiny")
    time.sleep(WITHIN_SECONDS)
    plain, adapted = text(chat(other, "tiny")), text(chat(other, "mine"))
    assert plain != adapted
    assert text(chat(other, "team")) == plain
    client = openai.OpenAI(base_url=f"{other.url}/v1", api_key=ADMIN_KEY, max_retries=0)
    ask = {"messages": [{"role": "user", "content": "Once"}], "temperature": 0, "max_tokens": 300}
    expected = client.chat.completions.create(model="tiny", **ask).choices[0].message.content
    stream = client.chat.completions.create(model="team", stream=True, **ask)
    pieces = [next(stream), next(stream)]
    call(one, "POST", "/admin/aliases", name="team", target="mine")
    assert text(chat(one, "team")) == adapted, "at once where it was changed"
    time.sleep(WITHIN_SECONDS)
    assert text(chat(other, "team")) == adapted
    pieces += stream
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert streamed == expected, "the stream keeps what it began with"
    client.close()


def test_a_key_opens_and_closes_both_servers(servers):
    one, other = servers
    made = call(one, "POST", "/admin/keys", name="ci")
    time.sleep(WITHIN_SECONDS)
    assert chat(other, "tiny", made["key"]).status_code == 200
    call(one, "DELETE", f"/admin/keys/{made['id']}")
    time.sleep(WITHIN_SECONDS)
    assert chat(other, "tiny", made["key"]).status_code == 401


def test_a_file_and_its_batch_work_wherever_they_are_asked_for(servers):
    one, other = servers
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 2}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body}
        for n in range(4)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    with openai.OpenAI(base_url=f"{one.url}/v1", api_key=ADMIN_KEY) as client:
        file = client.files.create(file=("b.jsonl", content.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
    with openai.OpenAI(base_url=f"{other.url}/v1", api_key=ADMIN_KEY) as client:
        while (now := client.batches.retrieve(batch.id)).status != "completed":
            assert now.status not in ("failed", "cancelled", "expired")
            time.sleep(0.05)
        assert now.request_counts.completed == 4
        assert len(client.files.content(now.output_file_id).text.splitlines()) == 4
        assert client.files.content(file.id).text == content


def test_a_job_outlives_the_database_and_its_model_is_served_everywhere(servers, postgres):
    client = openai.OpenAI(base_url=f"{servers[0].url}/v1", api_key=ADMIN_KEY, max_retries=8)
    file = client.files.create(file=("t.jsonl", examples(24)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=1,
        method=supervised(n_epochs=40, batch_size=4),
        extra_body={"extra": {"rank": 4, "promote": "always"}},
    )  # fmt: skip
    wait(client, job.id, "running")
    while not (client.fine_tuning.jobs.retrieve(job.id).extra["progress"] or {}).get("step"):
        time.sleep(0.02)
    postgres.kill()
    time.sleep(1)
    postgres.start()
    done = wait(client, job.id, "succeeded")
    steps = [
        event.data["step"]
        for event in client.fine_tuning.jobs.list_events(job.id, limit=1000).data
        if event.type == "metrics"
    ]
    assert sorted(steps) == list(range(1, 1 + len(steps))), "no step is lost, none told twice"
    messages = [e.message for e in client.fine_tuning.jobs.list_events(job.id, limit=1000).data]
    assert not [message for message in messages if "worker ended" in message]
    answers = {text(chat(server, done.fine_tuned_model)) for server in servers}
    assert len(answers) == 1
    client.close()


def test_without_the_database_a_server_says_so_and_recovers_by_itself(servers, postgres):
    one, _ = servers
    postgres.kill()
    try:
        deadline = time.monotonic() + 30
        while (health := httpx.get(f"{one.url}/health/ready")).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert health.json()["status"] == "database_unreachable"
        assert "shared state" in health.json()["failing"]
        assert httpx.get(f"{one.url}/health/live").status_code == 200
        while (refused := chat(one, "team")).status_code == 200:
            assert time.monotonic() < deadline, "names are known for a second, not for ever"
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "store_unavailable"
        turn = {"role": "user", "content": "x"}
        messages = {"model": "team", "max_tokens": 2, "messages": [turn]}
        refused = httpx.post(f"{one.url}/v1/messages", headers=HEADERS, json=messages, timeout=30)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "overloaded_error"
        assert chat(one, "tiny").status_code == 200, "the default model needs no database"
        assert httpx.get(f"{one.url}/metrics", headers=HEADERS).status_code == 200
    finally:
        postgres.start()
    one.wait_ready()
    assert chat(one, "team").status_code == 200
    assert "Traceback" not in one.log.read_text()


def test_a_database_that_cannot_be_reached_ends_the_start_with_one_line(tiny_model_dir, tmp_path):
    ended = hagane(
        "serve", "--model", str(tiny_model_dir), "--port", "0", "--data-dir", str(tmp_path),
        HAGANE_DATABASE_URL="postgresql://me:pa55word@127.0.0.1:1/hagane",
    )  # fmt: skip
    assert ended.returncode == 2
    assert "database_url: the database at 127.0.0.1:1/hagane cannot be used" in ended.stderr
    assert "pa55word" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


async def test_where_all_threads_wait_for_downloads_the_sign_of_life_does_not(postgres, tmp_path):
    store = Store.open(StoreAddress(tmp_path / "data", postgres.url()))
    settings = Settings(model="tiny")
    keys = KeyRing(settings, store.keys, Accounts(settings, CollectorRegistry()))
    shared = SharedState(store, Catalogue(store.database, "tiny"), keys)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    go_on = threading.Event()
    download = asyncio.create_task(asyncio.to_thread(go_on.wait))
    store.jobs.add(Job(new_job_id(), 1, "queued", "tiny", "file", {}, {}))
    shared.start()
    try:
        async with asyncio.timeout(20):
            while store.jobs.claim("queued") is None:
                await asyncio.sleep(0.05)
    finally:
        go_on.set()
        await download
        await shared.stop()
        store.close()
