"""Open a model's configuration and weights together, and compare them before anything is built."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hagane.models.config import JointKind, ModelConfig
from hagane.models.spec import checkpoint_shapes, layer_norms, stored_at
from hagane.system.errors import ModelError
from hagane.weights.sources.config import is_gguf, load_config
from hagane.weights.sources.joint_experts import JointExperts
from hagane.weights.sources.renamed import RenamedSource
from hagane.weights.sources.source import Rows, WeightSource, open_source

logger = logging.getLogger(__name__)

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Rows compared at a time.
_ROWS = 4096


@dataclass(frozen=True)
class _HeadAsEmbedding:
    """A source whose embedding is stored under the name of the head alone."""

    source: WeightSource

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.source.shape(_HEAD if name == _EMBEDDING else name)

    def others(self, names: Collection[str]) -> list[str]:
        return self.source.others(names)

    def read(self, name: str, shape: tuple[int, ...]) -> Rows:
        return self.source.read(_HEAD if name == _EMBEDDING else name, shape)


def open_weights(path: Path) -> tuple[ModelConfig, WeightSource]:
    """The configuration and the weights of a Hugging Face directory or a GGUF file.

    Where the configuration ties the head to the embedding, the tensors decide, as they do in
    transformers: a head of other values is used, a head alone is the embedding, too. Raises
    ModelError if either cannot be read, or naming the first tensor that only one of them has, or
    that they give different shapes.
    """
    config = load_config(path)
    if not config.declared:
        raise ModelError(
            f"{path}: {config.architecture} runs through transformers' own code: it can be served, "
            "not trained, converted or exported"
        )
    source = open_source(path, config.stored)
    # Hagane's own directories have the model's own names.
    if not is_gguf(path) and config.quantization is None:
        if config.layout is not None:
            source = RenamedSource(source, config)
        if joint := _joint_experts(config):
            source = JointExperts(source, path, joint)
    _check_layers(path, config, source)
    if config.tie_word_embeddings and source.shape(_HEAD) is not None:
        if source.shape(_EMBEDDING) is None:
            source = _HeadAsEmbedding(source)
        elif not _is_tied(config, source):
            logger.warning(
                "%s: the config has tie_word_embeddings true, but %s differs from %s: both are "
                "used", path, _HEAD, _EMBEDDING,
            )  # fmt: skip
            config = replace(config, tie_word_embeddings=False)
    if config.quantization is None:
        compare(path, source, checkpoint_shapes(config), config.unused)
    return config, source


def compare(
    path: Path,
    source: WeightSource,
    expected: Mapping[str, tuple[int, ...]],
    unused: tuple[str, ...] = (),
) -> None:
    """Raises ModelError unless `source`, read from `path`, has the `expected` tensors and no other.

    A head may be left over: that of a tied model is its embedding once more. So may tensors whose
    names begin with one of `unused`.
    """
    missing = [name for name in expected if source.shape(name) is None]
    if missing:
        raise ModelError(f"{path}: tensor {missing[0]} is missing{_count(missing)}")
    for name, shape in expected.items():
        stored = source.shape(name)
        if stored != shape:
            raise ModelError(
                f"{path}: tensor {name} has shape {list(stored or ())}, the config asks for "
                f"{list(shape)}"
            )
    others = [n for n in source.others({*expected, _HEAD}) if not n.startswith(unused)]
    if others:
        raise ModelError(f"{path}: tensor {others[0]} is unexpected{_count(others)}")


def _joint_experts(config: ModelConfig) -> JointKind | None:
    """How gate and up projection of all experts lie in one tensor; None where they do not."""
    mixtures = (spec.experts for spec in config.layer_specs)
    return next((m.names.joint for m in mixtures if m and m.names.joint), None)


def _count(names: list[str]) -> str:
    return f" ({len(names)} such tensors)" if len(names) > 1 else ""


def _check_layers(path: Path, config: ModelConfig, source: WeightSource) -> None:
    """Before the tensors are named one by one: a count is clearer than the first of many names."""
    norm = next(iter(layer_norms(config)))
    stored_name = norm if config.quantization is not None else stored_at(config, norm)
    if not config.norm_weights:
        if config.quantization is not None:
            return
        stored_name = "self_attn.o_proj"

    def has(layer: int) -> bool:
        return source.shape(f"model.layers.{layer}.{stored_name}.weight") is not None

    beyond = has(config.layers) and f"model.layers.{config.layers}." not in config.unused
    if has(config.layers - 1) and not beyond:
        return
    stored = next(layer for layer in range(1 << 24) if not has(layer))
    raise ModelError(
        f"{path}: the config has num_hidden_layers {config.layers}, but the weights have {stored} "
        "layers: they do not belong together, or a file is missing"
    )


def _is_tied(config: ModelConfig, source: WeightSource) -> bool:
    shape = (config.vocab_size, config.hidden_size)
    embedding, head = (source.read(name, shape).split(_ROWS) for name in (_EMBEDDING, _HEAD))
    return all(torch.equal(a, b) for a, b in zip(embedding, head, strict=True))
