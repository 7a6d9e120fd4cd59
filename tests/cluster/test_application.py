"""A Ray cluster on this machine: an edge and two replicas of the tiny model, on PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import msgspec
import openai
import psutil
import pytest
from hagane.cli.cluster import RAY_VARIABLES
from hagane.cluster.config import ClusterConfig
from hagane.cluster.routing import Placing, RoutingHint
from hagane.cluster.version import ModelVersion
from hagane.system.errors import ConfigurationError

from tests.support.cluster import (
    ADMIN,
    ALONE,
    ASK,
    PATIENCE_SECONDS,
    answer,
    load,
    running,
    until,
    worker_of,
)
from tests.support.fine_tuning import examples, supervised, wait
from tests.support.postgres import Postgres, missing
from tests.support.server import ADMIN_KEY, Server, clean_environment, start_server, stop_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'hagane[cluster]'"
    ),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def database():
    server = Postgres.create()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def configuration(tiny_model_dir, database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    port = 18000 + int(time.time()) % 1000
    (folder / "cluster.toml").write_text(
        f'edges = 2\n[settings]\nmodel = "{tiny_model_dir}"\nport = {port}\nthreads = 1\n'
        f'max_sequences = 8\nadmin_key = "{ADMIN_KEY}"\ndata_dir = "{folder / "data"}"\n'
        f'database_url = "{database.url()}"\n'
        f'blob_url = "{folder / "blobs"}"\n'
        "[engines]\nreplicas = 2\ncpus = 0.5\n"
        "[training]\ntasks = 2\ncpus = 0.5\n"
    )
    return folder / "cluster.toml"


@pytest.fixture(scope="module")
def server(configuration):
    """`hagane cluster serve`."""
    port = ClusterConfig.read(configuration).settings["port"]
    log = configuration.with_name("log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hagane.cli", "cluster", "serve", str(configuration)],
            stdout=output, stderr=output, env=clean_environment() | ALONE,
        )  # fmt: skip
    running = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        running.wait_ready(PATIENCE_SECONDS)
        yield running
    finally:
        process.terminate()
        status = process.wait(PATIENCE_SECONDS)
    assert status == 0, running.log.read_text()


@pytest.fixture
def cluster(server):
    """Its URL."""
    return server.url


@pytest.fixture
def client(cluster):
    with openai.OpenAI(base_url=f"{cluster}/v1", api_key=ADMIN_KEY, max_retries=0) as made:
        yield made


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
    finally:
        stop_server(plain)


def test_a_stream_comes_in_pieces_and_closing_it_ends_its_work(cluster, client):
    given = {"model": "tiny", **ASK, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(stream=True, max_tokens=200, **given)
    assert sum(1 for _ in stream) > 3
    stream = client.chat.completions.create(stream=True, max_tokens=400, **given)
    next(iter(stream))
    stream.close()
    until(lambda: not running(cluster))


def test_the_metrics_have_each_replica_and_the_sum(cluster, client):
    answer(client)

    def values(name: str) -> list[float]:
        lines = httpx.get(f"{cluster}/metrics", headers=ADMIN).text.splitlines()
        return [float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")]

    until(lambda: len(values("hagane_replica_engine_steps_total")) == 2)
    assert sum(values("hagane_replica_engine_steps_total")) > 0
    assert sum(values("hagane_replica_kv_cache_blocks_total")) == sum(
        values("hagane_kv_cache_blocks_total")
    )


def replicas() -> int:
    from ray import serve

    return (
        serve.status()
        .applications["hagane"]
        .deployments["engines"]
        .replica_states.get("RUNNING", 0)
    )


@pytest.fixture
def deploy(cluster, configuration):
    """Deploys the configuration with one edge and changes to its engines."""
    os.environ.update(RAY_VARIABLES)
    import ray
    from hagane.cluster.application import build
    from ray import serve

    ray.init(address="auto", log_to_driver=False, logging_level="error")

    def change(**engines) -> None:
        given = ClusterConfig.read(configuration).model_dump() | {"edges": 1}
        given["engines"].update(engines)
        serve.run(build(given), name="hagane", route_prefix="/")

    yield change
    ray.shutdown()


def test_any_edge_has_what_all_edges_count(cluster, client):
    def answered() -> dict[str, float]:
        """Chat requests of each edge, as the edge says that the proxy chooses."""
        lines = httpx.get(f"{cluster}/metrics", headers=ADMIN).text.splitlines()
        told = [line for line in lines if line.startswith("hagane_http_requests_total{")]
        edges = {line.split('edge="')[1].split('"')[0]: 0.0 for line in told}
        for line in told:
            if 'route="/v1/chat/completions"' in line:
                edges[line.split('edge="')[1].split('"')[0]] += float(line.split()[-1])
        return edges

    until(lambda: len(answered()) == 2)
    before = answered()
    for _ in range(6):
        answer(client)
    # An answer is counted after it was sent.
    until(lambda: sum(answered().values()) == sum(before.values()) + 6)
    scrapes = [answered() for _ in range(4)]
    assert all(scrape == scrapes[0] for scrape in scrapes)
    assert scrapes[0].keys() == before.keys()


def test_each_request_gets_the_replica_that_was_chosen_for_it(deploy, tiny_model_dir):
    """However many are on their way, and whichever calls of Serve's wait next to them."""
    from ray import serve

    async def choose_many() -> tuple[list[str], list[str]]:
        handle = serve.get_deployment_handle("engines", "hagane")
        reports = await handle.broadcast("report").results_async()
        names = {msgspec.msgpack.decode(report)["replica"] for report in reports}
        model = ModelVersion.of("tiny", tiny_model_dir)

        async def choose(name: str) -> str:
            placing = Placing(RoutingHint(), model, {}, names - {name})
            async with handle.choose_replica(placing=placing, _reserve=False) as chosen:
                return chosen.replica_id

        wanted = sorted(names) * 40
        waiting = [handle.report.remote() for _ in range(40)]
        chosen = await asyncio.gather(*map(choose, wanted))
        for call in waiting:
            await call
        return wanted, chosen

    wanted, chosen = asyncio.run(choose_many())
    assert len({*wanted}) == 2
    assert chosen == wanted


def test_a_store_that_the_cluster_s_machines_cannot_use_is_known_before(deploy, configuration):
    from hagane.cluster.store_check import require_store

    settings = ClusterConfig.read(configuration).settings
    require_store(settings)
    nobody = settings | {"database_url": "postgresql://hagane@127.0.0.1:1/none"}
    with pytest.raises(ConfigurationError, match=r"on a machine of the cluster: .*127\.0\.0\.1:1"):
        require_store(nobody)
    nowhere = settings | {"blob_url": "/dev/null/none"}
    with pytest.raises(ConfigurationError, match="on a machine of the cluster: blob_url"):
        require_store(nowhere)


def test_replacing_all_parts_under_load_fails_no_request(client, deploy):
    expected = answer(client)
    with load(client, 4) as seen:
        for wanted in (1, 2):
            deploy(replicas=wanted)
            until(lambda wanted=wanted: replicas() == wanted)
    assert seen.failures == []
    assert {*seen.answers} == {expected}


def test_replicas_follow_the_load_without_a_failed_request(client, deploy):
    expected = answer(client)
    changes = {"target_requests": 2, "scale_up_seconds": 1, "scale_down_seconds": 2}
    with load(client, 1) as few:
        deploy(replicas=1, most=2, **changes)
        until(lambda: replicas() == 1)
        with load(client, 8) as many:
            until(lambda: replicas() == 2)
        until(lambda: replicas() == 1)
        deploy(replicas=2)
        until(lambda: replicas() == 2)
    assert few.failures == many.failures == []
    assert {*few.answers, *many.answers} == {expected}


def test_a_killed_replica_costs_no_request_that_has_not_begun(cluster, client, deploy):
    """Others fail with an error to try again by; afterwards there are two again."""
    expected = answer(client)

    def engine() -> int:
        return httpx.get(f"{cluster}/health/ready").json()["engine_pid"]

    # Until the edge knows which replicas the last change has left.
    until(lambda: psutil.pid_exists(engine()))
    with load(client, 4) as seen:
        until(lambda: len(seen.answers) > 4)
        psutil.Process(engine()).parent().kill()
        until(lambda: replicas() == 1)
        until(lambda: replicas() == 2)
    assert {type(error) for error in seen.failures} <= {openai.InternalServerError}
    assert len(seen.failures) <= 4, "at most what ran there"
    assert {*seen.answers} == {expected}
    assert answer(client) == expected


def test_the_proxy_comes_back_after_it_was_killed(server, client):
    """Connections break with it, and new ones find no edge at first, which it calls a 404."""
    expected = answer(client)
    proxies = [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if process.name() == "haproxy"
    ]
    assert proxies
    with load(client, 4) as seen:
        until(lambda: len(seen.answers) > 4)
        for process in proxies:
            process.kill()
        until(lambda: seen.failures)
        answered = len(seen.answers)
        until(lambda: len(seen.answers) > answered + 8)
    broken = openai.APIConnectionError | openai.InternalServerError
    others = [error for error in seen.failures if not isinstance(error, broken)]
    # Without a word of ours.
    assert [e.body for e in others if e.status_code != 404 or isinstance(e.body, dict)] == []
    assert {*seen.answers} == {expected}


def test_a_killed_database_loses_nothing_that_was_acknowledged(cluster, client, database):
    """The model goes on without it; what needs it says so until it is back."""
    expected, made, refused = answer(client), [], []

    def make() -> None:
        name = f"k{len(made) + len(refused)}"
        done = httpx.post(f"{cluster}/admin/keys", json={"name": name}, headers=ADMIN, timeout=60)
        if done.status_code == 200:
            made.append(name)
        else:
            refused.append((done.status_code, done.json()["error"]["code"]))

    with load(client, 2) as seen:
        for _ in range(5):
            make()
        database.kill()
        before = len(seen.answers)
        make()
        until(lambda: len(seen.answers) > before + 4)
        database.start()
        kept = len(made)
        until(lambda: make() or len(made) > kept)
    assert {*refused} <= {(503, "store_unavailable")}
    assert refused
    names = {
        key["name"] for key in httpx.get(f"{cluster}/admin/keys", headers=ADMIN).json()["data"]
    }
    assert {*made} <= names
    assert {getattr(error, "status_code", None) for error in seen.failures} <= {503}
    assert {*seen.answers} == {expected}


def took_away(job_id: str) -> bool:
    """Whether the task of a job could be killed, as if its machine were lost."""
    if (worker := worker_of(job_id)) is None:
        return False
    with suppress(psutil.NoSuchProcess):
        worker.parent().kill()
        return True
    return False


def test_jobs_run_side_by_side_and_a_preempted_one_ends_with_the_same_bits(client):
    file = client.files.create(file=("train.jsonl", examples()), purpose="fine-tune")
    jobs = [
        client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            seed=7,
            method=supervised(n_epochs=50, batch_size=4),
            extra_body={"extra": {"rank": 2, "promote": "always"}},
        )
        for _ in range(2)
    ]
    whole, parts = (job.id for job in jobs)
    until(lambda: worker_of(whole) and worker_of(parts))
    until(lambda: client.fine_tuning.jobs.checkpoints.list(parts).data)
    until(lambda: took_away(parts))
    for job in jobs:
        wait(client, job.id, "succeeded", seconds=PATIENCE_SECONDS)
    events = [[*client.fine_tuning.jobs.list_events(job.id)] for job in jobs]
    digests = [e.data["digest"] for told in events for e in told if "digest" in (e.data or {})]
    assert "Fine-tuning goes on from the last checkpoint" in {e.message for e in events[1]}
    assert len(digests) == 2
    assert len({*digests}) == 1
