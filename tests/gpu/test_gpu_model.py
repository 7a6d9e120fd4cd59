"""Models on a CUDA device compared with transformers, which runs on the same device."""

from __future__ import annotations

import random

import pytest
import torch
from hagane.engine.step.batch import Batch
from hagane.engine.step.runner import ModelRunner
from hagane.pool.messages import GenerateRequest, SamplingParams
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.support.engine import RunningEngine, logprobs_of, make_adapter, merged
from tests.support.engine import config as config_of
from tests.support.greedy import assert_greedy_text_is_transformers, needs_builtin

BLOCK = 16


def runner_of(directory, dtype: str, quantize: str = "none", device: str = "cuda") -> ModelRunner:
    changes = {
        "device": device, "dtype": dtype, "quantize": quantize, "group_size": 32,
        "kv_cache_memory": 64 << 20, "context_length": None, "max_batch_tokens": 512,
    }  # fmt: skip
    return ModelRunner(config_of(directory, **changes))


def batch_of(tokens: list[list[int]], pasts: list[int], width: int) -> Batch:
    """Sequence i owns blocks i * width to (i + 1) * width; all rows' logits are asked for."""
    starts = [sum(map(len, tokens[:i])) for i in range(len(tokens) + 1)]
    contexts = [past + len(new) for past, new in zip(pasts, tokens, strict=True)]
    positions = [p for past, end in zip(pasts, contexts, strict=True) for p in range(past, end)]
    owners = [i for i, new in enumerate(tokens) for _ in new]
    slots = [i * width * BLOCK + p for i, p in zip(owners, positions, strict=True)]
    return Batch(
        token_ids=[token for new in tokens for token in new],
        positions=positions,
        slots=slots,
        tables=[list(range(i * width, i * width + width)) for i in range(len(tokens))],
        starts=starts,
        lengths=contexts,
        decodes=sum(len(new) == 1 for new in tokens),
        block_size=BLOCK,
        logit_rows=list(range(len(positions))),
    )


@pytest.fixture(scope="module")
def qwen3_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, max_position_embeddings=1024,
        initializer_range=0.2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("model", ["tiny_model_dir", "qwen3_dir"])
def test_float32_logits_equal_transformers(model, request):
    directory = request.getfixturevalue(model)
    runner = runner_of(directory, "float32")
    rng = random.Random(0)
    rows = [[rng.randrange(3, 300) for _ in range(n)] for n in (5, 200, 33)]
    width = -(-210 // BLOCK)
    peer = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).cuda().eval()
    with torch.inference_mode():
        expected = [peer(torch.tensor([row], device="cuda")).logits[0] for row in rows]
    # All but the last two tokens as a prefill, then one step at a time through the graphs.
    heads, pasts = [row[:-2] for row in rows], [len(row) - 2 for row in rows]
    got = [runner.execute(batch_of(heads, [0, 0, 0], width), ()).clone()]
    for step in range(2):
        batch = batch_of(
            [[row[past + step]] for row, past in zip(rows, pasts, strict=True)],
            [past + step for past in pasts],
            width,
        )
        got.append(runner.execute(batch, ()).clone())
    whole = torch.cat([row[:-2] for row in expected])
    torch.testing.assert_close(got[0], whole, atol=2e-3, rtol=1e-3)
    for step in range(2):
        last = torch.stack([row[step - 2] for row in expected])
        torch.testing.assert_close(got[1 + step], last, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", ["none", "int8", "int4", "fp8"])
def test_graphs_give_what_steps_give_by_themselves(qwen3_dir, dtype, quantize):
    captured, plain = (runner_of(qwen3_dir, dtype, quantize) for _ in range(2))
    plain._graphs = None
    rng = random.Random(1)
    rows = [[rng.randrange(3, 300) for _ in range(n)] for n in (3, 40, 17, 8, 9)]
    first = batch_of(rows, [0] * 5, 4)
    torch.testing.assert_close(captured.execute(first, ()), plain.execute(first, ()))
    for count in (5, 3, 1):
        step = batch_of([[7 + count]] * count, [len(row) for row in rows[:count]], 4)
        ours, theirs = captured.execute(step, ()), plain.execute(step, ())
        # Other batch sizes, other tiles: sums in another order.
        tolerance = 1e-3 if dtype == "float32" else 0.15
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("quantize", ["int8", "int4", "fp8"])
def test_quantized_logits_are_near_those_of_the_stored_weights(qwen3_dir, quantize):
    runner = runner_of(qwen3_dir, "bfloat16", quantize)
    torch_only = runner_of(qwen3_dir, "float32", quantize, "cpu")
    rows = [[random.Random(2).randrange(3, 300) for _ in range(90)]]
    batch = batch_of(rows, [0], 8)
    ours = runner.execute(batch, ()).float().cpu()
    theirs = torch_only.execute(batch, ()).float()
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=1)
    assert cosine.min() > 0.98


@needs_builtin
def test_greedy_bfloat16_text_equals_transformers():
    assert_greedy_text_is_transformers("cuda")


def test_nothing_but_the_sampled_tokens_is_waited_for(qwen3_dir):
    """Sampling, penalties apart, and log-probabilities of several requests at a time."""
    with RunningEngine(config_of(qwen3_dir, device="cuda", dtype="bfloat16")) as engine:
        engine.ask("first", tuple(range(3, 20)))
        engine.wait("first")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for i in range(4):
                sampling = SamplingParams(
                    max_tokens=30, temperature=0.5 * i, top_p=0.9, seed=i, logprobs=2,
                    logit_bias={5: 1.0}, min_tokens=3, eos_token_ids=(1,),
                )  # fmt: skip
                engine.send(
                    GenerateRequest(
                        request_id=str(i), prompt=tuple(range(3, 30 + i)), sampling=sampling, n=2
                    )
                )
            engine.wait("0", "1", "2", "3")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # An engine that had waited would have died of it.
        engine.ask("last", tuple(range(3, 20)))
        assert engine.wait("last")[0].error is None


def test_each_row_is_its_merged_model_s(tiny_model_dir, tmp_path):
    """The engine's own loop: graphs, adapters and requests without one in the same steps."""
    kinds = [(4, ("q_proj", "k_proj", "v_proj", "o_proj")), (8, ("down_proj", "gate_proj"))]
    adapters = [
        make_adapter(tmp_path / f"a{seed}", tiny_model_dir, seed, rank=rank, targets=targets)
        for seed, (rank, targets) in enumerate(kinds)
    ]
    wanted = [None, *adapters, *adapters]
    prompts = [tuple(range(40 + i, 60 + i)) for i in range(len(wanted))]
    with RunningEngine(config_of(tiny_model_dir, device="cuda")) as engine:
        for i, adapter in enumerate(wanted):
            engine.ask(str(i), prompts[i], adapter, tokens=30)
        answers = engine.wait(*map(str, range(len(wanted))))
    for adapter, prompt, answer in zip(wanted, prompts, answers, strict=True):
        expected = logprobs_of(merged(tiny_model_dir, adapter), prompt, answer.tokens)
        assert answer.logprobs == pytest.approx(expected, abs=5e-3)
