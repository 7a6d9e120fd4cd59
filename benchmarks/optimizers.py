"""AdamW and Muon with equal processor time: bits per byte of held-out text at each rate.

Usage: python benchmarks/optimizers.py CORPUS... [--seconds S] [--json FILE]

CORPUS is what `hagane pretrain` reads. Every run trains the same new model of 2.6 M parameters on
the same rows, one thread, float32, uncompiled, for S seconds of processor time (so that what else
the machine does hardly matters), with a warm-up and a cosine that ends with the time. Preparing
the data and validating are not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from app.training.config import PretrainConfig
from app.training.group import ALONE
from app.training.preparation import prepare
from app.training.pretrain import Run

RATES = {"adamw": (1e-3, 3e-3, 6e-3), "muon": (3e-3, 6e-3, 1.2e-2)}
PROBE = 6


def train(config: PretrainConfig, folder: Path, seconds: float) -> tuple[int, dict[str, float]]:
    """Steps taken and held-out scores. The first steps say how many the time is enough for."""
    device = torch.device("cpu")
    run = Run.load(config, folder, device, ALONE)
    begin = time.process_time()
    for step in range(PROBE):
        run.learner.step(run.rows.batch(step, config.batch_rows), step)
    steps = max(PROBE + 2, round(seconds * PROBE / (time.process_time() - begin)))
    planned = config.model_copy(update={"steps": steps, "warmup_steps": steps // 20})
    run = Run.load(planned, folder, device, ALONE)
    for step in range(steps):
        run.learner.step(run.rows.batch(step, config.batch_rows), step)
    return steps, run.validate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output": folder, "corpora": [{"path": path} for path in options.corpora],
            "vocab_size": 4096, "parameters": "2.6M", "sequence_length": 256, "batch_rows": 8,
            "steps": 1000, "compile": False, "validation_rows": 32, "held_out": 0.02,
        }  # fmt: skip
        config = PretrainConfig.model_validate(common)
        prepare(config, Path(folder))
        for optimizer, rates in RATES.items():
            for rate in rates:
                chosen = {"optimizer": optimizer, "learning_rate": rate,
                          "final_learning_rate": rate / 20}  # fmt: skip
                config = PretrainConfig.model_validate(common | chosen)
                steps, scores = train(config, Path(folder), options.seconds)
                results.append({**chosen, "steps": steps, "bits_per_byte": scores})
                print(f"{optimizer:6} {rate:.0e}: {steps} steps, {scores}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
