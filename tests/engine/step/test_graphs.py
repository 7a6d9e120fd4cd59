"""Recorded steps have the bits of steps that run by themselves."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from hagane.engine.step.batch import Batch
from hagane.engine.step.graphs import DecodeGraphs
from hagane.kernels import cpu
from hagane.models.attention import Paged
from hagane.models.config import ModelConfig
from hagane.models.decoder import Transformer
from hagane.models.serving_layers import for_serving
from hagane.weights.load import load_model

from tests.support.mixture import make_mixture

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
BLOCK, BLOCKS, MOST = 16, 40, 6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    cpu.start(1)
    model, _ = load_model(
        tiny_model_dir,
        device="cpu",
        dtype=torch.float32,
        quantization=None,
        operations=cpu,
    )
    return model.eval()


def caches(config: ModelConfig):
    return [
        cpu.allocate_cache(
            BLOCKS, BLOCK, config.kv_heads, config.head_dim, torch.float32, torch.device("cpu")
        )
        for _ in range(config.layers)
    ]


def decode_batch(rng: random.Random, contexts: list[int], vocab: int) -> Batch:
    """One token for each sequence; sequence i owns blocks of its own."""
    rows = len(contexts)
    width = max(-(-c // BLOCK) for c in contexts)
    own = BLOCKS // MOST
    used = [-(-context // BLOCK) for context in contexts]
    return Batch(
        token_ids=[rng.randrange(vocab) for _ in contexts],
        positions=[context - 1 for context in contexts],
        slots=[i * own * BLOCK + context - 1 for i, context in enumerate(contexts)],
        tables=[
            [*range(i * own, i * own + count), *[0] * (width - count)]
            for i, count in enumerate(used)
        ],
        starts=list(range(rows + 1)),
        lengths=contexts,
        decodes=rows,
        block_size=BLOCK,
        logit_rows=list(range(rows)),
    )


@torch.inference_mode()
def test_replays_equal_steps_that_run_by_themselves(model):
    compare_decode_steps(model, steps=60)


@torch.inference_mode()
def test_steps_of_a_mixture_are_recorded_too(tmp_path):
    directory = make_mixture(tmp_path, "qwen3_moe")
    options = {"device": "cpu", "dtype": torch.float32, "quantization": None, "operations": cpu}
    mixture, _ = load_model(directory, **options)
    compare_decode_steps(mixture, steps=20)
    compare_mixed_steps(mixture, steps=5)


def compare_decode_steps(model: Transformer, steps: int) -> None:
    rng = random.Random(1)
    config = model.config
    graphed, plain = caches(config), caches(config)
    graphs = DecodeGraphs(
        model, graphed, max_rows=MOST, max_blocks=BLOCKS // MOST, block_size=BLOCK
    )
    contexts = [1] * MOST
    for _ in range(steps):
        rows = rng.choice([1, 2, 3, MOST])
        batch = decode_batch(rng, contexts[:rows], config.vocab_size)
        if rng.random() < 0.5:
            wanted = rng.sample(range(rows), rng.randint(1, rows))
            batch = replace(batch, logit_rows=sorted(wanted))
        inputs = batch.to(CPU)
        context = Paged(inputs.positions, inputs.layout, plain, cpu)
        expected = model.logits(model(inputs.token_ids, context)[inputs.logit_rows])
        assert torch.equal(graphs.run(batch), expected)
        contexts[:rows] = [c + 1 for c in contexts[:rows]]


@torch.inference_mode()
def test_a_step_left_between_layers_comes_to_the_same_when_it_is_done_again(model):
    rng = random.Random(4)
    config = model.config
    parted, plain = caches(config), caches(config)
    sizes = {"max_rows": MOST, "max_blocks": BLOCKS // MOST, "block_size": BLOCK}
    graphs, whole = DecodeGraphs(model, parted, **sizes), DecodeGraphs(model, plain, **sizes)
    contexts = [1] * MOST
    for number in range(20):
        if number % 2:
            batch = mixed_batch(rng, [0, 7], config.vocab_size)
        else:
            batch = decode_batch(rng, contexts[: rng.choice([1, 3])], config.vocab_size)
        for layers in range(1, config.layers + 1):
            answers = iter([False] * (layers - 1) + [True])
            assert graphs.run(batch, answers.__next__) is None
        assert torch.equal(graphs.run(batch, lambda: False), whole.run(batch))
        for one, other in zip(parted, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def mixed_batch(rng: random.Random, starts: list[int], vocab: int) -> Batch:
    """A chunk of each sequence, of which nothing, the last row or all rows are wanted."""
    own = BLOCKS // MOST
    lengths = [rng.randint(1, own * BLOCK - start) for start in starts]
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    offsets = [0, *itertools.accumulate(lengths)]
    positions = [range(start, end) for start, end in zip(starts, ends, strict=True)]
    wanted: list[int] = []
    for i in rng.sample(range(len(starts)), len(starts)):
        rows = range(offsets[i], offsets[i + 1])[-rng.choice([1, 1, lengths[i]]) :]
        wanted += rows if rng.random() < 0.7 else ()
    return Batch(
        token_ids=[rng.randrange(vocab) for _ in range(sum(lengths))],
        positions=[p for places in positions for p in places],
        slots=[i * own * BLOCK + p for i, places in enumerate(positions) for p in places],
        tables=[list(range(i * own, i * own + own)) for i in range(len(starts))],
        starts=offsets,
        lengths=ends,
        decodes=0,
        block_size=BLOCK,
        logit_rows=wanted,
    )


@torch.inference_mode()
def test_the_last_layer_drops_rows_that_are_not_wanted(model):
    compare_mixed_steps(model, steps=40)


@pytest.mark.parametrize("norms", ["after", "around", "parallel", "shared"])
@torch.inference_mode()
def test_rows_are_dropped_wherever_the_norms_are(model, norms):
    config = replace(model.config, norms=norms)
    other = Transformer(config, None, cpu)
    other.init_weights(torch.Generator().manual_seed(1))
    for path, module in list(other.named_modules()):
        if path:
            parent, _, name = path.rpartition(".")
            other.get_submodule(parent).add_module(name, for_serving(module, cpu, torch.float32))
    compare_mixed_steps(other, steps=5)


def compare_mixed_steps(model: Transformer, steps: int) -> None:
    rng = random.Random(2)
    config = model.config
    graphed, plain = caches(config), caches(config)
    graphs = DecodeGraphs(
        model, graphed, max_rows=MOST, max_blocks=BLOCKS // MOST, block_size=BLOCK
    )
    for _ in range(steps):
        starts = [rng.randint(0, 50) for _ in range(rng.randint(1, MOST))]
        batch = mixed_batch(rng, starts, config.vocab_size)
        inputs = batch.to(CPU)
        context = Paged(inputs.positions, inputs.layout, plain, cpu)
        expected = model.logits(model(inputs.token_ids, context)[inputs.logit_rows])
        assert torch.equal(graphs.run(batch), expected)
        for one, other in zip(graphed, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
