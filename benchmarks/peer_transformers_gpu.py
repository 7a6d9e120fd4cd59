"""Measure transformers' continuous batching on the same load, in a process of its own.

Usage: python benchmarks/peer_transformers_gpu.py DIRECTORY PLAN.json   (prints one JSON object)
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def measure(directory: Path, plan: dict) -> dict:
    """The best of `rounds` runs: output tokens per second over the whole load."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, device_map=plan["device"], attn_implementation="sdpa"
    ).eval()
    config = GenerationConfig(
        max_new_tokens=plan["new_tokens"], do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    rng = random.Random(0)
    best = 0.0
    for _ in range(plan["rounds"] + 1):  # one to warm up
        prompts = [
            [rng.randrange(10, plan["vocab_size"]) for _ in range(plan["prompt"])]
            for _ in range(plan["streams"])
        ]
        begin = time.monotonic()
        results = model.generate_batch(inputs=prompts, generation_config=config)
        seconds = time.monotonic() - begin
        tokens = sum(len(output.generated_tokens) for output in results.values())
        if tokens != plan["streams"] * plan["new_tokens"]:
            raise RuntimeError(f"{tokens} tokens came back: requests failed, see above")
        best = max(best, tokens / seconds)
    return {"tokens_per_second": best}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
