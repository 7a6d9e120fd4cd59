"""A model, with an adapter's changes or without, or the adapter alone, as a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels import reference
from hagane.lora.dora import merged
from hagane.lora.files import Adapter, load_adapter
from hagane.models.decoder import Transformer
from hagane.system.errors import ConfigurationError
from hagane.text.chat_template import ChatTemplate
from hagane.text.gguf_vocabulary import gguf_vocabulary
from hagane.text.tokenizer import Tokenizer
from hagane.weights.load import checkpoint_tensors
from hagane.weights.opening import open_weights
from hagane.weights.sources.config import load_config
from hagane.weights.sources.gguf.writer import (
    ExportedTensor,
    FileType,
    write_gguf,
    write_gguf_adapter,
)
from hagane.weights.sources.source import WeightSource


def export_gguf(
    base: Path,
    adapter_directory: Path | None,
    target: Path,
    kind: FileType,
    report: Callable[[float], None] = lambda share: None,
) -> int:
    """Write base + adapter as the file `target`; returns how many matrices were changed.

    One tensor is in memory at a time; `report` gets the share of them that is read. Raises
    ConfigurationError if the model has no form in GGUF or `target` exists, and ModelError if what
    is read is damaged or does not fit together.
    """
    config = load_config(base)
    if config.quantization is not None:
        raise ConfigurationError(f"{base} is quantized: export the unquantized model")
    if target.exists():
        raise ConfigurationError(f"{target} exists: name a new file")
    template = ChatTemplate.load(base, Tokenizer.load(base))
    pairs = gguf_vocabulary(base, config.vocab_size, template.source if template else None)
    config, source = open_weights(base)
    adapter = load_adapter(adapter_directory, config) if adapter_directory else None
    with torch.device("meta"):
        model = Transformer(config, None, reference)
    shapes = [(name, meta.shape) for name, meta in checkpoint_tensors(model)]

    def load(number: int) -> Tensor:
        values = _load(source, adapter, *shapes[number])
        report((number + 1) / len(shapes))
        return values

    tensors = [
        ExportedTensor(name, tuple(shape), partial(load, number))
        for number, (name, shape) in enumerate(shapes)
    ]
    write_gguf(target, config, tensors, pairs, kind)
    return len(adapter.changes) if adapter else 0


@torch.no_grad()
def export_gguf_adapter(base: Path, adapter_directory: Path, target: Path) -> int:
    """Write an adapter for `base` alone as the file `target`; returns how many matrices it changes.

    Raises as `export_gguf` does.
    """
    config = load_config(base)
    if target.exists():
        raise ConfigurationError(f"{target} exists: name a new file")
    adapter = load_adapter(adapter_directory, config)
    if adapter.config.dora:
        raise ConfigurationError(
            f"{adapter_directory} is DoRA's (use_dora): GGUF adapters have no place for its "
            "magnitudes; export the model with it"
        )
    if adapter.tokens:
        raise ConfigurationError(
            f"{adapter_directory} replaces rows of the embedding (trainable_token_indices): GGUF "
            "adapters have no place for them; export the model with it"
        )
    changes = adapter.changes
    factors = {
        f"model.{module}.weight": (change.a.float(), change.scale * change.b.float())
        for module, change in changes.items()
    }
    write_gguf_adapter(target, config, factors)
    return len(changes)


@torch.no_grad()
def _load(source: WeightSource, adapter: Adapter | None, name: str, shape: torch.Size) -> Tensor:
    rows = source.read(name, tuple(shape))
    values = torch.cat([block.float() for block in rows.split(max(1, len(rows)))])
    module = name.removeprefix("model.").removesuffix(".weight")
    replaced = adapter.tokens.get(module) if adapter else None
    if replaced is not None:
        values[list(replaced.ids)] = replaced.values.float()
    change = adapter.changes.get(module) if adapter else None
    if change is None:
        return values
    return merged(values, change)
