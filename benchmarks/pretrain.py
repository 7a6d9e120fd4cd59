"""Compare pretraining speed with the usual alternatives in one run: tokens per second.

Usage: python benchmarks/pretrain.py [--trainer PYTHON] [--rounds N] [--steps N] [--json FILE]

Everybody trains 6 layers of 384 with 6 heads and a vocabulary of 8,192 on the same 16 rows of 512
tokens a step, in bfloat16 over float32 weights, compiled, with fused AdamW and gradient clipping.
Contenders: Hagane, a loop in nanoGPT's style (a GPT-2 block has as many parameters as the Llama
block of this shape), and transformers' Trainer with its Llama, for which PYTHON is an environment
with transformers and accelerate. They take turns, `steps` steps each; figures are medians of
rounds. Compilation and the first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROWS, LENGTH, VOCABULARY = 16, 512, 8192
# More steps than any run takes.
STEPS = 2000


class Contender:
    """A process that reads a number of steps, trains them, and replies with their seconds."""

    def __init__(self, python: str, script: str, tokens: Path) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / script), str(tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, steps: int) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"{self.process.args} ended early")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", help="python with transformers and accelerate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.bin"
        count = STEPS * ROWS * LENGTH // 100 + 1
        np.random.default_rng(0).integers(5, VOCABULARY, count).astype("<u2").tofile(tokens)
        scripts = {"hagane": (sys.executable, "pretrain_hagane.py"),
                   "nanoGPT-style loop": (sys.executable, "pretrain_nanogpt.py")}  # fmt: skip
        if options.trainer:
            scripts["transformers Trainer"] = (options.trainer, "pretrain_trainer.py")
        contenders = {name: Contender(*script, tokens) for name, script in scripts.items()}
        for contender in contenders.values():
            contender.run(3)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                seconds = contender.run(options.steps)
                rates[name].append(options.steps * ROWS * LENGTH / seconds)
                print(f"{name}: {rates[name][-1]:.0f} tokens/s", flush=True)
        for contender in contenders.values():
            contender.end()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(rate for name, rate in medians.items() if name != "hagane")
    for name, rate in medians.items():
        print(
            f"{name:22} {rate:7.0f} tokens/s   ({min(rates[name]):.0f} to {max(rates[name]):.0f})"
        )
    print(f"hagane is {medians['hagane'] / best:.2f} times as fast as the best of the others")
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
