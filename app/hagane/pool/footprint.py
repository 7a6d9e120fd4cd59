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
from hagane.weights.sources.gguf.file import shard_paths

# Bits of a served weight, with its share of the scales.
_BITS = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "float16": 16.0,
    **{name: declared.bits for name, declared in WEIGHT_FORMATS.items()},
}
# Interpreter, torch and buffers of a process that serves a small model: a round figure.
_PROCESS_BYTES = 400 << 20


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
    if model.quantization is not None or kept:
        return _stored_bytes(path)
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    form = dtype if config.quantize == "none" else config.quantize
    return int(_count_weights(path, model) * _BITS[form] / 8)


def _stored_bytes(path: Path) -> int:
    files = shard_paths(path) if is_gguf(path) else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


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
