"""Writes GGUF files that llama.cpp reads, one tensor after the other.

The layout is the `gguf` package's; names, the order of rows and metadata are the inverse of what
`architectures.py` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from torch import Tensor

from hagane.models.config import ModelConfig
from hagane.models.rope import inverse_frequencies
from hagane.system.errors import ConfigurationError
from hagane.system.files import commit
from hagane.weights.sources.gguf.architectures import ARCHITECTURES, Architecture

FileType = Literal["F32", "F16", "Q8_0"]
_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor by its Hugging Face name; `load` reads it as float32 of `shape`."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


def write_gguf(
    target: Path,
    config: ModelConfig,
    tensors: list[ExportedTensor],
    tokenizer: Mapping[str, Any],
    kind: FileType,
) -> None:
    """Write a model whose matrices are of type `kind`; vectors are F32.

    `tokenizer` are metadata pairs, whole keys. The file appears when it is whole. Raises
    ConfigurationError for a model that the format or llama.cpp has no form for.
    """
    name, form = _architecture(config)
    partial = target.with_name(f".{target.name}.partial")
    writer = gguf.GGUFWriter(partial, name)
    _add_shape(writer, config, _FILE_TYPES[kind])
    for key, value in tokenizer.items():
        _add(writer, key, value)
    divisors = _rope_divisors(config)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
    for tensor in tensors:
        stored = _stored(tensor, kind)
        block, size = gguf.GGML_QUANT_SIZES[stored]
        count = int(np.prod(tensor.shape)) // block * size
        name = form.tensor_name(tensor.name)
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), count, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for tensor in tensors:
        values = _ordered(tensor, form, config).numpy()
        writer.write_tensor_data(gguf.quantize(values, _stored(tensor, kind)))
    writer.close()
    commit(partial, target)


def write_gguf_adapter(
    target: Path,
    config: ModelConfig,
    changes: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Write a low-rank adapter for a model of `config`, which llama.cpp adds while it serves.

    `changes` are A [rank, in] and B [out, rank] in float32, the scale in B, by the Hugging Face
    names of their matrices. Raises ConfigurationError as `write_gguf` does.
    """
    name, form = _architecture(config)
    partial = target.with_name(f".{target.name}.partial")
    writer = gguf.GGUFWriter(partial, name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # Readers multiply by alpha / rank of each matrix; llama.cpp by nothing where alpha is 0.
    ranks = {len(a) for a, _ in changes.values()}
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(ranks.pop()) if len(ranks) == 1 else 0.0)
    for weight, (a, b) in changes.items():
        rows = _permuted(b, weight, form, config)
        for letter, factor in (("a", a), ("b", rows)):
            writer.add_tensor(f"{form.tensor_name(weight)}.lora_{letter}", factor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    commit(partial, target)


def _architecture(config: ModelConfig) -> tuple[str, Architecture]:
    # llama.cpp's llama is Mistral, too.
    wanted = config.architecture.replace("Mistral", "Llama")
    found = next((pair for pair in ARCHITECTURES.items() if pair[1].name == wanted), None)
    if found is None or not found[1].writable:
        raise ConfigurationError(f"{config.architecture} has no form in GGUF that is written here")
    if any(spec.window for spec in config.layer_specs):
        raise ConfigurationError("models with sliding windows cannot be written as GGUF")
    if config.rope.kind not in ("default", "llama3"):
        raise ConfigurationError(f"rope scaling {config.rope.kind!r} cannot be written as GGUF")
    return found


def _add_shape(writer: gguf.GGUFWriter, config: ModelConfig, kind: gguf.LlamaFileType) -> None:
    writer.add_file_type(kind)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _rope_divisors(config: ModelConfig) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The divisors of the frequencies for Llama 3's scaling, as llama.cpp stores them."""
    if config.rope.kind == "default":
        return None
    plain = config.rope.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    scaled = inverse_frequencies(config.rope)
    return np.asarray(plain / scaled.double().numpy(), np.float32)


def _stored(tensor: ExportedTensor, kind: FileType) -> gguf.GGMLQuantizationType:
    """Rows that no blocks fill stay F16."""
    if len(tensor.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    filled = kind != "Q8_0" or tensor.shape[1] % 32 == 0
    return gguf.GGMLQuantizationType[kind if filled else "F16"]


def _ordered(tensor: ExportedTensor, form: Architecture, config: ModelConfig) -> Tensor:
    values = _permuted(tensor.load().float(), tensor.name, form, config)
    if tensor.name.endswith("norm.weight"):
        values = values + form.norm_offset
    return values.contiguous()


def _permuted(rows: Tensor, name: str, form: Architecture, config: ModelConfig) -> Tensor:
    """Rows of query or key with the halves of each head interleaved, where the format has it so."""
    if not form.permuted or not (".q_proj." in name or ".k_proj." in name):
        return rows.contiguous()
    # (head, half, place) becomes (head, place, half).
    halves: Tensor = rows.unflatten(0, (-1, 2, config.head_dim // 2))
    return halves.transpose(1, 2).flatten(0, 2).contiguous()
