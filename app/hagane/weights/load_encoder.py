"""Loads an encoder from the safetensors files of a directory."""

from __future__ import annotations

from pathlib import Path

import torch

from hagane.models.encoder import Encoder, ScoringHead, head_names
from hagane.models.encoder_config import EncoderConfig
from hagane.weights.sources.safetensors import SafetensorsCheckpoint


def load_encoder(
    directory: Path, config: EncoderConfig, *, dtype: torch.dtype, device: torch.device
) -> Encoder:
    """The model, ready to compute. Raises ModelError naming a tensor that is missing or wrong."""
    checkpoint = SafetensorsCheckpoint(directory)
    with torch.device("meta"):
        model = Encoder(config)
    state = {
        name: checkpoint.read(config.prefix + name, tuple(parameter.shape)).to(device, dtype)
        for name, parameter in model.named_parameters()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


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
