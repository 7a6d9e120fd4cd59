"""Codes that are packed into int32 words, the first one in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 [n, words] -> uint8 [n, 32 * words / bits].

    Codes of 2, 4 and 8 bits fill a word; of others, 32 fill `bits` words, across their borders.
    """
    stored = words.contiguous().view(torch.uint8)
    if bits == 8:
        return stored
    if 8 % bits == 0:
        planes = [(stored >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return torch.stack(planes, dim=2).flatten(1)
    single = torch.stack([(stored >> shift) & 1 for shift in range(8)], dim=2).flatten(1)
    places = torch.tensor([1 << place for place in range(bits)], dtype=torch.uint8)
    codes: Tensor = (single.unflatten(1, (-1, bits)) * places).sum(dim=2, dtype=torch.uint8)
    return codes
