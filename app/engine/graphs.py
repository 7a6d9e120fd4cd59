"""Steps recorded before they run, decode steps once for each size: no Python between kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from app.engine.batch import Batch
from app.kernels import PagedLayout, native
from app.kernels.low_rank import AdapterRows
from app.kernels.recording import Workspace
from app.transformer.attention import Fetching, Narrowing, Paged
from app.transformer.model import Transformer


class DecodeGraphs:
    """The native kernels' steps.

    Where every sequence brings one token, and samples one, inputs lie in arrays of fixed addresses
    for up to `max_sequences` sequences with block tables of up to `max_blocks` entries: a batch is
    copied there, then its recording replayed. Other steps are recorded anew: between kernels that
    have emptied the caches Python is slow, and the other threads fall asleep.
    """

    def __init__(
        self,
        model: Transformer,
        caches: Sequence[tuple[Tensor, Tensor]],
        *,
        max_sequences: int,
        max_blocks: int,
        block_size: int,
    ) -> None:
        self._model, self._caches, self._block_size = model, caches, block_size
        self._token_ids = torch.zeros(max_sequences, dtype=torch.int64)
        self._positions = torch.zeros(max_sequences, dtype=torch.int64)
        self._slots = torch.zeros(max_sequences, dtype=torch.int64)
        self._tables = torch.zeros(max_sequences, max_blocks, dtype=torch.int32)
        self._starts = torch.arange(max_sequences + 1, dtype=torch.int32)
        self._lengths = torch.zeros(max_sequences, dtype=torch.int32)
        self._adapters = torch.full((max_sequences,), -1, dtype=torch.int32)
        self._workspace = Workspace()
        # By rows, and whether any has an adapter: steps without pay nothing for those with.
        self._replays: dict[tuple[int, bool], Callable[[], Tensor]] = {}

    def run(self, batch: Batch) -> Tensor:
        """Float32 logits [rows asked for by the batch, vocab], valid until the next step."""
        rows, layout = batch.token_ids.shape[0], batch.layout
        if layout.decodes != rows or batch.logit_rows.shape[0] != rows or rows > len(self._slots):
            return self._run_once(batch)
        self._token_ids[:rows] = batch.token_ids
        self._positions[:rows] = batch.positions
        self._slots[:rows] = layout.slots
        self._tables[:rows, : layout.block_tables.shape[1]] = layout.block_tables
        self._lengths[:rows] = layout.lengths
        adapted = batch.adapters is not None
        if batch.adapters is not None:
            self._adapters[:rows] = batch.adapters.slots
        replay = self._replays.get((rows, adapted))
        if replay is None:
            replay = native.record(lambda: self._step(rows, adapted), self._workspace)
            self._replays[rows, adapted] = replay
        return replay()

    def _run_once(self, batch: Batch) -> Tensor:
        rows, context = self._narrow(batch)
        replay = native.record(lambda: self._model(batch.token_ids, context), self._workspace)
        return self._model.logits(replay()[torch.searchsorted(rows, batch.logit_rows)])

    def _narrow(self, batch: Batch) -> tuple[Tensor, Paged]:
        """The rows that the model shall return, and the context that drops the others."""
        layout, tokens = batch.layout, batch.token_ids.shape[0]
        inputs = batch.positions, layout, self._caches, native, batch.adapters
        rows = batch.logit_rows.unique()
        if len(rows) == tokens:
            return rows, Paged(*inputs)
        if not len(rows):  # no kernel takes none
            rows = torch.tensor([tokens - 1])
        starts = torch.searchsorted(rows, layout.starts.long()).int()
        ends = replace(layout, starts=starts)
        changes = batch.adapters and AdapterRows(batch.adapters.slots[rows])
        return rows, Narrowing(*inputs, rows=rows, ends=ends, changes=changes)

    def _step(self, rows: int, adapted: bool) -> Tensor:
        layout = PagedLayout(
            slots=self._slots[:rows],
            block_tables=self._tables[:rows],
            starts=self._starts[: rows + 1],
            lengths=self._lengths[:rows],
            query_starts=tuple(range(rows + 1)),
            context_lengths=(0,) * rows,
            decodes=rows,
            block_size=self._block_size,
        )
        adapters = AdapterRows(self._adapters[:rows]) if adapted else None
        context = Fetching(self._positions[:rows], layout, self._caches, native, adapters)
        return self._model.logits(self._model(self._token_ids[:rows], context))
