"""Loads an encoder from the safetensors files of a directory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import nn

from hagane.kernels import reference
from hagane.models.bidirectional import BidirectionalDecoder, Projected
from hagane.models.config import ModelConfig
from hagane.models.decoder import Transformer
from hagane.models.embedding_modules import embedding_modules
from hagane.models.encoder import Encoder, ScoringHead, head_names
from hagane.models.encoder_config import EncoderConfig
from hagane.models.modern_bert import ModernBert
from hagane.models.spec import checkpoint_shapes
from hagane.system.errors import ModelError
from hagane.system.files import read_json_object
from hagane.system.shapes import shaped
from hagane.weights.load import ModelLoader
from hagane.weights.opening import compare
from hagane.weights.sources.renamed import RenamedSource
from hagane.weights.sources.safetensors import SafetensorsCheckpoint

AnyEncoder = Encoder | ModernBert | BidirectionalDecoder | Projected

_IDENTITY = "torch.nn.modules.linear.Identity"


class _Dense(msgspec.Struct, frozen=True):
    """A linear layer of sentence-transformers."""

    in_features: int
    out_features: int
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


def load_encoder(
    directory: Path, config: EncoderConfig, *, dtype: torch.dtype, device: torch.device
) -> AnyEncoder:
    """The model, ready to compute. Raises ModelError naming a tensor that is missing or wrong."""
    checkpoint = SafetensorsCheckpoint(directory)
    if config.decoder is not None:
        transformer = _load_decoder(directory, config.decoder, checkpoint, dtype, device)
        model: nn.Module = BidirectionalDecoder(config, transformer)
    else:
        with torch.device("meta"):
            model = Encoder(config) if config.turned is None else ModernBert(config)
        state = {
            name: checkpoint.read(config.prefix + name, tuple(parameter.shape)).to(device, dtype)
            for name, parameter in model.named_parameters()
        }
        model.load_state_dict(state, assign=True)
    # Cross-encoders pool nothing.
    layers = _dense_layers(directory, dtype, device) if config.scale is None else []
    whole: AnyEncoder = (Projected(config, model, layers) if layers else model).eval()  # type: ignore[assignment]
    return whole


def _load_decoder(
    directory: Path,
    config: ModelConfig,
    checkpoint: SafetensorsCheckpoint,
    dtype: torch.dtype,
    device: torch.device,
) -> Transformer:
    source = RenamedSource(checkpoint, config)
    compare(directory, source, checkpoint_shapes(config))
    with torch.device("meta"):
        model = Transformer(config, None, reference)
    ModelLoader(model, directory, source, dtype, str(device)).fill("model")
    model.model.rotaries.to(device)
    return model


def _dense_layers(directory: Path, dtype: torch.dtype, device: torch.device) -> list[nn.Linear]:
    """What sentence-transformers has after the pooling. Raises ModelError for activations."""
    layers = []
    for step in embedding_modules(directory):
        if step.kind != "Dense":
            continue
        folder = step.folder(directory)
        stored = shaped(read_json_object(folder / "config.json"), _Dense, str(folder))
        if stored.activation_function != _IDENTITY:
            raise ModelError(f"{folder}: activation_function is not supported: it is not linear")
        with torch.device("meta"):
            layer = nn.Linear(stored.in_features, stored.out_features, bias=stored.bias)
        source = SafetensorsCheckpoint(folder)
        state = {
            name: source.read(f"linear.{name}", tuple(parameter.shape)).to(device, dtype)
            for name, parameter in layer.named_parameters()
        }
        layer.load_state_dict(state, assign=True)
        layers.append(layer)
    return layers


def load_head(
    directory: Path, config: EncoderConfig, *, dtype: torch.dtype, device: torch.device
) -> ScoringHead:
    """The head of a cross-encoder. Raises as `load_encoder` does."""
    checkpoint = SafetensorsCheckpoint(directory)
    with torch.device("meta"):
        head = ScoringHead(config)
    state = {}
    for layer, name in head_names(config).items():
        for part, parameter in head.get_submodule(layer).named_parameters():
            stored = checkpoint.read(f"{name}.{part}", tuple(parameter.shape))
            state[f"{layer}.{part}"] = stored.to(device, dtype)
    head.load_state_dict(state, assign=True)
    return head.eval()
