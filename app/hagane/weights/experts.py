"""Experts that were loaded one by one, put together for the native kernels."""

from __future__ import annotations

from pathlib import Path

from hagane.models.decoder import Transformer
from hagane.models.moe import Experts
from hagane.system.errors import ModelError


def pack_experts(model: Transformer, directory: Path) -> None:
    """Put what computes all experts of a layer in one call in their place.

    Raises ModelError where kernels do not multiply by their formats together.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, Experts):
            continue
        parent, _, leaf = name.rpartition(".")
        try:
            setattr(model.get_submodule(parent), leaf, module.for_cpu())
        except ValueError:
            raise ModelError(
                f"{directory}: the experts of {name} are stored in formats that kernels do not "
                "multiply together: use --quantize int8"
            ) from None
