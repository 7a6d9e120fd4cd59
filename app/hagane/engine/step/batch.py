"""Turns a schedule into the flat lists of one forward pass, and these into tensors."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from hagane.engine.sampling.sampler import TokensInFlight
from hagane.engine.schedule.plan import Chunk
from hagane.kernels.layout import PagedLayout
from hagane.kernels.low_rank import AdapterRows
from hagane.kernels.transfer import send

# By what they are, or by the slot of the adapter whose rows they name.
_Arrays = dict[str | int, np.ndarray]


@dataclass(frozen=True)
class Inputs:
    """A batch on its device, as a forward pass wants it.

    `token_ids` and `positions` are int64 [tokens], `logit_rows` and `hidden_rows` are int64; the
    latter is None when no hidden states are wanted. `adapters` is None when no row has one.
    """

    token_ids: Tensor
    positions: Tensor
    layout: PagedLayout
    logit_rows: Tensor
    adapters: AdapterRows | None = None
    hidden_rows: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One step's ragged batch, on the host.

    Lists, as between kernels, which have emptied the caches, the first call of each kind into
    numpy costs 20 microseconds, and into torch 30 to 50: as much as lists of all the tokens of a
    decode step.

    Sequences are ordered so that those of one token come first: `decodes` of them. Tokens that are
    verified count as sequences of their own, each of which reads what those before it write: all
    of them run as they would in steps of their own, bit for bit. So do tokens that grammars force,
    where that makes the step one of decoding alone. `token_ids`, `positions` and
    `slots` (block * block_size + offset) have an entry for each token. `tables` are the sequences'
    block tables, padded with 0 to equal lengths, `starts` their row offsets and
    one more, and `lengths` count the tokens in the cache after this step.

    `logit_rows` selects the rows whose logits are needed: the last row of every chunk that samples,
    all rows of those that verify, and all rows of chunks whose prompt log-probabilities are
    requested. These chunks are in `prompts`, each with the first of its rows of logits. `sampled`
    has the row of logits of every sampled token; None where all rows are sampled from, in order.
    `hidden_rows` selects the rows whose hidden states are wanted: those of the chunks in `pooled`,
    each with its first row there.

    `adapters` has the slot of every row's adapter, -1 for none; None if there are none. `in_flight`
    are the tokens that the previous step is still sampling. `in_flight_rows` pairs each row that
    waits for one, and holds 0 until then, with the index of that token.
    """

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    tables: list[list[int]]
    starts: list[int]
    lengths: list[int]
    decodes: int
    block_size: int
    logit_rows: list[int]
    prompts: Rows[tuple[Chunk, int]] = ()
    sampled: list[int] | None = None
    hidden_rows: Rows[int] = ()
    pooled: Rows[tuple[Chunk, int]] = ()
    adapters: list[int] | None = None
    in_flight: Tensor | None = None
    in_flight_rows: Rows[tuple[int, int]] = ()

    def to(self, device: torch.device) -> Inputs:
        """In one copy; tokens still in flight are put in place on the device."""
        groups = _adapter_rows(self.adapters)
        arrays: _Arrays = {
            "tokens": np.array(self.token_ids),
            "positions": np.array(self.positions),
            "slots": np.array(self.slots),
            "tables": np.array(self.tables, dtype=np.int32),
            "starts": np.array(self.starts, dtype=np.int32),
            "lengths": np.array(self.lengths, dtype=np.int32),
            "rows": np.array(self.logit_rows, dtype=np.int64),
            "hidden_rows": np.array(self.hidden_rows, dtype=np.int64),
            "in_flight_rows": np.array(self.in_flight_rows, dtype=np.int64).reshape(-1, 2).T,
            **groups,
        }
        on_host = [torch.from_numpy(array) for array in arrays.values()]
        sent = dict(zip(arrays, send(on_host, device), strict=True))
        if self.in_flight is not None:
            target, source = sent["in_flight_rows"]
            sent["tokens"].index_copy_(0, target, self.in_flight[source])
        layout = PagedLayout(
            slots=sent["slots"],
            block_tables=sent["tables"],
            starts=sent["starts"],
            lengths=sent["lengths"],
            query_starts=tuple(self.starts),
            context_lengths=tuple(self.lengths),
            decodes=self.decodes,
            block_size=self.block_size,
        )
        adapters = None
        if groups:
            by_slot = tuple((slot, sent[slot]) for slot in groups if isinstance(slot, int))
            adapters = AdapterRows(sent["owners"], by_slot)
        hidden = sent["hidden_rows"] if self.hidden_rows else None
        return Inputs(sent["tokens"], sent["positions"], layout, sent["rows"], adapters, hidden)


def build_batch(
    chunks: Rows[Chunk],
    block_size: int,
    adapters: Mapping[str, int],
    before: TokensInFlight | None = None,
    decode_rows: int = 0,
) -> Batch:
    """Flatten `chunks`, which are in their order.

    Every block they use is already in the sequences' block tables. `adapters` knows the slot of
    every sequence's adapter by its digest. `before` is still sampling the tokens that the sequences
    do not know yet. `decode_rows` is how many tokens a step of decoding alone may have.
    """
    decoding = all(chunk.order < 2 for chunk in chunks)
    single = decoding and sum(chunk.length for chunk in chunks) <= decode_rows
    runs = list(chain.from_iterable(_runs(chunk, single) for chunk in chunks))
    lengths = [run.length for run in runs]
    contexts = [run.start + run.length for run in runs]
    width = -(-max(contexts) // block_size)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    tables: list[list[int]] = []
    for chunk in chunks:
        end = chunk.start + chunk.length
        known = [*chunk.sequence.tokens[chunk.start : end], *chunk.proposed]
        token_ids += known
        token_ids += [0] * (chunk.length - len(known))
        positions += range(chunk.start, end)
        slots += _slots(chunk.sequence.blocks, chunk.start, end, block_size)
    for run in runs:
        blocks = run.sequence.blocks[:width]
        tables.append(blocks + [0] * (width - len(blocks)))
    starts = [0, *accumulate(chunk.length for chunk in chunks)]
    rows, sampled, prompts = _logit_rows(chunks, starts)
    hidden_rows, pooled = _hidden_rows(chunks, starts)
    return Batch(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        tables=tables,
        starts=[0, *accumulate(lengths)],
        lengths=contexts,
        decodes=lengths.count(1),
        block_size=block_size,
        logit_rows=rows,
        prompts=prompts,
        # Most often all rows are sampled from, and need not be copied.
        sampled=None if sampled == list(range(len(rows))) else sampled,
        hidden_rows=hidden_rows,
        pooled=pooled,
        adapters=_owners(chunks, adapters),
        in_flight=None if before is None else before.tokens,
        in_flight_rows=() if before is None else _in_flight_rows(chunks, starts, before),
    )


def _runs(chunk: Chunk, single: bool) -> Rows[Chunk]:
    """The parts of a chunk that attend as sequences: every token of one that verifies, or all."""
    if not (chunk.proposed or (single and chunk.length > 1)):
        return (chunk,)
    return [Chunk(chunk.sequence, chunk.start + n, 1) for n in range(chunk.length)]


def _slots(blocks: list[int], start: int, end: int, block_size: int) -> list[int]:
    """Of the positions [start, end) of a sequence, block by block."""
    slots: list[int] = []
    for number in range(start // block_size, -(-end // block_size)):
        first = number * block_size
        shift = blocks[number] * block_size - first
        slots += range(max(start, first) + shift, min(end, first + block_size) + shift)
    return slots


def _logit_rows(
    chunks: Rows[Chunk], starts: list[int]
) -> tuple[list[int], list[int], list[tuple[Chunk, int]]]:
    """`logit_rows` of a batch, the row of logits of every sampler, and `prompts`."""
    rows: list[int] = []
    sampled: list[int] = []
    prompts: list[tuple[Chunk, int]] = []
    for index, chunk in enumerate(chunks):
        if chunk.sequence.needs_prompt_logits:
            prompts.append((chunk, len(rows)))
            rows += range(starts[index], starts[index + 1])
        elif chunk.proposed:
            sampled += range(len(rows), len(rows) + chunk.length)
            rows += range(starts[index], starts[index + 1])
            continue
        elif chunk.samplers:
            rows.append(starts[index + 1] - 1)
        sampled += [len(rows) - 1] * len(chunk.samplers)
    return rows, sampled, prompts


def _hidden_rows(
    chunks: Rows[Chunk], starts: list[int]
) -> tuple[list[int], list[tuple[Chunk, int]]]:
    """`hidden_rows` and `pooled` of a batch: of prompts whose embeddings are wanted."""
    rows: list[int] = []
    pooled: list[tuple[Chunk, int]] = []
    for index, chunk in enumerate(chunks):
        pooling = chunk.sequence.pooling
        if pooling is None or (pooling == "last" and not chunk.samplers):
            continue
        pooled.append((chunk, len(rows)))
        end = starts[index + 1]
        rows += range(end - 1 if pooling == "last" else starts[index], end)
    return rows, pooled


def _owners(chunks: Rows[Chunk], slots: Mapping[str, int]) -> list[int] | None:
    adapters = [chunk.sequence.adapter for chunk in chunks]
    if not any(adapters):
        return None
    owners: list[int] = []
    for chunk, adapter in zip(chunks, adapters, strict=True):
        owners += [slots[adapter] if adapter else -1] * chunk.length
    return owners


def _adapter_rows(owners: list[int] | None) -> _Arrays:
    """As "owners" the slot of every row, -1 for none; by slot its rows. Empty if there are none."""
    if owners is None:
        return {}
    array = np.array(owners, dtype=np.int32)
    arrays: _Arrays = {"owners": array}
    for slot in sorted(set(owners) - {-1}):
        arrays[slot] = np.flatnonzero(array == slot)
    return arrays


def _in_flight_rows(
    chunks: Rows[Chunk], starts: list[int], before: TokensInFlight
) -> list[tuple[int, int]]:
    return [
        (starts[row + 1] - 1, before.rows[chunk.sequence])
        for row, chunk in enumerate(chunks)
        if chunk.start + chunk.length > len(chunk.sequence.tokens)
    ]
