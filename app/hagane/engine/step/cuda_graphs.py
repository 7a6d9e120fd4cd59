"""Decode steps captured as CUDA graphs for a few batch sizes: one launch for a whole step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from hagane.engine.step.batch import Inputs
from hagane.kernels.layout import PagedLayout
from hagane.kernels.low_rank import AdapterRows
from hagane.models.attention import Paged
from hagane.models.decoder import Transformer

Step = Callable[[], None]


class CudaGraphs:
    """Steps in which every sequence brings one token, and samples one.

    Inputs lie in arrays of fixed addresses for up to `max_rows` sequences with block tables of
    up to `max_blocks` entries; a batch is copied there, padded to the next captured size with rows
    of length 0, which the kernels pass over. `capture` makes of a step what runs it again.
    """

    def __init__(
        self,
        model: Transformer,
        caches: Sequence[tuple[Tensor, Tensor]],
        max_rows: int,
        max_blocks: int,
        block_size: int,
        *,
        capture: Callable[[Step], Step] | None = None,
    ) -> None:
        self._model, self._caches, self._block_size = model, caches, block_size
        self._capture = capture or Capture()
        device = caches[0][0].device
        with device:
            self._token_ids = torch.zeros(max_rows, dtype=torch.int64)
            self._positions = torch.zeros(max_rows, dtype=torch.int64)
            self._slots = torch.zeros(max_rows, dtype=torch.int64)
            self._tables = torch.zeros(max_rows, max_blocks, dtype=torch.int32)
            self._starts = torch.arange(max_rows + 1, dtype=torch.int32)
            self._lengths = torch.zeros(max_rows, dtype=torch.int32)
            self._adapters = torch.full((max_rows,), -1, dtype=torch.int32)
            # One for all graphs: results of each would take half a megabyte a row.
            self._logits = torch.zeros(max_rows, model.config.vocab_size)
        self._sizes = batch_sizes(max_rows)
        # By rows, and whether any has an adapter: steps without pay nothing for those with.
        self._replays: dict[tuple[int, bool], Step] = {}

    def prepare(self) -> None:
        """Capture all sizes, so that no request waits for it; with adapters when one first comes.

        The largest first: the others then find room in the memory that it took.
        """
        for size in reversed(self._sizes):
            self._replays[size, False] = self._capture(partial(self._step, size, False))

    def run(self, inputs: Inputs) -> Tensor | None:
        """Float32 logits [sequences, vocab], valid until the next step; None for other batches."""
        rows, layout = inputs.token_ids.shape[0], inputs.layout
        if layout.decodes != rows or inputs.logit_rows.shape[0] != rows or rows > len(self._slots):
            return None
        size = next(size for size in self._sizes if size >= rows)
        self._token_ids[:rows] = inputs.token_ids
        self._positions[:rows] = inputs.positions
        self._slots[:rows] = layout.slots
        self._tables[:rows, : layout.block_tables.shape[1]] = layout.block_tables
        self._lengths[:rows] = layout.lengths
        self._lengths[rows:size] = 0
        adapted = inputs.adapters is not None
        if inputs.adapters is not None:
            self._adapters[:rows] = inputs.adapters.slots
            self._adapters[rows:size] = -1
        if (size, adapted) not in self._replays:
            self._replays[size, adapted] = self._capture(partial(self._step, size, adapted))
        self._replays[size, adapted]()
        return self._logits[:rows]

    def _step(self, rows: int, adapted: bool) -> None:
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
        operations = self._model.operations
        context = Paged(self._positions[:rows], layout, self._caches, operations, adapters)
        self._logits[:rows] = self._model.logits(self._model(self._token_ids[:rows], context))


class Capture:
    """Captures steps in one pool of memory: two of them never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        # Once before, outside: Triton compiles its kernels, cuBLAS takes its workspace.
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Adapters may be sent to the device by another thread meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        replay: Step = graph.replay
        return replay


def batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then multiples of 16, from 128 on of 32: few graphs, little padding; and `most`.

    Tensor cores take 16 rows at a time anyway.
    """
    steps = [1, 2, 4, 8, *range(16, 128, 16), *range(128, most, 32)]
    return (*(size for size in steps if size < most), most)
