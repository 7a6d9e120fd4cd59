"""Turns a schedule into the flat arrays of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.engine.scheduler import Chunk
from app.kernels import PagedLayout
from app.kernels.low_rank import AdapterRows


@dataclass(frozen=True)
class Batch:
    """One step's ragged batch.

    `token_ids` and `positions` are int64 [tokens]. `logit_rows` int64 selects the rows whose
    logits are needed: the last row of every chunk that samples, and all rows of chunks whose
    prompt log-probabilities were asked for; `logit_spans[i]` is the (start, end) of the
    schedule's chunk i within those rows. `adapters` is None when no row has one.
    """

    token_ids: Tensor
    positions: Tensor
    layout: PagedLayout
    logit_rows: Tensor
    logit_spans: tuple[tuple[int, int], ...]
    adapters: AdapterRows | None = None


def build_batch(
    chunks: Rows[Chunk], block_size: int, device: torch.device, adapters: Mapping[str, int]
) -> Batch:
    """Flatten `chunks`; every block they touch is already in the sequences' block tables.

    `adapters` knows the slot of every sequence's adapter by its digest.
    """
    # One-token chunks first: attention takes them all at once.
    order = sorted(range(len(chunks)), key=lambda i: chunks[i].length > 1)
    ordered = [chunks[i] for i in order]
    lengths = [chunk.length for chunk in ordered]
    contexts = [chunk.start + chunk.length for chunk in ordered]
    starts = np.concatenate(([0], np.cumsum(lengths)))

    tables = np.zeros((len(ordered), max(-(-c // block_size) for c in contexts)), dtype=np.int32)
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

    ends = {index: int(starts[row + 1]) for row, index in enumerate(order)}
    rows, spans = _logit_rows(chunks, ends)

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    layout = PagedLayout(
        slots=put(slots),
        block_tables=put(tables),
        starts=put(starts.astype(np.int32)),
        lengths=put(np.array(contexts, dtype=np.int32)),
        query_starts=tuple(starts.tolist()),
        context_lengths=tuple(contexts),
        decodes=sum(length == 1 for length in lengths),
        block_size=block_size,
    )
    adapter_rows = _adapter_rows(ordered, adapters, put)
    return Batch(put(tokens), put(positions), layout, put(rows), spans, adapter_rows)


def _adapter_rows(
    ordered: Rows[Chunk], slots: Mapping[str, int], put: Callable[[np.ndarray], Tensor]
) -> AdapterRows | None:
    if not any(chunk.sequence.adapter for chunk in ordered):
        return None
    per_chunk = [
        slots[chunk.sequence.adapter] if chunk.sequence.adapter else -1 for chunk in ordered
    ]
    per_row = np.repeat(np.array(per_chunk, dtype=np.int32), [c.length for c in ordered])
    groups = tuple(
        (slot, put(np.flatnonzero(per_row == slot))) for slot in sorted(set(per_chunk) - {-1})
    )
    return AdapterRows(put(per_row), groups)


def _logit_rows(
    chunks: Rows[Chunk], ends: dict[int, int]
) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    rows: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    count = 0
    for index, chunk in enumerate(chunks):
        wanted = chunk.length if chunk.sequence.needs_prompt_logits else int(chunk.samples)
        rows.append(np.arange(ends[index] - wanted, ends[index], dtype=np.int64))
        spans.append((count, count + wanted))
        count += wanted
    return np.concatenate(rows), tuple(spans)
