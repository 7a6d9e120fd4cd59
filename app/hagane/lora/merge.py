"""Merge an adapter into its base."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from hagane.lora.config import EMBEDDING
from hagane.lora.dora import merged
from hagane.lora.files import load_adapter
from hagane.models.formats.dense import Dense
from hagane.models.spec import parts_at
from hagane.system.errors import ConfigurationError, ModelError
from hagane.text.companions import write_companions
from hagane.weights.load import load_model, save_model
from hagane.weights.quantize import COMPANIONS
from hagane.weights.sources.config import is_gguf, load_config


@torch.no_grad()
def merge_directory(base: Path, adapter_directory: Path, destination: Path) -> int:
    """Write base + adapter as a Hugging Face directory in the base's dtype; returns how many
    matrices changed.

    Sums are taken in float32. Raises ConfigurationError if the base is quantized or `destination`
    is not empty, and ModelError if either directory cannot be read or they do not fit together.
    """
    config = load_config(base)
    if config.quantization is not None:
        raise ConfigurationError(f"{base} is quantized: merge into the unquantized model")
    if destination.exists() and any(destination.iterdir()):
        raise ConfigurationError(f"{destination} is not empty: name a new directory")
    dtype = getattr(torch, config.dtype)
    model, _ = load_model(base, device="cpu", dtype=dtype, quantization=None)
    # Whether the head is tied is known once the weights are.
    config = model.config
    adapter = load_adapter(adapter_directory, config)
    unmerged = set(adapter.changes)
    for path, layer in model.model.named_modules():
        if not isinstance(layer, Dense):
            continue
        start = 0
        for name, rows in (parts_at(config, path) or {}).items():
            change = adapter.changes.get(name)
            if change is not None:
                part = layer.weight.data[start : start + rows]
                part.copy_(merged(part, change))
                unmerged.discard(name)
            start += rows
    for name, replaced in adapter.tokens.items():
        place = model.model.embed_tokens if name == EMBEDDING else model.lm_head
        place.get_parameter("weight").data[list(replaced.ids)] = replaced.values.to(dtype)
    if unmerged:
        raise ModelError(f"{adapter_directory}: the model has no matrix {min(unmerged)}")
    save_model(model, destination, dtype=dtype)
    if is_gguf(base):
        write_companions(base, destination)
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, destination / name)
    return len(adapter.changes)
