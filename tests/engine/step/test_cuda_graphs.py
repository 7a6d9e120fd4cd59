"""Padded decode steps of a model through the Triton kernels, against the reference.

Without a device steps are run instead of captured, through Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hagane.engine.step.batch import Inputs
from hagane.engine.step.cuda_graphs import CudaGraphs, batch_sizes
from hagane.engine.step.memory import run_full_step
from hagane.kernels import reference
from hagane.kernels.backend import Operations
from hagane.kernels.layout import PagedLayout
from hagane.kernels.low_rank import AdapterRows
from hagane.lora.banks import AdapterBanks
from hagane.lora.files import load_adapter
from hagane.models.attention import Paged
from hagane.models.config import Quantization
from hagane.models.decoder import Transformer
from hagane.models.serving_layers import for_serving
from hagane.weights.eight_bits import choose_eight_bits
from hagane.weights.load import load_model
from hagane.weights.opening import open_weights

from tests.support.engine import make_adapter

pytest.importorskip("triton")
from hagane.kernels import cuda
from hagane.kernels.cuda import low_rank, tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK = 16


def batch_of(tokens: list[list[int]], pasts: list[int], tables: list[list[int]]) -> Inputs:
    """Each sequence brings its `tokens` after `pasts` earlier ones; its last row is sampled."""
    positions = [
        list(range(past, past + len(new))) for past, new in zip(pasts, tokens, strict=True)
    ]
    slots = [
        table[p // BLOCK] * BLOCK + p % BLOCK
        for table, row in zip(tables, positions, strict=True)
        for p in row
    ]
    starts = [sum(map(len, tokens[:i])) for i in range(len(tokens) + 1)]
    contexts = [past + len(new) for past, new in zip(pasts, tokens, strict=True)]
    with DEVICE:
        layout = PagedLayout(
            slots=torch.tensor(slots),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            starts=torch.tensor(starts, dtype=torch.int32),
            lengths=torch.tensor(contexts, dtype=torch.int32),
            query_starts=tuple(starts),
            context_lengths=tuple(contexts),
            decodes=sum(len(new) == 1 for new in tokens),
            block_size=BLOCK,
        )
        flat = torch.tensor([token for new in tokens for token in new])
        places = torch.tensor([p for row in positions for p in row])
        ends = torch.tensor(starts[1:]) - 1
    return Inputs(flat, places, layout, ends)


def served(stored: Transformer, quantization: Quantization | None) -> Transformer:
    """The same weights for the Triton kernels."""
    with DEVICE:
        model = Transformer(stored.config, quantization, cuda)
    model.load_state_dict(stored.state_dict())
    for name, module in list(model.named_modules()):
        replacement = for_serving(module, cuda, torch.float32)
        if replacement is not module:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, replacement)
    return model.eval()


def caches_of(model: Transformer, operations: Operations):
    shape = (8, BLOCK, model.config.kv_heads, model.config.head_dim)
    return tuple(
        operations.allocate_cache(*shape, torch.float32, DEVICE) for _ in range(model.config.layers)
    )


@pytest.mark.parametrize("quantization", [None, Quantization("int4", 32)], ids=["dense", "int4"])
@torch.inference_mode()
def test_padded_steps_give_the_reference_s_logits(tiny_model_dir, monkeypatch, quantization):
    if DEVICE.type == "cpu":
        monkeypatch.setattr(tiles, "MULTIPROCESSORS", 2)
    stored, _ = load_model(
        tiny_model_dir, device=str(DEVICE), dtype=torch.float32, quantization=quantization
    )
    planned = quantization and choose_eight_bits(*open_weights(tiny_model_dir), quantization)
    model = served(stored, planned)
    ours, theirs = caches_of(model, cuda), caches_of(stored, reference)
    graphs = CudaGraphs(
        model,
        ours,
        max_rows=4,
        max_blocks=3,
        block_size=BLOCK,
        capture=None if DEVICE.type == "cuda" else lambda step: step,
    )

    def expected(batch: Inputs) -> torch.Tensor:
        context = Paged(batch.positions, batch.layout, theirs, reference)
        return stored.logits(stored(batch.token_ids, context)[batch.logit_rows])

    tables = [[5, 2], [1, 0], [3, 6]]
    first = batch_of([[7], [9, 30, 31], list(range(40, 57))], [0, 0, 0], tables)
    assert graphs.run(first) is None
    context = Paged(first.positions, first.layout, ours, cuda)
    close(model.logits(model(first.token_ids, context)[first.logit_rows]), expected(first))
    # Three rows in the graph of four.
    second = batch_of([[11], [12], [13]], [1, 3, 17], tables)
    close(graphs.run(second), expected(second))


@torch.inference_mode()
def test_adapters_change_their_rows_of_a_padded_step(tiny_model_dir, tmp_path, monkeypatch):
    if DEVICE.type == "cpu":
        monkeypatch.setattr(tiles, "MULTIPROCESSORS", 2)
        monkeypatch.setattr(low_rank, "MAX_RANKS", 16)
    stored, _ = load_model(
        tiny_model_dir, device=str(DEVICE), dtype=torch.float32, quantization=None
    )
    model = served(stored, None)
    caches, peers = caches_of(model, cuda), caches_of(stored, reference)
    directory = make_adapter(tmp_path / "adapter", tiny_model_dir, 0, rank=4).directory
    adapter = load_adapter(Path(directory), stored.config)
    for banks in (AdapterBanks(m, torch.float32, DEVICE) for m in (model, stored)):
        banks.place(1, banks.pack(adapter))
    graphs = CudaGraphs(
        model,
        caches,
        max_rows=4,
        max_blocks=1,
        block_size=BLOCK,
        capture=None if DEVICE.type == "cuda" else lambda step: step,
    )
    batch = batch_of([[7], [8], [9]], [0, 0, 0], [[0], [1], [2]])
    rows = torch.tensor([1, 2], device=DEVICE)
    owners = torch.tensor([-1, 1, 1], dtype=torch.int32, device=DEVICE)
    adapted = replace(batch, adapters=AdapterRows(owners, ((1, rows),)))

    def expected(batch: Inputs) -> torch.Tensor:
        context = Paged(batch.positions, batch.layout, peers, reference, batch.adapters)
        return stored.logits(stored(batch.token_ids, context))

    plain = graphs.run(batch).clone()
    close(plain, expected(batch))
    changed = graphs.run(adapted)
    close(changed, expected(adapted))
    assert torch.equal(changed[0], plain[0])
    assert (changed[1:] - plain[1:]).abs().max() > 0.1


def close(ours: torch.Tensor | None, theirs: torch.Tensor) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_full_step_runs_without_a_cache_of_its_own(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(tiles, "MULTIPROCESSORS", 2)
    stored, _ = load_model(
        tiny_model_dir, device=str(DEVICE), dtype=torch.float32, quantization=None
    )
    run_full_step(served(stored, None), 20, 2, BLOCK, DEVICE, torch.float32)


def test_batch_sizes_rise_to_the_most():
    assert batch_sizes(1) == (1,)
    assert batch_sizes(20) == (1, 2, 4, 8, 16, 20)
    sizes = batch_sizes(256)
    assert sizes[-1] == 256
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) < 20
