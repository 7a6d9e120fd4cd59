"""Each format of an export, written in this process."""

from __future__ import annotations

import zipfile

import pytest
import torch
from hagane.lora.config import adapter_digest
from hagane.system.errors import ConfigurationError, HaganeError
from hagane.training.exports.task import ExportTask
from hagane.training.exports.worker import export
from hagane.weights.load import load_model

from tests.support.engine import make_adapter, merged


@pytest.fixture
def adapter(tiny_model_dir, tmp_path):
    return make_adapter(tmp_path / "adapter", tiny_model_dir, seed=3)


def run(tmp_path, base, adapter, kind, **more):
    folder = tmp_path / "out"
    folder.mkdir()
    suffix = "gguf" if "gguf" in kind else "zip"
    target = folder / f"mine.{suffix}"
    task = ExportTask(base=base, adapter=adapter, target=target, format=kind, **more)
    told = []
    export(task, lambda stage, share: told.append((stage, share)))
    assert [path.name for path in folder.iterdir()] == [target.name], "nothing half-written is left"
    assert target.stat().st_size <= task.needed_bytes() + 20_000
    return target, told


def unpack(archive, folder):
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        opened.extractall(folder)
    return folder / "mine"


def test_an_adapter_is_zipped_as_it_is(tmp_path, tiny_model_dir, adapter):
    (tmp_path / "adapter/.x.partial").write_text("half")
    target, told = run(tmp_path, tiny_model_dir, tmp_path / "adapter", "adapter")
    assert adapter_digest(unpack(target, tmp_path)) == adapter.digest
    assert not (tmp_path / "mine/.x.partial").exists()
    assert told[-1] == ("packing", 1.0)


@pytest.mark.parametrize("kind", ["model", "gguf"])
def test_a_merged_model_says_what_base_and_adapter_say(tmp_path, tiny_model_dir, adapter, kind):
    more = {"type": "F32"} if kind == "gguf" else {}
    target, told = run(tmp_path, tiny_model_dir, tmp_path / "adapter", kind, **more)
    path = unpack(target, tmp_path) if kind == "model" else target
    model, _ = load_model(path, device="cpu", dtype=torch.float32, quantization=None)
    theirs = merged(tiny_model_dir, adapter).state_dict()
    embedding = dict(model.named_parameters())["model.embed_tokens.weight"]
    assert torch.equal(embedding[: len(theirs["model.embed_tokens.weight"])],
                       theirs["model.embed_tokens.weight"])  # fmt: skip
    assert told[-1][1] == pytest.approx(1.0)
    if kind == "model":
        assert (path / "tokenizer_config.json").is_file()


def test_a_standalone_model_is_zipped_whole(tmp_path, tiny_model_dir):
    target, _ = run(tmp_path, tiny_model_dir, None, "model")
    names = {path.name for path in unpack(target, tmp_path).iterdir()}
    assert names == {path.name for path in tiny_model_dir.iterdir()}


def test_what_has_no_such_form_is_refused(tmp_path, tiny_model_dir, adapter):
    make_adapter(tmp_path / "dora", tiny_model_dir, 1, dora=True)
    with pytest.raises(ConfigurationError, match="DoRA"):
        run(tmp_path, tiny_model_dir, tmp_path / "dora", "gguf_adapter")
    (tmp_path / "out").rmdir()
    with pytest.raises(HaganeError, match="no adapter"):
        run(tmp_path, tiny_model_dir, None, "adapter")
