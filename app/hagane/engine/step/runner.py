"""Holds the weights and the KV cache tensors, and runs one forward pass per step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from hagane.engine.adapters import Banks
from hagane.engine.step.batch import Batch, Inputs
from hagane.engine.step.cuda_graphs import CudaGraphs
from hagane.engine.step.graphs import DecodeGraphs
from hagane.engine.step.memory import choose_cache_dtype, cuda_cache_memory
from hagane.engine.step.quantization import choose_quantization, report_loss
from hagane.kernels import cpu, reference
from hagane.kernels.backend import Operations, choose
from hagane.kernels.collective import Group
from hagane.kernels.devices import resolve_device
from hagane.kernels.transfer import send
from hagane.lora.banks import AdapterBanks
from hagane.lora.division import Division
from hagane.models.attention import Paged
from hagane.models.config import ModelConfig, Quantization
from hagane.models.decoder import Transformer
from hagane.models.parallel import join
from hagane.models.sharding import Shard
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.system.machine import available_memory, usable_cores
from hagane.weights.load import load_model
from hagane.weights.matrices import MatrixReader
from hagane.weights.sources.config import load_config

logger = logging.getLogger(__name__)

# The part of free memory that the KV cache may take when no figure is given.
_CPU_MEMORY_FRACTION = 0.5
# Of a step that verifies: one row more than are guessed for a sequence alone.
_LEAST_ROWS = 16


class ModelRunner:
    """A model on its device, with as many KV blocks as memory and use allow.

    `progress` is called with each stage of the start as it begins. `operations` are the fastest of
    the device unless given. With a `group` this process computes its part of the model on the
    group's device, and all ranks execute the same batches.
    """

    def __init__(
        self,
        config: EngineConfig,
        progress: Callable[[str], None] = lambda _: None,
        *,
        operations: Operations | None = None,
        group: Group | None = None,
    ) -> None:
        self._group = group
        self.device = resolve_device(config.device) if group is None else group.device
        if self.device.type == "cuda":
            # Triton launches on the current device, wherever the tensors are.
            torch.cuda.set_device(self.device)
        directory = Path(config.model)
        model_config = load_config(directory)
        self.dtype = resolve_dtype(config.dtype, model_config.dtype)
        self.context_length = _context_length(config, model_config)
        self.operations = operations or choose(self.device, self.dtype)
        if self.operations is cpu and config.block_size % cpu.LANES:
            # Their attention reads that many keys at a time, and past the end of a smaller block.
            raise ConfigurationError(
                f"block_size is {config.block_size}: the native CPU kernels need a multiple of "
                f"{cpu.LANES}"
            )
        quantization = choose_quantization(config, model_config, self.device)
        # Before the weights: the kernels quantize and pack them.
        self.instructions = self._start_threads(config.threads)
        progress("weights")
        shard = None if group is None else Shard(group.rank, group.ranks)
        self.model = self._load_model(directory, quantization, shard)
        progress("buffers")
        reader = partial(MatrixReader, directory, self.dtype, quantization)
        banks = AdapterBanks(
            self.model,
            self.dtype,
            self.device,
            reader if self.device.type == "cpu" else None,
            None if shard is None else Division(model_config, shard),
        )
        self.banks: Banks = banks
        self._tokens = banks.tokens
        if group is not None:
            join(self.model, group, model_config.vocab_size)
        self.vocab_size = model_config.vocab_size
        self.block_size = config.block_size
        self.cache_dtype = choose_cache_dtype(
            config, self.model.caches, quantization, self.dtype, self.instructions
        )
        if self.model.config.latent is not None and not self.model.caches[0].shared:
            logger.info(
                "keys and values of latent attention are cached as each head sees them: only the "
                "native CPU kernels read latent vectors"
            )
        self.blocks = self._count_blocks(config)
        self.caches = self._allocate_caches()
        self.decode_rows = max(config.max_sequences, _LEAST_ROWS if self.verifies else 1)
        # Hidden states [rows requested, features] of the last batch that requested any.
        self.hidden: Tensor | None = None
        # A device allocates its memory at once.
        self._unfaulted = _huge_pages(self.caches if self.device.type == "cpu" else ())
        self._leave_cores_to_kernels()
        progress("recordings")
        self._graphs = self._make_graphs(config)

    def _load_model(
        self, directory: Path, quantization: Quantization | None, shard: Shard | None
    ) -> Transformer:
        model, report = load_model(
            directory,
            device=str(self.device),
            dtype=self.dtype,
            quantization=quantization,
            operations=self.operations,
            shard=shard,
        )
        logger.info(
            "weights: %.1f M parameters, %.2f bits each, %.1f MB, loaded in %.2f s",
            report.parameters / 1e6,
            report.bits_per_weight,
            report.weight_bytes / 1e6,
            report.seconds,
        )
        report_loss(quantization)
        return model.eval()

    def _allocate_caches(self) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(
            self.operations.allocate_cache(
                self.blocks, self.block_size, cache.kv_heads, cache.head_dim, self.cache_dtype,
                self.device, shared=cache.shared,
            )
            for cache in self.model.caches
        )  # fmt: skip

    @torch.inference_mode()
    def _make_graphs(self, config: EngineConfig) -> DecodeGraphs | CudaGraphs | None:
        """Decode steps without Python in between, for the kernels that can be recorded."""
        if self.operations is reference or not self.model.config.declared:
            return None
        if self.operations is not cpu and (self.model.config.mixed or self._group is not None):
            # Which experts a step uses is not known before it runs; sums of ranks in a graph have
            # not been tried.
            return None
        sizes = self.decode_rows, -(-self.context_length // self.block_size), self.block_size
        if self.operations is cpu:
            return DecodeGraphs(self.model, self.caches, *sizes, tokens=self._tokens)
        graphs = CudaGraphs(self.model, self.caches, *sizes)
        graphs.prepare()
        return graphs

    @property
    def verifies(self) -> bool:
        """Whether a row's bits are the same next to others of its own sequence as in steps alone.

        Then guessed tokens can be verified. `decode_rows` is how many rows a decode step may have.
        """
        return self.operations is cpu and self.model.config.declared

    @property
    def asynchronous(self) -> bool:
        """Whether `execute` returns before its result is there: a device runs alongside Python.

        The next step is then prepared and handed over meanwhile.
        """
        # Ranks learn a step's tokens from the host.
        return self.device.type == "cuda" and self._group is None

    def prefault(self) -> bool:
        """Have the system map two more megabytes of KV cache; False once all of it is mapped.

        The system maps a page when it is first written. That takes up to 2 ms, for which all
        threads of a kernel wait. Pages mapped in idle time delay no request.
        """
        page = next(self._unfaulted, None)
        if page is not None:
            page.bitwise_or_(0)
        return page is not None

    def close(self) -> None:
        """End what runs besides this process."""

    def pin_main_thread(self) -> None:
        """Pin the calling thread to the core that the kernels' pool leaves to it.

        It takes its share of every operation. Unpinned, it would at times share a core with a
        pinned worker while its own is idle. Threads that it starts later inherit the pinning.
        """
        if self.operations is cpu:
            os.sched_setaffinity(0, usable_cores()[:1])

    def _start_threads(self, threads: int | None) -> str | None:
        """The instruction set of the native kernels; None for other backends."""
        if self.operations is not cpu:
            if threads:
                torch.set_num_threads(threads)
            return None
        instructions = cpu.start(threads)
        logger.info(
            "native kernels: %s on %d threads",
            instructions,
            threads or len(usable_cores()),
        )
        return instructions

    def _leave_cores_to_kernels(self) -> None:
        """From here on torch only samples; a second pool would fight the kernels' for the cores."""
        if self.operations is cpu:
            torch.set_num_threads(1)

    def _count_blocks(self, config: EngineConfig) -> int:
        scale = 4 if self.cache_dtype == torch.int8 else 0
        item = self.cache_dtype.itemsize
        token_bytes = sum(cache.bytes_of_token(item, scale) for cache in self.model.caches)
        block_bytes = token_bytes * self.block_size
        per_context = -(-self.context_length // self.block_size)
        ranks = 1 if self._group is None else self._group.ranks
        memory = config.kv_cache_memory
        if memory is None:
            wanted = config.max_sequences * per_context * block_bytes
            if config.kv_cache_limit is not None:
                limit = config.kv_cache_limit // ranks
                wanted = min(wanted, max(limit, per_context * block_bytes))
            memory = min(self._free_memory(config, ranks), wanted)
        else:
            memory //= ranks
        blocks = memory // block_bytes
        if self._group is not None:
            blocks = self._group.least(blocks)
        if blocks < per_context:
            raise ConfigurationError(
                f"kv_cache_memory of {ranks * memory} bytes holds {blocks * self.block_size} "
                f"tokens, less than one context of {self.context_length}: give at least "
                f"{ranks * per_context * block_bytes} bytes or lower context_length"
            )
        logger.info(
            "KV cache: %.1f MB, %d tokens, %.1f requests of the %d-token context",
            ranks * blocks * block_bytes / 1e6,
            blocks * self.block_size,
            blocks / per_context,
            self.context_length,
        )
        return blocks

    def _free_memory(self, config: EngineConfig, ranks: int) -> int:
        """Of a GPU of its own, or of the memory that `ranks` share."""
        if self.device.type == "cuda":
            tokens = min(config.max_batch_tokens, self.context_length)
            return cuda_cache_memory(self.model, config, tokens, self.device, self.dtype)
        return int(available_memory() * _CPU_MEMORY_FRACTION) // ranks

    def execute(
        self,
        batch: Batch,
        copies: Sequence[tuple[int, int]],
        leaves: Callable[[], bool] | None = None,
    ) -> Tensor | None:
        """Float32 logits [rows requested by the batch, vocab]; copies blocks first.

        They are valid until the next call. Where a device does not run alongside Python, `leaves`
        is asked between layers whether to leave the rest undone; then there are none.
        """
        if copies:
            self._copy_blocks(copies)
        if isinstance(self._graphs, DecodeGraphs):
            logits = self._graphs.run(batch, leaves)
            self.hidden = self._graphs.hidden
            return logits
        return self._run(batch.to(self.device))

    @torch.inference_mode()
    def _run(self, inputs: Inputs) -> Tensor:
        rows = inputs.adapters
        own = rows is not None and self._tokens.holds(slot for slot, _ in rows.groups)
        if isinstance(self._graphs, CudaGraphs) and inputs.hidden_rows is None and not own:
            recorded = self._graphs.run(inputs)
            if recorded is not None:
                return recorded
        context = Paged(
            inputs.positions, inputs.layout, self.caches, self.operations, inputs.adapters
        )
        embedded = self._tokens.embed(inputs.token_ids, rows.slots) if rows and own else None
        hidden = self.model(inputs.token_ids, context, None, embedded)
        if inputs.hidden_rows is not None:
            self.hidden = hidden[inputs.hidden_rows]
        wanted = hidden[inputs.logit_rows]
        logits = self.model.logits(wanted)
        if rows and own:
            self._tokens.score(wanted, rows.slots[inputs.logit_rows], logits)
        return logits

    def read_blocks(self, blocks: Sequence[int]) -> Tensor:
        """Copies of KV blocks, uint8 [blocks, block bytes], on the device."""
        rows, parts = torch.tensor(blocks, device=self.device), list(self._block_words())
        sizes = [part.shape[1] for part in parts]
        content = torch.empty(len(blocks), sum(sizes), dtype=torch.int64, device=self.device)
        for part, found in zip(parts, content.split(sizes, dim=1), strict=True):
            found.copy_(part[rows])
        return content.view(torch.uint8)

    def write_blocks(self, blocks: Sequence[int], content: Tensor) -> None:
        """Fill KV blocks with what `read_blocks` returned, on any device."""
        rows, parts = torch.tensor(blocks, device=self.device), list(self._block_words())
        sizes = [part.shape[1] for part in parts]
        words = content.to(self.device).view(torch.int64)
        for part, found in zip(parts, words.split(sizes, dim=1), strict=True):
            part[rows] = found

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of all layers."""
        return sum(8 * part.shape[1] for part in self._block_words())

    def _block_words(self) -> Iterator[Tensor]:
        """The cache's tensors, each as int64 [blocks, words]: bytes would be copied one by one.

        A block has a multiple of 16 tokens.
        """
        for tensor in chain.from_iterable(self.caches):
            if tensor.numel():
                yield tensor.flatten(1).view(torch.int64)

    def _copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        sources, destinations = send(list(torch.tensor(copies).T), self.device)
        for keys, values in self.caches:
            keys[destinations] = keys[sources]
            values[destinations] = values[sources]


def _huge_pages(caches: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """One byte of every two megabytes, each as int8 [1]; in the order in which blocks are used."""
    flat = [tensor.view(-1).view(torch.int8) for pair in caches for tensor in pair]
    for at in range(0, max(map(len, flat), default=0), 1 << 21):
        yield from (tensor[at : at + 1] for tensor in flat if at < len(tensor))


def resolve_dtype(name: str, of_model: str) -> torch.dtype:
    """`auto` is the dtype in the model's config.json."""
    chosen = of_model if name == "auto" else name
    return {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }[chosen]


def _context_length(config: EngineConfig, model: ModelConfig) -> int:
    if config.context_length is None:
        return model.max_position_embeddings
    if config.context_length > model.max_position_embeddings:
        raise ConfigurationError(
            f"context_length {config.context_length} exceeds the model's "
            f"{model.max_position_embeddings} positions"
        )
    return config.context_length
