"""Quantize a model layer by layer, each by the inputs that the quantized ones before it give.

At any time one layer is there in floats, next to the activations of the calibration text:

    embedding -> for each layer: read it, observe the inputs of its matrices, round these by them,
    compute what the layer gives now -> norm, head
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hagane.kernels import reference
from hagane.models.attention import PackedSequences
from hagane.models.config import Quantization
from hagane.models.decoder import DecoderLayer, Transformer
from hagane.models.formats.dense import Dense
from hagane.models.formats.int4 import Int4, pack_codes
from hagane.models.formats.layer import Linear, rotated
from hagane.models.linear import make_embedding, make_projection
from hagane.weights.calibration.inputs import Gram, observed
from hagane.weights.calibration.rounding import round_compensated
from hagane.weights.calibration.sensitivity import Sensitivity
from hagane.weights.eight_bits import choose_by_loss, choose_eight_bits
from hagane.weights.finite import check_finite
from hagane.weights.load import ModelLoader
from hagane.weights.opening import open_weights

logger = logging.getLogger(__name__)

_EMBEDDING, _NORM, _HEAD = "model.embed_tokens", "model.norm", "lm_head"
# Tokens that go through a layer together.
_TOGETHER = 4096
# With fewer tokens for each of its inputs, as of a rare expert, a matrix is rounded to the nearest.
_TOKENS_PER_INPUT = 0.5


@dataclass(frozen=True, eq=False)
class Calibration:
    """int64 token ids [windows, length] of text that is like what the model will see.

    `advance` is called after each layer with the number of layers done, and of all.
    """

    windows: Tensor
    advance: Callable[[int, int], None] = lambda done, layers: None


def calibrate(
    directory: Path, quantization: Quantization, calibration: Calibration
) -> tuple[Transformer, Quantization]:
    """The model of `directory` in its stored form, its 4-bit matrices rounded by what they read.

    Which have 8 bits is measured first: as many weights as without calibration. Raises ModelError
    naming the file and the tensor at fault.
    """
    config, source = open_weights(directory)
    quantization = choose_eight_bits(config, source, quantization)
    with torch.device("meta"):
        model = Transformer(config, None, reference)
    # Inputs of some layers, and products of gradients, leave float16's range.
    dtype = torch.float32 if config.dtype == "float16" else getattr(torch, config.dtype)
    loader = ModelLoader(model, directory, source, dtype)
    losses = Sensitivity(model, loader, quantization, calibration.windows).measure()
    quantization = choose_by_loss(config, quantization, losses)
    quantized = _Run(model, loader, quantization, calibration).model_quantized()
    for parameter in quantized.parameters():
        parameter.data = parameter.data.to(getattr(torch, config.dtype))
    return quantized, quantization


@dataclass(frozen=True, eq=False)
class _Run:
    """Replaces the matrices of a model without storage by quantized ones, first to last."""

    model: Transformer
    loader: ModelLoader
    quantization: Quantization
    calibration: Calibration

    @torch.no_grad()
    def model_quantized(self) -> Transformer:
        decoder = self.model.model
        self.loader.fill(_EMBEDDING)
        hidden = torch.cat([decoder.embed(part.flatten()) for part in self._parts()])
        self._replace_table(_EMBEDDING)
        for number in range(len(decoder.layers)):
            hidden = self._layer(number, hidden)
            self.calibration.advance(number + 1, len(decoder.layers))
        self.loader.fill(_NORM)
        if not self.model.config.tie_word_embeddings:
            self._replace_table(_HEAD)
        return self.model

    def _parts(self) -> tuple[Tensor, ...]:
        windows = self.calibration.windows
        parts: tuple[Tensor, ...] = windows.split(max(1, _TOGETHER // windows.shape[1]))
        return parts

    def _replace_table(self, name: str) -> None:
        config = self.model.config
        with torch.device("meta"):
            table = make_embedding(config.vocab_size, config.hidden_size, self.quantization)
        self._load(name, table)

    def _load(self, name: str, module: nn.Module) -> None:
        """Put `module` at `name`, quantized to the nearest."""
        self.loader.replace(name, module)
        self.loader.fill(name)

    def _layer(self, number: int, hidden: Tensor) -> Tensor:
        """Quantize a layer that gets `hidden` [tokens, hidden size]; returns what it gives."""
        prefix = f"model.layers.{number}"
        self.loader.fill(prefix)
        layer = cast(DecoderLayer, self.model.get_submodule(prefix))
        dense = {n: m for n, m in layer.named_modules() if isinstance(m, Dense)}
        with torch.device("meta"):
            small = {
                path: make_projection(self.model.config, number, path, self.quantization)
                for path in dense
            }
        rounded = {path: dense[path] for path, module in small.items() if isinstance(module, Int4)}
        with observed(rounded) as grams:
            self._forward(layer, hidden)
        for path, module in small.items():
            self._quantize(f"{prefix}.{path}", dense[path], module, grams.get(path))
            grams.pop(path, None)
            dense[path].weight.data = module.matrix(torch.float32).to(self.loader.dtype)
        hidden = self._forward(layer, hidden)
        for path, module in small.items():
            self.loader.replace(f"{prefix}.{path}", module)
        return hidden

    def _forward(self, layer: DecoderLayer, hidden: Tensor) -> Tensor:
        outputs = []
        parts = self._parts()
        for part, x in zip(parts, hidden.split([p.numel() for p in parts]), strict=True):
            context = PackedSequences([part.shape[1]] * len(part))
            rotations = self.model.model.rotations(context.positions)
            outputs.append(layer(x, rotations[layer.self_attn.rope], context))
        return torch.cat(outputs)

    def _quantize(self, name: str, dense: Dense, module: Linear, gram: Gram | None) -> None:
        """Fill `module` with what is stored of the matrix `dense` at `name`."""
        known = gram is not None and gram.tokens >= _TOKENS_PER_INPUT * dense.in_features
        if gram is None or not isinstance(module, Int4) or not known:
            if gram is not None:
                logger.info("%s: %d tokens are too few to round it by", name, gram.tokens)
            self._load(name, module)
            self.loader.replace(name, dense)
            return
        turned = rotated(dense.weight.float(), module.rotation)
        codes, scale = round_compensated(turned, gram.mean(module.rotation), module.group_size)
        check_finite(self.loader.path, name, scale)
        module.weight_int4, module.scale = pack_codes(codes), scale
        module.bias = dense.bias
