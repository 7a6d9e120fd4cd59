"""Matrices that other programs quantized, served with the bits that they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels import cpu
from hagane.models.serving_layers import CudaLinear
from hagane.weights.finite import check_finite
from hagane.weights.formats import grouped
from hagane.weights.sources.grouped_rows import GroupedRows
from hagane.weights.sources.quantized.matrices import ChannelMatrix
from hagane.weights.sources.source import Rows


def keep_on_device(
    path: Path, parts: Mapping[str, Rows], bias: Tensor | None, device: str
) -> tuple[CudaLinear, int] | None:
    """A layer of the named parts for the Triton kernels, and its bytes; None as `pack_kept`.

    Raises as that does.
    """
    form = grouped.common_form(list(parts.values()))
    if form is None:
        return None
    # It needs Triton, which only devices have a use for.
    from hagane.kernels.cuda.grouped import GroupedMatrix, pack_nibbles

    named = [(name, rows) for name, rows in parts.items() if isinstance(rows, GroupedRows)]
    codes, scale, minimum = grouped.collect(path, named, form)
    codes = pack_nibbles(codes) if form.bits == 4 else codes
    order = named[0][1].input_order
    matrix = GroupedMatrix(
        codes.to(device),
        scale.to(device),
        None if minimum is None else minimum.to(device),
        form.bits,
        form.group,
        form.zero,
        None if order is None else order.long().to(device),
    )
    return CudaLinear(matrix.multiply, (), bias), sum(t.nbytes for t in matrix.tensors)


def pack_kept(
    path: Path, parts: Mapping[str, Rows], bias: Tensor | None
) -> cpu.PackedWeight | None:
    """The matrix of the named parts, one under the other; None if they must be dequantized.

    Raises ModelError for NaN or infinity.
    """
    form = grouped.common_form(list(parts.values()))
    if form is not None:
        named = [(name, rows) for name, rows in parts.items() if isinstance(rows, GroupedRows)]
        return grouped.pack(path, named, form, bias)
    channels = {name: rows for name, rows in parts.items() if isinstance(rows, ChannelMatrix)}
    if len(channels) < len(parts):
        return None
    for name, rows in channels.items():
        check_finite(path, name, rows.scale)
    codes = torch.cat([rows.codes for rows in channels.values()])
    return cpu.pack_int8(codes, torch.cat([rows.scale for rows in channels.values()]), bias)
