"""Configurations that do not say what the weights hold."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from hagane.kernels import cpu
from hagane.models.attention import PackedCausal
from hagane.models.config import Quantization
from hagane.models.decoder import Transformer
from hagane.system.errors import ModelError
from hagane.weights.load import load_model, save_model
from hagane.weights.opening import open_weights
from hagane.weights.quantize import quantize_directory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

IDS = torch.arange(40)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rewrite(source: Path, target: Path, change, **config) -> Path:
    """A copy of a model with other tensors and another configuration."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(raw | config))
    return target


def head_alone(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[EMBEDDING]


def same_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def other_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].flip(0).contiguous()


def load(directory: Path, **options) -> Transformer:
    options = {"quantization": None, "dtype": torch.float32} | options
    return load_model(directory, device="cpu", **options)[0]


@torch.no_grad()
def logits(model: Transformer) -> torch.Tensor:
    return model.logits(model(IDS, PackedCausal(rows=1, length=len(IDS))))


@torch.no_grad()
def expected(directory: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(directory)(IDS[None]).logits[0]


@pytest.mark.parametrize("change", [head_alone, same_head, other_head])
@pytest.mark.parametrize("operations", [None, cpu], ids=["plain", "native"])
def test_a_tied_config_with_a_stored_head_means_what_transformers_does(
    tiny_model_dir, tmp_path, change, operations
):
    made = rewrite(tiny_model_dir, tmp_path / "made", change, tie_word_embeddings=True)
    model = load(made, operations=operations)
    torch.testing.assert_close(logits(model), expected(made), atol=1e-4, rtol=0)
    assert model.config.tie_word_embeddings is (change is not other_head)


def test_copies_keep_the_head(tiny_model_dir, tmp_path):
    made = rewrite(tiny_model_dir, tmp_path / "made", other_head, tie_word_embeddings=True)
    save_model(load(made), tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(expected(tmp_path / "saved"), expected(made), atol=1e-5, rtol=0)
    quantize_directory(made, tmp_path / "int8", Quantization("int8"))
    quantized = load(tmp_path / "int8", quantization=Quantization("int8"))
    close = torch.nn.functional.cosine_similarity(logits(quantized), expected(made))
    assert close.mean() > 0.99


def test_an_untied_model_needs_its_embedding(tiny_model_dir, tmp_path):
    made = rewrite(tiny_model_dir, tmp_path / "made", head_alone, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is missing"):
        load(made)


@pytest.mark.parametrize("layers", [1, 3, 4096])
def test_another_number_of_layers_is_refused_before_anything_is_built(
    tiny_model_dir, tmp_path, layers
):
    made = rewrite(tiny_model_dir, tmp_path / "made", lambda _: None, num_hidden_layers=layers)
    started = time.monotonic()
    with pytest.raises(ModelError, match=f"layers {layers}, but the weights have 2") as caught:
        load(made)
    assert time.monotonic() - started < 0.5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "up_proj.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(3)), "tensor extra is unexpected"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"norm.weight has shape \[3\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_before_any_is_read(
    tiny_model_dir, tmp_path, change, problem
):
    made = rewrite(tiny_model_dir, tmp_path / "made", change)
    with pytest.raises(ModelError, match=problem) as caught:
        open_weights(made)
    assert "\n" not in str(caught.value)


def sharded(source: Path, target: Path, index: bytes) -> Path:
    shutil.copytree(source, target)
    (target / "model.safetensors").rename(target / "model-00001-of-00001.safetensors")
    (target / "model.safetensors.index.json").write_bytes(index)
    return target


def test_an_index_may_begin_with_a_byte_order_mark(tiny_model_dir, tmp_path):
    index = json.dumps({"weight_map": {EMBEDDING: "model-00001-of-00001.safetensors"}})
    made = sharded(tiny_model_dir, tmp_path / "made", b"\xef\xbb\xbf" + index.encode())
    _, source = open_weights(made)
    assert source.shape(EMBEDDING) is not None


@pytest.mark.parametrize(
    "index", [b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": [1]}}', b"[" * 100_000]
)
def test_an_index_of_another_shape_is_one_clear_line(tiny_model_dir, tmp_path, index):
    made = sharded(tiny_model_dir, tmp_path / "made", index)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json") as caught:
        open_weights(made)
    assert "\n" not in str(caught.value)
