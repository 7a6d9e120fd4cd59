"""Reading and writing weights in Hugging Face layout.

Loading streams: the model is built without storage, and one matrix after the other is read from
its memory-mapped source, cast or quantized, and put in place. The model fuses matrices
that checkpoints keep apart, as `models.spec` declares. Quantized directories written
by Hagane hold the fused matrices as they are stored in memory, so loading them is a plain read.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hagane.kernels import cpu, reference
from hagane.kernels.backend import Operations
from hagane.models.attention import Sinks
from hagane.models.config import CONFIG_FILE, ModelConfig, Quantization
from hagane.models.decoder import Attention, Transformer
from hagane.models.formats.dense import Dense, DenseEmbedding
from hagane.models.formats.int8 import Int8Embedding
from hagane.models.formats.layer import Linear, NativeQuantization, Stored
from hagane.models.linear import Quantized
from hagane.models.moe import Correction
from hagane.models.norm import Norm
from hagane.models.serving_layers import (
    Packed,
    PackedEmbedding,
    pack_for_serving,
    quantize_natively,
)
from hagane.models.sharding import Shard
from hagane.models.spec import parts_at, stored_at
from hagane.system.files import commit, write_text
from hagane.weights.eight_bits import choose_eight_bits
from hagane.weights.experts import pack_experts
from hagane.weights.finite import check_finite, naming
from hagane.weights.formats.kept import keep_on_device, pack_kept
from hagane.weights.load_progress import LoadProgress, LoadReport, count_parameters
from hagane.weights.opening import compare, open_weights
from hagane.weights.pages import release, trim_heap
from hagane.weights.serving_form import absorbed, serving_form
from hagane.weights.sharded import ShardedSource, check_stored
from hagane.weights.sources.config import load_config
from hagane.weights.sources.renamed import in_layout
from hagane.weights.sources.safetensors import WEIGHTS_FILE
from hagane.weights.sources.source import Rows, WeightSource
from hagane.weights.stacks import stack_experts

logger = logging.getLogger(__name__)

# Checkpoints call the decoder so.
_DECODER = "model."
# Elements cast or quantized at a time: loading needs little memory besides the result.
_BLOCK_ELEMENTS = 1 << 16
# The kernels' threads share a block.
_NATIVE_BLOCK_ELEMENTS = 1 << 20
# On a GPU a block must be worth a few dozen launches; it takes ten times its size meanwhile.
_DEVICE_BLOCK_ELEMENTS = 1 << 24
# The dtypes that the native kernels read and quantize.
_NATIVE = (torch.float32, torch.bfloat16)
# Tensors of names of their own, kept in float32.
_Named = Correction | Sinks
_Holder = Stored | Norm | _Named


def load_model(
    directory: Path,
    *,
    device: str,
    dtype: torch.dtype,
    quantization: Quantization | None,
    operations: Operations | None = None,
    shard: Shard | None = None,
) -> tuple[Transformer, LoadReport]:
    """Build the model of `directory` on `device`, computing in `dtype`, or a part of it.

    With `operations` it is for serving with them: matrices are packed as they want them. Without,
    it keeps its stored form, for training or saving. Raises ModelError naming the file and the
    tensor at fault, and ConfigurationError for a `shard` that the model does not have.
    """
    started = time.monotonic()
    if operations is not None and not load_config(directory).declared:
        # It imports transformers, which few installations have.
        from hagane.weights.load_undeclared import load_undeclared

        return load_undeclared(directory, device, dtype, quantization, operations)
    config, source = open_weights(directory)
    if config.quantization is None and quantization is not None:
        quantization = choose_eight_bits(config, source, quantization)
    with torch.device("meta"):
        model = Transformer(config, quantization, operations or reference)
    if config.quantization is not None:
        stored = {name: tuple(meta.shape) for name, meta in model.state_dict().items()}
        compare(directory, source, stored)
    if shard is not None:
        source = ShardedSource(source, config, shard)
        whole = model
        with torch.device("meta"):
            model = Transformer(shard.config(config), quantization, operations or reference)
        if config.quantization is not None:
            check_stored(directory, whole, model)
    loading = ModelLoader(model, directory, source, dtype, device, operations)
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, _Holder)]
    progress = LoadProgress(sum(count_parameters(module) for _, module in modules))
    size = 0
    for name, module in modules:
        size += loading.load(name, module)
        progress.advance(count_parameters(module))
    if loading.dequantized:
        logger.info(
            "%d matrices are dequantized to %s, as no kernel multiplies by their codes: the first "
            "is %s", len(loading.dequantized), dtype, loading.dequantized[0],
        )  # fmt: skip
    if operations is cpu:
        pack_experts(model, directory)
    model.model.rotaries.to(device)
    trim_heap()
    return model, LoadReport(progress.total, size, time.monotonic() - started, quantization)


@dataclass(frozen=True)
class _Part:
    """One of the stored tensors that lie one under the other in a parameter of the model."""

    name: str
    rows: Rows


@dataclass(frozen=True, eq=False)
class ModelLoader:
    """Fills a model without storage, one module after the other.

    With `operations` modules become those that serve with them.
    """

    model: Transformer
    path: Path
    source: WeightSource
    dtype: torch.dtype
    device: str = "cpu"
    operations: Operations | None = None
    # Names of matrices that could not be served with the bits that they have.
    dequantized: list[str] = field(default_factory=list)

    def fill(self, path: str) -> None:
        """Load everything at and below `path`."""
        part = self.model.get_submodule(path)
        for name, module in list(part.named_modules(prefix=path)):
            if isinstance(module, _Holder):
                self.load(name, module)

    def load(self, name: str, module: _Holder) -> int:
        """Fill `module`, and put what serves it in its place; returns its bytes."""
        if isinstance(module, Int8Embedding):
            module.dtype = self.dtype
        if isinstance(module, Norm) and not module.learned:
            ones = torch.ones(module.weight.shape, dtype=self.dtype)
            return self._place(name, module, {"weight": ones})
        if self.model.config.quantization is not None:
            return self._place(name, module, self._read_stored(name, module))
        if isinstance(module, _Named):
            return self._place(name, module, {"weight": self._read_named(name, module)})
        bias = getattr(module, "bias", None)
        tensors = {} if bias is None else {"bias": self._fuse(self._parts(name, module, "bias"))}
        parts = self._parts(name, module, "weight")
        absorbs = absorbed(self.model, name, self.operations)
        if not absorbs and (size := self._keep(name, module, parts, tensors.get("bias"))):
            return size
        packed = None if absorbs else self._pack(module, parts, tensors.get("bias"))
        if packed is not None:
            if bias is not None:
                module.bias = nn.Parameter(tensors["bias"])
            return self._serve(name, module, parts, packed)
        if isinstance(module, Quantized):
            return self._place(name, module, self._quantize(module, parts) | tensors)
        return self._place(name, module, {"weight": self._fuse(parts)} | tensors)

    def _place(self, name: str, module: _Holder, tensors: dict[str, Tensor]) -> int:
        size = 0
        for key, tensor in tensors.items():
            # Codes and scales keep their dtype: it is the quantized weights' own.
            is_parameter = key in module._parameters
            dtype = self.dtype if is_parameter else tensor.dtype
            placed = tensor.to(device=self.device, dtype=dtype)
            size += placed.nbytes
            setattr(module, key, nn.Parameter(placed) if is_parameter else placed)
        if self.operations is not None:
            self._center_keys(name, module)
            replacement, size = serving_form(self.model, name, size, self.operations, self.dtype)
            if replacement is not module:
                self.replace(name, replacement)
                release(next(iter(tensors.values())))
        return size

    def _pack(
        self, module: _Holder, parts: list[_Part], bias: Tensor | None
    ) -> cpu.PackedWeight | None:
        """The matrix as the native kernels read it, in one pass over its file.

        None for other backends, and for what must be cast or dequantized first.
        """
        if (
            self.operations is not cpu
            or self.dtype not in _NATIVE
            or not isinstance(module, Stored)
        ):
            return None
        matrices = [part.rows for part in parts]
        if (native := module.native) is not None and _all_of(matrices, _NATIVE):
            with naming(self.path, [(part.name, len(part.rows)) for part in parts]):
                return pack_for_serving(native, matrices, bias, self.dtype)
        if not isinstance(module, Dense | DenseEmbedding):
            return None
        if _all_of(matrices, (self.dtype,)):
            for part, matrix in zip(parts, matrices, strict=True):
                check_finite(self.path, part.name, matrix)
            return cpu.pack_dense_parts(matrices, bias)
        # With the bits of the file inputs are quantized to 8 bits: float32 is for those who want
        # every digit.
        if self.dtype != torch.bfloat16:
            return None
        named = {part.name: part.rows for part in parts}
        kept = pack_kept(self.path, named, bias)
        if kept is None:
            self.dequantized.extend(n for n, rows in named.items() if not isinstance(rows, Tensor))
        return kept

    def _keep(
        self, name: str, module: _Holder, parts: list[_Part], bias: Tensor | None
    ) -> int | None:
        """Serve codes of files with the Triton kernels; None, or the bytes that they take."""
        device = self.operations not in (None, cpu, reference)
        if not device or self.dtype != torch.bfloat16 or not isinstance(module, Dense):
            return None
        named = {part.name: part.rows for part in parts}
        placed = None if bias is None else bias.to(device=self.device, dtype=self.dtype)
        if kept := keep_on_device(self.path, named, placed, self.device):
            self.replace(name, kept[0])
            return kept[1]
        self.dequantized.extend(n for n, rows in named.items() if not isinstance(rows, Tensor))
        return None

    def _serve(
        self, name: str, module: _Holder, parts: list[_Part], packed: cpu.PackedWeight
    ) -> int:
        """Put the packed matrix in the place of `module`, and forget its part of the file."""
        self._center_keys(name, module)
        embeds = isinstance(module, Int8Embedding | DenseEmbedding)
        self.replace(name, PackedEmbedding(packed, self.dtype) if embeds else Packed(packed))
        for part in parts:
            if isinstance(part.rows, Tensor):
                release(part.rows)
        return packed.nbytes

    def _center_keys(self, name: str, module: _Holder) -> None:
        owner = self.model.get_submodule(name.rpartition(".")[0])
        if self.operations is cpu and isinstance(owner, Attention) and module is owner.qkv_proj:
            owner.center_keys()

    def replace(self, name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, module)

    def _read_stored(self, name: str, module: _Holder) -> dict[str, Tensor]:
        """The tensors of a module as Hagane has quantized it."""
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        tensors = {}
        for key, meta in state.items():
            rows = self.source.read(f"{name}.{key}", tuple(meta.shape))
            tensors[key] = next(iter(rows.split(len(rows))))
            check_finite(self.path, f"{name}.{key}", tensors[key])
        return tensors

    def _read_named(self, name: str, module: _Named) -> Tensor:
        stored = stored_at(self.model.config, name)
        rows = self.source.read(stored, module.stored_shape)
        whole = next(iter(rows.split(len(rows)))).float().flatten()
        check_finite(self.path, stored, whole)
        return whole

    def _parts(self, name: str, module: _Holder, kind: str) -> list[_Part]:
        """The parts of a module's weight or bias in a checkpoint."""
        shape: tuple[int, ...] = ()
        if kind == "weight" and not isinstance(module, Norm):
            wide = module.in_features if isinstance(module, Linear) else None
            shape = (wide or self.model.config.hidden_size,)
        return [
            _Part(f"{part}.{kind}", self.source.read(f"{part}.{kind}", (rows, *shape)))
            for part, rows in _parts(name, module, self.model.config)
        ]

    def _fuse(self, parts: list[_Part]) -> Tensor:
        """One under the other; what needs no change stays a view of the file."""
        first = parts[0].rows
        if len(parts) == 1 and isinstance(first, Tensor) and first.dtype == self.dtype:
            check_finite(self.path, parts[0].name, first)
            return first
        rows = sum(len(part.rows) for part in parts)
        whole = torch.empty(rows, *first.shape[1:], dtype=self.dtype)
        start = 0
        for block in self._blocks(parts, _BLOCK_ELEMENTS):
            whole[start : start + len(block)] = block
            start += len(block)
        return whole

    def _quantize(self, module: Quantized, parts: list[_Part]) -> dict[str, Tensor]:
        """Where the result will be: a GPU quantizes faster than weights can be sent to it."""
        elements = _BLOCK_ELEMENTS if self.device == "cpu" else _DEVICE_BLOCK_ELEMENTS
        usable = self.device == "cpu" and cpu.available() and self.dtype in _NATIVE
        native = module.native if usable else None
        if native is not None:
            elements = _NATIVE_BLOCK_ELEMENTS
        total = sum(len(part.rows) for part in parts)
        tensors: dict[str, Tensor] = {}
        start = 0
        for block in self._blocks(parts, elements):
            for key, piece in self._quantize_block(module, block, native).items():
                whole = tensors.get(key)
                if whole is None:
                    whole = tensors[key] = piece.new_empty(total, *piece.shape[1:])
                whole[start : start + len(piece)] = piece
            start += len(block)
        return tensors

    def _quantize_block(
        self, module: Quantized, block: Tensor, native: NativeQuantization | None
    ) -> dict[str, Tensor]:
        if native is not None:
            return quantize_natively(native, [block], self.dtype)
        return module.quantize(block.to(self.device))

    def _blocks(self, parts: list[_Part], elements: int) -> Iterator[Tensor]:
        """All rows, in tensors of about `elements` numbers that were checked to be numbers."""
        for part in parts:
            start = 0
            for block in part.rows.split(max(1, elements // math.prod(part.rows.shape[1:]))):
                cast = block.to(self.dtype)
                check_finite(self.path, part.name, cast, start)
                yield cast
                start += len(block)
                release(block)


def _all_of(matrices: list[Rows], dtypes: tuple[torch.dtype, ...]) -> TypeGuard[list[Tensor]]:
    return all(isinstance(matrix, Tensor) and matrix.dtype in dtypes for matrix in matrices)


def _parts(name: str, module: nn.Module, config: ModelConfig) -> list[tuple[str, int]]:
    """Checkpoint names, with their row counts, of the matrices that make up module `name`."""
    parts = parts_at(config, name.removeprefix(_DECODER))
    if parts is not None:
        return [(f"{_DECODER}{part}", rows) for part, rows in parts.items()]
    state = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [(stored_at(config, name), state[0].shape[0])]


def checkpoint_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The unquantized model's tensors under their Hugging Face names, fused ones taken apart."""
    for name, module in model.named_modules():
        if isinstance(module, _Named):
            stored = stored_at(model.config, name)
            yield stored, module.weight.view(module.stored_shape)
        if not isinstance(module, Dense | DenseEmbedding | Norm):
            continue
        parts = _parts(name, module, model.config)
        for key, parameter in module.named_parameters(recurse=False):
            pieces = parameter.detach().split([rows for _, rows in parts])
            for (part, _), piece in zip(parts, pieces, strict=True):
                yield f"{part}.{key}", piece


def save_model(model: Transformer, directory: Path, *, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors, readable by transformers, weights in `dtype`."""
    tensors = {
        # A correction keeps its dtype: it decides between near scores.
        n: t.to("cpu", t.dtype if n.endswith("correction_bias") else dtype).contiguous()
        for n, t in checkpoint_tensors(model)
    }
    stored = in_layout(model.config, stack_experts(model.config, tensors))
    write_directory(directory, stored, model.config.to_dict())


def write_directory(directory: Path, tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    """Write weights, then config.json, each atomically: a reader never sees half a file."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{WEIGHTS_FILE}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    commit(partial, directory / WEIGHTS_FILE)
    write_text(directory / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
