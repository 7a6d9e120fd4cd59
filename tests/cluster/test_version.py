"""Which model a replica has, by its files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hagane.cluster.version import ModelVersion, fitting


def test_other_files_under_one_name_are_no_update(tiny_model_dir, tmp_path):
    first = ModelVersion.of("m", tiny_model_dir)
    assert ModelVersion.of("m", tiny_model_dir) == first
    assert ModelVersion.of("elsewhere", tiny_model_dir).replaces(first)

    trained = shutil.copytree(tiny_model_dir, tmp_path / "trained")
    weights = next(trained.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[60_000] ^= 1
    weights.write_bytes(data)
    assert not ModelVersion.of("m", trained).replaces(first)
    assert ModelVersion.of("m2", trained).replaces(first)

    words = next(trained.glob("tokenizer.json"))
    words.write_bytes(words.read_bytes() + b" ")
    assert not ModelVersion.of("m2", trained).replaces(first)


def test_a_model_of_one_file(tmp_path):
    one, two = tmp_path / "a.gguf", tmp_path / "b.gguf"
    one.write_bytes(b"GGUF1")
    two.write_bytes(b"GGUF2")
    assert not ModelVersion.of("b", two).replaces(ModelVersion.of("a", one))


@pytest.mark.parametrize("place", [0, 70_000, 7_000_000, -1])
def test_weights_are_compared_all_over_a_file(tmp_path, place):
    one, two = tmp_path / "one" / "a.gguf", tmp_path / "two" / "a.gguf"
    data = np.zeros(20_000_000, dtype=np.uint8)
    for path, start in ((one, None), (two, place)):
        path.parent.mkdir()
        if start is not None:
            data[start:][:2_000_000] = 1
        data.tofile(path)
    assert not ModelVersion.of("a", two).replaces(ModelVersion.of("a", one))


def test_replicas_of_another_version_get_requests_during_an_update_alone():
    old, new = ModelVersion("m", "1", "v"), ModelVersion("m2", "2", "v")
    mistake, foreign = ModelVersion("m", "3", "v"), ModelVersion("x", "4", "w")
    replicas = {"a": mistake, "b": new, "c": old, "d": foreign}
    assert fitting(old, replicas) == ["c"]
    del replicas["c"]
    assert fitting(old, replicas) == ["b"]
    del replicas["b"]
    assert fitting(old, replicas) == []
