"""Which projections of a 4-bit model have 8 bits, by what is known of where 4 bits cost most.

Attention has an eighth of a layer's weights and up to two fifths of the loss of 4 bits. Beyond
that, a few layers make single features many times larger than all others, and read and write them
through one column of their down projection ("super weights", Yu et al., 2024, arXiv:2411.07191).
The error of such a column is the model's error, and no calibration is needed to find it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from hagane.models.config import ModelConfig, Quantization
from hagane.models.spec import ProjectionSpec, parts_of, projections
from hagane.weights.sources.source import Rows, WeightSource

_SENSITIVE = ("self_attn.qkv_proj", "self_attn.o_proj")
_MAY_BE_SENSITIVE = "down_proj"
# The largest column's mean square in units of all columns': of Qwen2.5-Coder 0.5B and 1.5B five
# layers each have 35 to 990, the others up to 21.
_LARGE_COLUMN = 32.0
# Rows read at a time.
_ROWS = 128


def choose_eight_bits(
    config: ModelConfig, source: WeightSource, quantization: Quantization
) -> Quantization:
    """`quantization` with the projections that have 8 bits, if it is of 4.

    Raises ModelError if weights cannot be read.
    """
    if quantization.format != "int4":
        return quantization
    large = (
        path
        for path, projection in projections(config)
        # Those of experts are many, and few tokens read each.
        if path.endswith(_MAY_BE_SENSITIVE) and projection.adaptable
        if _has_large_column(source, path, projection)
    )
    return replace(quantization, eight_bits=(*_SENSITIVE, *large))


def choose_by_loss(
    config: ModelConfig, plan: Quantization, losses: Mapping[str, float]
) -> Quantization:
    """`plan` with as many weights in 8 bits, now where 4 bits cost most for each weight.

    `losses` are nats that a projection costs in 4 bits, by its path below the decoder. Those it
    does not have stay as planned.
    """
    sizes = {path: projection.rows * projection.columns for path, projection in projections(config)}
    planned = {path for path in sizes if plan.has_eight_bits(*_place(path))}
    budget = sum(sizes[path] for path in planned if path in losses)
    chosen = planned - losses.keys()
    for path in sorted(losses, key=lambda path: losses[path] / sizes[path], reverse=True):
        if sizes[path] <= budget:
            budget -= sizes[path]
            chosen.add(path)
    return replace(plan, eight_bits=tuple(path for path in sizes if path in chosen))


def _place(path: str) -> tuple[int, str]:
    """The layer's number of a path below the decoder, and the rest."""
    layer, _, within = path.removeprefix("layers.").partition(".")
    return int(layer), within


def _has_large_column(source: WeightSource, path: str, projection: ProjectionSpec) -> bool:
    return any(
        largest_column(source.read(f"model.{name}.weight", (rows, projection.columns)))
        > _LARGE_COLUMN
        for name, rows in parts_of(path, projection).items()
    )


def largest_column(rows: Rows) -> float:
    """The mean square of the largest column of [rows, columns] in units of that of all.

    0 for a matrix of zeros, NaN where one is in it.
    """
    squares = torch.zeros(rows.shape[1])
    for block in rows.split(_ROWS):
        squares += block.float().square().sum(dim=0)
    mean = squares.mean()
    return float(squares.amax() / mean) if mean != 0 else 0.0
