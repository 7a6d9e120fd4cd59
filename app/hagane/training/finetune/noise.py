"""Noise on the embeddings of a step, against overfitting of small files.

NEFTune (Jain et al., 2023, arXiv:2310.05914): uniform in [-m, m], m = alpha / sqrt(tokens * width)
of each sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hagane.models.decoder import Transformer


@contextmanager
def embedding_noise(
    model: Transformer, lengths: list[int], alpha: float, generator: torch.Generator
) -> Iterator[None]:
    """Within the block, embeddings of sequences of `lengths` tokens get noise."""

    def add(module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
        bounds = torch.cat([torch.full((n, 1), alpha / (n * out.shape[1]) ** 0.5) for n in lengths])
        drawn = torch.empty(out.shape, dtype=torch.float32).uniform_(-1, 1, generator=generator)
        return out + (drawn * bounds).to(out)

    handle = model.model.embed_tokens.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
