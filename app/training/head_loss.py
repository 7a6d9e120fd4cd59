"""Cross-entropy of rows of tokens, the logits a part at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from app.transformer.attention import PackedCausal
from app.transformer.model import Transformer

_LOSS_ROWS = 2048


def token_losses(model: Transformer, rows: Tensor, dtype: str) -> Tensor:
    """Cross-entropy in nats, float32 [n * length], of int64 rows [n, length + 1]."""
    inputs, targets = rows[:, :-1].flatten(), rows[:, 1:].flatten()
    context = PackedCausal(rows=len(rows), length=rows.shape[1] - 1, device=rows.device)
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        hidden = model(inputs, context)
        losses = [
            F.cross_entropy(model.logits(part), wanted, reduction="none")
            for part, wanted in zip(
                hidden.split(_LOSS_ROWS), targets.split(_LOSS_ROWS), strict=True
            )
        ]
    return torch.cat(losses)
