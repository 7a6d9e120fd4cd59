"""What no kernel computes, by torch in the place of one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hagane.kernels import cpu
from hagane.kernels.backend import Operations


def computed(
    operations: Operations, function: Callable[..., Tensor], x: Tensor, *others: Tensor
) -> Tensor:
    """function(x, *others) in x's shape and dtype.

    The native kernels' steps are recorded: what torch computes by itself would be computed once.
    """
    if operations is cpu:
        return cpu.compute(function, x, *others)
    return function(x, *others).to(x.dtype)
