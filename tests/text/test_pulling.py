"""Models from a hub on loopback into a store."""

from __future__ import annotations

import dataclasses
import os
import threading
import time

import pytest
from hagane.system.errors import ConflictError, ModelError
from hagane.text.hub import models_in
from hagane.text.hub_files import Digest, HubFile, find_on_hub
from hagane.text.pulling import HIDDEN_FOLDER, Pull, PullCancelledError, sweep

from tests.support.gguf import write_gguf
from tests.support.hub import hub


@pytest.fixture(scope="module")
def files(tiny_model_dir, tmp_path_factory):
    folder = {p.name: p.read_bytes() for p in tiny_model_dir.iterdir() if p.is_file()}
    gguf = write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()
    named = {f"me/tiny/{name}": data for name, data in folder.items()}
    extra = {"me/tiny/1_Pooling/config.json": b"{}", "me/tiny/evil.bin": b"pickle"}
    return named | extra | {"me/gguf/x.gguf": gguf, "me/two/a.gguf": b"a", "me/two/b.gguf": b"b"}


@pytest.fixture
def server(files):
    with hub(dict(files)) as running:
        yield running


def test_a_directory_is_fetched_with_what_serving_takes(server, files, tmp_path):
    found = find_on_hub("me/tiny", server.url)
    pull = Pull(found, tmp_path, found.name)
    path = pull.run()
    assert path == tmp_path / "tiny"
    assert models_in(tmp_path) == {"tiny": path}
    fetched = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "1_Pooling/config.json"} <= fetched.keys()
    assert "evil.bin" not in fetched
    assert all(files[f"me/tiny/{name}"] == p.read_bytes() for name, p in fetched.items())
    assert pull.received == pull.total == sum(p.stat().st_size for p in fetched.values())


def test_a_gguf_file_becomes_a_model_of_its_own_name(server, files, tmp_path):
    for name, stored in (("me/gguf", "gguf"), ("me/gguf/x.gguf", "x")):
        found = find_on_hub(name, server.url)
        path = Pull(found, tmp_path, found.name).run()
        assert (path / "x.gguf").read_bytes() == files["me/gguf/x.gguf"]
        assert models_in(tmp_path)[stored] == path / "x.gguf"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nothing", "no hub id"),
        ("a/b/../../c.gguf", "no hub id"),
        ("me/none", "not found on the hub"),
        ("me/two", "me/two/a.gguf, me/two/b.gguf"),
        ("me/two/c.gguf", "no file c.gguf"),
    ],
)
def test_what_the_hub_has_not(server, name, part):
    with pytest.raises(ModelError, match=part):
        find_on_hub(name, server.url)


def test_a_hub_that_names_files_elsewhere_is_refused(server):
    server.files["me/evil/../../x.safetensors"] = b"x"
    server.files["me/evil/model.safetensors"] = b"x"
    with pytest.raises(ModelError, match="no plain path"):
        find_on_hub("me/evil", server.url)


def test_connections_that_break_off_are_made_again(server, files, tmp_path):
    size = len(files["me/gguf/x.gguf"])
    server.limit = size // 2 + 1
    Pull(find_on_hub("me/gguf", server.url), tmp_path, "x").run()
    assert server.ranges == [f"bytes={server.limit}-"]
    assert (tmp_path / "x" / "x.gguf").read_bytes() == files["me/gguf/x.gguf"]


def test_what_was_fetched_is_there_for_the_next_pull(server, files, tmp_path, monkeypatch):
    monkeypatch.setattr("hagane.text.pulling._TRIES", 1)
    found = find_on_hub("me/gguf", server.url)
    server.limit = 1000
    with pytest.raises(ModelError, match="could not be fetched"):
        Pull(found, tmp_path, "x").run()
    assert not (tmp_path / "x").exists()
    server.limit = None
    Pull(found, tmp_path, "x").run()
    assert server.ranges == ["bytes=1000-"]
    assert (tmp_path / "x" / "x.gguf").read_bytes() == files["me/gguf/x.gguf"]


def test_damaged_bytes_are_no_model(server, tmp_path):
    server.corrupt = True
    with pytest.raises(ModelError, match="damaged on its way"):
        Pull(find_on_hub("me/gguf", server.url), tmp_path, "x").run()
    assert not (tmp_path / "x").exists()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.slow
def test_more_bytes_than_announced_are_not_kept(server, tmp_path):
    found = find_on_hub("me/gguf", server.url)
    (file,) = found.files
    short = dataclasses.replace(file, size=100)
    with pytest.raises(ModelError, match="longer than the 100 bytes"):
        Pull(dataclasses.replace(found, files=(short,)), tmp_path, "x").run()


@pytest.mark.parametrize("kept", [False, True])
def test_a_cancelled_pull_leaves_nothing_and_an_interrupted_one_its_part(server, tmp_path, kept):
    pull = Pull(find_on_hub("me/gguf", server.url), tmp_path, "x")
    server.held = True
    raised: list[BaseException] = []

    def run() -> None:
        try:
            pull.run()
        except PullCancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    pull.interrupt() if kept else pull.cancel()
    server.held = False
    thread.join(30)
    assert len(raised) == 1
    assert not (tmp_path / "x").exists()
    folder = tmp_path / HIDDEN_FOLDER
    assert kept or not list(folder.glob("*"))


def test_what_has_come_is_not_read_to_its_end_after_a_cancellation(server, files, tmp_path):
    found = find_on_hub("me/gguf", server.url)

    class Ending(HubFile):
        def hasher(self) -> Digest:
            pull.interrupt()
            return super().hasher()

    (file,) = found.files
    ending = dataclasses.replace(found, files=(Ending(**vars(file)),))
    pull = Pull(ending, tmp_path, "x")
    pull.folder.mkdir(parents=True)
    (pull.folder / "x.gguf.partial").write_bytes(files["me/gguf/x.gguf"][:1000])
    with pytest.raises(PullCancelledError):
        pull.run()
    assert (server.ranges, pull.received) == ([], 0)


def test_an_empty_file_is_a_file(server, tmp_path):
    server.files |= {"me/hollow/model.safetensors": b"x", "me/hollow/added_tokens.json": b""}
    path = Pull(find_on_hub("me/hollow", server.url), tmp_path, "hollow").run()
    assert (path / "added_tokens.json").read_bytes() == b""


def test_a_model_made_meanwhile_stays_and_what_has_come_waits(server, tmp_path):
    found = find_on_hub("me/gguf", server.url)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").touch()
    with pytest.raises(ConflictError, match="another name"):
        Pull(found, tmp_path, "x").run()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["mine"]
    server.files.clear()
    assert (Pull(found, tmp_path, "y").run() / "x.gguf").is_file()


def test_only_what_nobody_goes_on_with_is_swept(tmp_path):
    sweep(tmp_path)
    hidden = tmp_path / HIDDEN_FOLDER
    then = time.time() - 8 * 86_400
    for name in ("removed-1", "old", "going", "new"):
        (hidden / name / "below").mkdir(parents=True)
        (hidden / name / "below" / "x.partial").touch()
    for path in (*(hidden / "old").rglob("*"), hidden / "old", hidden / "going"):
        os.utime(path, (then, then))
    sweep(tmp_path)
    assert {path.name for path in hidden.iterdir()} == {"going", "new"}
