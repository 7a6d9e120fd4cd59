"""Reading and writing weights in Hugging Face layout.

Loading streams: the model is built without storage, and one matrix after the other is read from
its memory-mapped source, cast or quantized, and put in place. The model fuses matrices
that checkpoints keep apart; `FUSED` is the only place that knows it. Quantized directories written
by Hagane hold the fused matrices as they are stored in memory, so loading them is a plain read.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import mmap
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hagane.kernels import Operations, cpu, reference
from hagane.models.config import CONFIG_FILE, ModelConfig, Quantization
from hagane.models.decoder import Attention, RMSNorm, Transformer
from hagane.models.linear import Dense, DenseEmbedding, Int4, Int8Embedding, Linear, Quantized
from hagane.models.serving import for_serving
from hagane.system.files import commit, write_text
from hagane.weights.sources.config import load_config
from hagane.weights.sources.safetensors import WEIGHTS_FILE
from hagane.weights.sources.source import Rows, WeightSource, open_source

logger = logging.getLogger(__name__)

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
# Elements quantized at a time: what loading needs beside the result stays a few megabytes.
_BLOCK_ELEMENTS = 1 << 16
# On a GPU a block must be worth a few dozen launches; it takes ten times its size meanwhile.
_DEVICE_BLOCK_ELEMENTS = 1 << 24
_Holder = Linear | DenseEmbedding | Int8Embedding | RMSNorm


@dataclass(frozen=True)
class LoadReport:
    """What was loaded; `weight_bytes` includes scales, `parameters` counts weights alone."""

    parameters: int
    weight_bytes: int
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.weight_bytes / self.parameters


def load_model(
    directory: Path,
    *,
    device: str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    operations: Operations | None = None,
) -> tuple[Transformer, LoadReport]:
    """Build the model of `directory` on `device`, computing in `dtype`.

    With `operations` it is for serving with them: matrices are packed as they want them. Without,
    it keeps its stored form, for training or saving. Raises ModelError naming the file and the
    tensor at fault.
    """
    started = time.monotonic()
    config = load_config(directory)
    with torch.device("meta"):
        model = Transformer(config, quantization, operations or reference)
    source = open_source(directory)
    stored = config.quantization is not None
    parameters = size = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, _Holder):
            continue
        tensors = (
            _read_stored(source, name, module)
            if stored
            else _read_float(source, name, module, config, dtype, device)
        )
        parameters += _count(module)
        for key, tensor in tensors.items():
            # Codes and scales keep their dtype: it is the quantized weights' own.
            is_parameter = key in module._parameters
            placed = tensor.to(device=device, dtype=dtype if is_parameter else tensor.dtype)
            size += placed.nbytes
            setattr(module, key, nn.Parameter(placed) if is_parameter else placed)
        if isinstance(module, Int8Embedding):
            module.dtype = dtype
        owner = model.get_submodule(name.rpartition(".")[0])
        if operations is cpu and isinstance(owner, Attention) and module is owner.qkv_proj:
            owner.center_keys(model.model.rotary)
        if operations is not None:
            replacement = for_serving(module, operations, dtype)
            if replacement is not module:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, replacement)
                _release(next(iter(tensors.values())))
                _trim_heap()
    model.model.rotary.to(device)
    source.finish({"lm_head.weight"} if config.tie_word_embeddings else set())
    return model, LoadReport(parameters, size, time.monotonic() - started)


def _count(module: _Holder) -> int:
    total = sum(p.numel() for p in module.parameters(recurse=False))
    if isinstance(module, Quantized):
        codes = next(module.buffers(recurse=False))
        total += codes.numel() * (2 if isinstance(module, Int4) else 1)
    return total


def _read_stored(source: WeightSource, name: str, module: _Holder) -> dict[str, Tensor]:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    stored = {key: source.read(f"{name}.{key}", tuple(meta.shape)) for key, meta in state.items()}
    return {key: next(iter(rows.split(len(rows)))) for key, rows in stored.items()}


def _read_float(
    source: WeightSource,
    name: str,
    module: _Holder,
    config: ModelConfig,
    dtype: torch.dtype,
    device: str,
) -> dict[str, Tensor]:
    """Read a module's parts from a checkpoint, fuse them, and quantize if the module wants it."""
    parts = _parts(name, module, config)
    columns = (config.hidden_size,) if isinstance(module, DenseEmbedding | Int8Embedding) else ()
    if isinstance(module, Linear):
        columns = (module.in_features,)

    def read(kind: str, shape: tuple[int, ...]) -> list[Rows]:
        return [source.read(f"{part}.{kind}", (rows, *shape)) for part, rows in parts]

    weights = read("weight", columns)
    if isinstance(module, Quantized):
        tensors = _quantize(module, weights, dtype, device)
    else:
        tensors = {"weight": _fuse(weights, dtype)}
    if getattr(module, "bias", None) is not None:
        tensors["bias"] = _fuse(read("bias", ()), dtype)
    return tensors


def _fuse(parts: list[Rows], dtype: torch.dtype) -> Tensor:
    """One under the other in `dtype`; what needs no change stays a view of the file."""
    first = parts[0]
    if len(parts) == 1 and isinstance(first, Tensor) and first.dtype == dtype:
        return first
    whole = torch.empty(sum(map(len, parts)), *first.shape[1:], dtype=dtype)
    start = 0
    for block in _blocks(parts, _BLOCK_ELEMENTS):
        whole[start : start + len(block)] = block
        start += len(block)
        _release(block)
    return whole


def _quantize(
    module: Quantized, parts: list[Rows], dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Where the result will be: a GPU quantizes faster than weights can be sent to it."""
    elements = _BLOCK_ELEMENTS if device == "cpu" else _DEVICE_BLOCK_ELEMENTS
    total = sum(map(len, parts))
    tensors: dict[str, Tensor] = {}
    start = 0
    for block in _blocks(parts, elements):
        for key, piece in module.quantize(block.to(device, dtype)).items():
            whole = tensors.get(key)
            if whole is None:
                whole = tensors[key] = piece.new_empty(total, *piece.shape[1:])
            whole[start : start + len(piece)] = piece
        start += len(block)
        _release(block)
    return tensors


def _blocks(parts: list[Rows], elements: int) -> Iterator[Tensor]:
    """All rows in float tensors of about `elements` numbers, read one after the other."""
    for part in parts:
        yield from part.split(max(1, elements // math.prod(part.shape[1:])))


def _release(tensor: Tensor) -> None:
    """Give back the memory of a tensor that is not needed any more, often a view of a file.

    Without this, what was read of a mapped file would stay in memory until it is unmapped.
    """
    if not sys.platform.startswith("linux") or tensor.device.type != "cpu":
        return
    # Only whole pages, so that neighbours that are still in use keep theirs.
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        size = ctypes.c_size_t(last - first)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_DONTNEED)


def _trim_heap() -> None:
    """Otherwise the C library keeps up to 64 MB of what loading has freed."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _parts(name: str, module: nn.Module, config: ModelConfig) -> list[tuple[str, int]]:
    """Checkpoint names, with their row counts, of the matrices that make up module `name`."""
    parent, _, leaf = name.rpartition(".")
    if leaf == "qkv_proj":
        rows = [config.heads * config.head_dim] + [config.kv_heads * config.head_dim] * 2
    elif leaf == "gate_up_proj":
        rows = [config.intermediate_size] * 2
    else:
        state = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        return [(name, state[0].shape[0])]
    return [(f"{parent}.{part}", count) for part, count in zip(FUSED[leaf], rows, strict=True)]


def checkpoint_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The unquantized model's tensors under their Hugging Face names, fused ones taken apart."""
    for name, module in model.named_modules():
        if not isinstance(module, Dense | DenseEmbedding | RMSNorm):
            continue
        parts = _parts(name, module, model.config)
        for key, parameter in module.named_parameters(recurse=False):
            pieces = parameter.detach().split([rows for _, rows in parts])
            for (part, _), piece in zip(parts, pieces, strict=True):
                yield f"{part}.{key}", piece


def save_model(model: Transformer, directory: Path, *, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors, readable by transformers, weights in `dtype`."""
    tensors = {n: t.to("cpu", dtype).contiguous() for n, t in checkpoint_tensors(model)}
    write_directory(directory, tensors, model.config.to_dict())


def write_directory(directory: Path, tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    """Write weights, then config.json, each atomically: a reader never sees half a file."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{WEIGHTS_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    commit(partial, directory / WEIGHTS_FILE)
    write_text(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
