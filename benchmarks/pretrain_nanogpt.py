"""A plain PyTorch training loop with GPT-2 blocks, as nanoGPT's: reads counts, writes seconds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from pretrain import LENGTH, ROWS, VOCABULARY
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTH, HEADS, LAYERS = 384, 6, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        parts = self.qkv(self.norms[0](x)).split(WIDTH, dim=2)
        q, k, v = (p.view(rows, length, HEADS, -1).transpose(1, 2) for p in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(path: Path) -> None:
    torch.manual_seed(0)
    tokens = np.memmap(path, dtype="<u2", mode="r")
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    compiled = torch.compile(model)
    for line in sys.stdin:
        begin = time.monotonic()
        for _ in range(int(line)):
            starts = torch.randint(len(tokens) - LENGTH - 1, (ROWS,)).tolist()
            picked = np.stack([tokens[s : s + LENGTH + 1].astype(np.int64) for s in starts])
            batch = torch.from_numpy(picked)
            with torch.autocast("cpu", torch.bfloat16):
                loss = compiled(batch[:, :-1], batch[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        print("seconds", time.monotonic() - begin, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
