"""Recorded steps have the bits of steps that run by themselves."""

from __future__ import annotations

import random

import pytest
import torch

from app import kernels
from app.engine.batch import Batch
from app.engine.graphs import DecodeGraphs
from app.kernels import PagedLayout
from app.transformer.attention import Paged
from app.transformer.config import ModelConfig
from app.transformer.weights import load_model

pytestmark = pytest.mark.skipif(not kernels.native.available(), reason="kernels not built")
BLOCK, BLOCKS, MOST = 16, 40, 6


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    kernels.native.start(1)
    model, _ = load_model(
        tiny_model_dir,
        device="cpu",
        dtype=torch.float32,
        quantization=None,
        operations=kernels.native,
    )
    return model.eval()


def caches(config: ModelConfig):
    return [
        kernels.native.allocate_cache(
            BLOCKS, BLOCK, config.kv_heads, config.head_dim, torch.float32, torch.device("cpu")
        )
        for _ in range(config.layers)
    ]


def decode_batch(rng: random.Random, contexts: list[int], vocab: int) -> Batch:
    """One token for each sequence; sequence i owns blocks of its own."""
    rows = len(contexts)
    width = max(-(-c // BLOCK) for c in contexts)
    own = BLOCKS // MOST
    tables = torch.zeros(rows, width, dtype=torch.int32)
    for i, context in enumerate(contexts):
        used = -(-context // BLOCK)
        tables[i, :used] = torch.arange(i * own, i * own + used)
    positions = torch.tensor(contexts) - 1
    blocks = tables[torch.arange(rows), positions // BLOCK].long()
    layout = PagedLayout(
        slots=blocks * BLOCK + positions % BLOCK,
        block_tables=tables,
        starts=torch.arange(rows + 1, dtype=torch.int32),
        lengths=torch.tensor(contexts, dtype=torch.int32),
        query_starts=tuple(range(rows + 1)),
        context_lengths=tuple(contexts),
        decodes=rows,
        block_size=BLOCK,
    )
    ids = torch.tensor([rng.randrange(vocab) for _ in contexts])
    return Batch(ids, positions, layout, torch.arange(rows), tuple((i, i + 1) for i in range(rows)))


@torch.inference_mode()
def test_replays_equal_steps_that_run_by_themselves(model):
    rng = random.Random(1)
    config = model.config
    graphed, plain = caches(config), caches(config)
    graphs = DecodeGraphs(
        model, graphed, max_sequences=MOST, max_blocks=BLOCKS // MOST, block_size=BLOCK
    )
    contexts = [1] * MOST
    for _ in range(60):
        rows = rng.choice([1, 2, 3, MOST])
        batch = decode_batch(rng, contexts[:rows], config.vocab_size)
        context = Paged(batch.positions, batch.layout, plain, kernels.native)
        expected = model.logits(model(batch.token_ids, context))
        assert torch.equal(graphs.run(batch), expected)
        contexts[:rows] = [c + 1 for c in contexts[:rows]]


def mixed_batch(rng: random.Random, starts: list[int], vocab: int) -> Batch:
    """A chunk of each sequence, of which nothing, the last row or all rows are wanted."""
    own = BLOCKS // MOST
    lengths = [rng.randint(1, own * BLOCK - start) for start in starts]
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tables = torch.arange(len(starts) * own, dtype=torch.int32).view(len(starts), own)
    positions = [torch.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    slots = [tables[i, p // BLOCK].long() * BLOCK + p % BLOCK for i, p in enumerate(positions)]
    wanted, spans = [], []
    for i in rng.sample(range(len(starts)), len(starts)):
        rows = torch.arange(offsets[i], offsets[i + 1])[-rng.choice([1, 1, lengths[i]]) :]
        rows = rows if rng.random() < 0.7 else rows[:0]
        spans.append((sum(map(len, wanted)), sum(map(len, wanted)) + len(rows)))
        wanted.append(rows)
    layout = PagedLayout(
        slots=torch.cat(slots),
        block_tables=tables,
        starts=offsets.int(),
        lengths=torch.tensor(ends, dtype=torch.int32),
        query_starts=tuple(offsets.tolist()),
        context_lengths=tuple(ends),
        decodes=0,
        block_size=BLOCK,
    )
    ids = torch.tensor([rng.randrange(vocab) for _ in range(sum(lengths))])
    return Batch(ids, torch.cat(positions), layout, torch.cat(wanted), tuple(spans))


@torch.inference_mode()
def test_rows_that_nobody_wants_are_dropped_behind_the_last_attention(model):
    rng = random.Random(2)
    config = model.config
    graphed, plain = caches(config), caches(config)
    graphs = DecodeGraphs(
        model, graphed, max_sequences=MOST, max_blocks=BLOCKS // MOST, block_size=BLOCK
    )
    for _ in range(40):
        starts = [rng.randint(0, 50) for _ in range(rng.randint(1, MOST))]
        batch = mixed_batch(rng, starts, config.vocab_size)
        context = Paged(batch.positions, batch.layout, plain, kernels.native)
        expected = model.logits(model(batch.token_ids, context)[batch.logit_rows])
        assert torch.equal(graphs.run(batch), expected)
        for one, other in zip(graphed, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
