"""Adapters made for checkpoints in another layout than Llama's, such as GPT-2's `c_attn`.

PEFT names the modules of transformers' own model. There a joint matrix has one change: its A is
that of queries, keys and values, and its B has their rows. A matrix that is stored transposed
(`fan_in_fan_out`) makes no difference: A and B are those of the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from hagane.lora.config import AdapterConfig
from hagane.models.config import ModelConfig
from hagane.models.spec import linear_shapes
from hagane.weights.sources.renamed import rows_of_part


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix [rows, columns] of a checkpoint, and Llama's names for what is in it.

    Of a joint matrix these are queries, keys and values, in this order.
    """

    rows: int
    columns: int
    modules: tuple[str, ...]

    def part(self, model: ModelConfig, rows: Tensor, number: int) -> Tensor:
        """What `modules[number]` has of `rows` [rows, ...]."""
        return rows if len(self.modules) == 1 else rows_of_part(model, rows, number)


def stored_matrices(model: ModelConfig) -> dict[str, StoredMatrix]:
    """The matrices of a model that has a layout, by their paths in transformers' model."""
    found: dict[str, StoredMatrix] = {}
    if model.layout is None:
        return found
    for module, (rows, columns) in linear_shapes(model).items():
        path = model.layout.place(f"model.{module}.weight").name.removesuffix(".weight")
        if path == f"model.{module}":
            continue
        before = found.get(path, StoredMatrix(0, columns, ()))
        found[path] = StoredMatrix(before.rows + rows, columns, (*before.modules, module))
    return found


def by_module(config: AdapterConfig, placed: dict[str, tuple[int, float]]) -> AdapterConfig:
    """`config` for Llama's names: `placed` modules with their ranks and scales, each in full."""
    alphas = {
        module: scale * (math.sqrt(rank) if config.rslora else rank)
        for module, (rank, scale) in placed.items()
    }
    return replace(
        config,
        target_modules=tuple(placed),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern={m: rank for m, (rank, _) in placed.items() if rank != config.rank},
        alpha_pattern={m: a for m, a in alphas.items() if not math.isclose(a, config.alpha)},
    )
