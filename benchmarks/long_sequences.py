"""What computing layers twice costs and saves when sequences are long: tokens/s and peak memory.

Usage: python benchmarks/long_sequences.py --model DIRECTORY [--length 8192] [--steps N]
                                           [--quantize int8] [--json FILE]

LoRA of rank 16 on all linear layers, one example of --length tokens a step, every token trained.
Each way runs in a process of its own; the first step is not timed. The estimates of memory are
those by which a job decides; a way that would take more than four fifths of what is free is left
out.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hagane.system.machine import available_memory, usable_cores
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs import estimates
from hagane.training.report.listener import CheckpointReport, StepReport
from hagane.weights.sources.config import load_config


@dataclass
class Clock:
    """A listener that records when each step ended and what it took."""

    times: list[float] = field(default_factory=list)
    tokens: int = 0

    def progress(self, report: StepReport) -> None:
        self.times.append(time.monotonic())
        self.tokens = report.trained_tokens
        print(f"step {report.step}: {report.tokens_per_second:.1f} tokens/s", file=sys.stderr)

    def checkpoint(self, report: CheckpointReport) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def measure(plan: dict) -> dict:
    """A run of its own, from its file to the adapter."""
    shape = load_config(Path(plan["model"]))
    choose = random.Random(0)
    text = " ".join(str(choose.randrange(10_000)) for _ in range(plan["length"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.jsonl").write_text(json.dumps({"text": text}))
        (folder / "valid.jsonl").write_text(json.dumps({"text": "one two three"}))
        spec = FineTuneSpec(
            model=Path(plan["model"]), training_file=folder / "train.jsonl",
            validation_file=folder / "valid.jsonl", batch_size=1, n_epochs=plan["steps"],
            sequence_length=plan["length"], checkpoint_every=plan["steps"],
            quantize=plan["quantize"], threads=plan["threads"], checkpointing=plan["twice"],
        )  # fmt: skip
        needed = estimates.memory(shape, spec, plan["length"], checkpointing=plan["twice"])
        if needed > 0.8 * available_memory():
            return {"estimated_memory": needed}
        clock = Clock()
        finetune(spec, folder / "run", clock)
    seconds = clock.times[-1] - clock.times[0]
    return {
        "tokens": clock.tokens // plan["steps"],
        "tokens_per_second": clock.tokens * (1 - 1 / plan["steps"]) / seconds,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "estimated_memory": needed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=2, help="the first is not timed")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--threads", type=int, default=len(usable_cores()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(measure(json.loads(options.plan))))
        return
    plan = vars(options) | {"json": None}
    found = {}
    print("| | tokens/s | peak memory | estimated |\n|---|---|---|---|")
    for name, twice in (("layers once", False), ("layers twice", True)):
        command = [sys.executable, __file__, "--model", options.model]
        command += ["--plan", json.dumps(plan | {"twice": twice})]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        one = found[name] = json.loads(done.stdout.splitlines()[-1])
        estimated = f"{one['estimated_memory'] / 1e9:.2f} GB"
        if "peak_memory" in one:
            print(f"| {name} | {one['tokens_per_second']:.1f} | {one['peak_memory'] / 1e9:.2f} GB "
                  f"| {estimated} |", flush=True)  # fmt: skip
        else:
            print(f"| {name} | does not fit | | {estimated} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
