"""The memory that an engine process needs, known before it is started."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from hagane.pool.messages import EngineConfig
from hagane.system.weight_formats import WEIGHT_FORMATS
from hagane.weights.sources.config import load_config

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
    directory = Path(config.model)
    files = list(directory.glob("*.safetensors"))
    model = load_config(directory)
    if model.quantization is not None:
        return sum(file.stat().st_size for file in files)
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    form = dtype if config.quantize == "none" else config.quantize
    return int(sum(map(_count_weights, files)) * _BITS[form] / 8)


def _count_weights(file: Path) -> int:
    """From the header alone."""
    with safe_open(file, framework="np") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
