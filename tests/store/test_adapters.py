"""Adapters as shared objects: fetched by digest, cached, never served with another content."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hagane.lora.config import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, adapter_digest
from hagane.store.adapters import SharedAdapters
from hagane.store.aliases import AliasGeneration
from hagane.store.blobs import Blobs
from hagane.store.catalogue import Catalogue
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import ModelError, NotFoundError


@pytest.fixture(params=["directory", "s3"])
def blob_url(request, tmp_path):
    if request.param == "directory":
        return str(tmp_path / "shared")
    return f"s3://{request.getfixturevalue('s3').bucket()}"


@pytest.fixture
def made(tmp_path):
    """A function that makes an adapter with some content."""

    def make(name: str):
        directory = tmp_path / name
        directory.mkdir()
        (directory / ADAPTER_CONFIG_FILE).write_text("{}")
        (directory / ADAPTER_WEIGHTS_FILE).write_bytes(name.encode() * 100)
        return directory, adapter_digest(directory)

    return make


def test_what_one_server_shares_another_fetches_once(blob_url, made, tmp_path):
    directory, digest = made("one")
    SharedAdapters(Blobs(blob_url), tmp_path / "a").put(directory, digest)
    other = SharedAdapters(Blobs(blob_url), tmp_path / "b")
    assert other.cached(digest) is None
    fetched = other.fetch(digest)
    assert adapter_digest(fetched) == digest
    assert other.cached(digest) == other.fetch(digest) == fetched
    assert [path.name for path in (tmp_path / "b").iterdir()] == [digest]
    other.delete(digest)
    with pytest.raises(NotFoundError):
        SharedAdapters(Blobs(blob_url), tmp_path / "c").fetch(digest)
    assert list((tmp_path / "c").iterdir()) == []


def test_content_with_another_digest_is_not_served(made, tmp_path):
    (directory, digest), (other, _) = made("one"), made("other")
    blobs = Blobs(str(tmp_path / "shared"))
    adapters = SharedAdapters(blobs, tmp_path / "cache")
    adapters.put(directory, digest)
    blobs.put(f"adapters/{digest}/{ADAPTER_WEIGHTS_FILE}", other / ADAPTER_WEIGHTS_FILE)
    with pytest.raises(ModelError, match="damaged or changed"):
        adapters.fetch(digest)
    assert adapters.cached(digest) is None


def test_old_adapters_without_a_name_leave_the_cache(made, tmp_path):
    adapters = SharedAdapters(Blobs(str(tmp_path / "shared")), tmp_path / "cache")
    kept, old, young = (made(name) for name in ("kept", "old", "young"))
    for directory, digest in (kept, old, young):
        adapters.put(directory, digest)
        adapters.fetch(digest)
    for _, digest in (kept, old):
        long_ago = time.time() - 2 * 86400
        os.utime(tmp_path / "cache" / digest, (long_ago, long_ago))
    (tmp_path / "cache" / "mine").mkdir()
    os.utime(tmp_path / "cache" / "mine", (1, 1))
    adapters.sweep({kept[1]})
    left = {p.name for p in (tmp_path / "cache").iterdir()}
    assert left == {kept[1], young[1], "mine"}, "somebody's own is nobody else's"


class Interrupted(Blobs):
    """Does `then` after it has got an object."""

    then = staticmethod(lambda: None)

    def get(self, name, target):
        super().get(name, target)
        self.then()


def test_two_processes_fetch_one_adapter_into_one_folder(made, tmp_path):
    directory, digest = made("one")
    blobs = Interrupted(str(tmp_path / "shared"))
    first, second = (SharedAdapters(blobs, tmp_path / "cache") for _ in range(2))
    first.put(directory, digest)

    def be_faster() -> None:
        blobs.then = lambda: None
        second.fetch(digest)

    blobs.then = be_faster
    assert adapter_digest(first.fetch(digest)) == digest
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [digest]


def test_an_adapter_waits_for_no_other_to_be_fetched(made, tmp_path):
    (directory, slow), (other, digest) = made("slow"), made("other")
    blobs = Interrupted(str(tmp_path / "shared"))
    adapters = SharedAdapters(blobs, tmp_path / "cache")
    adapters.put(directory, slow)
    adapters.put(other, digest)
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        blobs.then = lambda: None
        arrived.set()
        go_on.wait()

    blobs.then = wait
    fetching = threading.Thread(target=adapters.fetch, args=(slow,))
    fetching.start()
    arrived.wait()
    quick = threading.Thread(target=adapters.fetch, args=(digest,))
    quick.start()
    quick.join(10)
    waits = quick.is_alive()
    go_on.set()
    fetching.join()
    quick.join()
    assert not waits
    assert adapters.cached(slow)


def test_names_stand_for_the_shared_content_on_every_server(postgres, blob_url, made, tmp_path):
    """The directory that it came from may be gone, or be another machine's."""
    url = postgres.url()
    stores = [Store.open(StoreAddress(tmp_path / name, url, blob_url)) for name in ("a", "b")]
    one, other = (Catalogue(s.database, "base", None, s.adapters) for s in stores)
    directory, digest = made("one")
    one.register("mine", directory, digest)
    stores[0].aliases.set(AliasGeneration("alias", "mine"))
    (directory / ADAPTER_WEIGHTS_FILE).write_bytes(b"changed")
    other.refresh()
    assert other.lookup("alias") is None, "it has to be fetched"
    ref = other.resolve("alias")
    assert (ref.id, ref.digest, adapter_digest(ref.adapter_directory)) == ("mine", digest, digest)
    assert ref.adapter_directory.is_relative_to(tmp_path / "b")
    other.refresh()
    assert other.lookup("alias").adapter_directory == ref.adapter_directory
    assert [found.digest for found in other.list()] == [digest, None]
    stores[0].aliases.delete("alias")
    stores[0].artifacts.delete("mine")
    stores[0].forget_adapters([digest])
    other.refresh()
    assert other.resolve("mine") is None
    with pytest.raises(NotFoundError):
        SharedAdapters(Blobs(blob_url), tmp_path / "c").fetch(digest)
    for store in stores:
        store.close()


def test_an_uploaded_file_is_read_on_every_server(postgres, blob_url, tmp_path):
    url = postgres.url()
    one, other = (Store.open(StoreAddress(tmp_path / n, url, blob_url)) for n in ("a", "b"))
    with one.files.upload() as upload:
        upload.write(b"content")
        stored = upload.finish("f.jsonl", "fine-tune")
    path = other.files.local(stored.id)
    assert path.read_bytes() == b"content"
    assert path.is_relative_to(tmp_path / "b")
    other.files.delete(stored.id)
    for store in (one, other):
        with pytest.raises(NotFoundError):
            store.files.get(stored.id)
        store.close()
