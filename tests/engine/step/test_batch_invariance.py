"""A token's logits have the same bits whatever batch computes them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from hagane.engine.step.batch import Batch
from hagane.engine.step.graphs import DecodeGraphs
from hagane.kernels import cpu
from hagane.models.config import Quantization
from hagane.weights.load import load_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")
BLOCK, BLOCKS, LONGEST, MOST = 16, 400, 300, 7
STEPS = 350


@dataclass
class Running:
    """A text of known logits [tokens, vocab], computed up to `done` into `blocks`.

    They begin with what it shares and go on with blocks of `own`; `chunk` tokens come in this step.
    """

    tokens: list[int]
    expected: Tensor
    own: list[int]
    blocks: list[int]
    done: int = 0
    chunk: int = 0


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Heads of 32: the fast attention of each instruction set takes them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("invariance")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def assemble(parts: list[Running]) -> Batch:
    """The next `chunk` tokens of each, decodes first; logits of every token."""
    ids, positions, slots, starts = [], [], [], [0]
    width = max(len(part.blocks) for part in parts)
    for part in parts:
        span = range(part.done, part.done + part.chunk)
        ids += [part.tokens[p] for p in span]
        positions += span
        slots += [part.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in span]
        starts.append(starts[-1] + part.chunk)
    contexts = [part.done + part.chunk for part in parts]
    tables = [part.blocks + [0] * (width - len(part.blocks)) for part in parts]
    return Batch(
        token_ids=ids,
        positions=positions,
        slots=slots,
        tables=tables,
        starts=starts,
        lengths=contexts,
        decodes=sum(part.chunk == 1 for part in parts),
        block_size=BLOCK,
        logit_rows=list(range(len(ids))),
    )


@pytest.mark.parametrize(
    ("dtype", "quantize", "cache_dtype"),
    [
        (torch.float32, None, torch.float32),
        (torch.float32, "int8", torch.int8),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, None, torch.int8),
        (torch.bfloat16, "int8", torch.bfloat16),
        (torch.bfloat16, "int4", torch.bfloat16),
    ],
)
@torch.inference_mode()
def test_any_composition_has_the_bits_of_one_prefill_alone(directory, dtype, quantize, cache_dtype):
    cpu.start(2)
    model, _ = load_model(
        directory, device="cpu", dtype=dtype, operations=cpu,
        quantization=None if quantize is None else Quantization(quantize),
    )  # fmt: skip
    config = model.eval().config
    shape = (BLOCKS, BLOCK, config.kv_heads, config.head_dim, cache_dtype)
    caches = [cpu.allocate_cache(*shape, torch.device("cpu")) for _ in range(config.layers)]
    graphs = DecodeGraphs(
        model, caches, max_rows=MOST, max_blocks=-(-LONGEST // BLOCK), block_size=BLOCK
    )

    def compute(parts: list[Running]) -> Tensor:
        return graphs.run(assemble(parts)).clone()

    rng = random.Random(f"{dtype} {quantize} {cache_dtype}")
    free = rng.sample(range(BLOCKS), BLOCKS)

    def take() -> list[int]:
        return [free.pop() for _ in range(-(-LONGEST // BLOCK))]

    def text(length: int) -> Running:
        """Its logits are those of one prefill, alone; its blocks stay, to be shared."""
        blocks = take()
        tokens = [rng.randrange(config.vocab_size) for _ in range(length)]
        alone = Running(tokens, torch.empty(0), blocks, blocks, 0, length)
        alone.expected = compute([alone])
        return alone

    texts = [text(length) for length in (1, 2, 17, 64, 90, 255, LONGEST)]
    spare = [take() for _ in range(MOST)]
    running: list[Running] = []
    hits = 0
    for _ in range(STEPS):
        while spare and (not running or rng.random() < 0.4):
            source = rng.choice(texts)
            shared = rng.randrange(-(-len(source.tokens) // BLOCK)) if rng.random() < 0.5 else 0
            hits += shared > 0
            own = spare.pop()
            blocks = source.blocks[:shared] + own[shared:]
            running.append(Running(source.tokens, source.expected, own, blocks, shared * BLOCK))
        decoding = rng.random() < 0.5
        for part in running:
            left = len(part.tokens) - part.done
            part.chunk = 1 if decoding else min(left, rng.choice([1, 1, 2, 3, 5, 16, 33, 80, 300]))
        step = sorted(rng.sample(running, rng.randint(1, len(running))), key=lambda p: p.chunk > 1)
        logits = compute(step).split([part.chunk for part in step])
        for part, rows in zip(step, logits, strict=True):
            assert torch.equal(rows, part.expected[part.done : part.done + part.chunk])
            part.done += part.chunk
            if part.done == len(part.tokens):
                running.remove(part)
                spare.append(part.own)
    assert hits > 10
