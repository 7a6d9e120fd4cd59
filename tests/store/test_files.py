"""Files on disk and in the list."""

from __future__ import annotations

import hashlib
import os

import pytest
from hagane.store import files
from hagane.store.jobs import Job, new_job_id
from hagane.store.paging import Paging
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StoreUnavailableError,
)


def put(
    store,
    content: bytes = b"one\n",
    name: str = "a.jsonl",
    owner: str = "",
    kept: int | None = None,
):
    with store.files.upload() as upload:
        for start in range(0, len(content), 3):
            upload.write(content[start : start + 3])
        return upload.finish(name, "fine-tune", owner, kept)


def test_a_finished_upload_is_listed_and_whole(store):
    stored = put(store, b"some content")
    assert stored.bytes == 12
    assert stored.sha256 == hashlib.sha256(b"some content").hexdigest()
    assert store.files.get(stored.id) == stored
    assert store.files.path(stored.id).read_bytes() == b"some content"


def test_an_abandoned_upload_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.files.upload() as upload:
        upload.write(b"half of it")
        raise RuntimeError("the client went away")
    assert list((store.directory / "files").iterdir()) == []
    assert store.files.list(Paging()).items == []


def test_an_upload_that_cannot_be_shared_leaves_nothing(tmp_path):
    store = Store.open(StoreAddress(tmp_path / "data", blob_url=f"file://{tmp_path / 'blobs'}"))
    (tmp_path / "blobs" / "files").write_bytes(b"")
    with pytest.raises(StoreUnavailableError):
        put(store)
    assert list(store.files.folder.iterdir()) == []
    assert store.files.list(Paging()).items == []
    store.close()


def test_pages_cover_the_list_in_either_order(store):
    ids = [put(store).id for _ in range(5)]
    for newest_first in (True, False):
        seen, after, more = [], None, True
        while more:
            page = store.files.list(Paging(after, 2, newest_first))
            seen += [stored.id for stored in page.items]
            after, more = seen[-1], page.has_more
        assert seen == (ids[::-1] if newest_first else ids)
    with pytest.raises(InvalidRequestError) as caught:
        store.files.list(Paging("file-unknown"))
    assert caught.value.param == "after"
    assert store.files.list(Paging(), purpose="batch").items == []


def test_a_file_in_use_is_not_deleted(store):
    stored = put(store)
    job = Job(new_job_id(), 1, "queued", "tiny", stored.id, {}, {})
    store.jobs.add(job)
    with pytest.raises(ConflictError, match=job.id):
        store.files.delete(stored.id)
    store.jobs.transition(job.id, ("queued",), "cancelled")
    store.files.delete(stored.id)
    assert not store.files.path(stored.id).exists()
    with pytest.raises(NotFoundError):
        store.files.get(stored.id)


def test_what_has_expired_is_gone_for_clients_and_then_removed(store, monkeypatch):
    for_ever, later, used, read, *gone = (
        put(store, kept=kept) for kept in (None, 99, 0, 0, 0, 0, 0)
    )
    assert later.expires_at == later.created_at + 99
    job = Job(new_job_id(), 1, "queued", "tiny", used.id, {}, {})
    store.jobs.add(job)
    # As pretraining has it: a path, and no file's id.
    corpora = [{"path": str(store.files.path(read.id))}]
    store.jobs.add(Job(new_job_id(), 1, "queued", "tiny", "", {}, {"corpora": corpora}))
    assert store.files.list(Paging()).items == [later, for_ever]
    for stored in (used, read, *gone):
        for act in (store.files.get, store.files.delete):
            with pytest.raises(NotFoundError, match=stored.id):
                act(stored.id)
    # Its job may still begin.
    assert store.files.local(used.id).read_bytes() == b"one\n"
    assert store.files.expire() == 0
    monkeypatch.setattr(files, "IN_HAND_SECONDS", 0)
    monkeypatch.setattr(files, "MOST_EXPIRED", 2)
    assert [store.files.expire() for _ in range(3)] == [2, 1, 0]
    kept = {stored.id for stored in (for_ever, later, used, read)}
    assert {path.name for path in (store.directory / "files").iterdir()} == kept
    store.jobs.transition(job.id, ("queued",), "cancelled")
    assert store.files.expire() == 1
    assert not store.files.path(used.id).exists()


def test_sweeping_removes_old_remains_alone(store):
    stored = put(store)
    folder = store.directory / "files"
    for name in ("file-old.partial", "file-new.partial"):
        (folder / name).write_bytes(b"x")
    for path in (folder / "file-old.partial", folder / stored.id):
        os.utime(path, (1, 1))
    store.files.sweep()
    assert {path.name for path in folder.iterdir()} == {stored.id, "file-new.partial"}
    # As what somebody else removes at the same moment: listed, and not there.
    (folder / "file-gone.partial").symlink_to("nowhere")
    store.files.sweep()


def test_whole_files_that_a_shared_database_lacks_stay(store):
    """A directory that a server has used with a database of its own gets one that is shared."""
    path = store.directory / "files" / "file-of-another-database"
    path.write_bytes(b"x")
    os.utime(path, (1, 1))
    store.files.sweep()
    assert path.exists() is store.database.shared


def test_files_of_others_do_not_exist(store):
    ours, theirs = put(store, b"x" * 5000, owner="ours"), put(store, owner="theirs")
    assert store.files.list(Paging(), owner="ours").items == [ours]
    assert len(store.files.list(Paging()).items) == 2
    for act in (store.files.get, store.files.delete):
        with pytest.raises(NotFoundError, match=theirs.id):
            act(theirs.id, "ours")
    # A small file takes a block of the disk, too.
    assert [store.files.used(owner) for owner in ("ours", "theirs", "")] == [5000, 4096, 0]
    store.files.delete(theirs.id, "theirs")
    assert store.files.used("theirs") == 0


def test_files_of_a_store_in_memory_go_with_it():
    store = Store.empty()
    assert not store.work_directory.exists()
    stored = put(store)
    assert store.files.local(stored.id).read_bytes() == b"one\n"
    store.clear()
    assert not store.work_directory.exists()
