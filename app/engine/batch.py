"""Turns a schedule into the flat arrays of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.engine.sampler import Drawn
from app.engine.schedule import Chunk
from app.kernels import PagedLayout
from app.kernels.low_rank import AdapterRows
from app.kernels.transfer import send

# By what they are, or by the slot of the adapter whose rows they name.
_Arrays = dict[str | int, np.ndarray]


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
    chunks: Rows[Chunk],
    block_size: int,
    device: torch.device,
    adapters: Mapping[str, int],
    before: Drawn | None = None,
) -> Batch:
    """Flatten `chunks`; every block they touch is already in the sequences' block tables.

    `adapters` knows the slot of every sequence's adapter by its digest. Tokens that `before` is
    still drawing are put in place on the device.
    """
    # One-token chunks first: attention takes them all at once.
    order = sorted(range(len(chunks)), key=lambda i: chunks[i].length > 1)
    ordered = [chunks[i] for i in order]
    lengths = [chunk.length for chunk in ordered]
    contexts = [chunk.start + chunk.length for chunk in ordered]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    ends = {index: int(starts[row + 1]) for row, index in enumerate(order)}
    rows, spans = _logit_rows(chunks, ends)
    groups = _adapter_rows(ordered, starts, adapters)
    arrays: _Arrays = {
        **_flatten(ordered, starts, block_size),
        "starts": starts.astype(np.int32),
        "lengths": np.array(contexts, dtype=np.int32),
        "rows": rows,
        **groups,
    }
    if before is not None:
        arrays["drawing"] = _drawing(ordered, starts, before)
    on_host = [torch.from_numpy(array) for array in arrays.values()]
    sent = dict(zip(arrays, send(on_host, device), strict=True))
    if before is not None:
        target, source = sent["drawing"]
        sent["tokens"].index_copy_(0, target, before.tokens[source])
    layout = PagedLayout(
        slots=sent["slots"],
        block_tables=sent["tables"],
        starts=sent["starts"],
        lengths=sent["lengths"],
        query_starts=tuple(starts.tolist()),
        context_lengths=tuple(contexts),
        decodes=sum(length == 1 for length in lengths),
        block_size=block_size,
    )
    adapter_rows = None
    if groups:
        by_slot = tuple((slot, sent[slot]) for slot in groups if isinstance(slot, int))
        adapter_rows = AdapterRows(sent["owners"], by_slot)
    return Batch(sent["tokens"], sent["positions"], layout, sent["rows"], spans, adapter_rows)


def _flatten(ordered: Rows[Chunk], starts: np.ndarray, block_size: int) -> _Arrays:
    """Tokens, their positions and slots, and the block tables; tokens not known yet are 0."""
    widths = [-(-(chunk.start + chunk.length) // block_size) for chunk in ordered]
    tables = np.zeros((len(ordered), max(widths)), dtype=np.int32)
    tokens = np.zeros(starts[-1], dtype=np.int64)
    for row, chunk in enumerate(ordered):
        tables[row, : widths[row]] = chunk.sequence.blocks[: widths[row]]
        known = chunk.sequence.tokens[chunk.start : chunk.start + chunk.length]
        tokens[starts[row] : starts[row] + len(known)] = known
    rows = np.repeat(np.arange(len(ordered)), np.diff(starts))
    offsets = np.array([chunk.start for chunk in ordered]) - starts[:-1]
    positions = np.arange(starts[-1]) + offsets[rows]
    slots = tables[rows, positions // block_size].astype(np.int64) * block_size
    slots += positions % block_size
    return {"tokens": tokens, "positions": positions, "slots": slots, "tables": tables}


def _drawing(ordered: Rows[Chunk], starts: np.ndarray, before: Drawn) -> np.ndarray:
    """int64 [2, n]: rows whose tokens are not known yet, and which rows of `before` they are."""
    pairs = [
        (starts[row + 1] - 1, before.rows[chunk.sequence])
        for row, chunk in enumerate(ordered)
        if chunk.start + chunk.length > len(chunk.sequence.tokens)
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def _adapter_rows(ordered: Rows[Chunk], starts: np.ndarray, slots: Mapping[str, int]) -> _Arrays:
    """As "owners" the slot of every row, -1 for none; by slot its rows. Empty if there are none."""
    if not any(chunk.sequence.adapter for chunk in ordered):
        return {}
    per_chunk = [
        slots[chunk.sequence.adapter] if chunk.sequence.adapter else -1 for chunk in ordered
    ]
    owners = np.repeat(np.array(per_chunk, dtype=np.int32), np.diff(starts))
    arrays: _Arrays = {"owners": owners}
    for slot in sorted(set(per_chunk) - {-1}):
        arrays[slot] = np.flatnonzero(owners == slot)
    return arrays


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
