"""Weights that are NaN or infinite: refused when they are read, not found out by nonsense later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hagane.kernels import cpu
from hagane.system.errors import ModelError


def check_finite(path: Path, name: str, tensor: Tensor, first: int = 0) -> None:
    """Raises ModelError if `tensor` holds NaN or an infinity.

    It was read from `path`, from row `first` on of the tensor called `name`.
    """
    row = _find_nonfinite(tensor)
    if row >= 0:
        raise _damaged(path, name, first + row)


@contextmanager
def naming(path: Path, parts: list[tuple[str, int]]) -> Iterator[None]:
    """Turns a NonFiniteError into a ModelError that names the tensor.

    `parts` are the matrices, and their rows, that the kernels read one under the other.
    """
    try:
        yield
    except cpu.NonFiniteError as error:
        row, position = error.row, 0
        while row >= parts[position][1]:
            row -= parts[position][1]
            position += 1
        raise _damaged(path, parts[position][0], row) from None


def _damaged(path: Path, name: str, row: int) -> ModelError:
    return ModelError(
        f"{path}: tensor {name} holds NaN or an infinity in row {row}: the file is damaged, or its "
        "training diverged"
    )


def _find_nonfinite(tensor: Tensor) -> int:
    """The first row with NaN or an infinity, or -1; codes have none."""
    if tensor.dtype == torch.float8_e4m3fn:
        # Without infinities; NaN has all bits but the sign.
        bad = (tensor.view(torch.uint8) & 127) == 127
    elif not tensor.is_floating_point() or not tensor.numel():
        return -1
    elif cpu.available() and not tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16):
        return cpu.find_nonfinite(tensor)
    else:
        bad = ~torch.isfinite(tensor)
    rows = bad.view(len(bad), -1).any(dim=1)
    return int(rows.int().argmax()) if rows.any() else -1
