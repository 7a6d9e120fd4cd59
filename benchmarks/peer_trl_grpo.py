"""Run TRL's GRPO on the tasks of `reinforcement.py`.

Usage: python benchmarks/peer_trl_grpo.py PLAN.json   (prints one JSON object a step)
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

STARTED = time.monotonic()
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Answers in one backward pass; all of a step are generated together.
PART = 16


class Rewards(TrainerCallback):
    """Grades, prints each step as a line of JSON, and ends the run when it is time."""

    __name__ = "sum"

    def __init__(self, plan: dict) -> None:
        scope: dict = {}
        exec(plan["grader"], scope)
        self.grade, self.plan = scope["grade"], plan
        self.rewards: list[float] = []
        self.latest, self.began, self.answered = 0.0, 0.0, 0.0

    def __call__(self, completions: list, item: list[str], **_: object) -> list[float]:
        rewards = [
            self.grade({"output_text": turns[-1]["content"]}, json.loads(own))
            for turns, own in zip(completions, item, strict=True)
        ]
        self.latest, self.answered = mean(rewards), time.monotonic()
        return rewards

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.began = time.monotonic()

    def on_step_end(
        self, _: TrainingArguments, __: TrainerState, control: TrainerControl, **___: object
    ) -> TrainerControl:
        self.rewards.append(self.latest)
        now = time.monotonic()
        print(json.dumps({
            "step": len(self.rewards), "seconds": now - STARTED, "reward": self.latest,
            "answers": self.answered - self.began, "update": now - self.answered,
        }), flush=True)  # fmt: skip
        self.began = now
        won = len(self.rewards) > 1 and mean(self.rewards[-2:]) >= self.plan["until"]
        control.should_training_stop = won or now - STARTED > self.plan["seconds"]
        return control


class SameRates(GRPOTrainer):
    """With Hagane's rates: a linear rise whose first step is not 0, then a cosine."""

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        warmup = self.warmup

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = (step - warmup) / max(num_training_steps - warmup, 1)
            return 0.5 * (1 + math.cos(math.pi * done))

        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)
        return self.lr_scheduler


def run(plan: dict) -> None:
    torch.set_num_threads(plan["threads"])
    lines = (Path(plan["folder"]) / "train.jsonl").read_text().splitlines()
    data = [{"prompt": json.loads(line)["messages"], "item": line} for line in lines]
    rewards = Rewards(plan)
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=torch.bfloat16)
    arguments = GRPOConfig(
        output_dir=str(Path(plan["folder"]) / "trl"), max_steps=plan["steps"],
        per_device_train_batch_size=PART,
        gradient_accumulation_steps=plan["batch"] * plan["group"] // PART,
        num_generations=plan["group"], max_completion_length=plan["tokens"], temperature=1.0,
        beta=0.0, scale_rewards="none", loss_type="dapo", epsilon=0.2, epsilon_high=0.28,
        learning_rate=plan["rate"], max_grad_norm=1.0, bf16=True, use_cpu=True,
        gradient_checkpointing=False, shuffle_dataset=False, save_strategy="no", report_to=[],
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    config = LoraConfig(
        r=plan["rank"], lora_alpha=2 * plan["rank"], target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    trainer = SameRates(
        model=model, reward_funcs=rewards, args=arguments,
        train_dataset=Dataset.from_list(data), peft_config=config, callbacks=[rewards],
        processing_class=AutoTokenizer.from_pretrained(plan["model"]),
    )  # fmt: skip
    trainer.warmup = plan["warmup"]
    trainer.train()


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
