"""A Ray cluster on this machine: an edge and two replicas of the tiny model."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time

import httpx
import openai
import psutil
import pytest
from hagane.cluster.config import ClusterConfig

from tests.support.server import ADMIN_KEY, Server, clean_environment, start_server, stop_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'hagane[cluster]'"
    ),
]
ASK = {"messages": [{"role": "user", "content": "Once upon a time " * 8}], "temperature": 0}


@pytest.fixture(scope="module")
def configuration(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    port = 18000 + int(time.time()) % 1000
    (folder / "cluster.toml").write_text(
        f'[settings]\nmodel = "{tiny_model_dir}"\nport = {port}\nthreads = 1\n'
        f'max_sequences = 8\nadmin_key = "{ADMIN_KEY}"\ndata_dir = "{folder / "data"}"\n'
        "[engines]\nreplicas = 2\ncpus = 0.5\n"
    )
    return folder / "cluster.toml"


@pytest.fixture(scope="module")
def cluster(configuration):
    """The URL of `hagane cluster serve`."""
    port = ClusterConfig.read(configuration).settings["port"]
    log = configuration.with_name("log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hagane.cli", "cluster", "serve", str(configuration)],
            stdout=output, stderr=output, env=clean_environment(),
        )  # fmt: skip
    running = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        running.wait_ready(120)
        yield running.url
    finally:
        process.terminate()
        status = process.wait(60)
    assert status == 0, running.log.read_text()


@pytest.fixture
def client(cluster):
    with openai.OpenAI(base_url=f"{cluster}/v1", api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


def running(url: str) -> int:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.get(f"{url}/admin/status", headers=headers).json()["requests"]["running"]


def answer(client, **more) -> str:
    given = {"model": "tiny", "max_tokens": 12, **ASK, **more}
    return client.chat.completions.create(**given).choices[0].message.content


def test_every_dialect_answers_as_a_plain_server_does(
    cluster, client, tiny_model_dir, tmp_path_factory
):
    plain = start_server(tiny_model_dir, tmp_path_factory.mktemp("plain") / "log")
    plain.wait_ready()
    try:
        with openai.OpenAI(base_url=f"{plain.url}/v1", api_key="-") as own:
            assert answer(client) == answer(own)
            asked = {"model": "tiny", "prompt": "Once", "temperature": 0, "max_tokens": 5}
            both = [c.completions.create(**asked).choices[0].text for c in (client, own)]
            assert both[0] == both[1]
            asked = {"model": "tiny", "input": "Once", "max_output_tokens": 16, "temperature": 0}
            assert client.responses.create(**asked).output_text
            vectors = [c.embeddings.create(model="tiny", input="Once") for c in (client, own)]
            assert vectors[0].data[0].embedding == vectors[1].data[0].embedding
        body = {"model": "tiny", "max_tokens": 4, **{"messages": ASK["messages"]}}
        headers = {"x-api-key": ADMIN_KEY}
        message = httpx.post(f"{cluster}/v1/messages", json=body, headers=headers, timeout=30)
        assert message.json()["content"][0]["text"]
        wrong = httpx.post(f"{cluster}/v1/messages", json={**body, "model": "no"}, headers=headers)
        assert wrong.json()["error"]["type"] == "not_found_error"
        assert "hagane_requests_running" in httpx.get(f"{cluster}/metrics", headers={
            "Authorization": f"Bearer {ADMIN_KEY}"}).text  # fmt: skip
    finally:
        stop_server(plain)


def test_a_stream_comes_in_pieces_and_closing_it_ends_its_work(cluster, client):
    given = {"model": "tiny", **ASK, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(stream=True, max_tokens=200, **given)
    assert sum(1 for _ in stream) > 3
    stream = client.chat.completions.create(stream=True, max_tokens=400, **given)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 30
    while running(cluster):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def replicas() -> int:
    from ray import serve

    return (
        serve.status()
        .applications["hagane"]
        .deployments["engines"]
        .replica_states.get("RUNNING", 0)
    )


def test_scaling_down_and_up_fails_no_request(cluster, client, configuration):
    import ray
    from hagane.cluster.application import build
    from ray import serve

    given = ClusterConfig.read(configuration).model_dump()
    ray.init(address="auto", log_to_driver=False, logging_level="error")
    expected, answers, failures = answer(client), [], []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            try:
                answers.append(answer(client))
            except openai.OpenAIError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for wanted in (1, 2):
            given["engines"]["replicas"] = wanted
            serve.run(build(given), name="hagane", route_prefix="/")
            deadline = time.monotonic() + 60
            while replicas() != wanted:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
        ray.shutdown()
    assert failures == []
    assert set(answers) == {expected}


def test_a_killed_replica_costs_no_request_that_has_not_begun(cluster, client):
    """Others fail with an error to try again by; afterwards there are two again."""
    expected = answer(client)
    engine = httpx.get(f"{cluster}/health/ready").json()["engine_pid"]
    failures, answers = [], []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            try:
                answers.append(answer(client))
            except openai.APIStatusError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    psutil.Process(engine).parent().kill()
    time.sleep(8)
    stopped.set()
    for thread in threads:
        thread.join()
    assert {error.status_code for error in failures} <= {503}
    assert len(failures) <= 4, "at most what ran there"
    assert set(answers) == {expected}
    assert answer(client) == expected
