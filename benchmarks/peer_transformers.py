"""Measure transformers in bfloat16 on the same load.

Usage: python benchmarks/peer_transformers.py DIRECTORY PLAN.json   (prints one JSON object)
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def measure(directory: Path, plan: dict) -> dict:
    torch.set_num_threads(plan["threads"])
    started = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    ready = time.monotonic() - started

    def run(rows: int, length: int, steps: int) -> tuple[float, float]:
        """Seconds of the prefill and of the steps after it."""
        begin = time.monotonic()
        out = model(torch.randint(10, 150_000, (rows, length)), use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        middle = time.monotonic()
        for _ in range(steps):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return middle - begin, time.monotonic() - middle

    run(1, 64, 2)
    rounds = range(plan["rounds"])
    prefill = {
        length: statistics.median(length / run(1, length, 0)[0] for _ in rounds)
        for length in plan["prompts"]
    }
    steps = plan["new_tokens"]
    decode = {
        n: statistics.median(n * steps / run(n, plan["context"], steps)[1] for _ in rounds)
        for n in plan["streams"]
    }
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ready_seconds": ready, "peak_memory": peak, "prefill": prefill, "decode": decode}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
