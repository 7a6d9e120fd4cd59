"""GGUF files as sources: the same model as the Hugging Face directory that they were made from."""

from __future__ import annotations

import gguf
import numpy as np
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
    assert source.others(dequantized(tiny_model_dir, kind)) == []
    assert model_name(path) == "tiny"


def test_missing_and_surplus_tensors_are_named(tiny_model_dir, tmp_path):
    source = open_source(write_gguf(tiny_model_dir, tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match=r"blk\.7\.attn_q\.weight"):
        source.read("model.layers.7.self_attn.q_proj.weight", (64, 64))
    with pytest.raises(ModelError, match="shape"):
        source.read("model.norm.weight", (63,))
    assert source.others(["model.norm.weight"])[0] == "blk.0.attn_k.weight"


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


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "embedding_length"])
def test_sizes_that_no_tensor_has_are_refused_before_memory_is_taken(tiny_model_dir, tmp_path, key):
    path = write_gguf(tiny_model_dir, tmp_path / "tiny.gguf")
    data = bytearray(path.read_bytes())
    value = data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    data[value : value + 4] = (0x7FFFFFF0).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"tiny\.gguf has \d+ (layers|heads of \d+ features) by"):
        load_config(path)


def test_vectors_in_blocks_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    stored = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(
        "output_norm.weight", gguf.quantize(np.ones(64, np.float32), stored), raw_dtype=stored
    )
    writer.add_tensor("token_embd.weight", np.ones((4, 64), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((64, 64), np.float32))
    writer.add_tensor("blk.0.attn_output.weight", np.ones((64, 64), np.float32))
    for add in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        getattr(writer, f"add_{add}")(1 if add == "block_count" else 64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="in blocks"):
        open_source(tmp_path / "x.gguf").read("model.norm.weight", (64,))


def test_errors_are_one_line_whatever_they_quote(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "mamba\n\x1b[31m" + "x" * 10000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError) as caught:
        load_config(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
