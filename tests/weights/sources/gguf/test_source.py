"""GGUF files as sources: the same model as the Hugging Face directory that they were made from."""

from __future__ import annotations

import gguf
import pytest
import torch
from hagane.system.errors import ModelError
from hagane.weights.load import load_model
from hagane.weights.sources.config import load_config, model_name
from hagane.weights.sources.source import open_source

from tests.support.gguf import dequantized, write_gguf


def _state(path):
    model, _ = load_model(path, device="cpu", dtype=torch.float32, quantization=None)
    return model.state_dict()


def test_a_file_of_floats_is_the_directory(tiny_model_dir, tmp_path):
    path = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf")
    expected, got = _state(tiny_model_dir), _state(path)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    directory, file = load_config(tiny_model_dir), load_config(path)
    for field in ("architecture", "heads", "kv_heads", "head_dim", "rope"):
        assert getattr(file, field) == getattr(directory, field), field
    # <|endoftext|> ends a text by its spelling, too.
    assert (file.eos_token_ids, directory.eos_token_ids) == ((0, 2), (2,))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("shards", [1, 3])
def test_matrices_are_dequantized_and_their_rows_put_in_order(
    tiny_model_dir, tmp_path, kind, shards
):
    path = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf", kind, shards=shards)
    source = open_source(path)
    for name, expected in dequantized(tiny_model_dir, kind).items():
        rows = source.read(name, tuple(expected.shape))
        got = torch.cat([block.float() for block in rows.split(7)])
        assert torch.equal(got, expected), name
    source.finish(set())
    assert model_name(path) == "tiny"


def test_missing_and_surplus_tensors_are_named(tiny_model_dir, tmp_path):
    source = open_source(write_gguf(tiny_model_dir, tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match=r"blk\.7\.attn_q\.weight"):
        source.read("model.layers.7.self_attn.q_proj.weight", (64, 64))
    with pytest.raises(ModelError, match="shape"):
        source.read("model.norm.weight", (63,))
    with pytest.raises(ModelError, match="unexpected"):
        source.finish(set())


def test_a_missing_part_of_a_split_model_is_named(tiny_model_dir, tmp_path):
    first = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf", shards=3)
    (tmp_path / "tiny-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf does not exist"):
        open_source(first)


def test_unknown_architectures_are_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="'mamba'; read are llama"):
        load_config(tmp_path / "x.gguf")


def test_scaling_of_rotations_is_read(tiny_model_dir, tmp_path):
    path = write_gguf(
        tiny_model_dir,
        tmp_path / "tiny.gguf",
        llama__rope__scaling__type="linear",
        llama__rope__scaling__factor=4.0,
        llama__rope__freq_base=5e5,
    )
    rope = load_config(path).rope
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 4.0, 5e5)
