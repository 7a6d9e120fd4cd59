"""Writes a quantized copy of a model directory, so that serving need not quantize again."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import torch

from hagane.kernels import cpu
from hagane.models.config import CONFIG_FILE, Quantization
from hagane.models.decoder import Transformer
from hagane.models.spec import checkpoint_shapes
from hagane.system.errors import ConfigurationError
from hagane.system.files import write_text
from hagane.weights.calibration.layers import Calibration, calibrate
from hagane.weights.load import load_model, write_directory
from hagane.weights.load_progress import LoadReport
from hagane.weights.sources.config import config_dict, load_config

# Files of a model directory besides weights and config.json.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE",
)


def quantize_directory(
    source: Path,
    destination: Path,
    quantization: Quantization,
    calibration: Calibration | None = None,
) -> LoadReport:
    """Quantize the model in `source` into the new directory `destination`.

    With `calibration` 4-bit matrices are rounded by what they are multiplied by. Raises
    ConfigurationError if `source` is quantized already or `destination` is not empty, and
    ModelError if `source` cannot be read.
    """
    config = load_config(source)
    if config.quantization is not None:
        raise ConfigurationError(
            f"{source} is quantized to {config.quantization.format} already: start from the "
            "unquantized model"
        )
    if destination.exists() and any(destination.iterdir()):
        raise ConfigurationError(f"{destination} is not empty: name a new directory")
    dtype = getattr(torch, config.dtype)
    if cpu.available():
        cpu.start()
    if calibration is None:
        model, report = load_model(source, device="cpu", dtype=dtype, quantization=quantization)
    else:
        model, report = _calibrate(source, quantization, calibration)
    used = report.quantization or quantization
    raw = config_dict(source)
    # The weights decide it, not the source's configuration.
    raw["tie_word_embeddings"] = model.config.tie_word_embeddings
    raw["quantization_config"] = {
        "quant_method": "hagane",
        "format": used.format,
        "group_size": used.group_size,
        "rotated": used.rotated,
        "eight_bits": list(used.eight_bits),
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    destination.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    write_directory(destination, tensors, raw)
    return report


def _calibrate(
    source: Path, quantization: Quantization, calibration: Calibration
) -> tuple[Transformer, LoadReport]:
    started = time.monotonic()
    model, used = calibrate(source, quantization, calibration)
    parameters = sum(map(math.prod, checkpoint_shapes(model.config).values()))
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return model, LoadReport(parameters, size, time.monotonic() - started, used)


def state_loss(directory: Path, loss: float) -> None:
    """Write the measured loss of a quantized directory into its configuration."""
    raw = config_dict(directory)
    raw["quantization_config"]["measured_loss"] = round(loss, 5)
    write_text(directory / CONFIG_FILE, json.dumps(raw, indent=2) + "\n")
