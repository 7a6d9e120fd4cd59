"""Greedy text in bfloat16 compared with that of transformers, token by token."""

from __future__ import annotations

import pytest
import torch
from hagane.models.families import read_config_file
from hagane.pool.messages import GenerateRequest, SamplingParams
from hagane.text.hub import BUILTIN_MODELS
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.support.engine import RunningEngine, config

BUILTIN = BUILTIN_MODELS / "hagane-mini"
TOKENS = 100
# Last bits of a logit between two that may change places; three were the most seen.
NEAR = 4
PROMPTS = (
    "Once upon a time, there was a small fox who",
    "今日は天気が良いので、",
    "東京は日本の首都で、",
)
needs_builtin = pytest.mark.skipif(not BUILTIN.is_dir(), reason="the built-in model is not there")


def assert_greedy_text_is_transformers(device: str) -> None:
    """Every token after every prompt, but where bfloat16 does not tell transformers' two best
    apart: the text then goes on as transformers has it, and every later token is compared as well.
    """
    ends = read_config_file(BUILTIN).eos_token_ids
    tokenizer = Tokenizer.from_file(str(BUILTIN / "tokenizer.json"))
    peer = AutoModelForCausalLM.from_pretrained(BUILTIN, dtype=torch.bfloat16).to(device).eval()
    sizes = {"context_length": 256, "kv_cache_memory": 1 << 26}
    with RunningEngine(config(BUILTIN, device=device, dtype="bfloat16", **sizes)) as engine:
        for text in PROMPTS:
            prompt = tokenizer.encode(text).ids
            expected, near = _reference(peer, prompt, ends)
            position = 0
            while position < TOKENS:
                got = _ours(engine, (*prompt, *expected[:position]), TOKENS - position, ends)
                pairs = zip(got, expected[position:], strict=True)
                same = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
                if same is None:
                    break
                position += same
                assert got[same] in near[position], f"{text}: token {position}"
                position += 1


def _reference(
    peer: torch.nn.Module, prompt: list[int], ends: tuple[int, ...]
) -> tuple[list[int], list[set[int]]]:
    """Transformers' tokens, and at each place all whose logits are as good in bfloat16: what is
    rounded in the layers, in another order here than there, moves them by a few last bits.
    """
    with torch.inference_mode():
        made = peer.generate(
            torch.tensor([prompt], device=peer.device), max_new_tokens=TOKENS,
            min_new_tokens=TOKENS, do_sample=False, eos_token_id=list(ends), pad_token_id=ends[0],
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    scores = torch.cat(made.scores).float().cpu()
    best = scores.max(dim=1, keepdim=True).values
    last_bit = 2.0 ** (best.abs().log2().floor() - 7)
    near = [set(row.nonzero().flatten().tolist()) for row in best - scores <= NEAR * last_bit]
    return made.sequences[0, len(prompt) :].tolist(), near


def _ours(
    engine: RunningEngine, prompt: tuple[int, ...], tokens: int, ends: tuple[int, ...]
) -> list[int]:
    sampling = SamplingParams(
        max_tokens=tokens, min_tokens=tokens, temperature=0.0, eos_token_ids=ends
    )
    name = f"{hash(prompt)}"
    engine.send(GenerateRequest(request_id=name, prompt=prompt, sampling=sampling))
    (answer,) = engine.wait(name)
    return answer.tokens
