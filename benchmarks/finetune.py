"""Compare fine-tuning with PEFT and transformers: alternating runs, medians, ratios.

Usage: python benchmarks/finetune.py --peft PYTHON [--model DIRECTORY] [--rounds N] [--json FILE]
                                     [--checkpointing]

LoRA of rank 16 on all linear layers of a random model in Qwen3-0.6B's shape, every token trained, 4
examples of 512 tokens a step, in bfloat16: Hagane with the base in bfloat16 and in int8 (then its
products are of integers, both ways), PEFT with the base in bfloat16. PEFT runs in the environment
whose interpreter is given:

    python -m venv runs/peft && runs/peft/bin/pip install peft torch
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hagane.system.machine import usable_cores
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.report.listener import CheckpointReport, StepReport
from model import make_model
from tokenizers import Tokenizer, pre_tokenizers

PLAN = {"rows": 4, "length": 512, "rank": 16, "checkpointing": False}
OURS = {"Hagane, bf16 base": "none", "Hagane, int8 base": "int8"}


@dataclass
class Clock:
    """A listener that records when each step ended."""

    times: list[float] = field(default_factory=list)

    def progress(self, report: StepReport) -> None:
        self.times.append(time.monotonic())

    def checkpoint(self, report: CheckpointReport) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def measure(model: Path, plan: dict) -> dict:
    """Hagane's own run, from a file of examples to the adapter."""
    choose = random.Random(0)
    words = [f"t{i}" for i in range(10, 150_000)]
    # The end of the text is the last token.
    rows = [" ".join(choose.choices(words, k=plan["length"] - 1)) for _ in range(plan["rows"])]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file, held = directory / "train.jsonl", directory / "valid.jsonl"
        file.write_text("\n".join(json.dumps({"text": row}) for row in rows))
        held.write_text(json.dumps({"text": "t10 t11 t12"}))
        clock = Clock()
        spec = FineTuneSpec(
            model=model, training_file=file, validation_file=held, rank=plan["rank"],
            batch_size=plan["rows"], n_epochs=plan["steps"], dtype="bfloat16",
            threads=plan["threads"], quantize=plan["quantize"],
            checkpoint_every=plan["steps"],
        )  # fmt: skip
        finetune(spec, directory / "run", clock)
    tokens = plan["rows"] * plan["length"] * (plan["steps"] - 1)
    return {
        "tokens_per_second": tokens / (clock.times[-1] - clock.times[0]),
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def ceiling(threads: int) -> float:
    """FLOP/s of torch's bfloat16 product at a layer's largest shape, the best of forty."""
    torch.set_num_threads(threads)
    x, w = (torch.randn(n, 1024).bfloat16() for n in (2048, 6144))
    best = 0.0
    for _ in range(40):
        begin = time.monotonic()
        torch.mm(x, w.t())
        best = max(best, 2 * 2048 * 6144 * 1024 / (time.monotonic() - begin))
    return best


def prepare(model: Path) -> None:
    """The model, made once, with a tokenizer that splits words at spaces."""
    if not (model / "config.json").is_file():
        make_model(model)
    path = str(model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(path)


def run(command: list[str]) -> dict:
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peft", help="Python of an environment with peft")
    parser.add_argument("--model", type=Path, default=Path("runs/qwen3-0.6b-words"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="the first is not timed")
    parser.add_argument("--threads", type=int, default=len(usable_cores()))
    parser.add_argument(
        "--checkpointing", action="store_true", help="PEFT's gradient checkpointing"
    )
    parser.add_argument("--json", type=Path, help="file for every single figure")
    parser.add_argument("--only", metavar="PLAN", help="run Hagane alone on this plan, print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.model, json.loads(options.only))))
        return
    prepare(options.model)
    given = {key: getattr(options, key) for key in ("steps", "threads", "checkpointing")}
    plan = PLAN | given
    plan_file = options.model.with_name("finetune-plan.json")
    plan_file.write_text(json.dumps(plan))
    here, model = str(Path(__file__).resolve()), str(options.model)
    peer = str(Path(here).with_name("peer_peft.py"))
    own = [sys.executable, here, "--model", model, "--only"]
    commands = {
        name: [*own, json.dumps(plan | {"quantize": quantize})] for name, quantize in OURS.items()
    }
    if options.peft:
        commands["PEFT"] = [options.peft, peer, model, str(plan_file)]
    results: dict[str, list[dict]] = {name: [] for name in commands}
    ceilings = []
    for _ in range(options.rounds):
        ceilings.append(ceiling(options.threads))
        for name, command in commands.items():
            results[name].append(run(command))
            print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"plan": plan, "ceilings": ceilings} | results, indent=1)
        )
    print(table(results, max(ceilings)))


def table(results: dict[str, list[dict]], flops: float) -> str:
    rates = {n: statistics.median(r["tokens_per_second"] for r in rs) for n, rs in results.items()}
    peaks = {n: statistics.median(r["peak_memory"] for r in rs) for n, rs in results.items()}
    lines = [
        f"Medians of {len(results[next(iter(OURS))])} alternating runs; torch multiplies bfloat16 "
        f"at {flops / 1e9:.0f} GFLOP/s.",
        "",
        "| | tokens/s | peak memory |",
        "|---|---|---|",
    ]
    lines += [f"| {n} | {rates[n]:.1f} | {peaks[n] / 1e9:.2f} GB |" for n in results]
    for name in OURS if "PEFT" in results else ():
        rate, memory = rates[name] / rates["PEFT"], peaks[name] / peaks["PEFT"]
        lines.append(f"| {name}: PEFT | x{rate:.2f} | x{memory:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
