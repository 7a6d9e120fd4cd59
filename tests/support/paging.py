"""Ragged batches over a paged cache, and the instruction sets to try them on."""

from __future__ import annotations

import itertools
import platform
from dataclasses import replace

import torch
from hagane.kernels.layout import PagedLayout
from torch import Tensor

_X86 = ("avx2", "avx_vnni", "avx512", "avx512_bf16", "amx")
_ARM = ("neon", "neon_i8mm", "neon_bf16")
SETS = ("generic", *(_ARM if platform.machine() == "aarch64" else _X86))


def layout_of(
    lengths: list[int], contexts: list[int], block_size: int, blocks: int, device: str = "cpu"
) -> PagedLayout:
    """Sequences whose blocks are scattered over a cache of `blocks`."""
    order = torch.randperm(blocks).tolist()
    tables, slots, starts = [], [], [0]
    for length, context in zip(lengths, contexts, strict=True):
        table = [order.pop() for _ in range(-(-context // block_size))]
        positions = range(context - length, context)
        slots += [table[p // block_size] * block_size + p % block_size for p in positions]
        tables.append(table)
        starts.append(starts[-1] + length)
    width = max(map(len, tables))
    padded = [table + [0] * (width - len(table)) for table in tables]
    return PagedLayout(
        slots=torch.tensor(slots, device=device),
        block_tables=torch.tensor(padded, dtype=torch.int32, device=device),
        starts=torch.tensor(starts, dtype=torch.int32, device=device),
        lengths=torch.tensor(contexts, dtype=torch.int32, device=device),
        query_starts=tuple(starts),
        context_lengths=tuple(contexts),
        decodes=len(list(itertools.takewhile(lambda length: length == 1, lengths))),
        block_size=block_size,
    )


def part_of(whole: PagedLayout, first: int, last: int) -> tuple[Tensor, PagedLayout]:
    """Positions [first, last) of whole sequences: int64 rows in `whole`, and what attends to them.

    Sequences that are shorter are left out, so that there may be no row at all.
    """
    pairs = zip(whole.query_starts, whole.context_lengths, strict=False)
    kept = [
        (index, start, min(last, context))
        for index, (start, context) in enumerate(pairs)
        if context > first
    ]
    rows = [p for _, start, end in kept for p in range(start + first, start + end)]
    starts = tuple(itertools.accumulate((end - first for *_, end in kept), initial=0))
    lengths = tuple(end for *_, end in kept)
    return torch.tensor(rows, dtype=torch.int64), replace(
        whole,
        slots=whole.slots[rows],
        block_tables=whole.block_tables[[index for index, *_ in kept]],
        starts=torch.tensor(starts, dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        query_starts=starts,
        context_lengths=lengths,
        decodes=len(kept) if last - first == 1 else 0,
    )
