"""DoRA (Liu et al., 2024, arXiv:2402.09353): an adapter that also sets how long rows are.

    W' = m * (W + scale * B A) / |W + scale * B A|,    row by row of W [out, in], m [out]

The paper calls them columns, of the transpose. A row's length depends on the whole row, and so on
the base; once it is known, the change is one of the outputs:

    W' x = W x + gain * W x + (1 + gain) * scale * B (A x),    gain = m / |W + scale * B A| - 1
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hagane.lora.files import LowRank

# Rows of a float32 copy at a time.
_ROWS = 1024
# Of a row; one of zeros has none.
_SHORTEST = 1e-12


def with_gain(change: LowRank, weight: Tensor) -> LowRank:
    """`change`, its gain computed from the matrix [out, in] below it; plain LoRA has none."""
    if change.magnitude is None:
        return change
    lengths = [
        (rows.float() + change.scale * (b.float() @ change.a.float())).norm(dim=1)
        for rows, b in zip(weight.split(_ROWS), change.b.split(_ROWS), strict=True)
    ]
    gain = change.magnitude.float() / torch.cat(lengths).clamp_min(_SHORTEST) - 1
    return replace(change, gain=gain)


def merged(weight: Tensor, change: LowRank) -> Tensor:
    """Float32 [out, in]: `weight` with the change in it."""
    total = weight.float() + change.scale * (change.b.float() @ change.a.float())
    if change.magnitude is None:
        return total
    lengths = total.norm(dim=1).clamp_min(_SHORTEST)
    return total.mul_((change.magnitude.float() / lengths)[:, None])
