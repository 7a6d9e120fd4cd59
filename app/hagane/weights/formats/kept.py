"""Matrices that other programs quantized, served on a CPU with the bits that they have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels import cpu
from hagane.weights.finite import check_finite
from hagane.weights.formats import grouped
from hagane.weights.sources.grouped_rows import GroupedRows
from hagane.weights.sources.quantized.matrices import ChannelMatrix
from hagane.weights.sources.source import Rows


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
