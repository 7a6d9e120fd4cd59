"""Reinforcement on a task that can be won on two cores, next to TRL's GRPO on the same tasks.

Usage: python benchmarks/reinforcement.py --model DIRECTORY [--trl PYTHON] [--steps N]
                                          [--quantize int8] [--task sums|digits] [--json FILE]

`sums` is for an instruction model of half a billion weights: two-digit sums, whose answer must be
<NUMBER> and nothing else. `digits` is for the built-in model: the sum of two digits as a number
alone. Either way a right answer in the right form has reward 1, half of it 0.3. Every step samples
8 answers to each of 8 tasks at temperature 1 and makes one update of a LoRA adapter of rank 16, at
the same rates, without a divergence penalty.

Each side runs in a process of its own, one after the other; seconds count from the start of the
process and so include loading. The reward of a step is that of the answers that it learns from.
Reported are the rewards at the beginning and at the end, the reward gained by the minute, and the
seconds until the mean of three steps reaches the highest reward that both reach. TRL runs in the
environment whose interpreter is given:

    python -m venv runs/trl && runs/trl/bin/pip install torch==2.13.0 trl peft
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from hagane.system.machine import usable_cores
from hagane.text.hub import resolve_model
from hagane.training.report.listener import CheckpointReport, StepReport

GRADER = """
import re

def grade(sample, item):
    text = sample["output_text"].strip()
    if text == item["wanted"]:
        return 1.0
    form = re.fullmatch(item["form"], text)
    return 0.3 if form or str(item["sum"]) in re.findall(r"[0-9]+", text) else 0.0
"""
BATCH, GROUP, RANK = 8, 8, 16
HELD_OUT = 32
STARTED = time.monotonic()


@dataclass
class Rewards:
    """A listener that keeps the reward of each step and when it ended, in seconds."""

    steps: list[tuple[float, float]] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def progress(self, report: StepReport) -> None:
        figures = report.reinforcement
        self.steps.append((time.monotonic() - STARTED, figures["train_reward_mean"]))
        self.differences.append(figures["logprob_difference_max"])
        print(
            f"step {report.step}: reward {figures['train_reward_mean']:.2f}, answers "
            f"{figures['rollout_seconds']:.1f} s, update {figures['update_seconds']:.1f} s",
            file=sys.stderr,
        )

    def checkpoint(self, report: CheckpointReport) -> None:
        pass

    def interrupted(self) -> bool:
        return False


def tasks(kind: str, count: int, seed: int) -> list[dict]:
    """Tasks as lines of a file: messages, and what the grader reads."""
    choose = random.Random(seed)
    made = []
    for _ in range(count):
        if kind == "sums":
            a, b = choose.randint(10, 49), choose.randint(10, 49)
            text = f"{a} + {b} = ? Give the answer in the form <number> and say nothing else."
            wanted, form = f"<{a + b}>", "<[0-9]+>"
        else:
            a, b = choose.randint(0, 3), choose.randint(0, 3)
            text, wanted, form = f"What is {a} + {b}?", str(a + b), "[0-9]"
        message = {"role": "user", "content": text}
        made.append({"messages": [message], "sum": a + b, "wanted": wanted, "form": form})
    return made


def run_hagane(plan: dict) -> dict:
    """Hagane's own run."""
    from hagane.training.reinforce.loop import reinforce
    from hagane.training.reinforce.spec import ReinforceSpec

    folder, listener = Path(plan["folder"]), Rewards()
    spec = ReinforceSpec(
        model=Path(plan["model"]), training_file=folder / "train.jsonl",
        validation_file=folder / "valid.jsonl",
        grader={"type": "python", "name": "sum", "source": GRADER},
        n_epochs=1, batch_size=BATCH, group_size=GROUP, rank=RANK, alpha=2.0 * RANK,
        learning_rate=plan["rate"], max_completion_tokens=plan["tokens"], kl=0.0,
        eval_interval=plan["steps"], quantize=plan["quantize"], threads=plan["threads"],
    )  # fmt: skip
    result = reinforce(spec, folder / "run", listener)
    return {
        "steps": listener.steps,
        "held_out": [-result.base_valid_loss, -result.valid_loss],
        "logprob_difference_max": max(listener.differences),
    }


def reached(steps: list[tuple[float, float]], level: float) -> float | None:
    """Seconds until the mean reward of three steps is at least `level`."""
    for last in range(3, len(steps) + 1):
        if mean(reward for _, reward in steps[last - 3 : last]) >= level:
            return steps[last - 1][0]
    return None


def summary(steps: list[tuple[float, float]]) -> dict:
    """The first step knows nothing yet; the end is the mean of the last three."""
    first, last = steps[0][1], mean(reward for _, reward in steps[-3:])
    minutes = steps[-1][0] / 60
    return {
        "first": first,
        "last": last,
        "minutes": minutes,
        "per_minute": (last - first) / minutes,
    }


def compare(found: dict[str, dict]) -> dict:
    """Summaries, and how much faster Hagane is."""
    totals = {name: summary(one["steps"]) for name, one in found.items()}
    if len(found) < 2:
        return totals
    ours, theirs = (found[name]["steps"] for name in ("Hagane", "TRL"))
    highest = [
        max(mean(r for _, r in steps[n - 3 : n]) for n in range(3, len(steps) + 1))
        for steps in (ours, theirs)
    ]
    seconds = [reached(steps, min(highest)) for steps in (ours, theirs)]
    ratio = totals["Hagane"]["per_minute"] / totals["TRL"]["per_minute"]
    return totals | {
        "level": min(highest),
        "seconds_to_level": {"Hagane": seconds[0], "TRL": seconds[1]},
        "times_faster_to_level": seconds[1] / seconds[0],
        "times_reward_per_minute": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--trl", help="an interpreter with trl and peft")
    parser.add_argument("--trl-steps", type=int, help="as --steps, unless given")
    parser.add_argument("--task", choices=("sums", "digits"), default="sums")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--threads", type=int, default=len(usable_cores()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(run_hagane(json.loads(options.plan.read_text()))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = tasks(options.task, BATCH * options.steps, 1), tasks(options.task, HELD_OUT, 2)
        for file, items in zip(("train", "valid"), lines, strict=True):
            text = "\n".join(json.dumps(item) for item in items)
            (folder / f"{file}.jsonl").write_text(text)
        plan = vars(options) | {
            "folder": name, "model": str(resolve_model(options.model)), "grader": GRADER,
            "batch": BATCH, "group": GROUP, "rank": RANK, "json": None, "plan": None,
        }  # fmt: skip
        file = folder / "plan.json"
        file.write_text(json.dumps(plan))
        commands = {"Hagane": [sys.executable, __file__, "--plan", str(file)]}
        if options.trl:
            peer = Path(__file__).with_name("peer_trl_grpo.py")
            commands["TRL"] = [options.trl, str(peer), str(file)]
        found = {}
        for side, command in commands.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
            print(side, json.dumps(found[side]), flush=True)
    totals = compare(found)
    print(json.dumps(totals, indent=2))
    if options.json:
        options.json.write_text(json.dumps({"runs": found, "totals": totals}, indent=2) + "\n")


if __name__ == "__main__":
    main()
