"""What serves in the place of a layer that was loaded in its stored form."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from hagane.kernels import cpu
from hagane.kernels.backend import Operations
from hagane.models.decoder import Transformer
from hagane.models.formats.layer import Stored
from hagane.models.latent import LatentAttention
from hagane.models.serving_layers import for_serving


def absorbed(model: Transformer, name: str, operations: Operations | None) -> bool:
    """Whether the layer at `name` serves as the heads' products over latents, without its codes."""
    parent, _, leaf = name.rpartition(".")
    latent = isinstance(model.get_submodule(parent), LatentAttention)
    return operations is cpu and latent and leaf == "kv_b_proj"


def serving_form(
    model: Transformer, name: str, size: int, operations: Operations, dtype: torch.dtype
) -> tuple[nn.Module, int]:
    """The module for the layer at `name`, which takes `size` bytes as it is; and its own bytes."""
    module = model.get_submodule(name)
    if not absorbed(model, name, operations):
        return for_serving(module, operations, dtype), size
    attention = cast(LatentAttention, model.get_submodule(name.rpartition(".")[0]))
    heads = attention.absorbed(cast(Stored, module).matrix(dtype))
    return heads, heads.nbytes
