"""Turns a schedule into the flat arrays of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.engine.scheduler import Chunk
from app.kernels import PagedLayout


@dataclass(frozen=True)
class Batch:
    """One step's ragged batch.

    `chunks` are in batch order (one-token chunks first). `token_ids` and `positions` are int64
    [tokens]. `logit_rows` int64 selects the rows whose logits are needed: the last row of every
    chunk that samples, and all rows of chunks whose prompt log-probabilities were asked for;
    `logit_spans[i]` is the (start, end) of chunk i within those rows.
    """

    chunks: tuple[Chunk, ...]
    token_ids: Tensor
    positions: Tensor
    layout: PagedLayout
    logit_rows: Tensor
    logit_spans: tuple[tuple[int, int], ...]


def build_batch(chunks: Rows[Chunk], block_size: int, device: torch.device) -> Batch:
    """Flatten `chunks`; every block they touch is already in the sequences' block tables."""
    ordered = tuple(sorted(chunks, key=lambda chunk: chunk.length > 1))
    decodes = sum(chunk.length == 1 for chunk in ordered)
    lengths = [chunk.length for chunk in ordered]
    contexts = [chunk.start + chunk.length for chunk in ordered]
    starts = np.concatenate(([0], np.cumsum(lengths)))

    tables = np.zeros((len(ordered), max(-(-c // block_size) for c in contexts)), dtype=np.int64)
    tokens = np.empty(starts[-1], dtype=np.int64)
    positions = np.empty(starts[-1], dtype=np.int64)
    slots = np.empty(starts[-1], dtype=np.int64)
    for row, chunk in enumerate(ordered):
        span = slice(starts[row], starts[row + 1])
        blocks = -(-contexts[row] // block_size)
        tables[row, :blocks] = chunk.sequence.blocks[:blocks]
        tokens[span] = chunk.sequence.tokens[chunk.start : contexts[row]]
        positions[span] = np.arange(chunk.start, contexts[row])
        slots[span] = tables[row, positions[span] // block_size] * block_size
    slots += positions % block_size

    rows, spans = _logit_rows(ordered, starts)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    layout = PagedLayout(
        slots=put(slots),
        block_tables=put(tables),
        context_lengths_tensor=put(np.array(contexts)),
        query_starts=tuple(starts.tolist()),
        context_lengths=tuple(contexts),
        decodes=decodes,
    )
    return Batch(ordered, put(tokens), put(positions), layout, put(rows), spans)


def _logit_rows(
    chunks: Rows[Chunk], starts: np.ndarray
) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    rows: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    count = 0
    for row, chunk in enumerate(chunks):
        wanted = chunk.length if wants_prompt_logprobs(chunk) else int(chunk.samples)
        rows.append(np.arange(starts[row + 1] - wanted, starts[row + 1]))
        spans.append((count, count + wanted))
        count += wanted
    return np.concatenate(rows), tuple(spans)


def wants_prompt_logprobs(chunk: Chunk) -> bool:
    """Whether logits of all of the chunk's rows are needed to report on the prompt."""
    sequence = chunk.sequence
    return sequence.sampling.prompt_logprobs is not None and chunk.start < sequence.prompt_length
