"""An exported file reads back as the model, the adapter's changes in it."""

from __future__ import annotations

import gguf
import pytest
import torch
from hagane.cli.main import dispatch
from hagane.lora.export import export_gguf, export_gguf_adapter
from hagane.lora.files import load_adapter
from hagane.system.errors import ConfigurationError
from hagane.text.tokenizer import Tokenizer
from hagane.weights.load import checkpoint_tensors, load_model
from hagane.weights.sources.config import load_config
from pydantic import ValidationError

from tests.support.engine import make_adapter, merged
from tests.support.gguf import interleaved

TEXT = "Once upon a time 今日は 123 don't\n\n  <|im_end|>"


def _state(path):
    model, _ = load_model(path, device="cpu", dtype=torch.float32, quantization=None)
    return model.state_dict()


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.0), ("F16", 1e-3), ("Q8_0", 1e-2)])
def test_weights_and_tokens_come_back(tiny_model_dir, tmp_path, kind, tolerance):
    path = tmp_path / "x.gguf"
    assert dispatch(["export", str(tiny_model_dir), str(path), "--type", kind]) == 0
    expected, got = _state(tiny_model_dir), _state(path)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        largest = tensor.abs().max().item()
        assert (tensor - got[name]).abs().max() <= tolerance * largest, name
    ours, theirs = Tokenizer.load(path), Tokenizer.load(tiny_model_dir)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.special_ids == theirs.special_ids


def test_a_file_is_exported_again_with_its_vocabulary(tiny_model_dir, tmp_path):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    export_gguf(tiny_model_dir, None, first, "F32")
    export_gguf(first, None, second, "F32")
    assert Tokenizer.load(second).encode(TEXT) == Tokenizer.load(first).encode(TEXT)
    one, two = _state(first), _state(second)
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ConfigurationError, match="exists"):
        export_gguf(first, None, second, "F32")


def test_an_adapter_is_added_as_transformers_adds_it(tiny_model_dir, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", tiny_model_dir, seed=3, tokens=(50, 7))
    path = tmp_path / "x.gguf"
    with pytest.raises(ConfigurationError, match="trainable_token_indices"):
        export_gguf_adapter(tiny_model_dir, tmp_path / "adapter", tmp_path / "adapter.gguf")
    changed = export_gguf(tiny_model_dir, tmp_path / "adapter", path, "F32")
    assert changed == 14
    model, _ = load_model(path, device="cpu", dtype=torch.float32, quantization=None)
    theirs = merged(tiny_model_dir, adapter).state_dict()
    for name, tensor in checkpoint_tensors(model):
        assert torch.allclose(tensor, theirs[name], rtol=1e-5, atol=1e-5), name


def test_an_adapter_alone_has_its_factors_as_llama_cpp_reads_them(tiny_model_dir, tmp_path):
    make_adapter(tmp_path / "adapter", tiny_model_dir, seed=3)
    path = tmp_path / "adapter.gguf"
    arguments = [str(tiny_model_dir), str(path), "--adapter", str(tmp_path / "adapter")]
    assert dispatch(["export", *arguments, "--adapter-only"]) == 0
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["adapter.type"].contents() == "lora"
    # The rank: the scale is in B.
    assert reader.fields["adapter.lora.alpha"].contents() == 4
    factors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    adapter = load_adapter(tmp_path / "adapter", load_config(tiny_model_dir))
    assert len(factors) == 2 * len(adapter.changes) == 28
    for ours, theirs, heads in (("q_proj", "attn_q", 4), ("v_proj", "attn_v", 0)):
        change = adapter.changes[f"layers.1.self_attn.{ours}"]
        expected = (change.scale * change.b @ change.a).numpy()
        if heads:
            expected = interleaved(expected, heads)
        a, b = (factors[f"blk.1.{theirs}.weight.lora_{letter}"] for letter in "ab")
        torch.testing.assert_close(b @ a, torch.from_numpy(expected))


def test_magnitudes_have_no_place_in_an_adapter_alone(tiny_model_dir, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", tiny_model_dir, seed=3, dora=True)
    with pytest.raises(ConfigurationError, match="magnitudes"):
        export_gguf_adapter(tiny_model_dir, tmp_path / "adapter", tmp_path / "adapter.gguf")
    export_gguf(tiny_model_dir, tmp_path / "adapter", tmp_path / "x.gguf", "F32")
    theirs = merged(tiny_model_dir, adapter).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    model, _ = load_model(tmp_path / "x.gguf", device="cpu", dtype=torch.float32, quantization=None)
    mine = dict(checkpoint_tensors(model))[name]
    torch.testing.assert_close(mine, theirs[name], rtol=1e-5, atol=1e-5)


def test_an_adapter_alone_needs_one(tiny_model_dir, tmp_path):
    with pytest.raises(ValidationError, match="--adapter-only needs --adapter"):
        dispatch(["export", str(tiny_model_dir), str(tmp_path / "x.gguf"), "--adapter-only"])
