"""Measure LoRA fine-tuning of a model with random weights, in a process of its own.

Usage: python benchmarks/gpu_training.py DIRECTORY PLAN.json   (prints one JSON object)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.micro_batches import micro_batches
from hagane.training.finetune.model import load_finetune_model
from hagane.training.finetune.objective import supervised_loss
from hagane.training.finetune.spec import FineTuneSpec


def measure(directory: Path, plan: dict) -> dict:
    """Trained tokens per second, and the peak of memory on the device in bytes."""
    spec = FineTuneSpec(
        model=directory,
        training_file=directory / "unread.jsonl",
        device=plan["device"],
        dtype="bfloat16",
        quantize=plan["quantize"],
        rank=16,
    )
    length = plan["length"]
    model = load_finetune_model(spec, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    rng = np.random.default_rng(0)
    cuda = plan["device"].startswith("cuda")

    def example() -> Example:
        tokens = rng.integers(10, plan["vocab_size"], length, dtype=np.int32)
        return Example((MaskedSequence(tokens, np.ones(length, dtype=bool)),), b"")

    def step() -> None:
        for part in micro_batches([example() for _ in range(plan["batch"])]):
            with model.autocast():
                loss = supervised_loss(model.transformer, part)
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()

    step()
    begin = time.monotonic()
    for _ in range(plan["steps"]):
        step()
    seconds = time.monotonic() - begin
    tokens = plan["steps"] * plan["batch"] * length
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {"tokens_per_second": tokens / seconds, "peak_memory": peak}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
