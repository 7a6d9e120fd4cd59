"""Measure PEFT and transformers on the same fine-tuning load.

Usage: python benchmarks/peer_peft.py DIRECTORY PLAN.json   (prints one JSON object)
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measure(directory: Path, plan: dict) -> dict:
    torch.set_num_threads(plan["threads"])
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    config = LoraConfig(r=plan["rank"], lora_alpha=32, target_modules=TARGETS)
    model = get_peft_model(base, config)
    model.train()
    if plan["checkpointing"]:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds = []
    for _ in range(plan["steps"]):
        ids = torch.randint(10, 150_000, (plan["rows"], plan["length"]))
        begin = time.monotonic()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - begin)
    tokens = plan["rows"] * plan["length"]
    # The first step also allocates.
    return {
        "tokens_per_second": tokens * (len(seconds) - 1) / sum(seconds[1:]),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
