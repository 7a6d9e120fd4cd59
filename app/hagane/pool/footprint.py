"""The memory that an engine process needs, known before it is started."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from hagane.models.config import ModelConfig
from hagane.models.encoder_config import EncoderConfig
from hagane.models.spec import checkpoint_shapes
from hagane.pool.messages import EngineConfig
from hagane.system.weight_formats import WEIGHT_FORMATS
from hagane.weights.sources.config import is_gguf, load_any_config
from hagane.weights.sources.gguf.file import GGUFModel, shard_paths
from hagane.weights.sources.gguf.types import TYPES

# Bits of a served weight, with its share of the scales.
_BITS = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "float16": 16.0,
    **{name: declared.bits for name, declared in WEIGHT_FORMATS.items()},
}
# Interpreter, torch and buffers of a process that serves a small model: a round figure.
_PROCESS_BYTES = 400 << 20
# GGUF's number of the type, which safetensors have, too.
_MXFP4 = 39


def engine_bytes(config: EngineConfig) -> int:
    """The least that the engine takes, in bytes: its process and its weights, as they are served.

    Raises ModelError if the model's configuration cannot be read.
    """
    return _PROCESS_BYTES + weight_bytes(config)


def weight_bytes(config: EngineConfig) -> int:
    """The stored weights, in bytes, in the form in which they are served."""
    path = Path(config.model)
    model = load_any_config(path)
    if isinstance(model, EncoderConfig):
        return _stored_bytes(path)
    kept = (model.stored is not None or is_gguf(path)) and config.quantize == "none"
    if kept and is_gguf(path):
        return _kept_bytes(path)
    if model.quantization is not None or kept:
        return _stored_bytes(path) + _widening(path, model)
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    # transformers reads an undeclared family as floats, of which layer after layer is packed.
    floats = config.quantize == "none" or not model.declared
    form = dtype if floats else config.quantize
    return int(_count_weights(path, model) * _BITS[form] / 8)


def _stored_bytes(path: Path) -> int:
    files = shard_paths(path) if is_gguf(path) else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _kept_bytes(path: Path) -> int:
    """Those of a GGUF file's tensors as kernels keep them."""
    tensors = [info for _, info in GGUFModel(path).tensors.values()]
    return sum(max(t.size, int(math.prod(t.shape) * t.type.held / 8)) for t in tensors)


def _widening(path: Path, model: ModelConfig) -> int:
    """How many more bytes MXFP4's experts take than in their files, since a code has 5 bits."""
    if model.stored is None or model.stored.method != "mxfp4":
        return 0
    codes = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            names = weights.keys()
            shapes = [weights.get_slice(n).get_shape() for n in names if n.endswith("_blocks")]
            codes += sum(2 * math.prod(shape) for shape in shapes)
    return int(codes * (TYPES[_MXFP4].held - TYPES[_MXFP4].bits) / 8)


def _count_weights(path: Path, model: ModelConfig) -> int:
    """From headers alone; of packed codes and GGUF files, from the configuration."""
    if model.stored is not None or is_gguf(path):
        return sum(map(math.prod, checkpoint_shapes(model).values()))
    total = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            names = weights.keys()
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total
