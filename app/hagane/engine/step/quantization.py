"""The format of an engine's weights: the one that is asked for, on this device, of this model."""

from __future__ import annotations

import logging

import torch

from hagane.models.config import ModelConfig, Quantization
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.system.weight_formats import WEIGHT_FORMATS, WeightFormat

logger = logging.getLogger(__name__)

# Added to the loss: above it the load warns.
_POOR_LOSS = 0.007


def choose_quantization(
    config: EngineConfig, model: ModelConfig, device: torch.device
) -> Quantization | None:
    """The format of the weights as they are asked for and stored. Raises ConfigurationError."""
    asked, stored = config.quantize, model.quantization
    if stored is not None and asked not in ("none", stored.format):
        raise ConfigurationError(
            f"quantize {asked} does not fit {config.model}: its weights are stored in "
            f"{stored.format}; leave the setting out"
        )
    found = stored
    if stored is None and asked != "none":
        on_cpu = device.type == "cpu"
        found = Quantization.choose(asked, cpu=on_cpu, group_size=config.group_size)
    if found is not None:
        _check_device(WEIGHT_FORMATS[found.format], device)
    return found


def report_loss(quantization: Quantization | None) -> None:
    """Log what quantization costs this model, as far as it is known."""
    if quantization is None:
        return
    loss = quantization.measured_loss
    if loss is not None:
        level = logging.WARNING if loss > _POOR_LOSS else logging.INFO
        logger.log(
            level,
            "quantization: %s was measured to add %.2f%% to the loss of this model%s",
            quantization.format,
            100 * loss,
            "; int8 loses less" if level > logging.INFO else "",
        )
    elif quantization.format == "int4":
        logger.warning(
            "quantization: int4 was not measured on this model; it added 0.8 to 1.9% to the loss "
            "of others. `hagane quantize --int4` measures it, int8 loses less"
        )


def _check_device(declared: WeightFormat, device: torch.device) -> None:
    if device.type == "cpu":
        if not declared.integer:
            logger.warning(
                "CPUs do not compute in %s: its weights take as much memory and time as "
                "unquantized ones; int8 takes half",
                declared.name,
            )
        return
    declared.check_capability(str(device), torch.cuda.get_device_capability(device))
