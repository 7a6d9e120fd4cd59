"""Error-compensated rounding to 4 bits: GPTQ, in its form without an inverse.

For a row w and the mean H = X^T X / n of inputs, the squared error of the outputs of codes q is
(w - q) H (w - q)^T. With H = U U^T, U upper triangular, it is the sum over columns j of
U_jj^2 (w_j - q_j + sum of (w_i - q_i) U_ij / U_jj over i < j)^2: column after column, each code
makes up for what the codes before it have lost. These are the codes of GPTQ (Frantar et al., 2022,
arXiv:2210.17323), as Chee et al. (2023, arXiv:2307.13304) write them, and need one Cholesky
decomposition.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Added to H's diagonal, in units of its mean: inputs that were not seen may come.
_DAMPING = 0.01
# Scales tried for every group, in units of that which gives the largest weight the code -8.
_RATIOS = tuple(1.04 - 0.04 * step for step in range(8))
# Rows rounded together: their candidates lie in the caches.
_ROWS = 1024


def round_compensated(weight: Tensor, gram: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 [out, in], 0 to 15, and bfloat16 scales [out, in / group] of least error.

    `weight` is float32 [out, in], `gram` the float32 mean [in, in] of its inputs' outer products.
    """
    feedback, importance = _factor(gram)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scale = torch.empty(weight.shape[0], weight.shape[1] // group, dtype=torch.bfloat16)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        columns = weight[rows].t().contiguous()
        found, scales = _round_columns(columns, feedback, importance, group)
        codes[rows] = (found + 8).t()
        scale[rows] = scales.t()
    return codes, scale


def _factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """U_ij / U_jj [in, in] and U_jj^2 [in] of the damped matrix."""
    damped = gram.clone()
    mean = float(damped.diagonal().mean())
    # Inputs that are all zeros leave any codes right.
    damped.diagonal().add_(_DAMPING * mean if mean > 0 else 1.0)
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    diagonal = upper.diagonal().clone()
    return upper / diagonal, diagonal.square()


def _round_columns(
    weight: Tensor, feedback: Tensor, importance: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """Float codes [in, out], -8 to 7, and float32 scales [in / group, out] of weight [in, out]."""
    codes, lost = torch.empty_like(weight), torch.zeros_like(weight)
    scales = torch.empty(len(weight) // group, weight.shape[1])
    for number, start in enumerate(range(0, len(weight), group)):
        part = slice(start, start + group)
        target = torch.addmm(weight[part], feedback[:start, part].t(), lost[:start])
        tried = _candidates(target)
        found, loss = _round_group(
            weight[part], target, feedback[part, part], importance[part], tried
        )
        best = loss.argmin(dim=0, keepdim=True)
        scales[number] = tried.gather(0, best)[0]
        codes[part] = found.gather(1, best.expand(group, 1, -1))[:, 0]
        lost[part] = weight[part] - codes[part] * scales[number]
    return codes, scales


def _candidates(target: Tensor) -> Tensor:
    """Scales [tried, out], as bfloat16 has them, for the weights [group, out] of a group."""
    extreme = target.gather(0, target.abs().argmax(dim=0, keepdim=True)) / -8
    extreme = torch.where(extreme.abs() < 1e-12, 1e-12, extreme)
    return (torch.tensor(_RATIOS)[:, None] * extreme).bfloat16().float()


def _round_group(
    weight: Tensor, target: Tensor, feedback: Tensor, importance: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes [group, tried, out] under scales [tried, out], and the loss [tried, out] of each.

    `target` is `weight` [group, out] and what the groups before it have lost.
    """
    tried, (group, rows) = len(scale), weight.shape
    codes = torch.empty(group, tried, rows)
    lost = torch.empty(group, tried * rows)
    loss = torch.zeros(tried, rows)
    for j in range(group):
        wanted = target[j] + (feedback[:j, j] @ lost[:j]).view(tried, rows)
        codes[j] = torch.div(wanted, scale).round_().clamp_(-8, 7)
        rounded = codes[j] * scale
        lost[j] = (weight[j] - rounded).flatten()
        loss.addcmul_(wanted.sub_(rounded).square_(), importance[j])
    return codes, loss
