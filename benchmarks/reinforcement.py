"""Reinforcement on a task that can be won on two cores, next to TRL's GRPO on the same tasks.

Usage: python benchmarks/reinforcement.py --model DIRECTORY [--trl PYTHON] [--rounds N]
                                          [--seconds N] [--until REWARD] [--quantize none|int8]
                                          [--task sums|digits] [--json FILE]

`sums` is for an instruction model of half a billion weights: two-digit sums, whose answer must be
<NUMBER> and nothing else; half of that has reward 0.3. `digits` is for the built-in model, which
knows the form but few sums: "3 + 4 is 7.", or nothing. Every step samples --group answers to each
of --batch tasks at temperature 1 and makes one update of a LoRA adapter of rank 16, at the same
rate of every step, with the same optimizer and without a divergence penalty.

In every round each side starts from the same model in a process of its own, and ends once the mean
reward of two steps in succession is --until, or after --seconds. The reward of a step is that of
the answers that it learns from. Reward by the minute is the reward gained from the first step to
the last two over the minutes that it took, from the start of the process (with loading) and from
the first step on. --json is written after every step. TRL runs in the environment whose
interpreter is given:

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from hagane.system.errors import TrainingInterrupted
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
    return item["half"] if form or str(item["sum"]) in re.findall(r"[0-9]+", text) else 0.0
"""
RANK = 16
# Enough to end with a checkpoint; their answers are time that the peer does not spend.
HELD_OUT = 4
STARTED = time.monotonic()
STEP = '{"step"'


@dataclass
class Rewards:
    """A listener that prints each step as a line of JSON, and asks for an end when it is time."""

    seconds: float
    until: float
    rewards: list[float] = field(default_factory=list)

    def progress(self, report: StepReport) -> None:
        figures = report.reinforcement
        self.rewards.append(figures["train_reward_mean"])
        print(json.dumps({
            "step": report.step, "seconds": time.monotonic() - STARTED,
            "reward": figures["train_reward_mean"], "answers": figures["rollout_seconds"],
            "update": figures["update_seconds"], "cut": figures["truncated_share"],
            "logprob_difference": figures["logprob_difference_max"],
        }), flush=True)  # fmt: skip

    def checkpoint(self, report: CheckpointReport) -> None:
        pass

    def interrupted(self) -> bool:
        return over(self.rewards, time.monotonic() - STARTED, self.seconds, self.until)


def over(rewards: list[float], passed: float, seconds: float, until: float) -> bool:
    """Whether a side has won, or its time is up."""
    return passed > seconds or (len(rewards) > 1 and mean(rewards[-2:]) >= until)


def tasks(kind: str, count: int, seed: int) -> list[dict]:
    """Tasks as lines of a file: messages, and what the grader reads."""
    choose = random.Random(seed)
    made = []
    for _ in range(count):
        if kind == "sums":
            a, b = choose.randint(10, 49), choose.randint(10, 49)
            text = f"{a} + {b} = ? Give the answer in the form <number> and say nothing else."
            wanted, form, half = f"<{a + b}>", "<[0-9]+>", 0.3
        else:
            a, b = choose.randint(1, 5), choose.randint(1, 5)
            text, wanted, form, half = f"What is {a} + {b}?", f"{a} + {b} is {a + b}.", "", 0.0
        made.append({
            "messages": [{"role": "user", "content": text}],
            "sum": a + b, "wanted": wanted, "form": form, "half": half,
        })  # fmt: skip
    return made


def run_hagane(plan: dict) -> None:
    """Hagane's own run."""
    from hagane.training.reinforce.loop import reinforce
    from hagane.training.reinforce.spec import ReinforceSpec

    folder = Path(plan["folder"])
    listener = Rewards(plan["seconds"], plan["until"])
    spec = ReinforceSpec(
        model=Path(plan["model"]), training_file=folder / "train.jsonl",
        validation_file=folder / "valid.jsonl",
        grader={"type": "python", "name": "sum", "source": GRADER},
        n_epochs=1, batch_size=plan["batch"], group_size=plan["group"], rank=RANK, alpha=2.0 * RANK,
        learning_rate=plan["rate"], max_completion_tokens=plan["tokens"], kl=0.0,
        eval_interval=plan["steps"], quantize=plan["quantize"], threads=plan["threads"],
    )  # fmt: skip
    try:
        reinforce(spec, folder / "run", listener)
    except TrainingInterrupted:
        # It has won, or its time is up.
        return


@dataclass
class Side:
    """A side's run of one round; every step has `step`, `seconds` and `reward`."""

    name: str
    round: int
    steps: list[dict] = field(default_factory=list)

    def run(self, command: list[str], keep: Callable[[], None]) -> None:
        """To its end; `keep` is called after every step."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if not line.startswith(STEP):
                    continue
                one = json.loads(line)
                self.steps.append(one)
                print(f"{self.name}, round {self.round}, step {one['step']}: reward "
                      f"{one['reward']:.2f} after {one['seconds']:.0f} s ({one['answers']:.1f} s "
                      f"answers, {one['update']:.1f} s update)", flush=True)  # fmt: skip
                keep()
        if process.returncode:
            print(f"{self.name} ended with status {process.returncode}", file=sys.stderr)

    def figures(self) -> dict[str, float] | None:
        """None before the third step: the first one knows nothing yet."""
        if len(self.steps) < 3:
            return None
        first, last = self.steps[0], self.steps[-1]
        began = first["seconds"] - first["answers"] - first["update"]
        gained = mean(one["reward"] for one in self.steps[-2:]) - first["reward"]
        return {
            "first": first["reward"],
            "last": first["reward"] + gained,
            "gained": gained,
            "minutes": last["seconds"] / 60,
            "minutes_of_steps": (last["seconds"] - began) / 60,
        }


def compare(sides: list[Side]) -> dict:
    """Reward by the minute of each name over all rounds, and of Hagane over that of TRL."""
    found: dict[str, dict] = {}
    for name in dict.fromkeys(side.name for side in sides):
        runs = [figures for side in sides if side.name == name and (figures := side.figures())]
        if not runs:
            continue
        total = {key: sum(run[key] for run in runs) for key in runs[0]}
        found[name] = {
            "rounds": len(runs),
            "first": total["first"] / len(runs),
            "last": total["last"] / len(runs),
            "minutes": total["minutes"] / len(runs),
            "reward_per_minute": total["gained"] / total["minutes"],
            "reward_per_minute_of_steps": total["gained"] / total["minutes_of_steps"],
        }
    if "TRL" in found:
        for name in set(found) - {"TRL"}:
            for key in ("reward_per_minute", "reward_per_minute_of_steps"):
                found[name][f"{key}_over_trl"] = found[name][key] / found["TRL"][key]
    return found


def prepare(folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """The files of a round; returns its plan."""
    lines = (
        tasks(options.task, options.batch * options.steps, 2 * seed + 1),
        tasks(options.task, HELD_OUT, 2 * seed + 2),
    )
    for file, items in zip(("train", "valid"), lines, strict=True):
        text = "\n".join(json.dumps(item) for item in items)
        (folder / f"{file}.jsonl").write_text(text)
    plan = vars(options) | {
        "folder": str(folder), "model": str(resolve_model(options.model)), "grader": GRADER,
        "rank": RANK, "json": None, "plan": None,
        "warmup": min(max(options.steps // 20, 1), 10),
    }  # fmt: skip
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="hagane-mini")
    parser.add_argument("--trl", help="an interpreter with trl and peft")
    parser.add_argument("--task", choices=("sums", "digits"), default="sums")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=240.0, help="of a side in a round")
    parser.add_argument("--until", type=float, default=0.9, help="reward that ends a side")
    parser.add_argument("--steps", type=int, default=40, help="over which the rate falls")
    parser.add_argument("--batch", type=int, default=8, help="tasks of a step")
    parser.add_argument("--group", type=int, default=8, help="answers to a task")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--quantize", default="none", help="Hagane's base")
    parser.add_argument("--threads", type=int, default=len(usable_cores()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        run_hagane(json.loads(options.plan.read_text()))
        return
    sides: list[Side] = []

    def keep() -> None:
        if options.json:
            runs = [vars(side) for side in sides]
            text = json.dumps({"runs": runs, "totals": compare(sides)}, indent=1)
            options.json.write_text(text + "\n")

    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            file = str(prepare(Path(name), options, number))
            commands = {"Hagane": [sys.executable, __file__, "--plan", file]}
            if options.trl:
                peer = Path(__file__).with_name("peer_trl_grpo.py")
                commands["TRL"] = [options.trl, str(peer), file]
            for side, command in commands.items():
                sides.append(Side(side, number + 1))
                sides[-1].run(command, keep)
    keep()
    print(json.dumps(compare(sides), indent=2))


if __name__ == "__main__":
    main()
