"""Compare AdamW and Muon at equal time: held-out bits per byte for each learning rate.

Usage: python benchmarks/optimizers.py CORPUS... [--seconds S] [--optimizer NAME] [--json FILE]

CORPUS is what `hagane pretrain` reads. Every run trains the same new model of 2.6 M parameters on
the same rows for as many of its fastest steps as S seconds have room for, with a warm-up and a
cosine that ends with them. Preparing the data and validating are not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from hagane.training.parallel.group import ALONE
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.loop import PretrainRun
from hagane.training.pretrain.preparation import prepare

RATES = {"adamw": (1e-3, 2e-3, 4e-3), "muon": (6e-3, 1.2e-2, 2.4e-2)}
PROBE = 8


def train(
    config: PretrainConfig, folder: Path, seconds: float
) -> tuple[int, float, dict[str, float]]:
    """Steps, seconds and held-out scores. The fastest of a few steps gives the number that fits."""
    device = torch.device("cpu")
    run = PretrainRun.load(config, folder, device, ALONE)
    times = []
    for step in range(PROBE):
        begin = time.monotonic()
        run.model.step(run.rows.batch(step, config.batch_rows), step)
        times.append(time.monotonic() - begin)
    steps = max(PROBE + 2, round(seconds / min(times)))
    planned = config.model_copy(update={"steps": steps, "warmup_steps": steps // 20})
    run = PretrainRun.load(planned, folder, device, ALONE)
    begin = time.monotonic()
    for step in range(steps):
        run.model.step(run.rows.batch(step, config.batch_rows), step)
    return steps, time.monotonic() - begin, run.validate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--optimizer", choices=RATES, action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output": folder, "corpora": [{"path": path} for path in options.corpora],
            "vocab_size": 4096, "parameters": "2.6M", "sequence_length": 256, "batch_rows": 16,
            "steps": 1000, "dtype": "bfloat16", "validation_rows": 32, "held_out": 0.02,
        }  # fmt: skip
        config = PretrainConfig.model_validate(common)
        prepare(config, Path(folder))
        for optimizer in options.optimizer or RATES:
            for rate in RATES[optimizer]:
                chosen = {"optimizer": optimizer, "learning_rate": rate,
                          "final_learning_rate": rate / 20}  # fmt: skip
                config = PretrainConfig.model_validate(common | chosen)
                steps, taken, scores = train(config, Path(folder), options.seconds)
                results.append(
                    {**chosen, "steps": steps, "seconds": taken, "bits_per_byte": scores}
                )
                print(
                    f"{optimizer:6} {rate:.1e}: {steps} steps in {taken:.1f} s, {scores}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
