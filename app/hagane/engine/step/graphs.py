"""Steps recorded before they run, decode steps once for each size: no Python between kernels."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hagane.engine.step.batch import Batch, Inputs
from hagane.kernels import cpu
from hagane.kernels.cpu.recording import Replay, Workspace
from hagane.kernels.layout import PagedLayout
from hagane.kernels.low_rank import AdapterRows
from hagane.lora.token_bank import TokenBank
from hagane.models.attention import Paged, RowSelection
from hagane.models.decoder import Transformer

# Each takes some tens of kilobytes; what is forgotten is recorded again.
_MOST_RECORDINGS = 512


class DecodeGraphs:
    """The native kernels' steps.

    Where every sequence brings one token, inputs lie in arrays of fixed addresses for up to
    `max_rows` sequences with block tables of up to `max_blocks` entries: a batch is copied there,
    then its recording replayed. Other steps are recorded each time. Between kernels that have
    emptied the caches Python is slow, and the other threads fall asleep. Steps that may be left are
    recorded in parts, a layer each.
    """

    def __init__(
        self,
        model: Transformer,
        caches: Sequence[tuple[Tensor, Tensor]],
        max_rows: int,
        max_blocks: int,
        block_size: int,
        *,
        tokens: TokenBank | None = None,
    ) -> None:
        """`tokens` are the rows of the embedding and the head that adapters replace."""
        self._model, self._caches, self._block_size = model, caches, block_size
        self._tokens = tokens
        # numpy's: to copy a list or an array into torch's takes ten times as long.
        self._token_ids = np.zeros(max_rows, dtype=np.int64)
        self._positions = np.zeros(max_rows, dtype=np.int64)
        self._slots = np.zeros(max_rows, dtype=np.int64)
        self._tables = np.zeros((max_rows, max_blocks), dtype=np.int32)
        self._starts = np.arange(max_rows + 1, dtype=np.int32)
        self._lengths = np.zeros(max_rows, dtype=np.int32)
        self._adapters = np.full(max_rows, -1, dtype=np.int32)
        # The rows whose logits are wanted, their offsets by sequence, and their adapters.
        self._picked = np.zeros(max_rows, dtype=np.int64)
        self._picked_starts = np.zeros(max_rows + 1, dtype=np.int32)
        self._picked_adapters = np.full(max_rows, -1, dtype=np.int32)
        self._workspace = Workspace()
        # Hidden states [rows requested, features] of the last step that requested any.
        self.hidden: Tensor | None = None
        # By rows, how many of them are wanted, whether any has an adapter (steps without pay
        # nothing for those with), and whether the step can be left.
        self._replays: OrderedDict[tuple[int, int, bool, bool], Replay] = OrderedDict()

    def run(self, batch: Batch, leaves: Callable[[], bool] | None = None) -> Tensor | None:
        """Float32 logits [rows requested by the batch, vocab], valid until the next step.

        `leaves` is asked between layers whether to leave the rest undone; then there are none.
        """
        rows, picked = len(batch.token_ids), len(batch.logit_rows)
        decodes = batch.decodes == rows <= len(self._slots) and picked > 0
        tokens = self._tokens
        if tokens is not None and not tokens.holds(batch.adapters):
            tokens = None
        if not decodes or batch.in_flight_rows or batch.hidden_rows or tokens is not None:
            return self._run_once(batch.to(torch.device("cpu")), leaves, tokens)
        self._token_ids[:rows] = batch.token_ids
        self._positions[:rows] = batch.positions
        self._slots[:rows] = batch.slots
        self._tables[:rows, : len(batch.tables[0])] = batch.tables
        self._lengths[:rows] = batch.lengths
        adapted = batch.adapters is not None
        if batch.adapters is not None:
            self._adapters[:rows] = batch.adapters
        if picked < rows:
            self._picked[:picked] = batch.logit_rows
            wanted = self._picked[:picked]
            self._picked_starts[: rows + 1] = np.searchsorted(wanted, self._starts[: rows + 1])
            self._picked_adapters[:picked] = self._adapters[wanted]
        kind = (rows, picked, adapted, leaves is not None)
        replay = self._replays.get(kind)
        if replay is None:
            replay = self._record(lambda: self._step(rows, picked, adapted), leaves is not None)
            self._replays[kind] = replay
            if len(self._replays) > _MOST_RECORDINGS:
                self._replays.popitem(last=False)
        self._replays.move_to_end(kind)
        return replay(leaves)

    @torch.inference_mode()
    def _run_once(
        self, inputs: Inputs, leaves: Callable[[], bool] | None, tokens: TokenBank | None
    ) -> Tensor | None:
        """A step that is not recorded before; `tokens` where some adapter has rows there."""
        context = Paged(inputs.positions, inputs.layout, self._caches, cpu, inputs.adapters)
        rows = _wanted_rows(inputs)
        selection = self._select(rows, inputs) if len(rows) < len(inputs.token_ids) else None
        own = inputs.adapters if tokens is not None else None
        embedded = tokens.embed(inputs.token_ids, own.slots) if tokens and own else None
        replay = self._record(
            lambda: self._model(inputs.token_ids, context, selection, embedded), leaves is not None
        )
        states = replay(leaves)
        if states is None:
            return None
        if inputs.hidden_rows is not None:
            self.hidden = states[torch.searchsorted(rows, inputs.hidden_rows)]
        wanted = states[torch.searchsorted(rows, inputs.logit_rows)]
        logits = self._model.logits(wanted)
        if tokens and own:
            tokens.score(wanted, own.slots[inputs.logit_rows], logits)
        return logits

    def _select(self, rows: Tensor, inputs: Inputs) -> RowSelection:
        """`rows` as queries of the last layer, with their adapters."""
        starts = torch.searchsorted(rows, inputs.layout.starts.long()).int()
        layout = replace(inputs.layout, starts=starts)
        adapters = inputs.adapters and AdapterRows(inputs.adapters.slots[rows])
        positions = inputs.positions[rows]
        return RowSelection(rows, Paged(positions, layout, self._caches, cpu, adapters))

    @torch.inference_mode()
    def _record(self, step: Callable[[], Tensor], in_parts: bool) -> Replay:
        """Parts are what lies between the beginnings of two layers."""
        with contextlib.ExitStack() as hooks:
            for layer in self._model.model.layers if in_parts else ():
                hooks.enter_context(layer.register_forward_pre_hook(lambda *_: cpu.cut()))
            return cpu.record(step, self._workspace)

    def _step(self, rows: int, picked: int, adapted: bool) -> Tensor:
        token_ids, positions = map(torch.from_numpy, (self._token_ids, self._positions))
        layout = PagedLayout(
            slots=torch.from_numpy(self._slots[:rows]),
            block_tables=torch.from_numpy(self._tables[:rows]),
            starts=torch.from_numpy(self._starts[: rows + 1]),
            lengths=torch.from_numpy(self._lengths[:rows]),
            query_starts=tuple(range(rows + 1)),
            context_lengths=(0,) * rows,
            decodes=rows,
            block_size=self._block_size,
        )
        adapters = AdapterRows(torch.from_numpy(self._adapters[:rows])) if adapted else None
        context = Paged(positions[:rows], layout, self._caches, cpu, adapters, prefetch=True)
        selection = self._pick(picked, context) if picked < rows else None
        return self._model.logits(self._model(token_ids[:rows], context, selection))

    def _pick(self, picked: int, context: Paged) -> RowSelection:
        """The first `picked` of the fixed arrays as queries of the last layer."""
        rows, starts = map(torch.from_numpy, (self._picked[:picked], self._picked_starts))
        layout = replace(context.layout, starts=starts[: context.layout.decodes + 1])
        adapters = None
        if context.adapters is not None:
            adapters = AdapterRows(torch.from_numpy(self._picked_adapters[:picked]))
        return RowSelection(
            rows, replace(context, layout=layout, adapters=adapters, prefetch=False)
        )


def _wanted_rows(inputs: Inputs) -> Tensor:
    """int64, ascending: rows whose logits or hidden states are wanted, or the last where none is.

    No kernel takes an empty batch.
    """
    wanted = inputs.logit_rows
    if inputs.hidden_rows is not None:
        wanted = torch.cat((wanted, inputs.hidden_rows))
    rows = wanted.unique()
    return rows if len(rows) else torch.tensor([len(inputs.token_ids) - 1])
