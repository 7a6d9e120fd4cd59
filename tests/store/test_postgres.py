"""A PostgreSQL database that several servers share: schema, turns, claims, outages."""

from __future__ import annotations

import math
import threading
import time

import pytest
import sqlalchemy as sa
from hagane.lora.config import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, adapter_digest
from hagane.store import tables
from hagane.store.answers import tables as answer_tables
from hagane.store.answers.migrations import MIGRATIONS as ANSWERS
from hagane.store.artifacts import ServedArtifact
from hagane.store.jobs import Event, Job, JobCheckpoint, new_job_id
from hagane.store.migrations import MIGRATIONS
from hagane.store.paging import Paging
from hagane.store.postgres import PostgresConnections, PostgresDatabase, as_json
from hagane.store.responses import StoredResponse
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import ConfigurationError, InvalidRequestError, StoreUnavailableError

LEASE = 0.6


@pytest.fixture
def url(postgres):
    return postgres.url()


@pytest.fixture
def open_store(url, tmp_path):
    """A function that opens another server's store on the same database."""
    opened = []

    def another(directory: str = "data") -> Store:
        opened.append(Store.open(StoreAddress(tmp_path / directory, url)))
        opened[-1].database._connections.lease_seconds = LEASE
        return opened[-1]

    yield another
    for store in opened:
        store.close()


def add(store, status="queued") -> Job:
    job = Job(new_job_id(), 1, status, "tiny", "file", {"kind": "fine_tuning"}, {})
    store.jobs.add(job)
    return job


def settle(*stores) -> None:
    """Beat until all of them can tell who lives."""
    deadline = time.monotonic() + 1.5 * LEASE
    while time.monotonic() < deadline:
        for store in stores:
            store.database.beat()
        time.sleep(LEASE / 10)


@pytest.mark.parametrize(
    ("part", "migrations", "metadata"),
    [("jobs", MIGRATIONS, tables.metadata), ("answers", ANSWERS, answer_tables.metadata)],
)
def test_migrations_make_the_tables_that_queries_name(url, part, migrations, metadata):
    database = PostgresDatabase(PostgresConnections(url), part, migrations)
    names = dict.fromkeys(("FLOAT", "FLOAT(53)"), "DOUBLE PRECISION")
    with database.read() as connection:
        inspector = sa.inspect(connection)
        made = {name for name in inspector.get_table_names() if not name.startswith("hagane_")}
        assert made == set(metadata.tables)
        for name, table in metadata.tables.items():
            columns = {
                c["name"]: (str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)
            }
            compiled = {c.name: c.type.compile(connection.dialect) for c in table.columns}
            assert columns == {
                c.name: (
                    names.get(compiled[c.name], compiled[c.name]),
                    bool(c.nullable) and not c.primary_key,
                )
                for c in table.columns
            }
    database.close()


def test_a_schema_grows_step_by_step_and_a_newer_one_is_refused(url):
    PostgresDatabase(PostgresConnections(url), "jobs", MIGRATIONS[:3]).close()
    PostgresDatabase(PostgresConnections(url), "jobs", MIGRATIONS).close()
    with pytest.raises(
        ConfigurationError, match=f"schema {len(MIGRATIONS)} of jobs; this program knows up to 5"
    ):
        PostgresDatabase(PostgresConnections(url), "jobs", MIGRATIONS[:5])


def test_servers_that_start_together_make_one_schema(url):
    failures = []

    def start(part: str, migrations) -> None:
        try:
            PostgresDatabase(PostgresConnections(url), part, migrations).close()
        except Exception as error:
            failures.append(error)

    parts = [("jobs", MIGRATIONS), ("answers", ANSWERS)] * 3
    threads = [threading.Thread(target=start, args=part) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ("mysql://u:pa55word@h/d", "not of the form"),
        ("postgresql://u:pa55word@h", "not of the form"),
        ("postgresql://u:pa55word@127.0.0.1:1/d", "127.0.0.1:1/d cannot be used"),
        ("postgresql://u:pa55word@127.0.0.1:{port}/none", "none"),
    ],
)
def test_an_address_that_cannot_be_used_is_named_without_its_password(postgres, wrong, shown):
    with pytest.raises(ConfigurationError) as caught:
        connections = PostgresConnections(wrong.format(port=postgres.port))
        PostgresDatabase(connections, "jobs", MIGRATIONS)
    message = str(caught.value)
    assert message.startswith("database_url")
    assert shown in message
    assert "pa55word" not in message
    assert "\n" not in message


def test_writers_take_turns(open_store):
    """Each reads a counter and writes it back; without the lock at the start, counts are lost."""
    stores = [open_store() for _ in range(2)]
    with stores[0].database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE counter (n BIGINT)")
        connection.exec_driver_sql("INSERT INTO counter VALUES (0)")

    def count(store) -> None:
        for _ in range(10):
            with store.database.write() as connection:
                n = connection.exec_driver_sql("SELECT n FROM counter").scalar_one()
                connection.exec_driver_sql("UPDATE counter SET n = %s", (n + 1,))

    threads = [threading.Thread(target=count, args=(store,)) for store in stores * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with stores[0].database.read() as connection:
        assert connection.exec_driver_sql("SELECT n FROM counter").scalar_one() == 40


def test_each_job_is_claimed_by_one_server(open_store):
    stores = [open_store() for _ in range(3)]
    settle(*stores)
    jobs = {add(stores[0]).id for _ in range(12)}
    claimed: dict[str, list[str]] = {store.database.server: [] for store in stores}

    def work(store) -> None:
        # Nothing is free to a server that is not seen, as on a busy machine.
        while store.database.beat() or (job := store.jobs.claim("queued")) is not None:
            claimed[store.database.server].append(job.id)
            assert store.jobs.transition(job.id, ("queued",), "running")

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [job for mine in claimed.values() for job in mine]
    assert sorted(found) == sorted(jobs)
    for store in stores:
        mine = claimed[store.database.server]
        assert all(store.jobs.is_held(job, store.database.server) for job in mine)


def test_what_a_dead_server_had_claimed_is_taken_over_and_it_notices(open_store):
    dead, alive = open_store(), open_store()
    settle(dead, alive)
    job = add(dead)
    assert dead.jobs.claim("queued").server == dead.database.server
    dead.jobs.transition(job.id, ("queued",), "running")
    assert alive.jobs.claim("running", "queued") is None, "its server lives"
    assert dead.jobs.claim("running").id == job.id, "it goes on with its own"
    time.sleep(LEASE)
    alive.database.beat()
    assert alive.jobs.claim("running") is None, "it was not seen either, and cannot tell"
    settle(alive)
    assert alive.jobs.claim("running").server == alive.database.server
    assert not dead.jobs.is_held(job.id, dead.database.server)
    dead.database.beat()
    assert dead.jobs.claim("running") is None


def test_a_server_that_leaves_gives_up_its_claims_at_once(open_store):
    leaving, staying = open_store(), open_store()
    settle(leaving, staying)
    add(leaving)
    leaving.jobs.claim("queued")
    assert staying.jobs.claim("queued") is None
    leaving.database.leave()
    assert leaving.jobs.claim("queued").server == leaving.database.server, "its own alone"
    staying.database.beat()
    assert staying.jobs.claim("queued") is not None


def test_a_server_that_nobody_sees_claims_nothing(open_store):
    """Others would take its claim at once."""
    store = open_store()
    job = add(store)
    assert store.jobs.claim("queued") is None
    store.database.beat()
    assert store.jobs.claim("queued").id == job.id
    other = add(store)
    store.jobs.transition(job.id, ("queued",), "running")
    time.sleep(LEASE)
    assert store.jobs.claim("queued") is None
    assert store.jobs.claim("running").id == job.id
    store.database.beat()
    assert store.jobs.claim("queued").id == other.id


def test_a_job_is_claimed_in_its_place_alone(open_store):
    """The corpus of a pretraining job is on one machine."""
    gone, back, elsewhere = open_store("a"), open_store("a"), open_store("b")
    assert gone.jobs.place == back.jobs.place != elsewhere.jobs.place
    settle(back, elsewhere)
    request = {"kind": "pretraining", "place": gone.jobs.place}
    job = Job(new_job_id(), 1, "queued", "tiny", "", request, {}, server=gone.database.server)
    back.jobs.add(job)
    assert elsewhere.jobs.claim("queued") is None
    assert back.jobs.claim("queued").id == job.id


def test_an_adapter_that_is_being_named_is_not_forgotten(postgres, tmp_path):
    url, source = postgres.url(), tmp_path / "adapter"
    source.mkdir()
    (source / ADAPTER_CONFIG_FILE).write_text("{}")
    (source / ADAPTER_WEIGHTS_FILE).write_bytes(b"weights")
    digest, objects = adapter_digest(source), str(tmp_path / "objects")
    one, other = (Store.open(StoreAddress(tmp_path / n, url, objects)) for n in ("a", "b"))
    forgetting = threading.Thread(target=other.forget_adapters, args=([digest],))
    with one.sharing(source, digest):
        forgetting.start()
        forgetting.join(0.2)
        assert forgetting.is_alive(), "it waits"
        one.artifacts.put(ServedArtifact("mine", "tiny", str(source), digest))
    forgetting.join()
    assert adapter_digest(other.adapters.fetch(digest)) == digest
    one.artifacts.delete("mine")
    one.forget_adapters([digest])
    with one.sharing(source, digest):
        assert (tmp_path / "objects" / "adapters" / digest / ADAPTER_CONFIG_FILE).is_file()
    one.close()
    other.close()


def test_responses_of_servers_that_live_are_nobody_elses(open_store):
    one, other = open_store(), open_store()
    settle(one, other)
    one.responses.save(StoredResponse("resp_1", "k", 1, "in_progress", None, None, "{}"))
    assert one.responses.unfinished() == other.responses.unfinished() == []
    one.database.leave()
    other.database.beat()
    assert [response.id for response in other.responses.unfinished()] == ["resp_1"]


def test_a_change_of_a_name_by_another_server_shows_in_the_version(open_store):
    one, other = open_store(), open_store()
    before = one.database.version()
    add(other)
    assert one.database.version() == before, "a job is no name"
    job = add(other, "running")
    other.jobs.add_checkpoint(job.id, JobCheckpoint("c", 1, "d", "x", {}))
    after = one.database.version()
    assert after != before
    assert one.database.version() == after


def test_one_server_does_a_thing_at_a_time(open_store):
    one, other = open_store(), open_store()
    with one.database.attempt("canaries") as mine:
        assert mine
        with other.database.attempt("canaries") as theirs:
            assert not theirs
        with other.database.attempt("else") as theirs:
            assert theirs
    with other.database.attempt("canaries") as theirs:
        assert theirs


def test_text_that_cannot_be_stored_is_refused(open_store):
    store = open_store()
    job = add(store)
    with pytest.raises(InvalidRequestError, match=r"U\+0000"):
        store.jobs.record(job.id, [Event("nul \0 here")])
    with pytest.raises(InvalidRequestError, match=r"U\+0000"):
        store.jobs.record(job.id, progress={"a": ["\0"]})
    with pytest.raises(InvalidRequestError, match="surrogate"):
        store.jobs.record(job.id, progress={"a": "\ud800"})
    store.jobs.record(job.id, [Event("\\u0000 is text")], progress={"a": "\\u0000", "b": math.nan})
    assert store.jobs.get(job.id).progress == {"a": "\\u0000", "b": None}
    assert len(store.jobs.events(job.id, Paging()).items) == 1


def test_json_has_no_nan_and_keeps_everything_else():
    assert as_json({"a": [1.5, "é", None, (2,)]}) == '{"a": [1.5, "é", null, [2]]}'
    assert as_json({"a": [math.nan, {"b": -math.inf}]}) == '{"a": [null, {"b": null}]}'


def test_an_outage_is_reported_and_ends_by_itself(postgres, open_store):
    store = open_store()
    job = add(store)
    postgres.kill()
    try:
        with pytest.raises(StoreUnavailableError, match="try again"):
            store.jobs.get(job.id)
        with pytest.raises(StoreUnavailableError):
            add(store)
    finally:
        postgres.start()
    assert store.jobs.get(job.id) == job


def test_a_connection_that_breaks_within_a_transaction_leaves_nothing(postgres, open_store):
    store = open_store()
    job = add(store)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in %'"
    with pytest.raises(StoreUnavailableError), store.database.write() as connection:
        connection.execute(tables.jobs.update().values(deaths=5))
        postgres.execute(end)
        connection.execute(sa.select(tables.jobs))
    assert store.jobs.get(job.id).deaths == 0
