"""`hagane models` on real stores and a hub on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hagane.cli.main import dispatch
from hagane.system.errors import HaganeError

from tests.support.gguf import write_gguf
from tests.support.hub import hub
from tests.support.server import hagane


@pytest.fixture(scope="module")
def gguf_bytes(tiny_model_dir, tmp_path_factory):
    return write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


@pytest.fixture
def command(tmp_path):
    """Runs `hagane models` with a store and a cache of its own, and returns its result."""
    (tmp_path / "store").mkdir()

    def run(*arguments: str, url: str = "http://127.0.0.1:9"):
        return hagane(
            "models", *arguments, HAGANE_MODELS_DIR=str(tmp_path / "store"), HF_ENDPOINT=url,
            HAGANE_DATA_DIR=str(tmp_path / "data"), HF_HOME=str(tmp_path / "hub"),
        )  # fmt: skip

    return run


@pytest.fixture
def models(tmp_path, monkeypatch, capsys):
    """Runs `hagane models` on a store of its own in this process, and returns what it prints."""
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("HAGANE_MODELS_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("HAGANE_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> str:
        dispatch(["models", *arguments])
        return capsys.readouterr().out

    return run


def test_models_of_the_store_are_listed_shown_and_removed(
    models, tmp_path, tiny_model_dir, gguf_bytes
):
    shutil.copytree(tiny_model_dir, tmp_path / "store" / "folder")
    (tmp_path / "store" / "file.gguf").write_bytes(gguf_bytes)
    listed = models("list")
    assert {line.split()[0] for line in listed.splitlines()} >= {"folder", "file", "hagane-mini"}
    shown = {name: models("show", name) for name in ("file", "folder")}
    assert "GGUF" in shown["file"] and "safetensors" in shown["folder"]
    for text in shown.values():
        assert "LlamaForCausalLM" in text
        assert "320 tokens" in text
    assert "removed file" in models("rm", "file")
    assert not (tmp_path / "store" / "file.gguf").exists()
    assert "removed folder" in models("rm", "folder")
    assert not (tmp_path / "store" / "folder").exists()


def test_removing_a_link_keeps_the_model_that_it_leads_to(models, tmp_path, tiny_model_dir):
    (tmp_path / "store" / "link").symlink_to(tiny_model_dir)
    assert "removed link" in models("rm", "link")
    assert (tiny_model_dir / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["rm", "hagane-mini"], "built-in"),
        (["rm", "../store"], "no model '../store'"),
        (["rm", "."], "no model '.'"),
        (["rm", "a/../b"], "no model"),
        (["pull", "nothing"], "no hub id"),
        (["pull", "a/b/../../c.gguf"], "no hub id"),
        (["pull", "../b"], "no hub id"),
        (["show", "nothing"], "nothing"),
    ],
)
def test_names_that_are_none(models, arguments, part):
    with pytest.raises(HaganeError, match=part):
        models(*arguments)


def test_without_a_hub_the_reason_is_one_line(command):
    result = command("pull", "a/b")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "could not be fetched from the hub" in line


def test_an_interrupted_download_goes_on_where_it_stopped(command, gguf_bytes):
    # Downloads are written in pieces of 10 MB; connections end after 20 MB of 24.
    with hub({"me/tiny/a.gguf": gguf_bytes + bytes(24 << 20)}) as server:
        server.limit = 20 << 20
        assert command("pull", "me/tiny/a.gguf", url=server.url).returncode == 0
        assert server.ranges == [f"bytes={20 << 20}-"]


def test_a_file_is_pulled_checked_listed_and_removed(command, gguf_bytes):
    with hub({"me/tiny/tiny.gguf": gguf_bytes, "me/tiny/README.md": b"x"}) as server:
        pulled = command("pull", "me/tiny", url=server.url)
        assert pulled.returncode == 0, pulled.stderr
        path = Path(pulled.stdout.partition(": ")[0])
        assert path.read_bytes() == gguf_bytes
        assert "1 files as they are on the hub" in pulled.stdout
        assert "me/tiny" in command("list").stdout
        assert "removed me/tiny" in command("rm", "me/tiny").stdout
        assert not path.exists()


def test_several_files_are_named(command, gguf_bytes):
    with hub({"me/tiny/a.gguf": gguf_bytes, "me/tiny/b.gguf": gguf_bytes}) as server:
        refused = command("pull", "me/tiny", url=server.url)
        assert "me/tiny/a.gguf, me/tiny/b.gguf" in refused.stderr
        assert command("pull", "me/tiny/b.gguf", url=server.url).returncode == 0


def test_a_damaged_download_is_refused_and_not_kept(command, gguf_bytes):
    with hub({"me/tiny/a.gguf": gguf_bytes}) as server:
        server.corrupt = True
        refused = command("pull", "me/tiny/a.gguf", url=server.url)
        assert refused.returncode == 2
        assert "damaged on its way" in refused.stderr
        server.corrupt = False
        assert command("pull", "me/tiny/a.gguf", url=server.url).returncode == 0
