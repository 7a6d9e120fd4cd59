"""Gemma 3 as an encoder, with linear layers after the pooling, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hagane.models.encoder_config import EncoderConfig
from hagane.system.errors import ModelError
from hagane.text.embedding_style import EmbeddingStyle
from hagane.weights.load_encoder import load_encoder
from safetensors.torch import save_file
from transformers import Gemma3TextConfig, Gemma3TextModel

IDENTITY = "torch.nn.modules.linear.Identity"
KINDS = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Dense": "Dense"}


@pytest.fixture
def embedder(tmp_path) -> tuple[Path, Gemma3TextModel]:
    """A directory as EmbeddingGemma has it, and transformers' model."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=160, hidden_size=48, intermediate_size=80, num_hidden_layers=3, head_dim=16,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
        query_pre_attn_scalar=30, sliding_window=8, sliding_window_pattern=3, pad_token_id=0,
        use_bidirectional_attention=True, attn_implementation="eager",
    )  # fmt: skip
    theirs = Gemma3TextModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    for folder, (inputs, outputs) in {"2_Dense": (48, 96), "3_Dense": (96, 48)}.items():
        (tmp_path / folder).mkdir()
        sizes = {"in_features": inputs, "out_features": outputs, "bias": False}
        (tmp_path / folder / "config.json").write_text(
            json.dumps(sizes | {"activation_function": IDENTITY})
        )
        weight = {"linear.weight": torch.randn(outputs, inputs) * 0.2}
        save_file(weight, tmp_path / folder / "model.safetensors")
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in KINDS.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return tmp_path, theirs


def read(directory: Path):
    config = EncoderConfig.find(directory)
    assert config is not None and config.decoder is not None
    return load_encoder(directory, config, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def test_embeddings_of_a_batch_are_those_of_each_text_alone(embedder):
    directory, theirs = embedder
    model = read(directory)
    assert EmbeddingStyle.load(directory, default="last", dense=True).pooling == "mean"
    generator = torch.Generator().manual_seed(1)
    # Shorter and longer than the window.
    texts = [torch.randint(1, 160, (n,), generator=generator) for n in (3, 40, 1, 12)]
    lengths = [len(text) for text in texts]
    dense = [layer.weight for layer in model.layers]
    for text, states in zip(texts, model(torch.cat(texts), lengths).split(lengths), strict=True):
        pooled = theirs(text[None]).last_hidden_state[0].mean(0)
        expected = dense[1] @ (dense[0] @ pooled)
        torch.testing.assert_close(states.mean(0), expected, atol=1e-4, rtol=0)


def test_layers_that_are_not_linear_are_refused(embedder):
    directory, _ = embedder
    path = directory / "2_Dense" / "config.json"
    path.write_text(path.read_text().replace("Identity", "Tanh"))
    with pytest.raises(ModelError, match="2_Dense: activation_function is not supported"):
        read(directory)


def test_where_nothing_computes_them_they_are_refused(embedder):
    directory, _ = embedder
    with pytest.raises(ModelError, match="a dense layer after the pooling is not supported"):
        EmbeddingStyle.load(directory, default="last")
