"""Measure pretraining steps of a new model, in a process of its own.

Usage: python benchmarks/gpu_pretraining.py DIRECTORY PLAN.json   (prints one JSON object)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hagane.models.decoder import Transformer
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.model import PretrainModel
from hagane.training.pretrain.utilisation import Utilisation
from hagane.weights.sources.config import load_config


def measure(directory: Path, plan: dict) -> dict:
    """Tokens per second, the device's peak of memory in bytes, and MFU by the maker's data sheet
    (null for a device that is not in the list, or a CPU).
    """
    length, rows = plan["length"], plan["batch"]
    config = PretrainConfig.model_validate(
        {"output": "unused", "corpora": [{"path": "unused"}], "parameters": "1M",
         "steps": plan["steps"] + 2, "batch_rows": rows, "micro_rows": plan["micro_rows"],
         "sequence_length": length, "dtype": "bfloat16", "warmup_steps": 0}
    )  # fmt: skip
    device = torch.device(plan["device"])
    model = Transformer(load_config(directory))
    model.init_weights(torch.Generator().manual_seed(0))
    trained = PretrainModel.of(model.to(device), config)
    rng = np.random.default_rng(0)

    def step(number: int) -> None:
        trained.step(rng.integers(10, plan["vocab_size"], (rows, length + 1)), number)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for number in (0, 1):  # torch.compile, and the optimizers' state
        step(number)
    begin = time.monotonic()
    for number in range(2, 2 + plan["steps"]):
        step(number)
    rate = plan["steps"] * rows * length / (time.monotonic() - begin)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    used = Utilisation.of(trained.transformer, length, gpu, 1)
    return {
        "tokens_per_second": rate,
        "peak_memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "utilisation": None if used is None else used.at(rate),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
