"""Latent attention's matrix of keys and values, put to queries and results instead.

    q . (W_k c) = (q W_k) . c        sum of w (W_v c) = W_v (sum of w c)

So attention works on the latent vectors c themselves, which all heads share (DeepSeek-V2, 2024,
arXiv:2405.04434, section 2.1.2): the cache holds them instead of every head's key and value.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hagane.kernels import cpu
from hagane.kernels.cpu.low_rank import NativeBank
from hagane.kernels.low_rank import AdapterRows


class HeadProducts(nn.Module):
    """x [tokens, heads * width] -> [tokens, heads * room]: a matrix for each head.

    It reads the first features of its head and writes the first of its result; others are left
    unwritten. `banks`, one for each head, have the changes of adapters.
    """

    def __init__(self, weights: Sequence[cpu.PackedWeight], room: int) -> None:
        super().__init__()
        self.weights, self.room = tuple(weights), room
        self.banks: tuple[NativeBank, ...] = ()

    def forward(self, x: Tensor, residual: None = None, rows: AdapterRows | None = None) -> Tensor:
        changes = None
        if rows is not None:
            changes = [bank.handle for bank in self.banks], rows.slots
        return cpu.head_products(x, self.weights, self.room, changes)


class AbsorbedHeads(nn.Module):
    """Serves in the place of `kv_b_proj`, with the native kernels.

    `keys` takes queries to the latent vector, with room for `turned` features after each head's;
    `values` takes sums of latent vectors to each head's result.
    """

    def __init__(self, matrix: Tensor, heads: int, plain: int, turned: int) -> None:
        """matrix [heads * (plain + values), rank], float32 or bfloat16: not quantized.

        Its transposed half would need scales of its own, and it is a small part of a layer.
        """
        super().__init__()
        by_head = matrix.unflatten(0, (heads, -1))
        self.plain, self.width, rank = plain, by_head.shape[1], by_head.shape[2]
        self.keys = HeadProducts(
            [cpu.pack_dense(head[:plain].t().contiguous()) for head in by_head], rank + turned
        )
        self.values = HeadProducts(
            [cpu.pack_dense(head[plain:].contiguous()) for head in by_head], self.width - plain
        )

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for part in (self.keys, self.values) for w in part.weights)
